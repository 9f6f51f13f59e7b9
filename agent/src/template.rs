//! A template's guest: it boots as far as sandboxes do not differ, and waits there for its memory to be kept. What
//! follows happens in a sandbox that is woken from that memory, and in each of them anew.

use std::fs;
use std::io;

use bulkhead_protocols::{CONTROL_PORT, TEMPLATE_PARAM};
use tokio::io::AsyncReadExt;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::virtio::Driver;

/// The driver of the share.
const DRIVER: Driver = Driver("virtiofs");

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
    let devices = DRIVER.devices()?;
    devices.iter().try_for_each(|device| DRIVER.unbind(device))?;
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, CONTROL_PORT))?;
    // A call that carries nothing says that all is ready; the host hangs up.
    let mut ready = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, CONTROL_PORT)).await?;
    let _ = ready.read(&mut [0]).await;
    drop(ready);
    loop {
        let (stream, peer) = listener.accept().await?;
        if peer.cid() == VMADDR_CID_HOST {
            devices.iter().try_for_each(|device| DRIVER.bind(device))?;
            return Ok(stream);
        }
    }
}
