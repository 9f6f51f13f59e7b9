//! The one call that makes the guest ready for containers.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use bulkhead_protocols::agent::{Mount, SetupRequest};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::disk;
use crate::error::{Error, Result};

/// Does what the request asks for, in the order of its fields, but for the network.
///
/// # Errors
/// [`Error::InvalidArgument`] names a field that can't be meant, [`Error::Internal`] what the kernel
/// refused.
pub fn apply(request: &SetupRequest) -> Result<()> {
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname)
            .map_err(|error| invalid("hostname", &request.hostname, error))?;
    }
    if request.clock_ns != 0 {
        set_clock(request.clock_ns)?;
    }
    if !request.entropy.is_empty() {
        credit_entropy(&request.entropy)
            .map_err(|error| Error::io("cannot add to the kernel's entropy", error))?;
    }
    for entry in &request.mounts {
        mount_one(entry)?;
    }
    for (name, value) in &request.sysctls {
        set_sysctl(name, value)?;
    }
    for (path, content) in &request.files {
        write_file(Path::new(path), content)
            .map_err(|error| Error::io(format!("cannot write {path}"), error))?;
    }
    Ok(())
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}

fn set_clock(ns: i64) -> Result<()> {
    const SECOND: i64 = 1_000_000_000;
    let time = TimeSpec::new(ns.div_euclid(SECOND), ns.rem_euclid(SECOND));
    clock_settime(ClockId::CLOCK_REALTIME, time)
        .map_err(|error| invalid("clock_ns", &ns.to_string(), error))
}

/// RNDADDENTROPY: unlike a write to /dev/random it counts as entropy, see random(4).
fn credit_entropy(bytes: &[u8]) -> io::Result<()> {
    /// The largest seed that is worth taking, in bytes.
    const MAX: usize = 512;
    /// `_IOW('R', 0x03, int[2])`.
    const RNDADDENTROPY: libc::c_ulong =
        nix::request_code_write!(b'R', 0x03, 2 * size_of::<libc::c_int>());
    /// `_IO('R', 0x07)`: without it the generator takes from the pool within a minute, and not now.
    const RNDRESEEDCRNG: libc::c_ulong = nix::request_code_none!(b'R', 0x07);
    /// `struct rand_pool_info`.
    #[repr(C)]
    struct Pool {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; MAX],
    }
    let length = bytes.len().min(MAX);
    let mut pool = Pool {
        entropy_bits: (length * 8) as libc::c_int,
        size: length as libc::c_int,
        bytes: [0; MAX],
    };
    pool.bytes[..length].copy_from_slice(&bytes[..length]);
    let random = File::options().write(true).open("/dev/random")?;
    // SAFETY: the request reads `size` bytes after the header, which are there.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const pool) };
    Errno::result(result)?;
    // SAFETY: the request takes no argument.
    Errno::result(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

/// Mounts a file system. Options are its own; the kernel refuses those that it does not know.
///
/// # Errors
/// [`Error::InvalidArgument`] names a target that can't be meant, [`Error::Internal`] what the kernel refused.
pub fn mount_one(entry: &Mount) -> Result<()> {
    if !Path::new(&entry.target).is_absolute() {
        return Err(Error::InvalidArgument(format!(
            "the mount target {:?} is not an absolute path",
            entry.target
        )));
    }
    fs::create_dir_all(&entry.target)
        .map_err(|error| Error::io(format_args!("cannot make {}", entry.target), error))?;
    let failed = |error: io::Error| {
        let (source, target) = (&entry.source, &entry.target);
        Error::io(format_args!("cannot mount {source} on {target}"), error)
    };
    let source = disk::node(&entry.source).map_err(failed)?;
    mount(
        Some(&source),
        entry.target.as_str(),
        Some(entry.fstype.as_str()),
        MsFlags::empty(),
        Some(entry.options.join(",").as_str()),
    )
    .map_err(|error| failed(error.into()))
}

/// Writes a kernel parameter under /proc/sys. Dots or slashes separate the parts of its name; where
/// slashes do, a dot is a dot, as sysctl(8) has it.
///
/// # Errors
/// [`Error::InvalidArgument`] with the parameter's name.
pub fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = sysctl_path(name)
        .ok_or_else(|| Error::InvalidArgument(format!("{name:?} is not a kernel parameter")))?;
    fs::write(format!("/proc/sys/{path}"), value).map_err(|error| {
        Error::InvalidArgument(format!(
            "cannot set the kernel parameter {name} to {value:?}: {error}"
        ))
    })
}

/// The path below /proc/sys; none if the name would lead elsewhere.
fn sysctl_path(name: &str) -> Option<String> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let fits = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    fits.then_some(path)
}

fn invalid(field: &str, value: &str, error: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("{field} {value:?} is not allowed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_parameters_stay_below_proc_sys() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            "net/ipv4/conf/eth0.1/forwarding"
        );
        for bad in ["", "..", "net..ipv4", "../fs", "/etc/passwd", "net/../../x"] {
            assert_eq!(sysctl_path(bad), None, "{bad}");
        }
    }
}
