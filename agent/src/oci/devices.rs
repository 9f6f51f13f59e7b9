//! Device nodes of a container.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType,
};
use nix::sys::stat::{major, minor};

use crate::error::{Error, Result};

/// What a container has of its own, or never has, of the guest's `/dev`; runc leaves out the same.
const LEFT_OUT: [&str; 5] = ["console", "fd", "mqueue", "pts", "shm"];

/// The serial port behind the console (`Documentation/admin-guide/devices.txt`), which no container has.
pub const SERIAL: (i64, i64) = (4, 64);

/// What udev lets everyone open, and the kernel only its superuser.
const FOR_ALL: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// Loop devices come when they are asked for; their nodes are there before. Major number and mode are the kernel's
/// (`Documentation/admin-guide/devices.txt`) and udev's.
const LOOP_MAJOR: i64 = 7;
const LOOP_MODE: u32 = 0o660;
const LOOPS: i64 = 8;

/// Gives a container that may use all devices those of the guest but its disks, which have owners. Of several devices at
/// one place the first counts, as for runc, which finds it there.
///
/// # Errors
/// [`compose`]'s, and a character device that the guest does not have.
pub fn adapt(linux: &mut Linux) -> Result<()> {
    let mut devices = linux.devices().clone().unwrap_or_default();
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    if rules.unwrap_or_default().iter().any(allows_all) {
        // The guest's numbers are right, whatever the host's are.
        let given = std::mem::take(&mut devices);
        collect(Path::new("/dev"), &mut devices);
        devices.extend((0..LOOPS).filter_map(|number| {
            device(format!("/dev/loop{number}"), LinuxDeviceType::B, LOOP_MAJOR, number, LOOP_MODE)
        }));
        // Who may open them is the host's to say, where it has them, too.
        for device in &mut devices {
            if let Some(given) = given.iter().find(|given| given.path() == device.path()) {
                device.set_file_mode(given.file_mode().or(device.file_mode()));
                device.set_uid(given.uid()).set_gid(given.gid());
            }
        }
        devices.extend(given);
        devices.retain(is_here);
    } else if let Some((index, device)) = devices.iter().enumerate().find(|(_, one)| !is_here(one))
    {
        let (path, major, minor) = (device.path().display(), device.major(), device.minor());
        let reason = format!("the guest has no character device {major}:{minor} for {path}");
        return Err(Error::InvalidArgument(format!("linux.devices[{index}]: {reason}")));
    }
    let mut places = HashSet::new();
    devices.retain(|device| places.insert(device.path().clone()));
    linux.set_devices(Some(devices));
    let Some(resources) = linux.resources_mut() else { return Ok(()) };
    if let Some(rules) = resources.devices() {
        let composed = compose(rules)?;
        resources.set_devices(Some(composed));
    }
    Ok(())
}

/// The devices that a rule is about: their type and their numbers, -1 for any.
type Which = (LinuxDeviceType, i64, i64);

/// What rules come to that are given one after the other, as runc has it: libcgroups' program asks one rule alone for all
/// that a program wants.
///
/// # Errors
/// A rule that takes away a part of what one for many devices has given.
fn compose(rules: &[LinuxDeviceCgroup]) -> Result<Vec<LinuxDeviceCgroup>> {
    let number = |number: Option<i64>| number.unwrap_or(-1);
    let mut allowed = false;
    let mut exceptions: Vec<(Which, BTreeSet<char>)> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let kind = rule.typ().unwrap_or(LinuxDeviceType::A);
        if kind == LinuxDeviceType::A {
            allowed = rule.allow();
            exceptions.clear();
            continue;
        }
        let which = (kind, number(rule.major()), number(rule.minor()));
        let ways: BTreeSet<char> = rule.access().as_deref().unwrap_or("rwm").chars().collect();
        let found = exceptions.iter().position(|(other, _)| *other == which);
        if rule.allow() != allowed {
            match found {
                Some(at) => exceptions[at].1.extend(ways),
                None => exceptions.push((which, ways)),
            }
            continue;
        }
        let covers = |many: i64, one: i64| many == -1 || many == one;
        let wider = |(other, given): &(Which, BTreeSet<char>)| {
            *other != which
                && other.0 == which.0
                && covers(other.1, which.1)
                && covers(other.2, which.2)
                && !given.is_disjoint(&ways)
        };
        if exceptions.iter().any(wider) {
            return Err(Error::InvalidArgument(format!(
                "linux.resources.devices[{index}]: a part of what a rule for many devices says cannot be taken back"
            )));
        }
        if let Some(at) = found {
            exceptions[at].1.retain(|way| !ways.contains(way));
        }
    }
    let rule = |allow: bool, kind| LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind);
    let all = rule(allowed, LinuxDeviceType::A).access("rwm").build();
    let others = exceptions.iter().filter(|(_, ways)| !ways.is_empty());
    let others = others.map(|((kind, major, minor), ways)| {
        let access: String = ways.iter().collect();
        rule(!allowed, *kind).major(*major).minor(*minor).access(access).build()
    });
    let composed: Result<Vec<_>, _> = std::iter::once(all).chain(others).collect();
    composed.map_err(|error| Error::Internal(error.to_string()))
}

/// Whether the guest has such a device, if it is a character device. A container that may use all devices is given those
/// of the host one by one.
fn is_here(device: &LinuxDevice) -> bool {
    let (major, minor) = (device.major(), device.minor());
    let number = format!("/sys/dev/char/{major}:{minor}");
    device.typ() != LinuxDeviceType::C || (major, minor) != SERIAL && Path::new(&number).exists()
}

