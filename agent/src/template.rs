//! A template's guest: it boots as far as sandboxes do not differ, and waits there for its memory to be kept. What
//! follows happens in a sandbox that is woken from that memory, and in each of them anew.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use bulkhead_protocols::{CONTROL_PORT, TEMPLATE_PARAM};
use tokio::io::AsyncReadExt;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// The driver of the share, as sysfs has it.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtiofs";

/// Whether this guest is to become a template.
///
/// # Errors
/// The kernel's command line can't be read.
pub fn wanted() -> io::Result<bool> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    Ok(cmdline.split_whitespace().any(|word| word == TEMPLATE_PARAM))
}

/// Waits to be woken; returns the connection on which the host that has woken it calls.
///
/// # Errors
/// The guest has no vsock, or no share.
pub async fn wait() -> io::Result<VsockStream> {
    // The next host has another daemon behind the share, which knows nothing of what this one was told.
    let devices = devices()?;
    drive("unbind", &devices)?;
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, CONTROL_PORT))?;
    // A call that carries nothing says that all is ready; the host hangs up.
    let mut ready = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, CONTROL_PORT)).await?;
    let _ = ready.read(&mut [0]).await;
    drop(ready);
    loop {
        let (stream, peer) = listener.accept().await?;
        if peer.cid() == VMADDR_CID_HOST {
            drive("bind", &devices)?;
            return Ok(stream);
        }
    }
}

/// The devices that the driver has.
fn devices() -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(DRIVER)?.map(|entry| Ok(entry?.file_name()));
    let names = entries.collect::<io::Result<Vec<_>>>()?;
    Ok(names.into_iter().filter(|name| name.as_encoded_bytes().starts_with(b"virtio")).collect())
}

/// Has the driver take the devices (`bind`), or let go of them (`unbind`).
fn drive(file: &str, devices: &[OsString]) -> io::Result<()> {
    let path = Path::new(DRIVER).join(file);
    devices.iter().try_for_each(|device| fs::write(&path, device.as_encoded_bytes()))
}
