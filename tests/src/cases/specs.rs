//! Specs of nonsense: refused with what is wrong, and nothing is left.

use serde_json::{Value, json};

use super::api::{refused, shim_of};
use crate::bed::Test;
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;
use crate::spec;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("specs.no_arguments", "a process without arguments is refused", |t| {
        attempt(t, |spec| spec["process"]["args"] = json!([]), &["args"])
    }),
    Case::any("specs.relative_cwd", "a relative working directory is refused", |t| {
        attempt(t, |spec| spec["process"]["cwd"] = json!("relative"), &["cwd"])
    }),
    Case::any("specs.no_user", "an id that is none is refused, and does not become root", |t| {
        let user = json!({ "uid": u32::MAX, "gid": u32::MAX });
        attempt(t, |spec| spec["process"]["user"] = user, &["2147483647"])
    }),
    Case::any("specs.bad_environment", "a variable without a value is refused", |t| {
        attempt(t, |spec| spec["process"]["env"] = json!(["PATH=/bin", "NOEQ"]), &["noeq"])
    }),
    Case::any("specs.unknown_rlimit", "a resource limit that doesn't exist is refused", |t| {
        let limits = json!([{ "type": "RLIMIT_NONSENSE", "hard": 1, "soft": 1 }]);
        attempt(t, |spec| spec["process"]["rlimits"] = limits, &["rlimit"])
    }),
    Case::any("specs.no_root", "a root that isn't there is refused by its path", |t| {
        attempt(t, |spec| spec["root"]["path"] = json!("/no/such/root"), &["/no/such/root"])
    }),
    Case::any(
        "specs.bind_of_nothing",
        "a bind mount of what isn't there is refused by its path",
        |t| {
            let mount = spec::mount("/x", "bind", "/no/such/source", &["bind"]);
            attempt(t, |spec| add(spec, mount), &["/no/such/source"])
        },
    ),
    Case::bulkhead(
        "specs.unknown_bind_option",
        "an option that a bind mount cannot have is refused by its name",
        |t| {
            let mount = spec::mount("/x", "bind", "/etc", &["rbind", "nosiud"]);
            attempt(t, |spec| add(spec, mount), &["nosiud"])
        },
    ),
    Case::any("specs.foreign_file", "a limit by the name of another file is refused", |t| {
        let files = json!({ "../memory.max": "max" });
        attempt(
            t,
            |spec| spec["linux"]["resources"]["unified"] = files,
            &["unified", "cgroup v2", "cgroupv2"],
        )
    }),
    Case::bulkhead("specs.foreign_throttle", "a limit for a disk of the host's is refused", |t| {
        let device = json!([{ "major": 7, "minor": 1, "rate": 1000 }]);
        let limit = json!({ "throttleReadBpsDevice": device });
        attempt(
            t,
            |spec| spec["linux"]["resources"]["blockIO"] = limit,
            &["linux.resources.blockio.throttlereadbpsdevice"],
        )
    }),
    Case::bulkhead(
        "specs.no_device",
        "a character device that the guest does not have is refused by its place",
        |t| {
            let device = json!([{ "path": "/dev/own", "type": "c", "major": 4000, "minor": 1 }]);
            attempt(
                t,
                |spec| spec["linux"]["devices"] = device,
                &["linux.devices[0]: the guest has no character device 4000:1"],
            )
        },
    ),
    Case::bulkhead(
        "specs.kernel_memory",
        "a limit that cgroup v1 alone had is refused by its name",
        |t| {
            let limit = json!({ "kernel": 1 << 20 });
            attempt(
                t,
                |spec| spec["linux"]["resources"]["memory"] = limit,
                &["linux.resources.memory.kernel"],
            )
        },
    ),
    Case::any("specs.unknown_file_system", "a mount of an unknown type is refused", |t| {
        attempt(
            t,
            |spec| add(spec, spec::mount("/x", "nosuchfs", "none", &[])),
            &["nosuchfs", "no such device"],
        )
    }),
    Case::any(
        "specs.unknown_seccomp_action",
        "a seccomp action that doesn't exist is refused",
        |t| {
            let seccomp = json!({ "defaultAction": "SCMP_ACT_NONSENSE" });
            attempt(t, |spec| spec["linux"]["seccomp"] = seccomp, &["seccomp", "scmp_act_nonsense"])
        },
    ),
    Case::any("specs.no_memory", "a memory limit in which nothing can begin is named", |t| {
        let limit = json!({ "limit": 8192 });
        attempt(t, |spec| spec["linux"]["resources"]["memory"] = limit, &["memory limit", "oom"])
    }),
    Case::any("specs.unknown_sysctl", "a sysctl that doesn't exist is refused", |t| {
        let sysctl = json!({ "net.no_such_key": "1" });
        attempt(t, |spec| spec["linux"]["sysctl"] = sysctl, &["no_such_key", "sysctl"])
    }),
    Case::any("specs.unknown_namespace", "a namespace that doesn't exist is refused", |t| {
        let namespaces = json!([{ "type": "mount" }, { "type": "nonsense" }]);
        attempt(t, |spec| spec["linux"]["namespaces"] = namespaces, &["nonsense"])
    }),
];

/// Appends to the spec's mounts.
fn add(spec: &mut Value, mount: Value) {
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.push(mount);
    }
}

/// Requires that a container of the changed spec is refused with one of `texts`: by the shim's
/// `start`, by Create, or at the latest by Start.
fn attempt(t: &Test<'_>, change: impl FnOnce(&mut Value), texts: &[&str]) -> Outcome {
    let shim = match shim_of(t, change, &["true"]) {
        Ok(shim) => shim,
        Err(failure) => {
            let text = failure.to_string().to_lowercase();
            ensure!(
                texts.iter().any(|word| text.contains(word)),
                "`start` says none of {texts:?}: {text}"
            );
            return Ok(());
        }
    };
    refused("the spec", shim.create().and_then(|_| shim.start_process("")), texts)?;
    // What was made before the refusal is deleted like anything else.
    let _ = shim.delete("");
    shim.shutdown()?;
    Ok(())
}
