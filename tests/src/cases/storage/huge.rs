//! Huge pages, which a container was promised.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use super::share::probe;
use crate::bed::Test;
use crate::cases::api::shim_of;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::runner::Case;
use crate::shim::Shim;
use crate::spec;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "storage.huge_pages",
        "a container has the huge pages that it was promised, and their volume",
        promised,
    ),
    Case::bulkhead("storage.huge_refused", "more of them than the guest has are refused", refused),
];

/// A volume as the kubelet makes it (`medium: HugePages`). Dropping it takes it away.
struct Volume(PathBuf);

impl Volume {
    fn new(t: &Test<'_>) -> Outcome<Volume> {
        let path = t.directory()?.join("kubernetes.io~empty-dir").join("huge");
        std::fs::create_dir_all(&path)?;
        let options = Some("pagesize=2M,mode=770,gid=2000");
        mount(Some("nodev"), &path, Some("hugetlbfs"), MsFlags::empty(), options)?;
        Ok(Volume(path))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A shim with a container that is promised so much.
fn shim(t: &Test<'_>, volume: &Path, bytes: u64, args: &[&str]) -> Outcome<Shim> {
    let probe = probe(t);
    let change = |spec: &mut Value| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(spec::mount("/huge", "bind", &volume.to_string_lossy(), &["rbind"]));
            mounts.push(spec::mount("/probe", "bind", &probe.to_string_lossy(), &["rbind", "ro"]));
        }
        spec["linux"]["resources"]["hugepageLimits"] =
            json!([{"pageSize": "2MB", "limit": bytes}, {"pageSize": "1GB", "limit": 0}]);
    };
    shim_of(t, change, args)
}

fn promised(t: &Test<'_>) -> Outcome {
    let volume = Volume::new(t)?;
    let script = "test \"$(stat -c '%a %g' /huge)\" = '770 2000' && grep -q 'HugePages_Total: *2$' /proc/meminfo \
                  && exec /probe huge /huge";
    let shim = shim(t, &volume.0, 4 << 20, &["sh", "-c", script])?;
    shim.create()?;
    shim.start_process("")?;
    let status = shim.wait("")?.exit_status;
    ensure!(status == 0, "the probe says {status}");
    ensure!(std::fs::read_dir(&volume.0)?.next().is_none(), "the host has its files");
    shim.shutdown()?;
    Ok(())
}

fn refused(t: &Test<'_>) -> Outcome {
    let volume = Volume::new(t)?;
    let shim = shim(t, &volume.0, 1 << 40, &["true"])?;
    let Err(refusal) = shim.create() else {
        return Err(Failure::new("a terabyte of huge pages was not refused"));
    };
    let (first, last) = ("the guest has memory for ", "524288 are wanted: a larger io");
    ensure!(refusal.message.contains(first) && refusal.message.contains(last), "{refusal:?}");
    shim.shutdown()?;
    Ok(())
}
