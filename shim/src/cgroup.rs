//! The sandbox's control group on the host: whatever runs for a pod, this process too, counts as the pod's.
//!
//! The path is the one of the spec (`linux.cgroupsPath`, OCI `config-linux.md`), in either form that containerd writes:
//! a path below each hierarchy's root, or `slice:prefix:name` for hosts on which systemd keeps the tree.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Controllers that count or limit what a sandbox uses. Others of cgroup v1 are left alone: a cpuset, say, takes no
/// process before it was told on which processors.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

/// The files of a limit on memory: cgroup v2's, and v1's.
const LIMITS: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];

/// How long processes that were killed may take to leave, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// A control group that this process has joined. Dropping it leaves and removes it.
#[derive(Debug)]
pub struct Cgroup {
    /// A directory in each hierarchy, and the one that was left for it.
    joined: Vec<(PathBuf, PathBuf)>,
}

impl Cgroup {
    /// Makes the group and joins it. What is started from now on is in it.
    ///
    /// # Errors
    /// With the directory; this process is where it was then.
    pub fn join(path: &str) -> io::Result<Self> {
        let below = below_root(path).ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidInput, format!("{path:?} is no cgroup's path"))
        })?;
        let mut cgroup = Self { joined: Vec::new() };
        for (root, old) in roots()? {
            let dir = root.join(&below);
            let failed = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", dir.display()))
            };
            fs::create_dir_all(&dir).map_err(failed)?;
            // Whatever follows, it is to be removed.
            cgroup.joined.push((dir.clone(), old));
            enter(&dir, std::process::id()).map_err(failed)?;
        }
        Ok(cgroup)
    }

    /// Moves another process into it, with all that it will start. Memory that it has by now stays counted elsewhere.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self, pid: u32) -> io::Result<()> {
        self.joined.iter().try_for_each(|(dir, _)| enter(dir, pid))
    }

    /// Its directories, for whoever must remove it.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.joined.iter().map(|(dir, _)| dir.clone()).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for (dir, old) in &self.joined {
            // If that is gone by now, this process stays here, and with it the group.
            let _ = enter(old, std::process::id());
            remove(dir);
        }
    }
}

/// Removes a group's directory, unless whoever is still in it is none of the sandbox's.
pub fn remove(dir: &Path) {
    // A process that was killed leaves when its parent has heard of it. cgroup v1 tells nobody.
    let deadline = Instant::now() + PATIENCE;
    while fs::remove_dir(dir).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
        && Instant::now() < deadline
    {
        std::thread::sleep(PAUSE);
    }
}

/// How many bytes of memory the group of this path may use, by its own limit or by one above it; none if it is not
/// limited, or not known. The group need not be there.
pub fn memory_limit(path: &str) -> Option<u64> {
    let below = below_root(path)?;
    let limits = roots().ok()?.into_iter().flat_map(|(root, _)| {
        let groups: Vec<PathBuf> = below.ancestors().map(|group| root.join(group)).collect();
        groups.into_iter().flat_map(|dir| LIMITS.map(|name| dir.join(name)))
    });
    limits.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

/// Moves a process.
fn enter(dir: &Path, pid: u32) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), pid.to_string())
}

/// The group's path below the root of a hierarchy; none for one that leads elsewhere.
fn below_root(path: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = path.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] => {
            let mut all = PathBuf::new();
            let stem = slice.strip_suffix(".slice")?;
            // The slice a-b.slice lies in a.slice.
            for (end, _) in stem.match_indices('-') {
                all.push(format!("{}.slice", &stem[..end]));
            }
            all.join(slice).join(format!("{prefix}-{name}.scope"))
        }
        [path] => PathBuf::from(path.trim_start_matches('/')),
        _ => return None,
    };
    let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (plain && !path.as_os_str().is_empty()).then_some(path)
}

/// The hierarchies of this host, as this process sees them.
fn roots() -> io::Result<Vec<(PathBuf, PathBuf)>> {
    // Names of mounts may be any bytes; those of hierarchies are text.
    let text = |path| fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(hierarchies(&text("/proc/self/mountinfo")?, &text("/proc/self/cgroup")?))
}

/// The hierarchies to join: the root of each, and where this process is in it. `mounts` is a process's mountinfo
/// (proc(5)), `own` its cgroup file (cgroups(7)).
fn hierarchies(mounts: &str, own: &str) -> Vec<(PathBuf, PathBuf)> {
    let own: Vec<(&str, &str)> = own
        .lines()
        .filter_map(|line| line.split_once(':').and_then(|(_, rest)| rest.split_once(':')))
        .collect();
    let counted =
        |controllers: &str| controllers.split(',').any(|name| CONTROLLERS.contains(&name));
    let is_v1 = own.iter().any(|(controllers, _)| counted(controllers));
    let mut found: Vec<(PathBuf, PathBuf)> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' '), right.split(' '));
        let (Some(root), Some(fstype), Some(options)) = (left.nth(4), right.next(), right.nth(1))
        else {
            continue;
        };
        let here = own.iter().find(|(controllers, _)| match fstype {
            "cgroup" => {
                counted(controllers)
                    && controllers.split(',').all(|name| options.split(',').any(|o| o == name))
            }
            // Beside v1 it has no controllers.
            "cgroup2" => controllers.is_empty() && !is_v1,
            _ => false,
        });
        if let Some((_, path)) = here
            && !found.iter().any(|(known, _)| known == Path::new(root))
        {
            let old = Path::new(root).join(path.trim_start_matches('/'));
            found.push((PathBuf::from(root), old));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_path_are_known() {
        for (path, below) in [
            ("/kubepods/pod1/c1", Some("kubepods/pod1/c1")),
            (
                "a-b-c.slice:cri-containerd:c1",
                Some("a.slice/a-b.slice/a-b-c.slice/cri-containerd-c1.scope"),
            ),
            ("", None),
            ("/", None),
            ("/a/../../b", None),
            ("a:b", None),
            ("a:b:c", None),
        ] {
            assert_eq!(below_root(path).as_deref(), below.map(Path::new), "{path}");
        }
    }

    #[test]
    fn one_hierarchy_is_joined_whole() {
        let mounts = "30 27 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = hierarchies(mounts, "0::/system.slice/containerd.service\n");
        let old = PathBuf::from("/sys/fs/cgroup/system.slice/containerd.service");
        assert_eq!(found, [(PathBuf::from("/sys/fs/cgroup"), old)]);
    }

    #[test]
    fn of_several_hierarchies_those_that_count_are_joined() {
        let mounts = "31 27 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 27 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      33 27 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      34 27 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/x\n3:cpuset:/\n2:cpu,cpuacct:/\n0::/\n";
        let roots: Vec<_> = hierarchies(mounts, own).into_iter().map(|(root, _)| root).collect();
        assert_eq!(
            roots,
            [Path::new("/sys/fs/cgroup/cpu,cpuacct"), Path::new("/sys/fs/cgroup/memory")]
        );
    }
}
