//! Disks that come and go, by QMP. The machine `q35` has places for them.

use std::io;
use std::os::unix::fs::FileTypeExt;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use super::ROLE;
use crate::vmm::plug::{EJECTION, Plug, PlugError, Plugs};

/// Places for disks: root ports, one for each.
pub(super) const PORTS: usize = 8;

/// More than any answer needs, in bytes.
const LONGEST: u64 = 64 << 10;

/// The disks of a running VM. QEMU's commands are given one after another.
pub(super) struct Hotplug(Mutex<Monitor>);

struct Monitor {
    stream: BufReader<UnixStream>,
    ready: bool,
    /// Which disk is where.
    ports: [Option<String>; PORTS],
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    done: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Hotplug {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (stream, ports) = (BufReader::new(stream), [const { None }; PORTS]);
        Self(Mutex::new(Monitor { stream, ready: false, ports }))
    }

    async fn monitor(&self) -> Result<MutexGuard<'_, Monitor>, PlugError> {
        let mut monitor = self.0.lock().await;
        if !monitor.ready {
            // That of the negotiation, which the connection began with.
            monitor.answer().await?;
            monitor.ready = true;
        }
        Ok(monitor)
    }
}

impl Monitor {
    async fn send(&mut self, line: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(line).await
    }

    async fn next(&mut self) -> io::Result<Answer> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST).read_until(b'\n', &mut line).await?;
        Ok(serde_json::from_slice(&line)?)
    }

    /// The answer to a command; events come between.
    async fn answer(&mut self) -> Result<(), PlugError> {
        loop {
            let answer = self.next().await?;
            if let Some(error) = answer.error {
                return Err(PlugError::Refused { vmm: ROLE, reason: error.desc });
            }
            if answer.done.is_some() {
                return Ok(());
            }
        }
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> Result<(), PlugError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.send(line.as_bytes()).await?;
        self.answer().await
    }

    /// Waits until the guest has let go of a device.
    async fn deleted(&mut self, device: &str) -> Result<(), PlugError> {
        loop {
            let answer = self.next().await?;
            let which = answer.data.as_ref().and_then(|data| data["device"].as_str());
            if answer.event.as_deref() == Some("DEVICE_DELETED") && which == Some(device) {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Plugs for Hotplug {
    async fn plug(&self, disk: &Plug) -> Result<(), PlugError> {
        let mut monitor = self.monitor().await?;
        let Some(port) = monitor.ports.iter().position(Option::is_none) else {
            return Err(PlugError::NoPlace("all of its places are taken"));
        };
        let kind = disk.path.metadata()?.file_type();
        let driver = if kind.is_block_device() { "host_device" } else { "file" };
        let Plug { serial, path, readonly } = disk;
        let file = json!({ "driver": driver, "filename": path, "discard": "unmap" });
        let node = json!({
            "driver": "raw", "node-name": serial, "read-only": readonly, "discard": "unmap", "file": file,
        });
        let device = json!({
            "driver": "virtio-blk-pci", "id": device(serial), "drive": serial, "serial": serial,
            "bus": format!("port{port}"), "werror": "report", "rerror": "report",
        });
        monitor.execute("blockdev-add", node).await?;
        let added = monitor.execute("device_add", device).await;
        match added {
            Ok(()) => monitor.ports[port] = Some(serial.clone()),
            Err(_) => monitor.execute("blockdev-del", json!({ "node-name": serial })).await?,
        }
        added
    }

    async fn unplug(&self, serial: &str) -> Result<(), PlugError> {
        let mut monitor = self.monitor().await?;
        let device = device(serial);
        monitor.execute("device_del", json!({ "id": device })).await?;
        timeout(EJECTION, monitor.deleted(&device)).await.map_err(|_| PlugError::Held)??;
        monitor.execute("blockdev-del", json!({ "node-name": serial })).await?;
        for port in &mut monitor.ports {
            port.take_if(|held| held == serial);
        }
        Ok(())
    }
}

/// A node and a device cannot have one name.
fn device(serial: &str) -> String {
    format!("disk-{serial}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &str) -> String {
        format!("{line}\r\n")
    }

    fn plug() -> Plug {
        Plug { serial: "disk1".to_owned(), path: "/dev/null".into(), readonly: true }
    }

    /// A monitor that gives these answers, and what it was asked.
    async fn with(answers: &[&str]) -> (Hotplug, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let text: String = answers.iter().map(|line| answer(line)).collect();
        theirs.write_all(text.as_bytes()).await.expect("write");
        (Hotplug::new(ours), theirs)
    }

    const GREETING: &str = "{\"QMP\": {}}";
    const DONE: &str = "{\"return\": {}}";

    #[tokio::test]
    async fn a_disk_comes_and_goes() {
        let gone = "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"disk-disk1\", \"path\": \"/x\"}}";
        let other = "{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/y\"}}";
        let answers = [GREETING, DONE, DONE, other, DONE, DONE, other, gone, DONE];
        let (hotplug, mut asked) = with(&answers).await;
        hotplug.plug(&plug()).await.expect("plugged");
        hotplug.unplug("disk1").await.expect("unplugged");
        drop(hotplug);
        let mut text = String::new();
        asked.read_to_string(&mut text).await.expect("read");
        let commands: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("json")["execute"].to_string())
            .collect();
        let expected = ["blockdev-add", "device_add", "device_del", "blockdev-del"];
        assert_eq!(commands, expected.map(|word| format!("{word:?}")));
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_leaves_nothing() {
        let no = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Failed to get lock\"}}";
        let (hotplug, _asked) = with(&[GREETING, DONE, DONE, no, DONE]).await;
        let error = hotplug.plug(&plug()).await.expect_err("refused").to_string();
        assert_eq!(error, "qemu refuses the disk: Failed to get lock");
        assert!(hotplug.0.lock().await.ports.iter().all(Option::is_none));
    }

    #[tokio::test]
    async fn a_monitor_that_is_gone_is_an_error() {
        let (hotplug, asked) = with(&[]).await;
        drop(asked);
        hotplug.plug(&plug()).await.expect_err("gone");
    }
}
