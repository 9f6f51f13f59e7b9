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
        let file = self.file(["memory.current", "memory.usage_in_bytes"])?;
        Ok(fs::read_to_string(file)?.trim().parse()?)
    }

    /// Lets its processes have so many bytes of memory, as the kubelet does where all of a pod's containers have limits.
    ///
    /// # Errors
    /// The kernel doesn't limit it.
    pub fn limit_memory(&self, bytes: u64) -> Outcome {
        let file = self.file(["memory.max", "memory.limit_in_bytes"])?;
        Ok(fs::write(file, bytes.to_string())?)
    }

    /// The file with the name that it has in v2, or else in v1.
    fn file(&self, names: [&str; 2]) -> Outcome<PathBuf> {
        let name = self.path.trim_start_matches('/');
        let dirs = hierarchies().into_iter().map(|root| root.join(name));
        let mut files = dirs.flat_map(|dir| names.map(|file| dir.join(file)));
        files.find(|file| file.exists()).ok_or_else(|| Failure::new("no hierarchy counts memory"))
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
