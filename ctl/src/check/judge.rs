//! What the facts mean, and what to do about them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_protocols::chain;
use bulkhead_shim::config::{AssetError, list};
use bulkhead_shim::info::RUNTIME;
use bulkhead_shim::storage::virtiofsd;
use bulkhead_shim::version::Version;
use bulkhead_shim::vmm::{KvmProblem, Vmm};

use super::containerd::{CONFIG, Handler};
use super::facts::{Facts, Program, SHIM, Shim, Spare};

/// The first version of the vsock daemon that works.
const OLDEST_VSOCK_DAEMON: Version = Version { major: 0, minor: 3 };

/// The first version of containerd that works.
const OLDEST_CONTAINERD: Version = Version { major: 1, minor: 6 };

/// The first Linux that has mount_setattr(2).
const OLDEST_LINUX: Version = Version { major: 5, minor: 12 };

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Sandboxes run without it.
    Note,
    /// No sandbox runs like this.
    Fail,
}

/// A line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How bad it is.
    pub level: Level,
    /// What it is about.
    pub what: &'static str,
    /// What was found.
    pub says: String,
    /// What to do about it.
    pub advice: Option<String>,
}

const INSTALL: &str = "`make install` puts it there";

fn line(level: Level, what: &'static str, says: impl Into<String>, advice: Option<&str>) -> Line {
    Line { level, what, says: says.into(), advice: advice.map(str::to_owned) }
}

/// Judges a host.
pub fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = Vec::new();
    if !facts.root {
        let advice = "run it as root, as containerd runs the shim";
        lines.push(line(
            Level::Note,
            "user",
            "not root: some of this may look worse than it is",
            Some(advice),
        ));
    }
    lines.push(configuration(facts));
    lines.extend(facts.linux.map(linux));
    lines.push(kvm(facts));
    lines.extend(hypervisors(facts));
    lines.push(program(
        "virtiofsd",
        &facts.virtiofsd,
        virtiofsd::OLDEST,
        Level::Fail,
        "install it: a package of Debian 13 and Fedora; elsewhere `cargo install virtiofsd`",
    ));
    lines.push(image("guest kernel", &facts.kernel));
    lines.push(image("guest initramfs", &facts.initramfs));
    lines.push(shim(&facts.shim));
    lines.extend(spares(&facts.spares));
    lines.push(containerd(facts));
    lines.push(handler(&facts.handler));
    lines
}

/// What a boot has shown: how long it took until all was gone again, or why there was none.
pub fn booted(trial: Result<Duration, String>) -> Line {
    const ADVICE: &str = "no container starts before this does";
    let says = |took: Duration| format!("a guest came and went in {} ms", took.as_millis());
    match trial {
        Ok(took) => line(Level::Ok, "boot", says(took), None),
        Err(error) => line(Level::Fail, "boot", error, Some(ADVICE)),
    }
}

fn configuration(facts: &Facts) -> Line {
    match &facts.config {
        Ok(config) if config.read_from.is_empty() => {
            line(Level::Ok, "configuration", "no file: built-in defaults", None)
        }
        Ok(config) => line(Level::Ok, "configuration", list(&config.read_from), None),
        Err(error) => {
            let advice = "correct it; what follows was looked at with the built-in defaults";
            line(Level::Fail, "configuration", chain(error), Some(advice))
        }
    }
}

fn linux(version: Version) -> Line {
    let old = (version < OLDEST_LINUX).then(|| format!("{OLDEST_LINUX} is the oldest that works"));
    let level = if old.is_some() { Level::Fail } else { Level::Ok };
    line(level, "kernel", format!("Linux {version}"), old.as_deref())
}

fn kvm(facts: &Facts) -> Line {
    let (says, advice) = match &facts.kvm {
        Ok(()) => return line(Level::Ok, "KVM", "usable", None),
        Err(problem @ KvmProblem::NoExtension) => (
            problem.to_string(),
            "guests run by translation, many times slower; switch virtualization on in the \
             firmware, or on a cloud choose a machine with nested virtualization",
        ),
        Err(problem) => {
            (problem.to_string(), "load kvm_intel or kvm_amd, and give root access to /dev/kvm")
        }
    };
    line(Level::Note, "KVM", says, Some(advice))
}

