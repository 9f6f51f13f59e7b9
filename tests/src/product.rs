//! The product as the tests configure it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::containerd::{Containerd, Role};
use crate::failure::{Failure, Outcome};
use crate::options::Options;

/// A containerd whose shims find the built kernel and initramfs.
///
/// # Errors
/// It doesn't start.
pub fn containerd(options: &Arc<Options>, role: Role) -> Outcome<Containerd> {
    let containerd = Containerd::start(options, role)?;
    containerd.configure(&config(options, containerd.dir()))?;
    Ok(containerd)
}

/// The number of a sandbox's process in this role, by what `bulkhead inspect` says.
///
/// # Errors
/// There is none.
pub fn process(seen: &Value, role: &str) -> Outcome<i32> {
    let mut all = seen["processes"].as_array().into_iter().flatten();
    let found =
        all.find(|process| process["role"] == role).and_then(|process| process["pid"].as_i64());
    Ok(i32::try_from(found.ok_or_else(|| Failure::new(format!("no {role} in {seen}")))?)?)
}

/// The shim's configuration file for a containerd in `dir`.
pub fn config(options: &Options, dir: &Path) -> String {
    let guest = options.target.join("guest");
    format!(
        "hypervisor = {:?}\nkernel = {:?}\ninitramfs = {:?}\nstate_dir = {:?}\n\
         scratch_dir = {:?}\nscratch_size = \"512MiB\"\nagent_timeout = {}\n",
        options.hypervisor,
        guest.join("vmlinux"),
        guest.join("initramfs.cpio"),
        state_dir(dir),
        disk_dir(dir),
        // A guest takes its time on a slow machine too; the key allows 600 seconds at most.
        (60 * options.patience).min(600),
    )
}

/// Where the shims of a containerd in `dir` keep scratch disks.
pub fn disk_dir(dir: &Path) -> PathBuf {
    dir.join("disks")
}

/// The scratch disk of a sandbox.
pub fn disk(dir: &Path, namespace: &str, id: &str) -> PathBuf {
    disk_dir(dir).join(format!("{namespace}@{id}.scratch-disk"))
}

/// Where the shims of a containerd in `dir` keep their sandboxes.
pub fn state_dir(dir: &Path) -> PathBuf {
    dir.join("s")
}
