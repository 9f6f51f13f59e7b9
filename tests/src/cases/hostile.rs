//! A guest in an attacker's hands: what the shim makes of an agent that lies, floods or is silent.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::bed::{Container, Test};
use crate::ensure;
use crate::failure::{Context, Outcome};
use crate::measure::field;
use crate::runner::Case;
use crate::ward::Ward;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead("hostile.deaf", "kill -9 ends a container whose guest ignores it", deaf),
    Case::bulkhead(
        "hostile.mute",
        "kill -9 and delete end a container whose guest answers nothing any more",
        mute,
    ),
    Case::bulkhead(
        "hostile.liar",
        "what a guest makes up is neither acted upon, nor kept, nor written into the log as it is",
        liar,
    ),
    Case::bulkhead(
        "hostile.vandal",
        "a guest's kernel cannot change the share's tree, nor what it may only read",
        vandal,
    ),
    Case::bulkhead(
        "hostile.noise",
        "a guest that does not speak the protocol is given up at the deadline, and leaves nothing",
        noise,
    ),
    Case::bulkhead(
        "hostile.flood",
        "a container whose guest writes without end, and takes nothing, has an end all the same",
        flood,
    ),
];

/// More than a shim ever needs, in KiB.
const RESIDENT: u64 = 64 << 10;

/// A containerd whose guests have this vice.
fn ward<'t, 'b>(t: &'t Test<'b>, vice: &str) -> Outcome<Ward<'t, 'b>> {
    let ward = Ward::new(t)?;
    let initramfs = ward.initramfs(&t.bed.options.target.join("guest/bulkhead-hostile"))?;
    let patience = 15 * u64::from(t.bed.options.patience);
    ward.configure(&format!(
        "initramfs = {initramfs:?}\nagent_timeout = {patience}\nkernel_params = [\"hostile={vice}\"]\n"
    ))?;
    Ok(ward)
}

/// Starts a container whose guest has this vice, does something with it, and ends it by force.
fn survive(ward: &Ward<'_, '_>, meanwhile: impl FnOnce(&Container<'_>) -> Outcome) -> Outcome {
    survive_with(ward, &[], meanwhile)
}

/// The same with flags for the container.
fn survive_with(
    ward: &Ward<'_, '_>,
    flags: &[&str],
    meanwhile: impl FnOnce(&Container<'_>) -> Outcome,
) -> Outcome {
    let container = ward.container();
    container.start_with(&[&["--null-io"], flags].concat(), &["true"])?;
    meanwhile(&container)?;
    ensure!(container.state()? == "RUNNING", "the task is {}", container.state()?);
    container.kill("SIGKILL")?;
    container.wait_stopped()?;
    let status = container.delete()?;
    ensure!(status == 137, "it ended with {status}, not 137");
    ward.nothing_left(&container.id)
}

fn deaf(t: &Test<'_>) -> Outcome {
    survive(&ward(t, "deaf")?, |container| container.kill("SIGTERM").map(drop))
}

fn mute(t: &Test<'_>) -> Outcome {
    survive(&ward(t, "mute")?, |_| Ok(()))
}

fn liar(t: &Test<'_>) -> Outcome {
    let ward = ward(t, "liar")?;
    survive(&ward, |container| {
        // However it answers, it answers.
        container.task("metrics", &[])?;
        container.task("ps", &[])?;
        // Events go on all the while.
        thread::sleep(Duration::from_secs(2));
        let status = fs::read_to_string(format!("/proc/{}/status", container.shim_pid()?))?;
        let peak = field(&status, "VmHWM:")?;
        ensure!(peak < RESIDENT, "the shim had {peak} KiB");
        Ok(())
    })?;
    let log = ward.node.log();
    ensure!(!log.contains('\u{1b}'), "an escape sequence has come into the log");
    ensure!(!log.lines().any(|line| line.starts_with("forged")), "a forged line is in the log");
    Ok(())
}

fn vandal(t: &Test<'_>) -> Outcome {
    let (ward, dir) = (ward(t, "vandal")?, t.directory()?);
    let (own, other) = (dir.join("own"), dir.join("other"));
    fs::create_dir(&own)?;
    fs::create_dir(&other)?;
    fs::write(other.join("file"), "kept")?;
    let mounts = [(&own, "/own", "rw"), (&other, "/other", "ro")].map(|(source, inside, mode)| {
        format!("type=bind,src={},dst={inside},options=rbind:{mode}", source.display())
    });
    survive_with(&ward, &["--mount", &mounts[0], "--mount", &mounts[1]], |_| {
        let said = fs::read_to_string(own.join("said")).context("it has tried nothing")?;
        ensure!(said.matches("Read-only file system").count() > 10, "{said}");
        ensure!(!said.contains("worked:"), "{said}");
        Ok(())
    })?;
    ensure!(fs::read_to_string(other.join("file"))? == "kept", "the host's file has changed");
    let left = fs::read_dir(&other)?.count() + fs::read_dir(&own)?.count();
    ensure!(left == 2, "there are {left} files");
    Ok(())
}

fn noise(t: &Test<'_>) -> Outcome {
    // It begins messages that are too long to be read, one after the other.
    ward(t, "noise")?.refused(40, &["the guest did not answer within"]).map(drop)
}

fn flood(t: &Test<'_>) -> Outcome {
    let ward = ward(t, "flood")?;
    let container = ward.container();
    let mut session = container.converse(&[], &["true"])?;
    let (begun, mut bytes) = (Instant::now(), 0);
    while let Some(piece) = session.read()? {
        bytes += piece.len();
        ensure!(begun.elapsed() < t.deadline(60), "after {bytes} bytes there is no end");
    }
    let code = session.finish()?.code();
    ensure!(code == 7, "it ended with {code}, not 7");
    ensure!(bytes > 4 << 20, "{bytes} bytes are no flood");
    ward.nothing_left(&container.id)
}