/// The VMMs, each as bad as the choice makes it, and the choice.
fn hypervisors(facts: &Facts) -> Vec<Line> {
    let chosen = facts.selection.as_ref().ok().map(|selection| selection.vmm);
    let level = |vmm| {
        if chosen == Some(vmm) { Level::Fail } else { Level::Note }
    };
    let cloud_hypervisor = program(
        "cloud-hypervisor",
        &facts.cloud_hypervisor,
        Vmm::CloudHypervisor.oldest(),
        level(Vmm::CloudHypervisor),
        "install a release of it; it starts quicker than QEMU and needs KVM",
    );
    let qemu = program(
        "QEMU",
        &facts.qemu,
        Vmm::Qemu.oldest(),
        level(Vmm::Qemu),
        "install it: package qemu-system-x86",
    );
    let daemon = program(
        "vhost-device-vsock",
        &facts.vhost_device_vsock,
        OLDEST_VSOCK_DAEMON,
        level(Vmm::Qemu),
        "QEMU needs it: `cargo install vhost-device-vsock`",
    );
    let choice = match &facts.selection {
        Ok(selection) => line(Level::Ok, "hypervisor", selection.to_string(), None),
        Err(error) => {
            let advice = "install what is missing, or set `hypervisor` to the other one";
            line(Level::Fail, "hypervisor", chain(error), Some(advice))
        }
    };
    vec![cloud_hypervisor, qemu, daemon, choice]
}

/// A program; what is wrong with it is as bad as `level` says.
fn program(
    what: &'static str,
    program: &Program,
    oldest: Version,
    level: Level,
    advice: &str,
) -> Line {
    let (path, version) = match program {
        Ok((path, version)) => (path.display(), version),
        Err(error) => return line(level, what, chain(error), Some(advice)),
    };
    match version {
        Ok(version) if *version < oldest => {
            let says = format!("{path} is version {version}; {oldest} is the oldest that works");
            line(level, what, says, Some(advice))
        }
        Ok(version) => line(Level::Ok, what, format!("{path}, version {version}"), None),
        Err(error) => line(level, what, chain(error), Some("see whether it runs at all")),
    }
}

fn image(what: &'static str, image: &Result<PathBuf, AssetError>) -> Line {
    match image {
        Ok(path) => line(Level::Ok, what, path.display().to_string(), None),
        Err(error) => line(Level::Fail, what, chain(error), Some(INSTALL)),
    }
}

fn shim(shim: &Shim) -> Line {
    match shim {
        Shim::OnPath(path) => line(Level::Ok, "shim", path.display().to_string(), None),
        Shim::Beside(path) => {
            let dir = path.parent().unwrap_or(Path::new("/")).display();
            let advice =
                format!("containerd looks in its own PATH: add {dir} to it, or `make install`");
            let says = format!("{} is not in PATH", path.display());
            line(Level::Note, "shim", says, Some(&advice))
        }
        Shim::Missing => line(Level::Fail, "shim", format!("{SHIM} is not in PATH"), Some(INSTALL)),
    }
}

/// Nothing where none are wanted.
fn spares(spares: &[Spare]) -> Option<Line> {
    let ready = spares.iter().filter(|spare| **spare == Spare::Ready).count();
    let mut says = format!("{ready} of {} wait for a sandbox", spares.len());
    let ended = spares.iter().find_map(|spare| match spare {
        Spare::Ended(word) => Some(word),
        Spare::Ready | Spare::None => None,
    });
    let advice = match ended {
        Some(word) => {
            says += &format!("; one has ended: {word}");
            Some("the next start of a sandbox has it made anew")
        }
        None => (ready < spares.len())
            .then_some("starts of sandboxes have them made, a few seconds later"),
    };
    let level = if advice.is_some() { Level::Note } else { Level::Ok };
    (!spares.is_empty()).then(|| line(level, "spares", says, advice))
}

