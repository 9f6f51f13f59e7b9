//! Disks that come and go, by QMP. The machine `q35` has places for them.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::FileTypeExt;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, MutexGuard, mpsc, watch};
use tokio::time::timeout;

use super::ROLE;
use super::qmp::Answer;
use crate::vmm::plug::{EJECTION, Plug, PlugError, Plugs};

/// Places for disks: root ports, one for each.
pub(super) const PORTS: usize = 8;

/// The disks of a running VM. QEMU's commands are given one after another.
pub(super) struct Hotplug {
    monitor: Mutex<Monitor>,
    /// The devices that the guest has let go of.
    deleted: watch::Receiver<HashSet<String>>,
}

struct Monitor {
    stream: OwnedWriteHalf,
    answers: mpsc::UnboundedReceiver<Answer>,
    commands: u64,
    /// Which disk is where.
    ports: [Option<String>; PORTS],
}

impl Hotplug {
    /// `stream` takes the commands, for which there are `answers`.
    pub(super) fn new(
        stream: OwnedWriteHalf,
        answers: mpsc::UnboundedReceiver<Answer>,
        deleted: watch::Receiver<HashSet<String>>,
    ) -> Self {
        let monitor = Monitor { stream, answers, commands: 0, ports: [const { None }; PORTS] };
        Self { monitor: Mutex::new(monitor), deleted }
    }

    /// The monitor, with the places free whose disks have gone, though it may be that nobody waited for it so long.
    async fn monitor(&self) -> Result<MutexGuard<'_, Monitor>, PlugError> {
        let mut monitor = self.monitor.lock().await;
        for port in 0..PORTS {
            let held = monitor.ports[port].clone();
            if let Some(serial) = held.filter(|one| self.deleted.borrow().contains(&device(one))) {
                // The place is free, whatever comes of the rest: one that was late has been carried out by now.
                monitor.ports[port] = None;
                let _ = monitor.execute("blockdev-del", json!({ "node-name": serial })).await;
            }
        }
        Ok(monitor)
    }
}

impl Monitor {
    async fn execute(&mut self, command: &str, arguments: Value) -> Result<(), PlugError> {
        let refused = |reason: String| PlugError::Refused { vmm: ROLE, reason };
        self.commands += 1;
        let id = self.commands;
        let line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        self.stream.write_all((line + "\n").as_bytes()).await?;
        let answered = async {
            loop {
                match self.answers.recv().await? {
                    (number, answer) if number == id => return Some(answer),
                    // Of a command that was given up.
                    _ => {}
                }
            }
        };
        match timeout(EJECTION, answered).await {
            Ok(Some(answer)) => answer.map_err(refused),
            Ok(None) => Err(refused("it has ended".to_owned())),
            Err(_) => Err(refused(format!("it does not answer {command}"))),
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
            // What is not answered in time may still be carried out: the place is taken until the node is gone.
            Err(_) => {
                let gone = monitor.execute("blockdev-del", json!({ "node-name": serial })).await;
                if gone.is_err() {
                    monitor.ports[port] = Some(serial.clone());
                }
            }
        }
        added
    }

    async fn unplug(&self, serial: &str) -> Result<(), PlugError> {
        let device = device(serial);
        let asked = self.monitor().await?.execute("device_del", json!({ "id": device })).await;
        let mut deleted = self.deleted.clone();
        // A guest may have let go of it by itself.
        if !deleted.borrow().contains(&device) {
            asked?;
        }
        let gone = timeout(EJECTION, deleted.wait_for(|deleted| deleted.contains(&device))).await;
        gone.map_err(|_| PlugError::Held)?.map_err(io::Error::other)?;
        self.monitor().await.map(drop)
    }
}

