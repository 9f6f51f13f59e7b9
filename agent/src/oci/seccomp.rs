//! A container's seccomp profile, loaded as runc loads it: after all that this program itself has to do.

use bulkhead_protocols::chain;
use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxSeccomp, LinuxSeccompAction,
    LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscallBuilder,
};
use libcontainer::seccomp::initialize_seccomp;
use libseccomp::ScmpSyscall;

use crate::error::{Error, Result};

/// The last call that had numbers of its own on each architecture: 423 is no call's number.
const COMMON: u32 = 423;

/// Beyond all numbers of system calls.
const LAST: u32 = 1024;

/// Loads the profile into this process.
///
/// # Errors
/// What libseccomp or the kernel says of the profile.
pub fn load(profile: &LinuxSeccomp) -> Result<()> {
    let failed = |error: &dyn std::error::Error| {
        Error::InvalidArgument(format!("cannot load the seccomp profile: {}", chain(error)))
    };
    let adapted = in_its_words(profile).map_err(|error| failed(&error))?;
    initialize_seccomp(&adapted).map_err(|error| failed(&error))?;
    if profile.default_action() == LinuxSeccompAction::ScmpActErrno {
        refuse_beyond(newest(profile));
    }
    Ok(())
}

/// The profile as libcontainer reads it: of a masked comparison the specification has the mask first, it the value. Where
/// the profile would end the process, calls that are newer than it are answered as in [`refuse_beyond`].
fn in_its_words(profile: &LinuxSeccomp) -> Result<LinuxSeccomp, OciSpecError> {
    let mut profile = profile.clone();
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let Some(mut args) = rule.args().clone() else { continue };
        for arg in &mut args {
            if arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
                let (mask, value) = (arg.value(), arg.value_two().unwrap_or_default());
                let swapped = LinuxSeccompArgBuilder::default().index(arg.index()).op(arg.op());
                *arg = swapped.value(value).value_two(mask).build()?;
            }
        }
        rule.set_args(Some(args));
    }
    use LinuxSeccompAction::{ScmpActKill, ScmpActKillProcess, ScmpActKillThread, ScmpActTrap};
    if matches!(
        profile.default_action(),
        ScmpActKill | ScmpActKillProcess | ScmpActKillThread | ScmpActTrap
    ) {
        // A second filter could not be milder.
        let newer = (newest(&profile) + 1..LAST).filter_map(|number| i32::try_from(number).ok());
        let names = newer.filter_map(|number| ScmpSyscall::from(number).get_name().ok()).collect();
        let rule = LinuxSyscallBuilder::default().names::<Vec<String>>(names);
        let rule = rule.action(LinuxSeccompAction::ScmpActErrno);
        rules.push(rule.errno_ret(libc::ENOSYS.unsigned_abs()).build()?);
    }
    profile.set_syscalls(Some(rules));
    Ok(profile)
}

/// The capabilities with which a process may load a profile without no_new_privs, and drop to the given ones.
pub fn privileged(given: &LinuxCapabilities) -> LinuxCapabilities {
    let needed = [Capability::SysAdmin, Capability::Setpcap];
    let with =
        |set: &Option<Capabilities>| Some(set.iter().flatten().copied().chain(needed).collect());
    let mut all = given.clone();
    all.set_bounding(with(given.bounding())).set_effective(with(given.effective()));
    all.set_permitted(with(given.permitted()));
    all
}

/// The newest system call that a profile knows, by its number.
fn newest(profile: &LinuxSeccomp) -> u32 {
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    let numbers = names.filter_map(|name| ScmpSyscall::from_name(name).ok());
    let numbers = numbers.filter_map(|call| u32::try_from(i32::from(call)).ok());
    numbers.max().unwrap_or_default().max(COMMON)
}

/// Has the kernel answer as one that does not know the calls above `newest`, where the profile answers with an
/// error: a C library that is newer than the profile then does it the old way, instead of taking the profile's answer for
/// the call's own. Of two errors the filter counts that was loaded last (seccomp(2)). A profile may refuse a second
/// filter, and stands alone then.
fn refuse_beyond(newest: u32) {
    const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let step = |code: u32, jt, k| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut steps = [
        // The number is the first field of struct seccomp_data.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, newest),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
        step(libc::BPF_RET, 0, UNKNOWN),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until the call is over.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_call_of_a_profile_is_what_libseccomp_knows_of_it() {
        for (names, number) in [
            (r#""read", "openat2", "no_such_call""#, 437),
            (r#""read""#, COMMON),
            // On this architecture it has a pseudo number below zero.
            (r#""arm_fadvise64_64", "clone3""#, 435),
        ] {
            let text = format!(
                r#"{{"defaultAction": "SCMP_ACT_ERRNO",
                    "syscalls": [{{"names": [{names}], "action": "SCMP_ACT_ALLOW"}}]}}"#
            );
            let profile: LinuxSeccomp = serde_json::from_str(&text).unwrap();
            assert_eq!(newest(&profile), number, "{names}");
        }
    }
}