fn containerd(facts: &Facts) -> Line {
    match &facts.containerd {
        None => {
            let advice = "install it, unless it comes with something else (k3s)";
            line(Level::Note, "containerd", "not in PATH", Some(advice))
        }
        Some((path, Ok(version))) if *version < OLDEST_CONTAINERD => {
            let says = format!("{} is version {version}", path.display());
            let advice = format!("{OLDEST_CONTAINERD} is the oldest that works");
            line(Level::Fail, "containerd", says, Some(&advice))
        }
        Some((path, Ok(version))) => {
            line(Level::Ok, "containerd", format!("{}, version {version}", path.display()), None)
        }
        Some((_, Err(error))) => {
            line(Level::Note, "containerd", chain(error), Some("see whether it runs at all"))
        }
    }
}

fn handler(handler: &Handler) -> Line {
    let needed = format!(
        "only Kubernetes needs one: a runtime with runtime_type = \"{RUNTIME}\" in {CONFIG} or what it imports"
    );
    let (level, says, advice) = match handler {
        Handler::Configured(name) => (Level::Ok, format!("{name} is {RUNTIME}"), None),
        Handler::Absent => (Level::Note, "containerd has none of ours".to_owned(), Some(needed)),
        Handler::Unreadable(why) => (Level::Note, why.clone(), Some(needed)),
    };
    line(level, "runtime handler", says, advice.as_deref())
}

#[cfg(test)]
mod tests {
    use std::io;

    use bulkhead_shim::config::Config;
    use bulkhead_shim::vmm::{Host, Selection};

    use super::*;

    fn there(name: &str, major: u32, minor: u32) -> Program {
        Ok((PathBuf::from(format!("/bin/{name}")), Ok(Version { major, minor })))
    }

    fn missing(name: &'static str) -> AssetError {
        AssetError::NotFound { name, key: "key", looked_in: vec![PathBuf::from("/bin")] }
    }

    fn absent(name: &'static str) -> Program {
        Err(missing(name))
    }

    /// A host on which all is well.
    fn good() -> Facts {
        Facts {
            root: true,
            linux: Some(Version { major: 6, minor: 1 }),
            config: Ok(Config::default()),
            kvm: Ok(()),
            cloud_hypervisor: there("cloud-hypervisor", 53, 0),
            qemu: there("qemu", 7, 2),
            vhost_device_vsock: there("vhost-device-vsock", 0, 3),
            selection: select(Ok(()), true, true),
            virtiofsd: there("virtiofsd", 1, 13),
            kernel: Ok(PathBuf::from("/k")),
            initramfs: Ok(PathBuf::from("/i")),
            shim: Shim::OnPath(PathBuf::from("/bin/shim")),
            spares: Vec::new(),
            containerd: Some((
                PathBuf::from("/bin/containerd"),
                Ok(Version { major: 2, minor: 1 }),
            )),
            handler: Handler::Configured("vm".to_owned()),
        }
    }

    fn select(
        kvm: Result<(), KvmProblem>,
        cloud_hypervisor: bool,
        qemu: bool,
    ) -> Result<Selection, bulkhead_shim::vmm::SelectError> {
        let found = |there: bool, name| {
            if there { Ok(PathBuf::from("/bin/x")) } else { Err(missing(name)) }
        };
        let host = Host {
            kvm,
            cloud_hypervisor: found(cloud_hypervisor, "cloud-hypervisor"),
            qemu: found(qemu, "qemu"),
            vhost_device_vsock: found(qemu, "vhost-device-vsock"),
        };
        Selection::choose(&Config::default(), host)
    }

    fn level(lines: &[Line], what: &str) -> Level {
        lines.iter().find(|line| line.what == what).expect(what).level
    }

