//! A containerd of a test's own, whose shims read another configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bed::{Container, Test};
use crate::command::{self, Finished, Input};
use crate::containerd::Containerd;
use crate::ensure;
use crate::failure::Outcome;
use crate::leftovers;
use crate::product;

/// A containerd whose shims read another configuration.
pub struct Ward<'t, 'b> {
    test: &'t Test<'b>,
    /// The containerd.
    pub node: Containerd,
    /// A directory for what the test writes.
    pub scratch: PathBuf,
}

impl<'t, 'b> Ward<'t, 'b> {
    /// Starts containerd.
    ///
    /// # Errors
    /// It doesn't serve.
    pub fn new(test: &'t Test<'b>) -> Outcome<Self> {
        Ok(Self { test, node: test.bed.another()?, scratch: test.directory()? })
    }

    /// The configuration that works, with lines of its own. A later line for the same key replaces the
    /// earlier one.
    ///
    /// # Errors
    /// It can't be written.
    pub fn configure(&self, lines: &str) -> Outcome {
        let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
        let replaced: Vec<String> = lines.lines().map(key).collect();
        let usual = product::config(&self.test.bed.options, self.node.dir());
        let kept = usual.lines().filter(|line| !replaced.contains(&key(line)));
        let text = kept.chain(lines.lines()).map(|line| format!("{line}\n")).collect::<String>();
        self.node.configure(&text)
    }

    /// A container that the test has not started yet.
    pub fn container(&self) -> Container<'_> {
        self.test.container_on(&self.node)
    }

    /// Runs a container that should be refused with all of `texts`, within a time, leaving nothing.
    ///
    /// # Errors
    /// It isn't refused so, or something is left.
    pub fn refused(&self, seconds: u64, texts: &[&str]) -> Outcome<Finished> {
        self.refused_with(&[], seconds, texts)
    }

    /// The same of one that is run with these flags of `ctr run`.
    ///
    /// # Errors
    /// It isn't refused so, or something is left.
    pub fn refused_with(&self, flags: &[&str], seconds: u64, texts: &[&str]) -> Outcome<Finished> {
        let container = self.container();
        let done = container.run(flags, &["true"])?;
        for text in texts {
            ensure!(
                done.code() != 0 && done.err().contains(text),
                "the error doesn't say {text:?}, but (code {}):\n{}\n--- containerd's log\n{}",
                done.code(),
                command::tail(&done.err()),
                command::tail(&self.node.log())
            );
        }
        let limit = self.test.deadline(seconds);
        ensure!(
            done.took <= limit,
            "it took {:.1} s, not {} s",
            done.took.as_secs_f64(),
            limit.as_secs()
        );
        container.remove();
        self.nothing_left(&container.id)?;
        Ok(done)
    }

    /// Requires that nothing is left of a container.
    ///
    /// # Errors
    /// Something is left.
    pub fn nothing_left(&self, id: &str) -> Outcome {
        let mut paths = leftovers::entries(&product::state_dir(self.node.dir()));
        paths.push(self.node.bundle(id));
        leftovers::none(id, &paths, self.test.deadline(15))
    }

    /// The configuration's path.
    pub fn config_file(&self) -> String {
        self.node.config_file().to_string_lossy().into_owned()
    }

    /// A script in the place of a program.
    ///
    /// # Errors
    /// It can't be written.
    pub fn script(&self, name: &str, text: &str) -> Outcome<String> {
        let file = self.scratch.join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// An initramfs with this program as /init.
    ///
    /// # Errors
    /// It can't be written.
    pub fn initramfs(&self, init: &Path) -> Outcome<String> {
        let out = self.scratch.join("initramfs.cpio");
        let mut pack = Command::new(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-kernel/initramfs.sh"),
        );
        pack.arg(init).arg(&out);
        command::run(pack, Input::Null, self.test.deadline(30))?.ok()?;
        Ok(out.to_string_lossy().into_owned())
    }

    /// The key under which the configuration names the VMM's program.
    pub fn vmm_key(&self) -> &'static str {
        if self.test.bed.options.hypervisor == "qemu" { "qemu" } else { "cloud_hypervisor" }
    }
}
