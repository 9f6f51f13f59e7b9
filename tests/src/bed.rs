//! What a test stands on: a containerd with the test image, and containers of its own in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{self, Finished, Input};
use crate::containerd::{Containerd, NAMESPACE, Role};
use crate::cri::ledger::Ledger;
use crate::cri::node::Node;
use crate::cri::pod::PodPlan;
use crate::failure::{Context, Failure, Outcome, again, both, holds};
use crate::image;
use crate::leftovers::{self, Trace};
use crate::options::{Generation, Options, Runtime};
use crate::product;
use crate::session::Session;
use crate::shim;

/// Where Debian's busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";

/// What all tests of a run share.
pub struct Bed {
    /// The command line.
    pub options: Arc<Options>,
    /// The containerd that the tests share.
    pub containerd: Containerd,
    pods: OnceLock<Node>,
    starting: Mutex<()>,
    programs: Mutex<Vec<PathBuf>>,
    count: AtomicUsize,
    scratch: TempDir,
}

impl Bed {
    /// Starts containerd and imports the image.
    ///
    /// # Errors
    /// A tool is missing, or containerd doesn't serve.
    pub fn make(options: Options) -> Outcome<Self> {
        let options = Arc::new(options);
        let scratch = tempfile::Builder::new().prefix("bhx-").tempdir_in(&options.scratch)?;
        image::write(
            Path::new(BUSYBOX),
            &options.cache,
            &scratch.path().join("image.tar"),
            &[image::NAME],
        )?;
        let containerd = product::containerd(&options, Role::plain())?;
        let (pods, starting, count) = (OnceLock::new(), Mutex::new(()), AtomicUsize::new(0));
        let programs = Mutex::default();
        let bed = Self { options, containerd, pods, starting, programs, count, scratch };
        bed.containerd.import(&bed.image())?;
        Ok(bed)
    }

    /// Another containerd, for tests that stop it or give it another configuration.
    ///
    /// # Errors
    /// As for [`Bed::make`].
    pub fn another(&self) -> Outcome<Containerd> {
        let containerd = product::containerd(&self.options, Role::plain())?;
        containerd.import(&self.image())?;
        Ok(containerd)
    }

    /// The node that the tests of pods share; the first of them starts it.
    ///
    /// # Errors
    /// It doesn't start.
    pub fn pods(&self) -> Outcome<&Node> {
        let _alone = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        match self.pods.get() {
            Some(node) => node.revive().map(|()| node),
            None => self.another_node().map(|node| self.pods.get_or_init(|| node)),
        }
    }

    /// Another node, for tests that stop its containerd or look at all that is left on it.
    ///
    /// # Errors
    /// It doesn't start.
    pub fn another_node(&self) -> Outcome<Node> {
        let images = self.scratch.path().join("pods.tar");
        if !images.exists() {
            image::write(
                Path::new(BUSYBOX),
                &self.options.cache,
                &images,
                &[image::NAME, image::PAUSE, image::BARE],
            )?;
        }
        Node::start(&self.options, &images)
    }

    /// Has a containerd know the image with Debian's programs.
    ///
    /// # Errors
    /// One of them is missing, or containerd refuses the image.
    pub fn import_programs(&self, containerd: &Containerd) -> Outcome {
        let mut known = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().any(|dir| dir == containerd.dir()) {
            return Ok(());
        }
        let file = self.scratch.path().join("programs.tar");
        if !file.exists() {
            image::write(Path::new(BUSYBOX), &self.options.cache, &file, &[image::PROGRAMS])?;
        }
        containerd.import(&file)?;
        known.push(containerd.dir().to_owned());
        Ok(())
    }

    /// Removes the pods that are still there, of which no test knows.
    ///
    /// # Errors
    /// There are some, or they can't be removed.
    pub fn remove_pods(&self) -> Outcome {
        let Some(node) = self.pods.get() else {
            return Ok(());
        };
        let left = node.pod_ids()?;
        left.iter().try_for_each(|pod| node.remove_pod(pod))?;
        crate::ensure!(left.is_empty(), "pods were left: {left:?}");
        Ok(())
    }

    /// The containerds that the tests share.
    pub fn shared(&mut self) -> Vec<&mut Containerd> {
        let node = self.pods.get_mut().map(|node| &mut node.containerd);
        std::iter::once(&mut self.containerd).chain(node).collect()
    }