    fn fails(facts: &Facts) -> Vec<&'static str> {
        let lines = judge(facts);
        lines.iter().filter(|line| line.level == Level::Fail).map(|line| line.what).collect()
    }

    #[test]
    fn spares_that_are_missing_are_noted_with_the_reason() {
        assert!(spares(&[]).is_none());
        let line = spares(&[Spare::Ready]).expect("a line");
        assert_eq!((line.level, line.says.as_str()), (Level::Ok, "1 of 1 wait for a sandbox"));
        let line = spares(&[Spare::Ready, Spare::None]).expect("a line");
        assert_eq!((line.level, line.says.as_str()), (Level::Note, "1 of 2 wait for a sandbox"));
        let line = spares(&[Spare::Ended("no memory".to_owned())]).expect("a line");
        assert!(line.says.ends_with("one has ended: no memory"), "{}", line.says);
    }

    #[test]
    fn a_good_host_has_nothing_to_remark() {
        let lines = judge(&good());
        assert!(
            lines.iter().all(|line| line.level == Level::Ok && line.advice.is_none()),
            "{lines:?}"
        );
    }

    #[test]
    fn every_remark_comes_with_advice() {
        let facts = Facts {
            root: false,
            linux: Some(Version { major: 5, minor: 11 }),
            kvm: Err(KvmProblem::Open(io::Error::from(io::ErrorKind::PermissionDenied))),
            cloud_hypervisor: absent("cloud-hypervisor"),
            qemu: absent("qemu"),
            vhost_device_vsock: absent("vhost-device-vsock"),
            selection: select(Ok(()), false, false),
            virtiofsd: absent("virtiofsd"),
            kernel: Err(missing("vmlinux")),
            initramfs: Err(missing("initramfs.cpio")),
            shim: Shim::Missing,
            containerd: None,
            handler: Handler::Absent,
            ..good()
        };
        let lines = judge(&facts);
        let remarks = lines.iter().filter(|line| line.level != Level::Ok);
        assert!(remarks.clone().all(|line| line.advice.is_some()), "{lines:?}");
        assert_eq!(remarks.count(), lines.len() - 1, "all but the configuration");
        assert_eq!(
            fails(&facts),
            ["kernel", "hypervisor", "virtiofsd", "guest kernel", "guest initramfs", "shim"]
        );
    }

    #[test]
    fn without_kvm_a_host_with_qemu_can_run() {
        let facts = Facts {
            kvm: Err(KvmProblem::NoExtension),
            cloud_hypervisor: absent("cloud-hypervisor"),
            selection: select(Err(KvmProblem::NoExtension), false, true),
            ..good()
        };
        assert!(fails(&facts).is_empty());
        assert_eq!(level(&judge(&facts), "KVM"), Level::Note);
    }

    #[test]
    fn an_old_program_is_bad_only_if_it_is_the_one_that_runs() {
        let old = Facts { cloud_hypervisor: there("cloud-hypervisor", 49, 0), ..good() };
        assert_eq!(fails(&old), ["cloud-hypervisor"]);
        let old = Facts { qemu: there("qemu", 7, 1), ..good() };
        assert_eq!(level(&judge(&old), "QEMU"), Level::Note);
        let old =
            Facts { qemu: there("qemu", 7, 1), selection: select(Ok(()), false, true), ..good() };
        assert_eq!(fails(&old), ["QEMU"]);
        let old = Facts { virtiofsd: there("virtiofsd", 1, 10), ..good() };
        assert_eq!(fails(&old), ["virtiofsd"]);
        let version = Ok(Version { major: 1, minor: 5 });
        let old = Facts { containerd: Some((PathBuf::from("/c"), version)), ..good() };
        assert_eq!(fails(&old), ["containerd"]);
    }

    #[test]
    fn a_wrong_configuration_fails_whatever_else_is_there() {
        let config = Config::load_from(Path::new("/nowhere.toml"), true);
        let facts = Facts { config, ..good() };
        assert_eq!(fails(&facts), ["configuration"]);
    }

    #[test]
    fn no_handler_is_no_obstacle() {
        for handler in [Handler::Absent, Handler::Unreadable("why".to_owned())] {
            assert!(fails(&Facts { handler, ..good() }).is_empty());
        }
    }
}
