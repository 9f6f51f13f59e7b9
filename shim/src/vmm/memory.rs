//! The guest's memory: one file that the VMM and the vhost-user daemons map.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// A new file of this many bytes, all zero, none of them held yet.
///
/// It is made of huge pages where the host can give them: a guest that starts touches tens of
/// megabytes, and of 4 KiB pages each one is a fault that the host handles. memfd_create(2) gives such
/// pages only where the host was told to (`shmem_enabled`); a tmpfs decides for itself (`huge=within_size`
/// in the kernel's transhuge.rst). It is mounted nowhere, and ends with its only file.
///
/// # Errors
/// What the kernel says.
pub fn file(bytes: u64) -> io::Result<OwnedFd> {
    let file = match on_tmpfs(bytes) {
        Ok(file) => file,
        // A kernel without huge pages for files, or from before 5.2.
        Err(_) => memfd_create("guest-memory", MemfdFlags::CLOEXEC)?,
    };
    ftruncate(&file, bytes)?;
    Ok(file)
}

fn on_tmpfs(bytes: u64) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let size = bytes.to_string();
    for (key, value) in [("huge", "within_size"), ("size", &size), ("mode", "0700")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    openat(&root, "memory", flags, Mode::RUSR | Mode::WUSR)
}

/// The path by which a process opens a descriptor that it has inherited (proc_pid_fd(5)).
pub fn path(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn memory_is_zero_and_held_only_when_it_is_touched() {
        let file = File::from(file(64 << 20).expect("a file"));
        let metadata = file.metadata().expect("stat");
        assert_eq!((metadata.len(), metadata.blocks()), (64 << 20, 0));
        let mut start = [1; 16];
        (&file).read_exact(&mut start).expect("read");
        assert_eq!(start, [0; 16]);
    }
}
