//! Huge pages: the guest has them in its own memory, where a container is promised some.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bulkhead_protocols::{SHARED_DIR, agent};
use oci_spec::runtime::{Linux, Mount};
use rustix::fs::fstatfs;

use super::error::{SpecError, refused};
use crate::storage::host::{self, HUGETLBFS};
use crate::sys::short_name;

/// Makes `mount` one of the guest's, if what it shows is a hugetlbfs of the host (`medium: HugePages`), and says what
/// the guest is to mount for it: one with pages of the same size, and the same for all containers that name that one.
pub fn volume(mount: &mut Mount, shown: &OwnedFd) -> Option<agent::Mount> {
    let source = mount.source().clone()?;
    let kind = fstatfs(shown).ok()?;
    // A part of one (`subPath`) would be another one in the guest.
    if kind.f_type != HUGETLBFS || host::mounted_at(&source)? != Path::new("/") {
        return None;
    }
    let root = fs::metadata(host::by_descriptor(shown)).ok()?;
    let target = format!("{SHARED_DIR}/{}", short_name(&[&source.to_string_lossy()]));
    mount.set_source(Some(PathBuf::from(&target)));
    Some(agent::Mount {
        source: "hugetlbfs".to_owned(),
        target,
        fstype: "hugetlbfs".to_owned(),
        options: vec![
            format!("pagesize={}", kind.f_bsize),
            format!("mode={:o}", root.permissions().mode() & 0o7777),
            format!("uid={},gid={}", root.uid(), root.gid()),
        ],
        ..Default::default()
    })
}

/// The pages that a container was promised.
///
/// # Errors
/// [`SpecError::Refused`] for a size that is none.
pub fn promised(linux: &Linux) -> Result<Vec<agent::HugePages>, SpecError> {
    let resources = linux.resources().iter();
    let limits = resources.flat_map(|resources| resources.hugepage_limits().iter().flatten());
    let mut promised = Vec::new();
    for (index, limit) in limits.enumerate() {
        let Some(size) = size(limit.page_size()) else {
            let field = format!("linux.resources.hugepageLimits[{index}].pageSize");
            return Err(refused(field, "it must be a number with KB, MB or GB"));
        };
        let count = u64::try_from(limit.limit()).unwrap_or(0).div_ceil(size);
        if count > 0 {
            promised.push(agent::HugePages { size, count, ..Default::default() });
        }
    }
    Ok(promised)
}

/// The runtime specification's `<size><unit-prefix>B`, in bytes.
fn size(text: &str) -> Option<u64> {
    let units = [("KB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    number.parse::<u64>().ok()?.checked_mul(*unit).filter(|size| size.is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_is_counted_in_pages() {
        let linux = |limits: serde_json::Value| -> Linux {
            let linux = serde_json::json!({ "resources": { "hugepageLimits": limits } });
            serde_json::from_value(linux).unwrap()
        };
        let limit = |size: &str, limit: u64| serde_json::json!({"pageSize": size, "limit": limit});
        let both = linux(serde_json::json!([
            limit("2MB", (4 << 20) + 1),
            limit("1GB", 0),
            limit("64KB", 0)
        ]));
        let found = promised(&both).unwrap();
        let found: Vec<_> = found.iter().map(|pages| (pages.size, pages.count)).collect();
        assert_eq!(found, [(2 << 20, 3)]);
        assert!(promised(&linux(serde_json::json!([limit("2MB", 0)]))).unwrap().is_empty());
        for wrong in ["2MiB", "3MB", "MB", "2", ""] {
            let error = promised(&linux(serde_json::json!([limit(wrong, 1)]))).unwrap_err();
            assert!(error.to_string().contains("hugepageLimits[0].pageSize"), "{error}");
        }
    }
}
