//! What containerd is told of a container, as the events of its task API.

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task;
use protobuf::MessageField;

use super::Container;
use super::process::Exit;
use crate::events::timestamp;

/// An empty `exec` is the first process.
impl Container {
    pub(super) fn tell_created(&self, rootfs: Vec<Mount>) {
        let stdio = &self.init.stdio;
        self.publisher.publish(&task::TaskCreate {
            container_id: self.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            rootfs,
            io: MessageField::some(task::TaskIO {
                stdin: stdio.stdin.clone(),
                stdout: stdio.stdout.clone(),
                stderr: stdio.stderr.clone(),
                terminal: stdio.terminal,
                ..Default::default()
            }),
            pid: self.host_pid,
            ..Default::default()
        });
    }

    pub(super) fn tell_exec_added(&self, exec: &str) {
        let (container_id, exec_id) = (self.id.clone(), exec.to_owned());
        let added = task::TaskExecAdded { container_id, exec_id, ..Default::default() };
        self.publisher.publish(&added);
    }

    pub(super) fn tell_started(&self, exec: &str) {
        let (container_id, pid) = (self.id.clone(), self.host_pid);
        if exec.is_empty() {
            self.publisher.publish(&task::TaskStart { container_id, pid, ..Default::default() });
            return;
        }
        let exec_id = exec.to_owned();
        let started = task::TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
        self.publisher.publish(&started);
    }

    pub(super) fn tell_exited(&self, exec: &str, exit: Exit) {
        self.publisher.publish(&task::TaskExit {
            container_id: self.id.clone(),
            id: if exec.is_empty() { &self.id } else { exec }.to_owned(),
            pid: self.host_pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    pub(super) fn tell_deleted(&self, exit: Exit) {
        self.publisher.publish(&task::TaskDelete {
            container_id: self.id.clone(),
            id: self.id.clone(),
            pid: self.host_pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    pub(super) fn tell_out_of_memory(&self) {
        if self.publisher.is_behind() {
            return;
        }
        let container_id = self.id.clone();
        self.publisher.publish(&task::TaskOOM { container_id, ..Default::default() });
    }

    pub(super) fn tell_paused(&self) {
        let container_id = self.id.clone();
        self.publisher.publish(&task::TaskPaused { container_id, ..Default::default() });
    }

    pub(super) fn tell_resumed(&self) {
        let container_id = self.id.clone();
        self.publisher.publish(&task::TaskResumed { container_id, ..Default::default() });
    }
}
