//! What containerd is told of a container, as the events of its task API.

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task;
use protobuf::MessageField;

use super::process::Exit;
use super::stdio::StdioPaths;
use crate::events::{Publisher, timestamp};

/// Publishes one container's events. An empty `exec` is its first process.
pub struct Notices<'a> {
    /// The container's id.
    pub container: &'a str,
    /// The number that stands for its processes on the host.
    pub pid: u32,
    /// Where the events go.
    pub publisher: &'a Publisher,
}

impl Notices<'_> {
    pub fn created(&self, bundle: String, rootfs: Vec<Mount>, stdio: &StdioPaths) {
        self.publisher.publish(&task::TaskCreate {
            container_id: self.container.to_owned(),
            bundle,
            rootfs,
            io: MessageField::some(task::TaskIO {
                stdin: stdio.stdin.clone(),
                stdout: stdio.stdout.clone(),
                stderr: stdio.stderr.clone(),
                terminal: stdio.terminal,
                ..Default::default()
            }),
            pid: self.pid,
            ..Default::default()
        });
    }

    pub fn exec_added(&self, exec: &str) {
        let (container_id, exec_id) = (self.container.to_owned(), exec.to_owned());
        let added = task::TaskExecAdded { container_id, exec_id, ..Default::default() };
        self.publisher.publish(&added);
    }

    pub fn started(&self, exec: &str) {
        let (container_id, pid) = (self.container.to_owned(), self.pid);
        if exec.is_empty() {
            self.publisher.publish(&task::TaskStart { container_id, pid, ..Default::default() });
            return;
        }
        let exec_id = exec.to_owned();
        let started = task::TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
        self.publisher.publish(&started);
    }

    pub fn exited(&self, exec: &str, exit: Exit) {
        self.publisher.publish(&task::TaskExit {
            container_id: self.container.to_owned(),
            id: if exec.is_empty() { self.container } else { exec }.to_owned(),
            pid: self.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    pub fn deleted(&self, exit: Exit) {
        self.publisher.publish(&task::TaskDelete {
            container_id: self.container.to_owned(),
            id: self.container.to_owned(),
            pid: self.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    pub fn out_of_memory(&self) {
        if self.publisher.is_behind() {
            return;
        }
        let container_id = self.container.to_owned();
        self.publisher.publish(&task::TaskOOM { container_id, ..Default::default() });
    }

    pub fn paused(&self) {
        let container_id = self.container.to_owned();
        self.publisher.publish(&task::TaskPaused { container_id, ..Default::default() });
    }

    pub fn resumed(&self) {
        let container_id = self.container.to_owned();
        self.publisher.publish(&task::TaskResumed { container_id, ..Default::default() });
    }
}
