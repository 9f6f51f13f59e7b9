//! What QEMU says over QMP (the QEMU Machine Protocol): one JSON object a line, events about its guest and answers.

use std::collections::HashSet;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{mpsc, watch};

use crate::vmm::VmExit;

/// Ends the negotiation, before which QEMU reports nothing. It needs no answer, so it can lie in
/// the connection before QEMU starts.
const NEGOTIATION: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";

/// More than any line needs, in bytes.
const LONGEST: u64 = 64 << 10;

/// The number of a command, and why it failed, if it did.
pub(super) type Answer = (u64, Result<(), String>);

#[derive(Deserialize)]
struct Message {
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(rename = "return")]
    done: Option<Value>,
    error: Option<Refusal>,
    /// The number of the command. The negotiation has none.
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Message {
    /// What an event means for the VM, if it is its end.
    fn exit(&self) -> Option<VmExit> {
        match (self.event.as_deref()?, self.data["reason"].as_str()) {
            ("GUEST_PANICKED", _) | ("SHUTDOWN", Some("guest-panic")) => Some(VmExit::GuestPanic),
            ("SHUTDOWN", Some("guest-reset")) => Some(VmExit::GuestReset),
            ("SHUTDOWN", Some("guest-shutdown")) => Some(VmExit::GuestPowerOff),
            _ => None,
        }
    }

    /// The device that the guest has let go of, if that is the event.
    fn deleted(&self) -> Option<&str> {
        let deleted = self.event.as_deref()? == "DEVICE_DELETED";
        self.data["device"].as_str().filter(|_| deleted)
    }

    fn answer(self) -> Option<Answer> {
        let result = match self.done {
            Some(_) => Ok(()),
            None => Err(self.error?.desc),
        };
        Some((self.id?, result))
    }
}

/// A connection with the negotiation in it: ours, and QEMU's.
pub(super) fn connection() -> io::Result<(tokio::net::UnixStream, UnixStream)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.write_all(NEGOTIATION)?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs))
}

/// Reads until an event ends the VM; nothing where the stream ends, or is no such stream. Tells `deleted` of devices
/// that the guest has let go of, and `answers` what came of commands.
pub(super) async fn first_exit(
    stream: impl AsyncRead + Unpin,
    answers: mpsc::UnboundedSender<Answer>,
    deleted: watch::Sender<HashSet<String>>,
) -> Option<VmExit> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut stream).take(LONGEST).read_until(b'\n', &mut line).await.ok()?;
        let message: Message = serde_json::from_slice(&line).ok()?;
        if let Some(exit) = message.exit() {
            return Some(exit);
        }
        if let Some(device) = message.deleted() {
            deleted.send_if_modified(|deleted| deleted.insert(device.to_owned()));
        }
        if let Some(answer) = message.answer() {
            // A machine without places has nobody who asks.
            let _ = answers.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": []}}\r\n{\"return\": {}}\r\n";

    async fn read(text: &str) -> Option<VmExit> {
        first_exit(text.as_bytes(), mpsc::unbounded_channel().0, watch::Sender::default()).await
    }

    fn shutdown(reason: &str) -> String {
        format!(
            "{GREETING}{{\"timestamp\": {{\"seconds\": 1}}, \"event\": \"SHUTDOWN\", \"data\": {{\"guest\": true, \"reason\": \"{reason}\"}}}}\r\n"
        )
    }

    #[tokio::test]
    async fn shutdowns_are_told_apart_by_their_reason() {
        assert_eq!(read(&shutdown("guest-reset")).await, Some(VmExit::GuestReset));
        assert_eq!(read(&shutdown("guest-shutdown")).await, Some(VmExit::GuestPowerOff));
        assert_eq!(read(&shutdown("guest-panic")).await, Some(VmExit::GuestPanic));
        assert_eq!(read(&shutdown("host-signal")).await, None);
    }

    #[tokio::test]
    async fn a_panic_counts_before_the_shutdown_that_follows() {
        let panic = "{\"event\": \"GUEST_PANICKED\", \"data\": {\"action\": \"pause\"}}\r\n";
        let text = format!("{GREETING}{panic}{}", shutdown("guest-reset"));
        assert_eq!(read(&text).await, Some(VmExit::GuestPanic));
    }

    #[tokio::test]
    async fn what_is_no_qmp_is_given_up() {
        assert_eq!(read("").await, None);
        assert_eq!(read(GREETING).await, None);
        assert_eq!(read("hello\n").await, None);
        assert_eq!(read(&"x".repeat(1 << 20)).await, None);
        assert_eq!(read("{\"event\": \"SHUTDOWN\"").await, None);
        assert_eq!(read("{\"event\": \"SHUTDOWN\"}\n").await, None);
    }
}
