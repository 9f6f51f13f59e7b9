//! From the host's spec to the one that libcontainer gets.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use libcontainer::oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxNamespaceBuilder, LinuxNamespaceType,
    PosixRlimit, Process, Spec,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::finish::Finish;
use super::program::{self, Late, UNKNOWN_HOME};
use super::{SPEC, devices, limits, mounts};
use crate::cgroup::CONTAINERS;
use crate::error::{Error, Result};
use crate::setup::set_sysctl;

/// The spec that libcontainer reads, in a container's bundle.
pub const CONFIG: &str = "config.json";

/// What libcontainer is to make of the host's spec, and what the helper does itself.
pub struct Prepared {
    /// For libcontainer; it is in the bundle, too.
    pub spec: Spec,
    /// To be set once the process is there: libcontainer would set them on itself, in the middle
    /// of its work, and trip over low ones.
    pub rlimits: Vec<PosixRlimit>,
    /// To be done just before the program is executed.
    pub late: Late,
}

/// Reads the host's spec, adapts it to the guest and to libcontainer, and leaves the result in the
/// bundle. `arguments` is how to execute the helper for [`Finish`].
///
/// # Errors
/// What is wrong with the spec.
pub fn prepare(
    bundle: &Path,
    container: &str,
    pid_namespace: &str,
    terminal: bool,
    arguments: Vec<String>,
) -> Result<Prepared> {
    let mut spec: Spec = read("config.json", &bundle.join(SPEC))?;

    let missing = |what| Error::InvalidArgument(format!("the spec has no {what}"));
    let mut process = spec.process().clone().ok_or_else(|| missing("process"))?;
    adapt_process(&mut process, terminal);
    // No capabilities are none; libcontainer would leave all.
    process.set_capabilities(Some(complete_capabilities(process.capabilities())));
    let rlimits = process.rlimits().clone().unwrap_or_default();
    process.set_rlimits(None);

    let mut linux = spec.linux().clone().ok_or_else(|| missing("linux section"))?;
    linux.set_cgroups_path(Some(Path::new("/").join(CONTAINERS).join(container)));
    set_network_sysctls(&mut linux)?;
    if !pid_namespace.is_empty() {
        set_namespace(&mut linux, LinuxNamespaceType::Pid, Some(pid_namespace))?;
    }
    // A container sees its own cgroups, be it that its host would show it those of all: a guest's are the agent's.
    set_namespace(&mut linux, LinuxNamespaceType::Cgroup, None)?;
    adapt_propagation(&mut linux);
    linux.resources_mut().iter_mut().for_each(limits::adapt);
    devices::adapt(&mut linux)?;
    let mut late = Late::default();
    late.take_seccomp(linux.seccomp().clone(), &mut process);
    linux.set_seccomp(None);
    spec.set_process(Some(process)).set_linux(Some(linux));

    mounts::adapt(&mut spec)?;
    Finish::plan(&mut spec, bundle, arguments)?;
    write(&spec, &bundle.join(CONFIG))?;
    Ok(Prepared { spec, rlimits, late })
}

/// What is the same for a container's first process and for an exec.
pub fn adapt_process(process: &mut Process, terminal: bool) {
    process.set_terminal(Some(terminal));
    if process.apparmor_profile().as_deref() == Some("") {
        process.set_apparmor_profile(None);
    }
    let env = process.env().as_deref().unwrap_or_default();
    if program::value(env, "HOME").is_none_or(str::is_empty) {
        let env = [env, &[format!("HOME={UNKNOWN_HOME}")]].concat();
        process.set_env(Some(env));
    }
}

/// All five sets: one that the spec leaves out is empty. oci-spec's default is not.
pub fn complete_capabilities(given: &Option<LinuxCapabilities>) -> LinuxCapabilities {
    let mut all = LinuxCapabilities::default();
    let given = given.as_ref();
    all.set_bounding(Some(given.and_then(|given| given.bounding().clone()).unwrap_or_default()))
        .set_effective(Some(given.and_then(|given| given.effective().clone()).unwrap_or_default()))
        .set_permitted(Some(given.and_then(|given| given.permitted().clone()).unwrap_or_default()))
        .set_inheritable(Some(
            given.and_then(|given| given.inheritable().clone()).unwrap_or_default(),
        ))
        .set_ambient(Some(given.and_then(|given| given.ambient().clone()).unwrap_or_default()));
    // The kernel gives no more (capabilities(7)), and runc goes on with what it gives.
    let had = |set: &Option<Capabilities>, one: &Capability| {
        set.as_ref().is_some_and(|set| set.contains(one))
    };
    let mut ambient = all.ambient().clone().unwrap_or_default();
    ambient.retain(|one| had(all.permitted(), one) && had(all.inheritable(), one));
    all.set_ambient(Some(ambient));
    all
}

