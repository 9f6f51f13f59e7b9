//! Taps: what a VMM reads and writes as a network device of its guest (the kernel's networking/tuntap.rst).

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

/// The device whose descriptors become taps.
const TUN: &str = "/dev/net/tun";

/// What the names of taps start with.
const NAME: &str = "bulk";

/// The largest MTU of a tap: 65,535 bytes and an Ethernet header is what fits.
pub const MAX_MTU: u32 = 65_521;

/// The smallest one (`ETH_MIN_MTU`).
pub const MIN_MTU: u32 = 68;

/// `_IOW('T', 202, int)`.
const TUNSETIFF: libc::c_ulong = nix::request_code_write!(b'T', 202, size_of::<libc::c_int>());

/// A new tap. It is there as long as one of its queues is open.
#[derive(Debug)]
pub struct Tap {
    /// Its number.
    pub index: u32,
    /// A descriptor for each queue.
    pub queues: Vec<OwnedFd>,
}

impl Tap {
    /// Makes one in the calling thread's network namespace. Packets have virtio's header, so that checksums and
    /// segmentation can be left to whoever gets them.
    ///
    /// # Errors
    /// The kernel's, where /dev/net/tun cannot be used.
    pub fn new(queues: u32) -> io::Result<Self> {
        // SAFETY: zeros are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The kernel puts the first free number into it.
        let pattern = NAME.bytes().chain(*b"%d");
        for (to, from) in request.ifr_name.iter_mut().zip(pattern) {
            *to = from as libc::c_char;
        }
        let many = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // The first one replaces the pattern by a name, which the others then have.
        let queues = (0..queues.max(1)).map(|_| queue(&mut request)).collect::<io::Result<_>>()?;
        // SAFETY: the kernel has written a name that ends with a zero.
        let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
        // SAFETY: the name is a string that ends with a zero.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { index, queues })
    }
}

/// Whether an interface is some sandbox's tap.
pub fn is_named_like_one(name: &str) -> bool {
    let number = name.strip_prefix(NAME).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn queue(request: &mut libc::ifreq) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let file: File = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN)?;
    // SAFETY: the kernel reads the request and writes a name of the same size into it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut *request) };
    Errno::result(result)?;
    Ok(file.into())
}
