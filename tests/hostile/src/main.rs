//! PID 1 of a guest that an attacker has taken over: it speaks the agent's side of the wire, and in
//! one way, named on the kernel's command line, it does so with ill intent. The tests put it in the
//! agent's place to see what the shim makes of it.

mod service;
mod vandal;

use std::error::Error;
use std::fs;
use std::sync::Arc;

use bulkhead_protocols::agent_ttrpc::create_agent;
use bulkhead_protocols::{CONTROL_PORT, STREAM_PORT};
use futures::{StreamExt, stream};
use nix::mount::{MsFlags, mount};
use tokio::io::AsyncWriteExt;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use service::Hostile;

/// In what way the guest is hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vice {
    /// Takes signals and does nothing about them.
    Deaf,
    /// Answers nothing after the start of the container.
    Mute,
    /// Reports what is not so: names that are paths, numbers that cannot be, and endlessly.
    Liar,
    /// Tries to change what the host has given it to read.
    Vandal,
    /// Sends what is no message, with a length to match.
    Noise,
    /// Writes without end, after the end of the container too, and reads nothing.
    Flood,
}

fn main() -> Result<(), Box<dyn Error>> {
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
    let words = fs::read_to_string("/proc/cmdline")?;
    let word = words.split_whitespace().find_map(|word| word.strip_prefix("hostile="));
    let vice = match word {
        Some("deaf") => Vice::Deaf,
        Some("mute") => Vice::Mute,
        Some("liar") => Vice::Liar,
        Some("vandal") => Vice::Vandal,
        Some("noise") => Vice::Noise,
        Some("flood") => Vice::Flood,
        other => return Err(format!("hostile={other:?} is no vice").into()),
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(vice))
}

async fn run(vice: Vice) -> Result<(), Box<dyn Error>> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT))?;
    tokio::spawn(keep_streams(listener, vice));
    let mut stream = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, CONTROL_PORT)).await?;
    if vice == Vice::Noise {
        // A ttrpc header begins with the length of what follows.
        loop {
            stream.write_all(&[0xff; 4096]).await?;
        }
    }
    let once = stream::iter([Ok(stream)]).chain(stream::pending());
    let mut server = Server::new()
        .add_listener(Listener::new(once))
        .register_service(create_agent(Arc::new(Hostile::new(vice))));
    server.start().await?;
    std::future::pending().await
}

/// Takes every stream, never reads or closes one.
async fn keep_streams(listener: VsockListener, vice: Vice) {
    let mut kept = Vec::new();
    // The first one is a container's standard output.
    if vice == Vice::Flood
        && let Ok((mut stream, _)) = listener.accept().await
    {
        tokio::spawn(async move { while stream.write_all(&[b'x'; 16 << 10]).await.is_ok() {} });
    }
    while let Ok((stream, _)) = listener.accept().await {
        kept.push(stream);
    }
}
