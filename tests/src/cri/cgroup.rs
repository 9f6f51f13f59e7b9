//! A pod's cgroup, which the kubelet makes before the pod and removes after it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure, Outcome};
use crate::leftovers::entries;

/// Where cgroups are mounted: one hierarchy (v2), or a directory for each (v1).
const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup in every hierarchy that the host has.
pub struct PodCgroup {
    /// Its path below a hierarchy's root, as `cgroup_parent` takes it.
    pub path: String,
}

impl PodCgroup {
    /// A new one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(name: &str) -> Outcome<Self> {
        let cgroup = Self { path: format!("/{name}") };
        for (root, dir) in hierarchies().into_iter().map(|root| (root.clone(), root.join(name))) {
            fs::create_dir(&dir).context(dir.display())?;
            // A cpuset of v1 is empty at first; v2 hands controllers down only where it is told to.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if dir.join("tasks").exists() && dir.join(file).exists() {
                    fs::write(dir.join(file), fs::read(root.join(file))?)?;
                }
            }
            if root == Path::new(ROOT) {
                for dir in [&root, &dir] {
                    fs::write(dir.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
                }
            }
        }
        Ok(cgroup)
    }

    /// How many bytes of memory its processes hold.
    ///
    /// # Errors
    /// The kernel doesn't count them.
    pub fn memory(&self) -> Outcome<u64> {
        let name = self.path.trim_start_matches('/');
        let files = hierarchies().into_iter().flat_map(|root| {
            ["memory.current", "memory.usage_in_bytes"].map(|file| root.join(name).join(file))
        });
        let file = files.into_iter().find(|file| file.exists());
        let file = file.ok_or_else(|| Failure::new("no hierarchy counts memory"))?;
        Ok(fs::read_to_string(file)?.trim().parse()?)
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        for root in hierarchies() {
            remove(&root.join(self.path.trim_start_matches('/')));
        }
    }
}

/// Where a container's cgroup is when its pod has none.
pub fn of_container(id: &str) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|root| root.join("k8s.io").join(id)).collect()
}

/// The roots of all hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    let all = entries(root).into_iter();
    all.filter(|dir| dir.join("cgroup.procs").exists() && !dir.is_symlink()).collect()
}

/// A cgroup's files are the kernel's: only directories are removed, the inner ones first.
fn remove(dir: &Path) {
    for inner in entries(dir).into_iter().filter(|entry| entry.is_dir()) {
        remove(&inner);
    }
    // One with a process in it shows as a leftover.
    let _ = fs::remove_dir(dir);
}
