//! The processes of one VM, watched as one thing: when one of them ends, all of them do.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join_all, select_all};
use tokio::sync::watch;
use tokio::time::timeout;

use super::plug::{Plug, PlugError, Plugs};
use super::{Vm, VmExit};
use crate::helper::{Ended, Helper};
use crate::process::ProcessId;

/// How long a VMM's last words are waited for once it has ended. They are in the pipe already,
/// unless something else holds the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running VM, of either VMM.
pub(super) struct Machine {
    /// The VMM first.
    helpers: Arc<[Helper]>,
    vsock: PathBuf,
    /// How disks are plugged in, if they can be.
    plugs: Option<Box<dyn Plugs>>,
    /// The first cause of the end; later ones are consequences.
    cause: Arc<OnceLock<VmExit>>,
    over: watch::Receiver<bool>,
}

impl Machine {
    /// Watches over `vmm` and `devices`.
    ///
    /// `events` ends with what the VMM reports about its guest, or with nothing when the reports
    /// end. `judge` says what the VMM's own end means where it has reported nothing.
    pub(super) fn new(
        vmm: Helper,
        devices: Vec<Helper>,
        vsock: PathBuf,
        events: impl Future<Output = Option<VmExit>> + Send + 'static,
        judge: impl FnOnce(Ended) -> VmExit + Send + 'static,
    ) -> Machine {
        let helpers: Arc<[Helper]> = std::iter::once(vmm).chain(devices).collect();
        let cause = Arc::new(OnceLock::new());
        let (sender, over) = watch::channel(false);
        let task = {
            let (helpers, cause) = (Arc::clone(&helpers), Arc::clone(&cause));
            async move {
                let first = first_cause(&helpers, events, judge).await;
                // Lost to an earlier `kill`: then that is the cause.
                let _ = cause.set(first);
                helpers.iter().for_each(Helper::kill);
                join_all(helpers.iter().map(Helper::wait)).await;
                sender.send_replace(true);
            }
        };
        tokio::spawn(task);
        Machine { helpers, vsock, plugs: None, cause, over }
    }

    /// The same, with places for disks.
    pub(super) fn with(mut self, plugs: impl Plugs + 'static) -> Machine {
        self.plugs = Some(Box::new(plugs));
        self
    }

    fn plugs(&self) -> Result<&dyn Plugs, PlugError> {
        let none = "its machine has no places for them (qemu_machine = \"microvm\")";
        self.plugs.as_deref().ok_or(PlugError::NoPlace(none))
    }
}

async fn first_cause(
    helpers: &[Helper],
    events: impl Future<Output = Option<VmExit>>,
    judge: impl FnOnce(Ended) -> VmExit + Send + 'static,
) -> VmExit {
    let mut events = std::pin::pin!(events);
    let mut reports_end = false;
    let ends = helpers.iter().map(|helper| Box::pin(helper.wait()));
    let mut first_end = std::pin::pin!(select_all(ends));
    let (ended, index) = loop {
        tokio::select! {
            report = &mut events, if !reports_end => match report {
                Some(exit) => return exit,
                None => reports_end = true,
            },
            (ended, index, _) = &mut first_end => break (ended, index),
        }
    };
    if index > 0 {
        return VmExit::Ended { role: helpers[index].role(), ended };
    }
    if !reports_end && let Ok(Some(exit)) = timeout(LAST_WORDS, events).await {
        return exit;
    }
    // It may ask the program for its version.
    tokio::task::spawn_blocking(move || judge(ended)).await.unwrap_or(VmExit::Killed)
}

#[async_trait]
impl Vm for Machine {
    fn pid(&self) -> u32 {
        self.helpers[0].process().pid
    }

    fn processes(&self) -> Vec<ProcessId> {
        self.helpers.iter().map(|helper| helper.process().clone()).collect()
    }

    fn vsock(&self) -> &Path {
        &self.vsock
    }

