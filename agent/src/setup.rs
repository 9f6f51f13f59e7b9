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

use crate::error::{Error, Result};

/// Does what the request asks for, in the order of its fields.
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
    Ok(())
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
    Ok(())
}

fn mount_one(entry: &Mount) -> Result<()> {
    if !Path::new(&entry.target).is_absolute() {
        return Err(Error::InvalidArgument(format!(
            "the mount target {:?} is not an absolute path",
            entry.target
        )));
    }
    fs::create_dir_all(&entry.target)
        .map_err(|error| Error::io(format_args!("cannot make {}", entry.target), error))?;
    let Options { flags, data } = Options::parse(&entry.options);
    let data = (!data.is_empty()).then_some(data.as_str());
    let target = entry.target.as_str();
    let failed = |error| {
        Error::io(
            format_args!("cannot mount {} on {target}", entry.source),
            error,
        )
    };
    mount(
        Some(entry.source.as_str()),
        target,
        Some(entry.fstype.as_str()),
        flags,
        data,
    )
    .map_err(failed)?;
    if flags.contains(MsFlags::MS_BIND) && !(flags - MsFlags::MS_BIND - MsFlags::MS_REC).is_empty()
    {
        // A bind mount takes its flags only when it is mounted again.
        mount(
            None::<&str>,
            target,
            None::<&str>,
            flags | MsFlags::MS_REMOUNT,
            None::<&str>,
        )
        .map_err(failed)?;
    }
    Ok(())
}

/// Mount options as mount(8) writes them.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    /// What is the file system's own.
    data: String,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in options {
            match option.as_str() {
                "" | "defaults" => {}
                "ro" => flags |= MsFlags::MS_RDONLY,
                "rw" => flags -= MsFlags::MS_RDONLY,
                "nosuid" => flags |= MsFlags::MS_NOSUID,
                "suid" => flags -= MsFlags::MS_NOSUID,
                "nodev" => flags |= MsFlags::MS_NODEV,
                "dev" => flags -= MsFlags::MS_NODEV,
                "noexec" => flags |= MsFlags::MS_NOEXEC,
                "exec" => flags -= MsFlags::MS_NOEXEC,
                "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
                "dirsync" => flags |= MsFlags::MS_DIRSYNC,
                "noatime" => flags |= MsFlags::MS_NOATIME,
                "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
                "relatime" => flags |= MsFlags::MS_RELATIME,
                "strictatime" => flags |= MsFlags::MS_STRICTATIME,
                "bind" => flags |= MsFlags::MS_BIND,
                "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
                other => data.push(other),
            }
        }
        Self {
            flags,
            data: data.join(","),
        }
    }
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
    let path = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    let fits = path
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    fits.then_some(path)
}

fn invalid(field: &str, value: &str, error: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("{field} {value:?} is not allowed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_the_file_systems_own() {
        let options = ["nosuid", "ro", "rw", "size=1m", "mode=755", "noexec"].map(str::to_owned);
        assert_eq!(
            Options::parse(&options),
            Options {
                flags: MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
                data: "size=1m,mode=755".to_owned()
            }
        );
    }

    #[test]
    fn kernel_parameters_stay_below_proc_sys() {
        assert_eq!(
            sysctl_path("net.ipv4.ip_forward").unwrap(),
            "net/ipv4/ip_forward"
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            "net/ipv4/conf/eth0.1/forwarding"
        );
        for bad in ["", "..", "net..ipv4", "../fs", "/etc/passwd", "net/../../x"] {
            assert_eq!(sysctl_path(bad), None, "{bad}");
        }
    }
}
