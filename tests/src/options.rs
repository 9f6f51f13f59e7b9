//! What a run of the tests is about: which runtime, which containerd, which VMM, and where they are.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::failure::{Failure, Outcome};

/// The command line's help.
pub const USAGE: &str = "\
usage: bulkhead-e2e [OPTION]... [PATTERN]...
Runs the end-to-end tests whose names hold one of the patterns; all of them without any.

  --runtime runc|bulkhead          the runtime under test (bulkhead)
  --containerd 1.6|2               the containerd that drives it (2)
  --sandboxer podsandbox|shim      how containerd 2 drives pods of bulkhead (podsandbox)
  --hypervisor NAME                qemu, cloud-hypervisor or auto (qemu)
  --threads N                      how many tests run side by side (4)
  --patience N                     multiplies every deadline, for slow machines (1)
  --megabytes N                    how much the stream tests send (1024)
  --profile NAME                   which build of the product to test: a directory below the target (debug)
  --cache DIR                      where `make setup` put the tools
  --target DIR                     where `make build` put the product
  --scratch DIR                    where the tests may write (/tmp)
  --skip PATTERN                   leave out tests whose names hold it; may be repeated
  --list                           print the names and what a user relies on, and stop";

/// The runtime under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The oracle: the tests must be right about it first.
    Runc,
    /// The product.
    Bulkhead,
    /// Kata Containers: measured beside the two where it is installed.
    Kata,
}

impl Runtime {
    /// The name that `ctr run --runtime` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Bulkhead => "io.containerd.bulkhead.v2",
            Self::Kata => "io.containerd.kata.v2",
        }
    }
}

/// The generation of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// 1.6, as in Debian 12: task API v2.
    One,
    /// 2.x: task API v3.
    Two,
}

/// How containerd drives a pod: `sandboxer` of a runtime handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandboxer {
    /// By a container of the pause image; 1.6 knows nothing else.
    Pause,
    /// By the sandbox API, which the shim serves.
    Shim,
}

/// The command line, read.
#[derive(Debug, Clone)]
pub struct Options {
    /// The runtime under test.
    pub runtime: Runtime,
    /// The containerd that drives it.
    pub generation: Generation,
    /// How containerd drives pods.
    pub sandboxer: Sandboxer,
    /// The VMM, by its name in the configuration.
    pub hypervisor: String,
    /// How many tests run side by side.
    pub threads: usize,
    /// Multiplies every deadline.
    pub patience: u32,
    /// How much the stream tests send, in MiB.
    pub megabytes: u64,
    /// Where `make setup` put the tools.
    pub cache: PathBuf,
    /// Where `make build` put the product.
    pub target: PathBuf,
    /// Which build of the product is tested: the directory's name below the target.
    pub profile: String,
    /// Where the tests may write.
    pub scratch: PathBuf,
    /// Only tests whose names hold one of these.
    pub patterns: Vec<String>,
    /// No tests whose names hold one of these.
    pub skipped: Vec<String>,
    /// Print the names, and stop.
    pub list: bool,
}

