//! Changing the resource limits of a running container.

use bulkhead_protocols::chain;
use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use libcontainer::oci_spec::runtime::{LinuxResources, Spec};

use super::{RESOURCES, bundle, limits, spec};
use crate::error::{Error, Result};

/// Applies the resources in the container's bundle.
///
/// # Errors
/// What is wrong with the resources, or what the kernel refused.
pub fn run(container: &str) -> Result<()> {
    let bundle = bundle(container);
    let mut resources: LinuxResources = spec::read("the resources", &bundle.join(RESOURCES))?;
    let spec: Spec = spec::read("config.json", &bundle.join(spec::CONFIG))?;
    let linux = spec.linux().as_ref();
    let cgroup_path = linux
        .and_then(|linux| linux.cgroups_path().clone())
        .ok_or_else(|| Error::Internal("the container has no cgroup".to_owned()))?;
    limits::adapt(&mut resources);
    // Device rules are not updated; but libcgroups writes them in any case, and none would take all
    // devices away.
    let devices = linux.and_then(|linux| linux.resources().as_ref());
    resources.set_devices(devices.and_then(|resources| resources.devices().clone()));

    let failed = |error: &dyn std::error::Error| {
        Error::InvalidArgument(format!("the resources can't be applied: {}", chain(error)))
    };
    let manager = create_cgroup_manager(CgroupConfig {
        cgroup_path,
        systemd_cgroup: false,
        container_name: container.to_owned(),
    })
    .map_err(|error| failed(&error))?;
    manager
        .apply(&ControllerOpt {
            resources: &resources,
            oom_score_adj: None,
            disable_oom_killer: false,
            freezer_state: None,
        })
        .map_err(|error| failed(&error))
}
