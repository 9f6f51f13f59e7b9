//! What the host has mounted in the share. The kernel mounts it, as a file system of its own, for whoever comes there
//! first, and for him alone: containers see one file system where it was mounted before they got their mounts.

use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;

use nix::mount::{MntFlags, umount2};

use crate::sys::lock;

/// How many containers need each of them.
#[derive(Debug, Default)]
pub struct Submounts(Mutex<HashMap<String, usize>>);

impl Submounts {
    /// Has the kernel mount what a container needs, in their order. One that is gone by now is not missed.
    pub fn enter(&self, directories: &[String]) {
        let mut needed = lock(&self.0);
        directories.iter().for_each(|one| *needed.entry(one.clone()).or_default() += 1);
        // Not held any longer: what is on a dead server must not stop the others.
        drop(needed);
        for directory in directories {
            // Of a file, to look at it is enough.
            let entered =
                fs::read_dir(directory).map(drop).or_else(|_| fs::metadata(directory).map(drop));
            if let Err(error) = entered {
                log::debug!("{directory} cannot be entered: {error}");
            }
        }
    }

    /// Lets go of what a container has needed and nobody else does: the host cannot unmount it else.
    pub fn leave(&self, directories: &[String]) {
        let mut needed = lock(&self.0);
        for directory in directories.iter().rev() {
            let Some(count) = needed.get_mut(directory) else { continue };
            *count -= 1;
            if *count == 0 {
                needed.remove(directory);
                // Where it was not mounted, or is gone with what it was mounted in, there is nothing to do.
                let _ =
                    umount2(directory.as_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_need_is_let_go_with_the_second() {
        let submounts = Submounts::default();
        let both = ["/nowhere/a".to_owned(), "/nowhere/b".to_owned()];
        submounts.enter(&both);
        submounts.enter(&both[..1]);
        submounts.leave(&both);
        assert_eq!(lock(&submounts.0).get("/nowhere/a"), Some(&1));
        submounts.leave(&both[..1]);
        submounts.leave(&both);
        assert!(lock(&submounts.0).is_empty());
    }
}
