//! What a spec may ask for and the guest can't give. It is refused by its name, never dropped.

use libcontainer::oci_spec::runtime::{
    Linux, LinuxNamespaceType, LinuxSeccompAction, Mount, Process, Spec,
};

use super::failure::Failure;
use super::mounts;

/// Checks a container's spec.
///
/// # Errors
/// The field that can't be honoured, and why.
pub fn spec(spec: &Spec) -> Result<(), Failure> {
    if spec.hooks().is_some() {
        return refused("hooks", "their programs are on the host, and the container is not");
    }
    if spec.root().as_ref().is_some_and(|root| root.path().is_relative()) {
        return refused("root.path", "it must be an absolute path of the guest");
    }
    if let Some(process) = spec.process() {
        self::process("process", process)?;
    }
    if let Some(linux) = spec.linux() {
        self::linux(linux)?;
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        self::mount(index, mount)?;
    }
    Ok(())
}

/// Checks a process; `field` is where it stands.
///
/// # Errors
/// The field that can't be honoured, and why.
pub fn process(field: &str, process: &Process) -> Result<(), Failure> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return refused(&format!("{field}.args"), "it must name a command");
    }
    if !process.cwd().is_absolute() {
        return refused(&format!("{field}.cwd"), "it must be an absolute path");
    }
    if process.apparmor_profile().as_deref().is_some_and(|profile| !profile.is_empty()) {
        return refused(&format!("{field}.apparmorProfile"), "the guest's kernel has no AppArmor");
    }
    if process.selinux_label().as_deref().is_some_and(|label| !label.is_empty()) {
        return refused(&format!("{field}.selinuxLabel"), "the guest's kernel has no SELinux");
    }
    Ok(())
}

fn linux(linux: &Linux) -> Result<(), Failure> {
    if linux.mount_label().as_deref().is_some_and(|label| !label.is_empty()) {
        return refused("linux.mountLabel", "the guest's kernel has no SELinux");
    }
    if linux.intel_rdt().is_some() {
        return refused("linux.intelRdt", "caches and memory bandwidth are the host's to divide");
    }
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    if namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User) {
        return refused("linux.namespaces", "a user namespace can't be entered by an exec");
    }
    if let Some(seccomp) = linux.seccomp() {
        let notifies = seccomp
            .syscalls()
            .iter()
            .flatten()
            .any(|syscall| syscall.action() == LinuxSeccompAction::ScmpActNotify);
        if notifies || seccomp.listener_path().is_some() {
            return refused("linux.seccomp", "its listener is on the host, out of reach");
        }
    }
    Ok(())
}

fn mount(index: usize, mount: &Mount) -> Result<(), Failure> {
    let options = mount.options().as_deref().unwrap_or_default();
    if let Some(option) =
        options.iter().find(|option| ["tmpcopyup", "idmap", "ridmap"].contains(&option.as_str()))
    {
        return refused(&format!("mounts[{index}].options"), &format!("{option} is not supported"));
    }
    if mounts::is_bind(mount) && mounts::clean(mount.destination()) == *"/dev" {
        return refused(
            &format!("mounts[{index}]"),
            "the container's /dev is made of the guest's devices",
        );
    }
    Ok(())
}

fn refused(field: &str, why: &str) -> Result<(), Failure> {
    Err(Failure::invalid(format!("{field} can't be honoured: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        let spec: Spec = serde_json::from_str(json).unwrap();
        self::spec(&spec).map_or_else(|failure| failure.to_string(), |()| String::new())
    }

    #[test]
    fn refusals_name_the_field() {
        const PROCESS: &str = r#""process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/""#;
        for (json, field) in [
            (r#"{"ociVersion":"1.0.2","hooks":{}}"#.to_owned(), "hooks"),
            (r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#.to_owned(), "root.path"),
            (format!(r#"{{"ociVersion":"1.0.2",{PROCESS},"apparmorProfile":"p"}}}}"#), "process.apparmorProfile"),
            (format!(r#"{{"ociVersion":"1.0.2",{PROCESS},"selinuxLabel":"l"}}}}"#), "process.selinuxLabel"),
            (r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":[],"cwd":"/"}}"#.to_owned(), "process.args"),
            (r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"tmp"}}"#.to_owned(), "process.cwd"),
            (r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"user"}]}}"#.to_owned(), "linux.namespaces"),
            (r#"{"ociVersion":"1.0.2","linux":{"intelRdt":{}}}"#.to_owned(), "linux.intelRdt"),
            (r#"{"ociVersion":"1.0.2","linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}}}"#.to_owned(), "linux.seccomp"),
            (r#"{"ociVersion":"1.0.2","mounts":[{"destination":"/x","type":"tmpfs","options":["tmpcopyup"]}]}"#.to_owned(), "mounts[0].options"),
            (r#"{"ociVersion":"1.0.2","mounts":[{"destination":"/dev/","source":"/dev","options":["rbind"]}]}"#.to_owned(), "mounts[0]"),
        ] {
            let text = refusal(&json);
            assert!(text.starts_with(&format!("{field} can't be honoured: ")), "{json}: {text}");
        }
    }

    #[test]
    fn empty_labels_are_no_wishes() {
        let json = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["true"],"cwd":"/",
            "apparmorProfile":"","selinuxLabel":""},"linux":{"mountLabel":""}}"#;
        assert_eq!(refusal(json), "");
    }
}