impl Options {
    /// Reads the command line; `None` when help was asked for.
    ///
    /// # Errors
    /// An unknown option, or a value that is not allowed.
    pub fn parse(args: impl Iterator<Item = OsString>) -> Outcome<Option<Self>> {
        let mut options = Self {
            runtime: Runtime::Bulkhead,
            generation: Generation::Two,
            sandboxer: Sandboxer::Pause,
            hypervisor: "qemu".to_owned(),
            threads: 4,
            patience: 1,
            megabytes: 1024,
            cache: default_cache(),
            target: PathBuf::from("target"),
            profile: "debug".to_owned(),
            scratch: PathBuf::from("/tmp"),
            patterns: Vec::new(),
            skipped: Vec::new(),
            list: false,
        };
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("runtime") => options.runtime = parser.value()?.parse_with(runtime)?,
                Long("containerd") => {
                    options.generation = parser.value()?.parse_with(generation)?;
                }
                Long("sandboxer") => options.sandboxer = parser.value()?.parse_with(sandboxer)?,
                Long("hypervisor") => {
                    options.hypervisor = parser.value()?.parse_with(hypervisor)?;
                }
                Long("threads") => options.threads = parser.value()?.parse()?,
                Long("patience") => options.patience = parser.value()?.parse()?,
                Long("megabytes") => options.megabytes = parser.value()?.parse()?,
                Long("cache") => options.cache = parser.value()?.into(),
                Long("target") => options.target = parser.value()?.into(),
                Long("profile") => options.profile = parser.value()?.string()?,
                Long("scratch") => options.scratch = parser.value()?.into(),
                Long("skip") => options.skipped.push(parser.value()?.string()?),
                Long("list") => options.list = true,
                Long("help") | Short('h') => return Ok(None),
                Value(pattern) => options.patterns.push(pattern.string()?),
                other => return Err(other.unexpected().into()),
            }
        }
        crate::ensure!(
            options.sandboxer == Sandboxer::Pause
                || (options.runtime, options.generation) == (Runtime::Bulkhead, Generation::Two),
            "--sandboxer shim is for bulkhead and containerd 2"
        );
        options.target = std::path::absolute(&options.target)?;
        options.cache = std::path::absolute(&options.cache)?;
        Ok(Some(options))
    }

    /// A deadline on this machine.
    pub fn deadline(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.patience
    }

    /// The directories of containerd's programs and of runc, first ones first.
    pub fn tool_dirs(&self) -> Vec<PathBuf> {
        let generation = match self.generation {
            Generation::One => "containerd-1.6",
            Generation::Two => "containerd-2",
        };
        vec![
            self.cache.join(generation).join("usr/bin"),
            // One runc for both: the newer package's needs a newer C library.
            self.cache.join("containerd-1.6/usr/sbin"),
            self.cache.join("tools/bin"),
        ]
    }

    /// The name of the CRI runtime handler under test.
    pub fn handler(&self) -> &'static str {
        match (self.runtime, self.sandboxer) {
            (Runtime::Runc, _) => "runc",
            (Runtime::Kata, _) => "kata",
            (Runtime::Bulkhead, Sandboxer::Pause) => "bulkhead",
            (Runtime::Bulkhead, Sandboxer::Shim) => "bulkhead-sandbox",
        }
    }

    /// A program of ours that cargo built.
    ///
    /// # Errors
    /// It isn't there.
    pub fn built(&self, program: &str) -> Outcome<PathBuf> {
        let path = self.target.join(&self.profile).join(program);
        let missing = || Failure::new(format!("{} is missing: run `make build`", path.display()));
        path.exists().then(|| path.clone()).ok_or_else(missing)
    }
}

/// Where `make setup` keeps its downloads.
fn default_cache() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    var("BULKHEAD_CACHE").unwrap_or_else(|| {
        var("XDG_CACHE_HOME")
            .or_else(|| var("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"))
            .join("bulkhead")
    })
}

fn runtime(text: &str) -> Result<Runtime, &'static str> {
    match text {
        "runc" => Ok(Runtime::Runc),
        "bulkhead" => Ok(Runtime::Bulkhead),
        _ => Err("allowed: runc, bulkhead"),
    }
}

fn generation(text: &str) -> Result<Generation, &'static str> {
    match text {
        "1.6" => Ok(Generation::One),
        "2" => Ok(Generation::Two),
        _ => Err("allowed: 1.6, 2"),
    }
}

fn sandboxer(text: &str) -> Result<Sandboxer, &'static str> {
    match text {
        "podsandbox" => Ok(Sandboxer::Pause),
        "shim" => Ok(Sandboxer::Shim),
        _ => Err("allowed: podsandbox, shim"),
    }
}

fn hypervisor(text: &str) -> Result<String, &'static str> {
    match text {
        "qemu" | "cloud-hypervisor" | "auto" => Ok(text.to_owned()),
        _ => Err("allowed: qemu, cloud-hypervisor, auto"),
    }
}
