//! Copies of the volumes that the kubelet writes with its AtomicWriter: configMap, secret, downwardAPI, projected.
//!
//! ```text
//! ..2026_11_22_10_00_00.123/key    one generation of the content
//! ..data -> ..2026_11_22_10_00_00.123
//! key -> ..data/key
//! ```
//! The kubelet writes a new generation beside the old one and then switches `..data` by a rename. A guest sees that
//! through the share, and inotify in the guest does not; on a copy in the guest's memory the same rename is one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use bulkhead_protocols::VOLUME_DATA;
use bulkhead_protocols::agent::{RefreshRequest, Volume};

use crate::error::{Error, Result};
use crate::sys::lock;

/// Held while a copy is made or changed.
static TURN: Mutex<()> = Mutex::new(());

/// The name under which a link waits to take the other's place.
const NEXT: &str = "..data_tmp";

/// Copies a volume whole.
///
/// # Errors
/// [`Error::Internal`] with what could not be read or written.
pub fn copy(volume: &Volume) -> Result<()> {
    let (source, target) = (Path::new(&volume.source), Path::new(&volume.target));
    let copied = fs::create_dir_all(target).and_then(|()| {
        let metadata = source.metadata()?;
        chown(target, Some(metadata.uid()), Some(metadata.gid()))?;
        let name = generation(source)?;
        switch(source, target, &name).or_else(|error| match generation(source)? {
            // The kubelet has taken it away meanwhile.
            newer if newer != name => switch(source, target, &newer),
            _ => Err(error),
        })?;
        // Last, or its owner's rights would be in the way.
        fs::set_permissions(target, metadata.permissions())
    });
    copied
        .map_err(|error| Error::io(format_args!("cannot copy the volume {}", volume.source), error))
}

/// Makes the copy what the volume has become: a generation of this name.
///
/// # Errors
/// [`Error::InvalidArgument`] for a name that is none, [`Error::Internal`] with what could not be read or written.
pub fn refresh(request: &RefreshRequest) -> Result<()> {
    let volume = request.volume.get_or_default();
    let (source, target) = (Path::new(&volume.source), Path::new(&volume.target));
    let name = Path::new(&request.data);
    if !is_name(name) {
        return Err(Error::InvalidArgument(format!(
            "{:?} is no name of a directory",
            request.data
        )));
    }
    switch(source, target, name).map_err(|error| {
        Error::io(format_args!("cannot follow the volume {}", volume.source), error)
    })
}

fn is_name(path: &Path) -> bool {
    matches!(path.components().collect::<Vec<_>>()[..], [Component::Normal(_)])
}

/// The name of the directory in which the volume's content is.
fn generation(volume: &Path) -> io::Result<PathBuf> {
    let name = fs::read_link(volume.join(VOLUME_DATA))?;
    if is_name(&name) { Ok(name) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn switch(source: &Path, target: &Path, name: &Path) -> io::Result<()> {
    // One that the host has given up may still be on its way.
    let _turn = lock(&TURN);
    let data = target.join(VOLUME_DATA);
    if fs::read_link(&data).ok().as_deref() != Some(name) {
        let generation = target.join(name);
        // What is left of an attempt that failed.
        let _ = fs::remove_dir_all(&generation);
        copy_entry(&source.join(name), &generation)?;
        let next = target.join(NEXT);
        let _ = fs::remove_file(&next);
        symlink(name, &next)?;
        fs::rename(&next, &data)?;
    }
    // The links that lead into it, and nothing else. What the source has of them is the kubelet's work in progress: it
    // makes them after the switch.
    let (wanted, had) = (names(&target.join(name))?, names(target)?);
    for link in wanted.difference(&had) {
        symlink(Path::new(VOLUME_DATA).join(link), target.join(link))?;
    }
    for stale in had.difference(&wanted).filter(|&had| had != VOLUME_DATA && had != name) {
        let stale = target.join(stale);
        let is_dir = stale.symlink_metadata()?.is_dir();
        if is_dir { fs::remove_dir_all(stale) } else { fs::remove_file(stale) }?;
    }
    Ok(())
}

fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

fn copy_content(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy_entry(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

/// Copies a file, a link, or a directory with all in it; what is neither is left out.
fn copy_entry(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = from.symlink_metadata()?;
    let (uid, gid) = (Some(metadata.uid()), Some(metadata.gid()));
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, uid, gid);
    }
    // For nobody's eyes until it has its owner.
    if metadata.is_dir() {
        DirBuilder::new().mode(0o700).create(to)?;
        copy_content(from, to)?;
    } else if metadata.is_file() {
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut File::open(from)?, &mut new)?;
    } else {
        return Ok(());
    }
    chown(to, uid, gid)?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host(PathBuf);

    impl Host {
        fn new(name: &str) -> Self {
            let root =
                std::env::temp_dir().join(format!("bulkhead-volume-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("source")).unwrap();
            Self(root)
        }

        fn volume(&self) -> Volume {
            let path = |name: &str| self.0.join(name).display().to_string();
            Volume { source: path("source"), target: path("target"), ..Default::default() }
        }

        /// What the kubelet does first.
        fn write(&self, generation: &str, files: &[(&str, &str)]) {
            let source = self.0.join("source");
            fs::create_dir(source.join(generation)).unwrap();
            for (name, content) in files {
                fs::write(source.join(generation).join(name), content).unwrap();
            }
            symlink(generation, source.join(NEXT)).unwrap();
            fs::rename(source.join(NEXT), source.join(VOLUME_DATA)).unwrap();
        }

        /// What it does a moment later.
        fn link(&self, names: &[&str]) {
            let source = self.0.join("source");
            for name in names {
                symlink(Path::new(VOLUME_DATA).join(name), source.join(name)).unwrap();
            }
        }

        fn refresh(&self, data: &str) -> Result<()> {
            refresh(&RefreshRequest {
                volume: Some(self.volume()).into(),
                data: data.to_owned(),
                ..Default::default()
            })
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.0.join("target").join(name)).ok()
        }
    }

    impl Drop for Host {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_copy_follows_its_volume() {
        let host = Host::new("follow");
        host.write("..1", &[("a", "one"), ("b", "stays")]);
        // A copy of the time between the two.
        copy(&host.volume()).unwrap();
        assert_eq!(host.read("a").as_deref(), Some("one"));
        host.link(&["a", "b"]);
        host.refresh("..1").unwrap();
        assert_eq!(host.read("a").as_deref(), Some("one"));

        host.write("..2", &[("b", "stays"), ("c", "new")]);
        // An attempt before this one has failed half-way.
        fs::create_dir(host.0.join("target/..2")).unwrap();
        host.refresh("..2").unwrap();
        host.refresh("..2").unwrap();
        let names = names(&host.0.join("target")).unwrap();
        assert_eq!(names, ["..2", "..data", "b", "c"].map(OsString::from).into());
        assert_eq!(host.read("b").as_deref(), Some("stays"));
        assert_eq!(host.read("c").as_deref(), Some("new"));
    }

    #[test]
    fn a_generation_is_a_name() {
        let host = Host::new("name");
        host.write("..1", &[]);
        copy(&host.volume()).unwrap();
        for bad in ["", "..", "a/b", "/etc", "."] {
            assert!(matches!(host.refresh(bad), Err(Error::InvalidArgument(_))), "{bad}");
        }
        assert!(matches!(host.refresh("..gone"), Err(Error::Internal(_))));
    }
}