/// A node and a device cannot have one name.
fn device(serial: &str) -> String {
    format!("disk-{serial}")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;

    use super::super::qmp::first_exit;
    use super::*;

    fn plug() -> Plug {
        Plug { serial: "disk1".to_owned(), path: "/dev/null".into(), readonly: true }
    }

    fn hotplug(stream: UnixStream) -> Hotplug {
        let (reader, writer) = stream.into_split();
        let (answered, answers) = mpsc::unbounded_channel();
        let (deleted, told) = watch::channel(HashSet::new());
        tokio::spawn(first_exit(reader, answered, deleted));
        Hotplug::new(writer, answers, told)
    }

    const DONE: &str = "{\"return\": {}}\r\n";
    const GONE: &str = "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"disk-disk1\", \"path\": \"/x\"}}\r\n";

    /// A monitor that answers each command in turn so, by its number, and which commands there were.
    fn with(answers: &[&str]) -> (Hotplug, JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let answers: Vec<String> = answers.iter().map(|text| (*text).to_owned()).collect();
        let peer = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            let greeting = format!("{{\"QMP\": {{}}}}\r\n{DONE}");
            writer.write_all(greeting.as_bytes()).await.expect("write");
            let mut commands = Vec::new();
            for answer in answers {
                let line = lines.next_line().await.expect("read").expect("a command");
                let command: Value = serde_json::from_str(&line).expect("json");
                commands.push(command["execute"].as_str().expect("a name").to_owned());
                let numbered = format!("{{\"id\": {}, ", command["id"]);
                let answer = answer.replace("{\"return\"", &format!("{numbered}\"return\""));
                let answer = answer.replace("{\"error\"", &format!("{numbered}\"error\""));
                writer.write_all(answer.as_bytes()).await.expect("write");
            }
            commands
        });
        (hotplug(ours), peer)
    }

    #[tokio::test]
    async fn a_disk_comes_and_goes() {
        let other = "{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/y\"}}\r\n";
        // The news may come before the answer.
        for told in [format!("{DONE}{other}{GONE}"), format!("{GONE}{DONE}")] {
            let (hotplug, peer) = with(&[DONE, &format!("{other}{DONE}"), &told, DONE]);
            hotplug.plug(&plug()).await.expect("plugged");
            hotplug.unplug("disk1").await.expect("unplugged");
            let commands = peer.await.expect("peer");
            assert_eq!(commands, ["blockdev-add", "device_add", "device_del", "blockdev-del"]);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_leaves_nothing() {
        let no = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Failed to get lock\"}}\r\n";
        let (hotplug, _peer) = with(&[DONE, no, DONE]);
        let error = hotplug.plug(&plug()).await.expect_err("refused").to_string();
        assert_eq!(error, "qemu refuses the disk: Failed to get lock");
        assert!(hotplug.monitor.lock().await.ports.iter().all(Option::is_none));
    }

    #[tokio::test]
    async fn the_late_answer_of_a_command_that_was_given_up_is_nobodys() {
        let late = "{\"id\": 0, \"error\": {\"class\": \"GenericError\", \"desc\": \"late\"}}\r\n";
        let (hotplug, _peer) = with(&[&format!("{late}{DONE}"), &format!("{late}{DONE}")]);
        hotplug.plug(&plug()).await.expect("plugged");
    }

    #[tokio::test]
    async fn what_the_guest_has_let_go_of_by_itself_is_gone() {
        let no = "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"Device not found\"}}\r\n";
        let (hotplug, _peer) = with(&[DONE, &format!("{DONE}{GONE}"), DONE, no]);
        hotplug.plug(&plug()).await.expect("plugged");
        let mut deleted = hotplug.deleted.clone();
        deleted.wait_for(|deleted| !deleted.is_empty()).await.expect("told");
        hotplug.unplug("disk1").await.expect("gone");
        assert!(hotplug.monitor.lock().await.ports.iter().all(Option::is_none));
    }

    #[tokio::test]
    async fn a_monitor_that_is_gone_is_an_error() {
        let (ours, _) = UnixStream::pair().expect("pair");
        hotplug(ours).plug(&plug()).await.expect_err("gone");
    }

    #[tokio::test]
    async fn what_qemu_does_late_takes_no_place_for_good() {
        // The node goes after the deadline. An empty answer is none.
        let (hotplug, peer) = with(&[DONE, DONE, &format!("{DONE}{GONE}"), "", DONE, DONE]);
        hotplug.plug(&plug()).await.expect("plugged");
        tokio::time::pause();
        hotplug.unplug("disk1").await.expect("out of the guest");
        let other = Plug { serial: "disk2".to_owned(), ..plug() };
        hotplug.plug(&other).await.expect("plugged");
        assert_eq!(peer.await.expect("peer").len(), 6);
    }

    #[tokio::test]
    async fn a_device_that_comes_late_has_its_place() {
        let no =
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Node disk1 is in use\"}}\r\n";
        let (hotplug, _peer) = with(&[DONE, "", no]);
        tokio::time::pause();
        hotplug.plug(&plug()).await.expect_err("late");
        assert!(hotplug.monitor.lock().await.ports[0].is_some(), "it would be taken twice");
    }
}
