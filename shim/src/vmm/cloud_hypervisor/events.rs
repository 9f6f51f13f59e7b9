//! What cloud-hypervisor reports about its guest: JSON objects, one after another, on a pipe.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::vmm::VmExit;

/// More than any event needs. The guest can make the VMM say things; it cannot make us keep them.
const LONGEST: usize = 16 << 10;

#[derive(Deserialize)]
struct Event {
    source: String,
    event: String,
}

/// How far a VM has come, as its events tell.
#[derive(Default)]
struct Progress {
    booted: bool,
}

impl Progress {
    /// What the event means for the VM, if it is its end.
    fn see(&mut self, event: &Event) -> Option<VmExit> {
        match (event.source.as_str(), event.event.as_str()) {
            ("vm", "booted") => self.booted = true,
            // "crash_loaded" too: there is no other kernel that could take over here.
            ("guest", "panic") => return Some(VmExit::GuestPanic),
            // It would boot the same VM again, whose file share is gone.
            ("vm", "rebooting") => return Some(VmExit::GuestReset),
            // Before, it is the VMM that gives up; why, it says on stderr.
            ("vm", "shutdown") if self.booted => return Some(VmExit::GuestPowerOff),
            _ => {}
        }
        None
    }
}

/// Reads until an event ends the VM; nothing where the stream ends, or is no such stream.
pub(super) async fn first_exit(mut stream: impl AsyncRead + Unpin) -> Option<VmExit> {
    let mut text = Vec::new();
    let mut progress = Progress::default();
    while text.len() < LONGEST {
        if stream.read_buf(&mut text).await.ok()? == 0 {
            return None;
        }
        let mut events = serde_json::Deserializer::from_slice(&text).into_iter::<Event>();
        let mut done = 0;
        loop {
            match events.next() {
                Some(Ok(event)) => {
                    if let Some(exit) = progress.see(&event) {
                        return Some(exit);
                    }
                    done = events.byte_offset();
                }
                // The rest is yet to come.
                Some(Err(e)) if e.is_eof() => break,
                Some(Err(_)) => return None,
                None => break,
            }
        }
        text.drain(..done);
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    fn event(source: &str, event: &str) -> String {
        let secs = "\"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": 1\n  }";
        format!(
            "{{\n  {secs},\n  \"source\": \"{source}\",\n  \"event\": \"{event}\",\n  \"properties\": null\n}}\n\n"
        )
    }

    async fn read(text: &str) -> Option<VmExit> {
        first_exit(text.as_bytes()).await
    }

    #[tokio::test]
    async fn the_first_event_that_ends_the_vm_counts() {
        let boot = event("vmm", "starting") + &event("vm", "booting") + &event("vm", "booted");
        let panic = boot.clone() + &event("guest", "panic") + &event("vm", "rebooting");
        assert_eq!(read(&panic).await, Some(VmExit::GuestPanic));
        let reset = boot.clone() + &event("vm", "rebooting") + &event("vm", "rebooted");
        assert_eq!(read(&reset).await, Some(VmExit::GuestReset));
        let off = boot.clone() + &event("vm", "shutdown") + &event("vm", "deleted");
        assert_eq!(read(&off).await, Some(VmExit::GuestPowerOff));
        assert_eq!(read(&boot).await, None);
    }

    #[tokio::test]
    async fn events_arrive_in_any_pieces() {
        let text = event("vm", "booted") + &event("guest", "panic");
        let (mut writer, reader) = duplex(1);
        let write = async move {
            // The reader may be satisfied before the end.
            let _ = writer.write_all(text.as_bytes()).await;
        };
        let (exit, ()) = tokio::join!(first_exit(reader), write);
        assert_eq!(exit, Some(VmExit::GuestPanic));
    }

    #[tokio::test]
    async fn many_events_are_not_kept() {
        let text = event("vm", "booted") + &event("virtio-device", "activated").repeat(1000);
        let text = text + &event("vm", "shutdown");
        assert_eq!(read(&text).await, Some(VmExit::GuestPowerOff));
    }

    #[tokio::test]
    async fn a_vm_that_does_not_boot_has_not_powered_itself_off() {
        let text = event("vmm", "starting") + &event("vm", "booting") + &event("vm", "shutdown");
        assert_eq!(read(&text).await, None);
    }

    #[tokio::test]
    async fn what_is_no_event_stream_is_given_up() {
        assert_eq!(read("hello").await, None);
        assert_eq!(read("{\"source\": \"vm\"}").await, None);
        assert_eq!(read("[1, 2]").await, None);
        assert_eq!(read("").await, None);
        assert_eq!(read("{\"source\": \"vm\", \"event\": \"shut").await, None);
        assert_eq!(read(&format!("{{\"source\": \"{}", "x".repeat(1 << 20))).await, None);
    }
}