    /// A new directory on the host, named so that nothing else is; it goes with the bed.
    ///
    /// # Errors
    /// It can't be made.
    pub fn directory(&self, name: &str) -> Outcome<PathBuf> {
        let dir = self.scratch.path().join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// The image's root file system, unpacked into a new directory.
    ///
    /// # Errors
    /// It can't be written.
    pub fn root_file_system(&self, name: &str) -> Outcome<PathBuf> {
        let dir = self.directory(name)?;
        image::unpack(Path::new(BUSYBOX), &dir)?;
        Ok(dir)
    }

    fn image(&self) -> PathBuf {
        self.scratch.path().join("image.tar")
    }
}

/// One test, while it runs.
pub struct Test<'a> {
    /// What all tests share.
    pub bed: &'a Bed,
    name: &'static str,
    made: Mutex<Vec<String>>,
    pods: Ledger,
}

impl<'a> Test<'a> {
    /// The test of this name.
    pub fn new(bed: &'a Bed, name: &'static str) -> Self {
        Self { bed, name, made: Mutex::default(), pods: Ledger::default() }
    }

    /// A container that doesn't exist yet, with a name of its own, on the shared containerd.
    pub fn container(&self) -> Container<'a> {
        let container = self.container_on(&self.bed.containerd);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(container.id.clone());
        container
    }

    /// The same for a runtime that may not be the one under test.
    pub fn container_of(&self, runtime: Runtime) -> Container<'a> {
        Container { runtime, ..self.container() }
    }

    /// The same on a containerd of the test's own, which the test looks after.
    pub fn container_on<'c>(&self, node: &'c Containerd) -> Container<'c>
    where
        'a: 'c,
    {
        Container {
            id: self.unique(),
            options: Arc::clone(&self.bed.options),
            runtime: self.bed.options.runtime,
            image: image::NAME,
            execs: AtomicUsize::new(0),
            node,
        }
    }

    /// A container of the image with Debian's programs, on the shared containerd.
    ///
    /// # Errors
    /// As for [`Bed::import_programs`].
    pub fn programs(&self) -> Outcome<Container<'a>> {
        self.bed.import_programs(&self.bed.containerd)?;
        Ok(Container { image: image::PROGRAMS, ..self.container() })
    }

    /// The same on a containerd of the test's own.
    ///
    /// # Errors
    /// As for [`Bed::import_programs`].
    pub fn programs_on<'c>(&self, node: &'c Containerd) -> Outcome<Container<'c>>
    where
        'a: 'c,
    {
        self.bed.import_programs(node)?;
        Ok(Container { image: image::PROGRAMS, ..self.container_on(node) })
    }

    /// A pod that doesn't run yet, with a name of its own, on the shared node.
    pub fn pod(&self) -> PodPlan<'_> {
        PodPlan::new(self, self.unique(), None)
    }

    /// The same on a node of the test's own.
    pub fn pod_on<'t>(&'t self, node: &'t Node) -> PodPlan<'t> {
        PodPlan::new(self, self.unique(), Some(node))
    }

    /// What the test has made on the shared node.
    pub fn pods(&self) -> &Ledger {
        &self.pods
    }

    /// Does something on a node of the test's own, then removes the pods that are left on it and
    /// requires that nothing else is.
    ///
    /// # Errors
    /// The node doesn't start, the work fails, or something is left.
    pub fn on_own_node(&self, work: impl FnOnce(&Node) -> Outcome) -> Outcome {
        let node = self.bed.another_node()?;
        let worked = work(&node).map_err(|failure| {
            // The node's log goes with it: what became of its VMs may be why.
            let log = node.containerd.log();
            let ends = log.lines().filter(|line| line.contains("the VM has ended"));
            let ends = ends.map(|line| format!("\n{line}")).collect::<String>();
            if failure.is_skip() { failure } else { Failure::new(format!("{failure}{ends}")) }
        });
        both(worked, node.close(self.deadline(20)))
    }

    /// A new directory on the host.
    ///
    /// # Errors
    /// It can't be made.
    pub fn directory(&self) -> Outcome<PathBuf> {
        self.bed.directory(&self.unique())
    }

    /// The image's root file system in a new directory.
    ///
    /// # Errors
    /// It can't be written.
    pub fn root_file_system(&self) -> Outcome<PathBuf> {
        self.bed.root_file_system(&self.unique())
    }

    /// A deadline on this machine.
    pub fn deadline(&self, seconds: u64) -> Duration {
        self.bed.options.deadline(seconds)
    }

    /// Whether containerd, when it starts, forgets tasks that ended in its absence: 2.x does.
    pub fn forgets_stopped(&self) -> bool {
        self.bed.options.generation == Generation::Two
    }

    /// Whether the product is under test.
    pub fn is_bulkhead(&self) -> bool {
        self.bed.options.runtime == Runtime::Bulkhead
    }

    /// Takes away what the test has not deleted itself, then requires that nothing is left of any of
    /// its containers.
    ///
    /// # Errors
    /// Something is left.
    pub fn close(&self) -> Outcome {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        for id in made.iter() {
            Container {
                id: id.clone(),
                options: Arc::clone(&self.bed.options),
                runtime: self.bed.options.runtime,
                image: image::NAME,
                execs: AtomicUsize::new(0),
                node: &self.bed.containerd,
            }
            .remove();
        }
        made.iter().try_for_each(|id| {
            let node = &self.bed.containerd;
            let paths = [node.bundle(id), product::disk(node.dir(), NAMESPACE, id)];
            leftovers::none(id, &paths, self.deadline(15))
        })?;
        if !self.pods.has_begun() {
            return Ok(());
        }
        self.pods.close(self.bed.pods()?, self.deadline(20))
    }

    /// A name that no other test, no other try of this one, and no other run on this machine uses. Of each word of the
    /// test's own name it has two letters: with more, an error that quotes it would say what the test looks for.
    pub fn unique(&self) -> String {
        let run = self.bed.containerd.dir().file_name().unwrap_or_default().to_string_lossy();
        let number = self.bed.count.fetch_add(1, Ordering::Relaxed);
        let words = self.name.split(['.', '_']).map(|word| word.get(..2).unwrap_or(word));
        let test = words.collect::<Vec<_>>().join("-");
        // None is the beginning of another.
        format!("{test}-{number}-{}", run.trim_start_matches("bh-"))
    }
}

