//! `/dev/shm`: one file system for all containers of a pod, in the guest's own memory.
//!
//! containerd makes it on the host, where memory that two programs share would go through the file server.

use std::path::{Path, PathBuf};

use bulkhead_protocols::{SHARED_DIR, agent};
use oci_spec::runtime::Mount;
use rustix::fs::fstatfs;

use crate::storage::host::{self, TMPFS};
use crate::sys::short_name;

/// Where containers expect it.
const SHM: &str = "/dev/shm";

/// What containerd gives a pod that asks for nothing else: 64 MiB.
const DEFAULT_SIZE: &str = "65536k";

/// Makes `mount` one of the guest's, if it is the pod's `/dev/shm`, and says what the guest is to mount for it: as
/// large as the one on the host, and the same for all containers that name that one.
pub fn of_pod(mount: &mut Mount) -> Option<agent::Mount> {
    if mount.destination() != Path::new(SHM) {
        return None;
    }
    let source = mount.source().clone().unwrap_or_default();
    let options = mount.options().clone().unwrap_or_default();
    let size = if mount.typ().as_deref() == Some("tmpfs") {
        let given = options.iter().find_map(|option| option.strip_prefix("size="));
        given.unwrap_or(DEFAULT_SIZE).to_owned()
    } else {
        size_of_tmpfs(&source)?.to_string()
    };
    let target = format!("{SHARED_DIR}/{}", short_name(&[&source.to_string_lossy()]));
    let kept = options.into_iter().filter(|option| is_flag(option));
    mount.set_options(Some(std::iter::once("rbind".to_owned()).chain(kept).collect()));
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(PathBuf::from(&target)));
    Some(agent::Mount {
        source: "shm".to_owned(),
        target,
        fstype: "tmpfs".to_owned(),
        options: vec!["mode=1777".to_owned(), format!("size={size}")],
        ..Default::default()
    })
}

/// Options that mean the same for a bind mount.
fn is_flag(option: &str) -> bool {
    ["ro", "rw", "nosuid", "nodev", "noexec"].contains(&option)
}

/// In bytes.
fn size_of_tmpfs(path: &Path) -> Option<u64> {
    let status = fstatfs(host::find(path).ok()?).ok()?;
    let block = u64::try_from(status.f_bsize).ok()?;
    (status.f_type == TMPFS).then(|| status.f_blocks.saturating_mul(block)).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(json: serde_json::Value) -> Mount {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_tmpfs_of_the_host_becomes_one_of_the_guest() {
        let on_host = serde_json::json!({
            "destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "ro"],
        });
        let (mut first, mut second) = (mount(on_host.clone()), mount(on_host));
        let shared = of_pod(&mut first).unwrap();
        assert_eq!(of_pod(&mut second).unwrap().target, shared.target);
        assert_eq!(first.source().as_deref(), Some(Path::new(&shared.target)));
        assert_eq!(first.options().as_deref().unwrap(), ["rbind", "ro"]);
        assert!(shared.options.iter().any(|option| option.starts_with("size=")), "{shared:?}");
    }

    #[test]
    fn a_tmpfs_of_the_spec_is_shared_in_its_size() {
        let mut own = mount(serde_json::json!({
            "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=1m"],
        }));
        assert_eq!(of_pod(&mut own).unwrap().options, ["mode=1777", "size=1m"]);
        assert_eq!(own.options().as_deref().unwrap(), ["rbind", "nosuid", "noexec", "nodev"]);
    }

    #[test]
    fn what_is_no_memory_stays_where_it_is() {
        let mut directory = mount(serde_json::json!({
            "destination": "/dev/shm", "type": "bind", "source": "/etc", "options": ["rbind"],
        }));
        assert!(of_pod(&mut directory).is_none());
        let mut other = mount(serde_json::json!({ "destination": "/tmp", "type": "tmpfs" }));
        assert!(of_pod(&mut other).is_none());
    }
}
