//! The spec's mounts: what is missing in libcontainer's handling of them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use libcontainer::oci_spec::runtime::{Mount, Spec};
use libcontainer::rootfs::utils::parse_mount;

use super::rootfs::Rootfs;
use crate::error::{Error, Result};

/// Flags of mount(2) that libcontainer does not know, and that change nothing of what a container has mounted.
const WITHOUT_EFFECT: [&str; 8] =
    ["acl", "noacl", "silent", "loud", "iversion", "noiversion", "lazytime", "nolazytime"];

/// Adapts the mounts to what runc makes of them, where that can be said in the spec.
///
/// # Errors
/// A bind mount with options that are a file system's, which the kernel would not heed.
pub fn adapt(spec: &mut Spec) -> Result<()> {
    // Without a root libcontainer has an error to tell.
    let Some(Ok(rootfs)) = spec.root().as_ref().map(|root| Rootfs::open(root.path())) else {
        return Ok(());
    };
    if rootfs.is_link(Path::new("/dev")) {
        // libcontainer makes links in it, by its path, before it enters the root.
        return Err(Error::InvalidArgument(
            "the root file system's /dev is a symbolic link".to_owned(),
        ));
    }
    let Some(mut mounts) = spec.mounts().clone() else {
        return Ok(());
    };
    for index in 0..mounts.len() {
        let (earlier, later) = mounts.split_at_mut(index);
        let Some(mount) = later.first_mut() else { break };
        if mount.destination().is_relative() {
            let absolute = Path::new("/").join(mount.destination());
            mount.set_destination(absolute);
        }
        if mount.source().is_none() {
            mount.set_source(mount.typ().clone().map(PathBuf::from));
        }
        if rootfs.place(mount.destination()).is_err() {
            mount.set_destination(rootfs.followed(mount.destination()));
        }
        keep_mode(&rootfs, earlier, mount);
        adapt_options(mount)?;
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Says the options in libcontainer's words.
fn adapt_options(mount: &mut Mount) -> Result<()> {
    if let Some(options) = mount.options_mut() {
        options.retain(|option| !WITHOUT_EFFECT.contains(&option.as_str()));
    }
    // libcontainer knows it for a mount with all that is below it only.
    let options = mount.options_mut().iter_mut().flatten();
    options
        .filter(|option| *option == "nosymfollow")
        .for_each(|option| *option = "rnosymfollow".to_owned());
    // The kernel does not heed them, or libcontainer shows more than it should when that refuses them.
    let takes_none = is_bind(mount) || mount.typ().as_deref() == Some("cgroup");
    if let Ok(parsed) = parse_mount(mount)
        && takes_none
        && !parsed.data.is_empty()
    {
        let place = mount.destination().display();
        let unknown = parsed.data.join(",");
        return Err(Error::InvalidArgument(format!(
            "mounts: the mount on {place} cannot have the options {unknown}"
        )));
    }
    Ok(())
}

/// A tmpfs on a directory takes over its mode, unless the spec says one. An earlier bind mount may bring the directory.
fn keep_mode(rootfs: &Rootfs, earlier: &[Mount], mount: &mut Mount) {
    let mut options = mount.options().clone().unwrap_or_default();
    if mount.typ().as_deref() != Some("tmpfs")
        || is_bind(mount)
        || options.iter().any(|option| option.starts_with("mode="))
    {
        return;
    }
    let place = clean(mount.destination());
    let below = |above: &Mount| place.strip_prefix(clean(above.destination())).map(Path::to_owned);
    let above = earlier.iter().rev().filter_map(|above| Some((above, below(above).ok()?)));
    let directory = match above.min_by_key(|(_, rest)| rest.components().count()) {
        None => rootfs.directory(&place).ok(),
        Some((above, rest)) => {
            let source = above.source().as_ref().filter(|_| is_bind(above));
            let source = source.and_then(|source| Rootfs::open(source).ok());
            source.and_then(|source| source.directory(&rest).ok())
        }
    };
    let Some(metadata) = directory.and_then(|directory| directory.metadata().ok()) else {
        return;
    };
    options.push(format!("mode={:o}", metadata.permissions().mode() & 0o7777));
    mount.set_options(Some(options));
}

/// Whether a mount shows what is mounted or stored elsewhere.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// A path inside the container without `.`, `..` and what is double.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_inside_the_container() {
        for (path, cleaned) in
            [("/a/./b//c/", "/a/b/c"), ("/../../x", "/x"), ("x/..", "/"), ("dev", "/dev")]
        {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned));
        }
    }

    #[test]
    fn bind_mounts_are_told_by_type_or_option() {
        for (json, bind) in [
            (r#"{"destination":"/x","type":"bind"}"#, true),
            (r#"{"destination":"/x","type":"none","options":["rbind"]}"#, true),
            (r#"{"destination":"/x","type":"tmpfs","options":["size=1m"]}"#, false),
        ] {
            assert_eq!(is_bind(&serde_json::from_str(json).unwrap()), bind, "{json}");
        }
    }

    #[test]
    fn a_tmpfs_keeps_the_mode_of_its_directory() {
        let root = std::env::temp_dir().join(format!("bulkhead-mounts-{}", std::process::id()));
        std::fs::create_dir_all(root.join("data")).unwrap();
        std::fs::set_permissions(root.join("data"), PermissionsExt::from_mode(0o750)).unwrap();
        let mut adapted = Vec::new();
        for json in [
            r#"{"destination":"/data","type":"tmpfs"}"#,
            r#"{"destination":"/data","type":"tmpfs","options":["mode=700"]}"#,
            r#"{"destination":"/other","type":"tmpfs"}"#,
            r#"{"destination":"/vol/data","type":"tmpfs"}"#,
            r#"{"destination":"/vol/other","type":"tmpfs"}"#,
        ] {
            let mut mount: Mount = serde_json::from_str(json).unwrap();
            let bind = format!(r#"{{"destination":"/vol","source":{root:?},"type":"bind"}}"#);
            let earlier = [serde_json::from_str(&bind).unwrap()];
            keep_mode(&Rootfs::open(&root).unwrap(), &earlier, &mut mount);
            adapted.push(mount.options().clone().unwrap_or_default().join(","));
        }
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(adapted, ["mode=750", "mode=700", "", "mode=750", ""]);
    }
}