fn allows_all(rule: &LinuxDeviceCgroup) -> bool {
    let any = |number: Option<i64>| number.is_none_or(|number| number == -1);
    let access = rule.access().as_deref().unwrap_or_default();
    rule.allow()
        && matches!(rule.typ(), None | Some(LinuxDeviceType::A))
        && any(rule.major())
        && any(rule.minor())
        && ['r', 'w', 'm'].iter().all(|way| access.contains(*way))
}

fn collect(directory: &Path, devices: &mut Vec<LinuxDevice>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = entry.metadata() else { continue };
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if found.is_dir() {
            collect(&path, devices);
        } else if found.file_type().is_char_device() {
            let [major, minor] = [major, minor].map(|part| part(found.rdev()) as i64);
            let for_all = FOR_ALL.iter().any(|one| path == Path::new(one));
            let mode = if for_all { 0o666 } else { found.mode() & 0o777 };
            devices.extend(device(path, LinuxDeviceType::C, major, minor, mode));
        }
    }
}

fn device(
    path: impl Into<PathBuf>,
    kind: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
) -> Option<LinuxDevice> {
    let device = LinuxDeviceBuilder::default().path(path).typ(kind).major(major).minor(minor);
    device.file_mode(mode).uid(0u32).gid(0u32).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(json: &str) -> Vec<String> {
        let mut linux: Linux = serde_json::from_str(json).unwrap();
        adapt(&mut linux).unwrap();
        let devices = linux.devices().clone().unwrap();
        devices.iter().map(|one| one.path().display().to_string()).collect()
    }

    #[test]
    fn rules_are_composed_as_they_come() {
        let composed = |json: &str| {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
            compose(&rules).map(|rules| {
                let text = |rule: &LinuxDeviceCgroup| {
                    let sign = if rule.allow() { "+" } else { "-" };
                    let number = |number: Option<i64>| number.map_or("*".into(), |n| n.to_string());
                    let (major, minor) = (number(rule.major()), number(rule.minor()));
                    format!("{sign}{major}:{minor} {}", rule.access().as_deref().unwrap())
                };
                rules.iter().map(text).collect::<Vec<_>>().join(", ")
            })
        };
        for (rules, outcome) in [
            (
                r#"[{"allow":true,"type":"c","major":1,"minor":2,"access":"r"},{"allow":true,"type":"c","major":1,"minor":2,"access":"w"}]"#,
                "-*:* rwm, +1:2 rw",
            ),
            (
                r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":2,"access":"rwm"},
                {"allow":false,"type":"c","major":1,"minor":2,"access":"w"}]"#,
                "-*:* rwm, +1:2 mr",
            ),
            (
                r#"[{"allow":true,"type":"c","major":1,"minor":2,"access":"r"},{"allow":false,"access":"rwm"}]"#,
                "-*:* rwm",
            ),
            (
                r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"w"}]"#,
                "+*:* rwm, -8:-1 w",
            ),
        ] {
            assert_eq!(composed(rules).unwrap(), outcome);
        }
        composed(r#"[{"allow":true,"type":"c","major":1,"access":"rw"},{"allow":false,"type":"c","major":1,"minor":2,"access":"w"}]"#)
            .unwrap_err();
    }

    #[test]
    fn who_may_use_all_devices_has_them() {
        let rules = [
            (r#"{"allow":true,"access":"rwm"}"#, true),
            (r#"{"allow":true,"type":"a","major":-1,"minor":-1,"access":"rwm"}"#, true),
            (r#"{"allow":true,"type":"a","access":"m"}"#, false),
            (r#"{"allow":true,"type":"c","access":"rwm"}"#, false),
            (r#"{"allow":true,"major":1,"access":"rwm"}"#, false),
            (r#"{"allow":false,"access":"rwm"}"#, false),
        ];
        for (rule, all) in rules {
            let devices = adapted(&format!(r#"{{"resources":{{"devices":[{rule}]}}}}"#));
            for name in ["/dev/null", "/dev/loop7"] {
                assert_eq!(devices.iter().any(|device| device == name), all, "{rule}");
            }
            assert!(!devices.iter().any(|device| device.starts_with("/dev/pts")), "{rule}");
        }
    }

    #[test]
    fn who_may_use_all_devices_has_no_dead_ones_and_the_hosts_modes() {
        let json = r#"{"resources":{"devices":[{"allow":true,"access":"rwm"}]},"devices":[
            {"path":"/dev/null","type":"c","major":9,"minor":9,"fileMode":416,"uid":1,"gid":6},
            {"path":"/dev/of-the-host","type":"c","major":4000,"minor":1},
            {"path":"/dev/ttyS0","type":"c","major":4,"minor":64},
            {"path":"/dev/also-null","type":"c","major":1,"minor":3}]}"#;
        let mut linux: Linux = serde_json::from_str(json).unwrap();
        adapt(&mut linux).unwrap();
        let devices = linux.devices().clone().unwrap();
        let at = |path: &str| devices.iter().find(|device| device.path() == Path::new(path));
        let null = at("/dev/null").unwrap();
        assert_eq!((null.major(), null.minor(), null.file_mode()), (1, 3, Some(0o640)));
        assert_eq!((null.uid(), null.gid()), (Some(1), Some(6)));
        assert!(at("/dev/of-the-host").is_none() && at("/dev/ttyS0").is_none());
        assert!(at("/dev/also-null").is_some());
    }

    #[test]
    fn of_two_at_one_place_the_first_counts() {
        let devices = r#"{"devices":[{"path":"/dev/a","type":"c","major":1,"minor":3},
            {"path":"/dev/b","type":"c","major":1,"minor":3},{"path":"/dev/a","type":"c","major":1,"minor":5}]}"#;
        assert_eq!(adapted(devices), ["/dev/a", "/dev/b"]);
    }
}
