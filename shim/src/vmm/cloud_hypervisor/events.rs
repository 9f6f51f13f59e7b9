//! What cloud-hypervisor reports about its guest: JSON objects, one after another, on a pipe.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use crate::vmm::VmExit;

/// More than any event needs. The guest can make the VMM say things; it cannot make us keep them.
const LONGEST: usize = 16 << 10;

#[derive(Deserialize)]
struct Event {
    source: String,
    event: String,
    properties: Option<HashMap<String, Value>>,
}

/// What the VMM reports.
pub(super) struct Events<R> {
    stream: R,
    /// What is read and not understood yet.
    text: Vec<u8>,
    booted: bool,
}

impl<R: AsyncRead + Unpin> Events<R> {
    /// Of a VM that is just being started.
    pub(super) fn new(stream: R) -> Self {
        Self { stream, text: Vec::new(), booted: false }
    }

    /// Reads until an event ends the VM; nothing where the stream ends, or is no such stream. Tells `removed` of devices
    /// that are out.
    pub(super) async fn first_exit(
        mut self,
        removed: watch::Sender<HashSet<String>>,
    ) -> Option<VmExit> {
        loop {
            let event = self.next().await?;
            match (event.source.as_str(), event.event.as_str()) {
                ("vm", "booted") => self.booted = true,
                ("vm", "device-removed") => {
                    let id = event.properties.as_ref().and_then(|properties| properties.get("id"));
                    let id = id.and_then(Value::as_str).unwrap_or_default().to_owned();
                    removed.send_if_modified(|removed| removed.insert(id));
                }
                // "crash_loaded" too: there is no other kernel that could take over here.
                ("guest", "panic") => return Some(VmExit::GuestPanic),
                // It would boot the same VM again, whose file share is gone.
                ("vm", "rebooting") => return Some(VmExit::GuestReset),
                // Before, it is the VMM that gives up; why, it says on stderr.
                ("vm", "shutdown") if self.booted => return Some(VmExit::GuestPowerOff),
                _ => {}
            }
        }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            let mut events = serde_json::Deserializer::from_slice(&self.text).into_iter::<Event>();
            match events.next() {
                Some(Ok(event)) => {
                    let done = events.byte_offset();
                    self.text.drain(..done);
                    return Some(event);
                }
                // The rest is yet to come.
                Some(Err(e)) if e.is_eof() => {}
                Some(Err(_)) => return None,
                None => self.text.clear(),
            }
            if self.text.len() >= LONGEST || self.stream.read_buf(&mut self.text).await.ok()? == 0 {
                return None;
            }
        }
    }
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

    async fn first_exit(stream: impl AsyncRead + Unpin) -> Option<VmExit> {
        Events::new(stream).first_exit(watch::Sender::default()).await
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
    async fn a_device_that_is_out_is_told_of() {
        let text = event("vm", "booted") + &event("vm", "shutdown");
        let removed = "{\"source\": \"vm\", \"event\": \"device-removed\", \"properties\": {\"id\": \"disk1\"}}";
        let text = removed.to_owned() + &text;
        let sender = watch::Sender::default();
        let seen = sender.subscribe();
        let exit = Events::new(text.as_bytes()).first_exit(sender).await;
        assert!(seen.borrow().contains("disk1"));
        assert_eq!(exit, Some(VmExit::GuestPowerOff));
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