/// Has the container join this namespace, or make one.
fn set_namespace(linux: &mut Linux, kind: LinuxNamespaceType, path: Option<&str>) -> Result<()> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != kind);
    let mut namespace = LinuxNamespaceBuilder::default().typ(kind);
    if let Some(path) = path {
        namespace = namespace.path(path);
    }
    namespaces.push(namespace.build().map_err(|error| Error::Internal(error.to_string()))?);
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

/// libcontainer knows the propagation of the root without the `r`, and makes it recursive itself.
fn adapt_propagation(linux: &mut Linux) {
    let given = linux.rootfs_propagation().as_deref().filter(|given| !given.is_empty());
    let adapted = given.map(|given| given.strip_prefix('r').unwrap_or(given).to_owned());
    linux.set_rootfs_propagation(adapted);
}

/// Without a network namespace of its own a container is in the guest's, which is the sandbox's:
/// its network parameters are set here, where libcontainer would refuse to touch a host's.
fn set_network_sysctls(linux: &mut Linux) -> Result<()> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    if namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        return Ok(());
    }
    let Some(sysctls) = linux.sysctl().clone() else {
        return Ok(());
    };
    let (network, others): (HashMap<_, _>, HashMap<_, _>) =
        sysctls.into_iter().partition(|(name, _)| name.replace('/', ".").starts_with("net."));
    for (name, value) in &network {
        set_sysctl(name, value)?;
    }
    linux.set_sysctl(Some(others));
    Ok(())
}

/// Reads a JSON object; `what` is its name in an error.
///
/// # Errors
/// Where the JSON is wrong.
pub fn read<T: DeserializeOwned>(what: &str, path: &Path) -> Result<T> {
    let bytes =
        fs::read(path).map_err(|error| Error::io(format_args!("cannot read {what}"), error))?;
    // serde takes an array for a struct as well.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(Error::InvalidArgument(format!("{what} is not a JSON object")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::InvalidArgument(format!("{what} is not valid: {error}")))
}

/// Writes JSON.
///
/// # Errors
/// When the guest is out of memory.
pub fn write<T: Serialize>(value: &T, path: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::io(format_args!("cannot write {}", path.display()), error)
    };
    let file = File::create(path).map_err(|error| failed(&error))?;
    let mut file = BufWriter::new(file);
    serde_json::to_writer(&mut file, value).map_err(|error| failed(&error))?;
    file.into_inner().map(drop).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::Capability;

    use super::*;

    #[test]
    fn capabilities_that_are_not_given_are_not_had() {
        let none = complete_capabilities(&None);
        for set in [
            none.bounding(),
            none.effective(),
            none.permitted(),
            none.inheritable(),
            none.ambient(),
        ] {
            assert!(set.as_ref().unwrap().is_empty());
        }

        let given: LinuxCapabilities =
            serde_json::from_str(r#"{"bounding":["CAP_CHOWN"],"effective":["CAP_KILL"]}"#).unwrap();
        let all = complete_capabilities(&Some(given));
        assert!(all.bounding().as_ref().unwrap().contains(&Capability::Chown));
        assert!(all.effective().as_ref().unwrap().contains(&Capability::Kill));
        assert!(all.ambient().as_ref().unwrap().is_empty());
    }

    #[test]
    fn the_propagation_of_the_root_is_in_libcontainers_words() {
        for (given, adapted) in [
            ("rshared", Some("shared")),
            ("slave", Some("slave")),
            ("odd", Some("odd")),
            ("", None),
        ] {
            let mut linux = Linux::default();
            linux.set_rootfs_propagation(Some(given.to_owned()));
            adapt_propagation(&mut linux);
            assert_eq!(linux.rootfs_propagation().as_deref(), adapted);
        }
    }

    #[test]
    fn an_array_is_no_object() {
        let path = std::env::temp_dir().join(format!("bulkhead-spec-{}", std::process::id()));
        for (text, good) in [("{}", true), (" {}", true), ("[]", false), ("{", false), ("", false)]
        {
            fs::write(&path, text).unwrap();
            let resources: Result<libcontainer::oci_spec::runtime::LinuxResources, _> =
                read("the resources", &path);
            assert_eq!(resources.is_ok(), good, "{text}");
        }
        fs::remove_file(&path).unwrap();
    }
}