/// A container, by its name.
pub struct Container<'a> {
    /// The name.
    pub id: String,
    options: Arc<Options>,
    runtime: Runtime,
    image: &'static str,
    execs: AtomicUsize,
    node: &'a Containerd,
}

impl Container<'_> {
    /// `ctr run --rm FLAGS IMAGE ID COMMAND`, not yet started.
    pub fn run_command(&self, flags: &[&str], command: &[&str]) -> Command {
        let mut ctr = self.node.ctr(["run", "--runtime", self.runtime.name()]);
        if !flags.iter().any(|flag| ["-d", "--detach"].contains(flag)) {
            ctr.arg("--rm");
        }
        ctr.args(flags);
        // With a spec of its own, a container has no image.
        if !flags.contains(&"--config") {
            ctr.arg(self.image);
        }
        ctr.arg(&self.id).args(command);
        ctr
    }

    /// The flags that put a container into the sandbox of this one: the annotation that the runc shim knows, too.
    pub fn group_flags(&self) -> [String; 2] {
        ["--annotation".to_owned(), format!("io.containerd.runc.v2.group={}", self.id)]
    }

    /// Runs a container to its end.
    ///
    /// # Errors
    /// It is not over at the deadline.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Outcome<Finished> {
        self.run_with(flags, command, Input::Null)
    }

    /// Runs a container to its end, with input.
    ///
    /// # Errors
    /// It is not over at the deadline.
    pub fn run_with(&self, flags: &[&str], command: &[&str], input: Input) -> Outcome<Finished> {
        command::run(self.run_command(flags, command), input, self.options.deadline(60))
    }

    /// Starts a container in the foreground, to speak with its program.
    ///
    /// # Errors
    /// `ctr` can't be run.
    pub fn converse(&self, flags: &[&str], command: &[&str]) -> Outcome<Session> {
        Session::pipes(self.run_command(flags, command), self.options.deadline(60))
    }

    /// Starts a container in the background; nobody reads its output.
    ///
    /// # Errors
    /// It doesn't start.
    pub fn start(&self, command: &[&str]) -> Outcome {
        self.start_with(&["--null-io"], command)
    }

    /// Starts a container in the background.
    ///
    /// # Errors
    /// It doesn't start.
    pub fn start_with(&self, flags: &[&str], command: &[&str]) -> Outcome {
        let flags = [&["-d"], flags].concat();
        self.run(&flags, command)?.ok().map(drop)
    }

    /// `ctr container create`: a container without a task.
    ///
    /// # Errors
    /// It is refused.
    pub fn create(&self, flags: &[&str], command: &[&str]) -> Outcome {
        let mut ctr = self.node.ctr(["container", "create", "--runtime", self.runtime.name()]);
        ctr.args(flags).arg(self.image).arg(&self.id).args(command);
        command::run(ctr, Input::Null, self.options.deadline(60))?.ok().map(drop)
    }

    /// The process id of the shim that looks after the container.
    ///
    /// # Errors
    /// There is none, or more than one process looks like it.
    pub fn shim_pid(&self) -> Outcome<i32> {
        let program = shim::program(self.runtime);
        let pids: Vec<i32> = leftovers::processes(&self.id)
            .into_iter()
            .filter_map(|trace| match trace {
                Trace::Process(pid, line) if line.contains(program) => Some(pid),
                _ => None,
            })
            .collect();
        match pids[..] {
            [pid] => Ok(pid),
            _ => Err(Failure::new(format!("processes that look like the shim: {pids:?}"))),
        }
    }

    /// `ctr task exec`, not yet started.
    pub fn exec_command(&self, exec: &str, flags: &[&str], command: &[&str]) -> Command {
        let mut ctr = self.node.ctr(["task", "exec", "--exec-id", exec]);
        ctr.args(flags).arg(&self.id).args(command);
        ctr
    }

    /// Runs another process in the container to its end.
    ///
    /// # Errors
    /// It is not over at the deadline.
    pub fn exec(&self, exec: &str, flags: &[&str], command: &[&str]) -> Outcome<Finished> {
        command::run(
            self.exec_command(exec, flags, command),
            Input::Null,
            self.options.deadline(60),
        )
    }

    /// Runs a script in the container, which has to succeed; returns what it printed.
    ///
    /// # Errors
    /// It fails, or is not over at the deadline.
    pub fn sh(&self, script: &str) -> Outcome<String> {
        let number = self.execs.fetch_add(1, Ordering::Relaxed);
        let done = self.exec(&format!("sh{number}"), &[], &["sh", "-ec", script])?;
        Ok(done.ok().context(format!("`{script}`"))?.out())
    }

    /// `ctr task VERB FLAGS ID`.
    ///
    /// # Errors
    /// It is not over at the deadline.
    pub fn task(&self, verb: &str, flags: &[&str]) -> Outcome<Finished> {
        let args = [&["task", verb], flags, &[self.id.as_str()]].concat();
        self.node.run(args)
    }

    /// `ctr container VERB ID`.
    ///
    /// # Errors
    /// It is not over at the deadline.
    pub fn container(&self, verb: &str) -> Outcome<Finished> {
        self.node.run(["container", verb, &self.id])
    }

    /// Sends a signal to the first process.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn kill(&self, signal: &str) -> Outcome {
        self.task("kill", &["--signal", signal])?.ok().map(drop)
    }

    /// The state that `ctr task list` shows; empty without a task.
    ///
    /// # Errors
    /// `ctr` fails.
    pub fn state(&self) -> Outcome<String> {
        let list = self.node.run(["task", "list"])?.ok()?.out();
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(&self.id));
        Ok(line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_default().to_owned())
    }

    /// Waits until the first process has ended.
    ///
    /// # Errors
    /// It is not over at the deadline.
    pub fn wait_stopped(&self) -> Outcome {
        again(self.options.deadline(30), || {
            let state = self.state()?;
            holds(state == "STOPPED", || format!("{} doesn't stop: {state}", self.id))
        })
    }

    /// Deletes the stopped task and the container; returns the exit code that the task had.
    ///
    /// # Errors
    /// One of them is refused.
    pub fn delete(&self) -> Outcome<u32> {
        // ctr tells of the code in a warning, and of none when it is 0.
        let said = self.task("delete", &[])?.ok()?.err();
        self.container("delete")?.ok()?;
        let code = said.split("non-zero exit code ").nth(1).map_or("0", |rest| rest.trim_end());
        Ok(code.trim_matches(|c: char| !c.is_ascii_digit()).parse()?)
    }

    /// Takes away whatever there is of it. Failures show as leftovers.
    pub fn remove(&self) {
        let _ = self.task("delete", &["--force"]);
        let _ = self.container("delete");
    }

    /// What `bulkhead inspect` says of its sandbox.
    ///
    /// # Errors
    /// The sandbox is not there, or the answer is no JSON.
    pub fn inspect(&self) -> Outcome<Value> {
        let text = self.node.bulkhead(&["inspect", &self.id, "--json"])?.ok()?.out();
        Ok(serde_json::from_str(&text)?)
    }

    /// The containerd that it is on.
    pub fn node(&self) -> &Containerd {
        self.node
    }
}
