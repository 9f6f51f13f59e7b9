//! Block devices of a spec that are disks of the VM: what number a disk has, the guest alone knows.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use bulkhead_protocols::agent::Device;
use nix::sys::stat::{major, minor};
use serde_json::Value;

use crate::disk;
use crate::error::{Error, Result};

/// Replaces the numbers that the devices have on the host by those of the guest, in the devices of a spec and in the
/// rules that allow their use. Returns their nodes in the guest, too.
///
/// # Errors
/// A disk that does not come, a spec that is none.
pub fn renumber(spec: &[u8], devices: &[Device]) -> Result<(Vec<u8>, Vec<String>)> {
    let (mut numbers, mut nodes) = (HashMap::new(), Vec::new());
    for device in devices {
        let failed = |error| Error::io(format_args!("cannot find {}", device.source), error);
        let node = disk::node(&device.source).map_err(failed)?;
        let number = fs::metadata(&node).map_err(failed)?.rdev();
        let number = (major(number) as i64, minor(number) as i64);
        numbers.insert((i64::from(device.major), i64::from(device.minor)), number);
        nodes.push(node.to_string_lossy().into_owned());
    }
    let broken = |error| Error::InvalidArgument(format!("the spec: {error}"));
    let mut document: Value = serde_json::from_slice(spec).map_err(broken)?;
    let renumber = |list: &mut Value, of_blocks: bool| {
        for device in list.as_array_mut().into_iter().flatten() {
            let number = device["major"].as_i64().zip(device["minor"].as_i64());
            if (!of_blocks || device["type"] == "b")
                && let Some((major, minor)) = number.and_then(|number| numbers.get(&number))
            {
                (device["major"], device["minor"]) = ((*major).into(), (*minor).into());
            }
        }
    };
    if let Some(Value::Object(throttles)) = document.pointer_mut("/linux/resources/blockIO") {
        throttles.values_mut().for_each(|list| renumber(list, false));
    }
    for list in ["/linux/devices", "/linux/resources/devices"] {
        document.pointer_mut(list).into_iter().for_each(|list| renumber(list, true));
    }
    Ok((serde_json::to_vec(&document).map_err(broken)?, nodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_devices_that_are_disks_get_other_numbers() {
        // Any device would do; this one is everywhere, and has the same number (the kernel's devices.txt).
        let number = (1, 3);
        let device = |kind, major, minor| serde_json::json!({"path": "/dev/x", "type": kind, "major": major, "minor": minor});
        let rule = |kind: &str, major, minor| serde_json::json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": "rwm"});
        let spec = serde_json::json!({ "ociVersion": "1.2.0", "linux": {
            "devices": [device("b", 253, 1), device("c", 253, 1), device("b", 253, 2)],
            "resources": {
                "devices": [rule("b", 253, 1), rule("c", 253, 1)],
                "blockIO": { "weight": 100, "throttleReadBpsDevice": [{ "major": 253, "minor": 1, "rate": 1 }] },
            },
        }});
        let disk =
            Device { source: "/dev/null".to_owned(), major: 253, minor: 1, ..Default::default() };
        let (spec, nodes) = renumber(&serde_json::to_vec(&spec).unwrap(), &[disk]).unwrap();
        assert_eq!(nodes, ["/dev/null"]);
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
        let numbers = |list: &serde_json::Value| -> Vec<_> {
            let list = list.as_array().unwrap().iter();
            list.map(|one| (one["major"].as_u64().unwrap(), one["minor"].as_u64().unwrap()))
                .collect()
        };
        assert_eq!(numbers(&spec["linux"]["devices"]), [number, (253, 1), (253, 2)]);
        let resources = &spec["linux"]["resources"];
        assert_eq!(numbers(&resources["devices"]), [number, (253, 1)]);
        assert_eq!(numbers(&resources["blockIO"]["throttleReadBpsDevice"]), [number]);
    }
}
