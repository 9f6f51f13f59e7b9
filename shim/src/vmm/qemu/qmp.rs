//! What QEMU reports about its guest over QMP (the QEMU Machine Protocol): one JSON object a line.

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use crate::vmm::VmExit;

/// Ends the negotiation, before which QEMU reports nothing. It needs no answer, so it can lie in
/// the connection before QEMU starts.
pub(super) const NEGOTIATION: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";

/// More than any event needs, in bytes.
const LONGEST: u64 = 16 << 10;

#[derive(Deserialize)]
struct Message {
    /// Absent in the greeting and in answers.
    event: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    /// Why the VM shuts down (`ShutdownCause` in QEMU's schema).
    reason: Option<String>,
}

impl Message {
    /// What the message means for the VM, if it is its end.
    fn exit(&self) -> Option<VmExit> {
        let reason = self.data.as_ref().and_then(|data| data.reason.as_deref());
        match (self.event.as_deref()?, reason) {
            ("GUEST_PANICKED", _) | ("SHUTDOWN", Some("guest-panic")) => Some(VmExit::GuestPanic),
            ("SHUTDOWN", Some("guest-reset")) => Some(VmExit::GuestReset),
            ("SHUTDOWN", Some("guest-shutdown")) => Some(VmExit::GuestPowerOff),
            _ => None,
        }
    }
}

/// Reads until an event ends the VM; nothing where the stream ends, or is no such stream.
pub(super) async fn first_exit(stream: impl AsyncRead + Unpin) -> Option<VmExit> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut stream).take(LONGEST).read_until(b'\n', &mut line).await.ok()?;
        let message: Message = serde_json::from_slice(&line).ok()?;
        if let Some(exit) = message.exit() {
            return Some(exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": []}}\r\n{\"return\": {}}\r\n";

    async fn read(text: &str) -> Option<VmExit> {
        first_exit(text.as_bytes()).await
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