    async fn plug(&self, disk: &Plug) -> Result<(), PlugError> {
        self.plugs()?.plug(disk).await
    }

    async fn unplug(&self, serial: &str) -> Result<(), PlugError> {
        self.plugs()?.unplug(serial).await
    }

    async fn wait(&self) -> VmExit {
        let mut over = self.over.clone();
        // An error means that the runtime is going down, and the processes with it.
        let _ = over.wait_for(|over| *over).await;
        self.cause.get().cloned().unwrap_or(VmExit::Killed)
    }

    fn kill(&self) {
        // Lost to an earlier cause: then the VM is ending already.
        let _ = self.cause.set(VmExit::Killed);
        self.helpers.iter().for_each(Helper::kill);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::helper::{HelperCommand, Status};

    fn helper(role: &'static str, script: &str) -> Helper {
        let mut command = HelperCommand::new(role, Path::new("/bin/sh"));
        command.args(["-c", script]);
        command.spawn().expect("spawn")
    }

    fn judge(ended: Ended) -> VmExit {
        VmExit::Ended { role: "vmm", ended }
    }

    fn machine(
        vmm: &str,
        device: &str,
        events: impl Future<Output = Option<VmExit>> + Send + 'static,
    ) -> Machine {
        let (vmm, device) = (helper("vmm", vmm), helper("device", device));
        Machine::new(vmm, vec![device], PathBuf::from("/v"), events, judge)
    }

    const LONG: &str = "exec sleep 100";

    async fn all_ended(machine: &Machine) {
        for helper in machine.helpers.iter() {
            timeout(Duration::from_millis(1), helper.wait()).await.expect("still running");
        }
    }

    #[tokio::test]
    async fn a_kill_ends_everything() {
        let machine = machine(LONG, LONG, pending());
        machine.kill();
        machine.kill();
        assert_eq!(machine.wait().await, VmExit::Killed);
        assert_eq!(machine.wait().await, VmExit::Killed);
        all_ended(&machine).await;
    }

    #[tokio::test]
    async fn a_devices_end_is_the_vms() {
        let machine = machine(LONG, "echo broken; exit 4", pending());
        let exit = machine.wait().await;
        assert_eq!(exit.to_string(), "device ended with exit code 4: broken");
        all_ended(&machine).await;
    }

    #[tokio::test]
    async fn a_report_ends_the_vm_while_its_processes_still_run() {
        let machine = machine(LONG, LONG, ready(Some(VmExit::GuestPanic)));
        assert_eq!(machine.wait().await, VmExit::GuestPanic);
        all_ended(&machine).await;
    }

    #[tokio::test]
    async fn a_report_that_comes_after_the_vmms_end_still_counts() {
        let late = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some(VmExit::GuestReset)
        };
        let machine = machine("exit 0", LONG, late);
        assert_eq!(machine.wait().await, VmExit::GuestReset);
    }

    #[tokio::test]
    async fn without_a_report_the_vmms_end_is_judged() {
        let fault = machine("kill -SEGV $$", LONG, ready(None));
        assert_eq!(fault.wait().await.to_string(), "vmm was killed by SIGSEGV");
        let killed = machine("kill -KILL $$", LONG, pending());
        assert_eq!(killed.wait().await.to_string(), "vmm was killed by SIGKILL");
    }

    #[tokio::test]
    async fn a_cause_is_not_replaced_by_a_later_kill() {
        let machine = machine(LONG, LONG, ready(Some(VmExit::GuestPowerOff)));
        machine.wait().await;
        machine.kill();
        assert_eq!(machine.wait().await, VmExit::GuestPowerOff);
    }

    #[tokio::test]
    async fn a_dropped_machine_leaves_no_process() {
        let machine = machine(LONG, LONG, pending());
        let helpers = Arc::clone(&machine.helpers);
        drop(machine);
        for helper in helpers.iter() {
            assert_eq!(helper.wait().await.status, Status::Signal(libc::SIGKILL));
        }
    }
}
