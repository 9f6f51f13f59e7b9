//! What root in a guest tries with the files of its host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use bulkhead_protocols::SHARE_TAG;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where the share is mounted.
const SHARE: &str = "/share";

/// What the first and the second bind mount of the container's are: its own, and one that it may only read.
const OWN: &str = "/share/.binds/0";
const OTHER: &str = "/share/.binds/1";

/// Tries everything, and writes into the container's own directory what has worked.
pub fn run(container: &str) -> io::Result<()> {
    fs::create_dir_all(SHARE)?;
    mount(Some(SHARE_TAG), SHARE, Some("virtiofs"), MsFlags::empty(), None::<&str>)?;
    let top = Path::new(SHARE);
    let mut said = String::from("tried\n");
    let mut note = |what: &str, done: io::Result<()>| match done {
        Ok(()) => said += &format!("worked: {what}\n"),
        Err(error) => said += &format!("{what}: {error}\n"),
    };
    let places = [top.to_owned(), top.join(".binds"), top.join(container)];
    for place in &places {
        let name = place.display();
        note(&format!("file in {name}"), File::create(place.join("new")).map(drop));
        note(&format!("directory in {name}"), fs::create_dir(place.join("new")));
        note(&format!("link in {name}"), symlink("../../../../../../etc", place.join("new")));
        note(
            &format!("mode of {name}"),
            fs::set_permissions(place, fs::Permissions::from_mode(0o777)),
        );
    }
    for (from, to) in [(".binds", "moved"), (container, "moved"), (".binds/0", ".binds/9")] {
        note(&format!("rename of {from}"), fs::rename(top.join(from), top.join(to)));
    }
    note("removal of .binds/1", umounted(OTHER).and_then(|()| fs::remove_dir(OTHER)));
    note("link to a file of another mount", fs::hard_link(other(), Path::new(OWN).join("hard")));
    note("write to a file that is read-only", write());
    let again = mount(None::<&str>, SHARE, None::<&str>, MsFlags::MS_REMOUNT, None::<&str>);
    note("write after a remount", again.map_err(Into::into).and_then(|()| write()));
    note("file after a remount", File::create(top.join("new")).map(drop));
    fs::write(Path::new(OWN).join("said"), said)
}

fn other() -> PathBuf {
    Path::new(OTHER).join("file")
}

fn umounted(path: &str) -> io::Result<()> {
    // Not mounted is fine, too.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    Ok(())
}

fn write() -> io::Result<()> {
    OpenOptions::new().write(true).open(other())?.write_all(b"changed")
}
