//! The last steps inside the container, from its set-up to execve(2).

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use bulkhead_protocols::chain;
use libcontainer::capabilities::drop_privileges;
use libcontainer::oci_spec::runtime::{
    LinuxCapabilities, LinuxSeccomp, PosixRlimit, Process, Spec,
};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{FileStat, fstat, major, minor};
use nix::unistd::execve;

use super::report::Report;
use super::reporter::Reporter;
use super::{limits, lookup, seccomp};
use crate::error::{Error, Result};
use crate::stdio::set_window_size;

/// Executes the container's program as runc does: the environment in its order, and errors in the
/// words that users know. libcontainer's own executor loses both.
#[derive(Clone)]
pub struct Program {
    reporter: Reporter,
    late: Arc<Late>,
}

/// Stands in the environment for the home of a user. libcontainer would look that up with the C library, which loads
/// what the container's nsswitch.conf names.
pub const UNKNOWN_HOME: &str = "/:unknown";

/// What is kept from libcontainer and done just before the program is executed, in this order.
#[derive(Default)]
pub struct Late {
    /// Limits that only get lower.
    pub rlimits: Vec<PosixRlimit>,
    /// A seccomp profile. libcontainer forgets it for an exec, and loads it too early for a first process.
    pub seccomp: Option<LinuxSeccomp>,
    /// Capabilities to drop to, if the profile needs more.
    pub capabilities: Option<LinuxCapabilities>,
}

impl Program {
    /// Reports failures to `reporter`, before and after libcontainer can.
    pub fn new(reporter: &Reporter, late: Late) -> Self {
        Self { reporter: reporter.clone(), late: Arc::new(late) }
    }

    /// The file to execute.
    fn file(spec: &Spec) -> Result<String> {
        let process = spec.process().as_ref();
        let args = process.and_then(|process| process.args().as_ref());
        let command = args.and_then(|args| args.first()).map_or("", String::as_str);
        let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
        let path = value(env, "PATH").unwrap_or_default();
        lookup::find(command, path).map_err(Error::InvalidArgument)
    }

    /// Gives a terminal its size, and has the agent give it to its user: here it is too late for
    /// that, since the process has become that user.
    fn prepare_terminal(&self, spec: &Spec) {
        let Some(process) = spec.process() else {
            return;
        };
        if process.terminal() != Some(true) {
            return;
        }
        if let Some(size) = process.console_size() {
            // Nobody can be told, and the program can still ask for the size that it got.
            let _ = set_window_size(std::io::stdin(), size.width(), size.height());
        }
        self.reporter.send(&Report::Terminal { uid: process.user().uid() });
        self.reporter.wait();
    }

    fn execute(&self, spec: &Spec) -> Result<Infallible> {
        let file = Self::file(spec)?;
        give_null()?;
        let process = spec.process().as_ref();
        let args = process.and_then(|process| process.args().clone()).unwrap_or_default();
        let mut env = process.and_then(|process| process.env().clone()).unwrap_or_default();
        if value(&env, "HOME") == Some(UNKNOWN_HOME) {
            env.retain(|pair| !pair.starts_with("HOME="));
            let user = process.map_or(0, |process| process.user().uid());
            env.push(format!("HOME={}", home(&users(), user)));
        }
        let path = c_string("process.args", &file)?;
        let args = c_strings("process.args", &args)?;
        let env = c_strings("process.env", &deduplicated(env)?)?;
        self.late.apply()?;
        execve(&path, &args, &env).map_err(|errno| {
            Error::InvalidArgument(format!("exec {file}: {}", lookup::describe(errno)))
        })
    }
}

impl Late {
    /// Takes a profile over, and the capabilities of the process that could not load it.
    pub fn take_seccomp(&mut self, profile: Option<LinuxSeccomp>, process: &mut Process) {
        let capabilities = process.capabilities().clone().unwrap_or_default();
        let permitted = capabilities.permitted().clone().unwrap_or_default();
        let inheritable = capabilities.inheritable().iter().flatten();
        // libcontainer has given up the right to it by then.
        let inherits_more = inheritable.into_iter().any(|one| !permitted.contains(one));
        // Without no_new_privs only a privileged process may load a profile.
        let loads = profile.is_some() && process.no_new_privileges() != Some(true);
        if loads || inherits_more {
            process.set_capabilities(Some(seccomp::privileged(&capabilities)));
            self.capabilities = Some(capabilities);
        }
        self.seccomp = profile;
    }

    fn apply(&self) -> Result<()> {
        const MYSELF: i32 = 0;
        limits::set_all(MYSELF, &self.rlimits)?;
        self.seccomp.as_ref().map_or(Ok(()), seccomp::load)?;
        if let Some(capabilities) = &self.capabilities {
            drop_privileges(capabilities, create_syscall().as_ref()).map_err(|error| {
                Error::Internal(format!("cannot drop capabilities: {}", chain(&error)))
            })?;
        }
        Ok(())
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.prepare_terminal(spec);
        Self::file(spec).map(drop).map_err(|error| {
            self.reporter.send(&Report::Failed(error));
            ExecutorValidationError::ArgValidationError("the command can't be executed".to_owned())
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        match self.execute(spec) {
            Ok(never) => match never {},
            Err(error) => {
                self.reporter.send(&Report::Failed(error));
                Err(ExecutorError::Other("the command can't be executed".to_owned()))
            }
        }
    }
}

/// The value of a variable; of several, the last one counts.
pub fn value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// Opens a stream that is the null device for writing, too: libcontainer opens the container's own for reading only.
fn give_null() -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| Error::io("cannot open /dev/null", error);
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: borrowed for this round only; one that is closed is reported as such.
        let stream = unsafe { BorrowedFd::borrow_raw(stream) };
        let nowhere = fstat(stream).is_ok_and(|found| is_null(&found));
        let Ok(flags) = fcntl(stream, FcntlArg::F_GETFL) else { continue };
        if !nowhere || flags & libc::O_ACCMODE != libc::O_RDONLY {
            continue;
        }
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|error| failed(&error))?;
        if fstat(&null).is_ok_and(|found| is_null(&found)) {
            // SAFETY: both are open, and the second is a stream of this process, which it goes on being.
            let given = unsafe { libc::dup2(null.as_raw_fd(), stream.as_raw_fd()) };
            Errno::result(given).map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

/// Whether a file is the null device.
pub fn is_null(found: &FileStat) -> bool {
    let is_device = found.st_mode & libc::S_IFMT == libc::S_IFCHR;
    is_device && (major(found.st_rdev), minor(found.st_rdev)) == (1, 3)
}

/// How much of a table of users is read, in bytes.
const USERS_LIMIT: u64 = 1 << 20;

/// The container's table of users, as far as it is one: anything may be in its place.
fn users() -> String {
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/etc/passwd");
    let file = open.ok().filter(|file| file.metadata().is_ok_and(|about| about.is_file()));
    let mut table = Vec::new();
    // What can be read of it counts.
    let _ = file.map(|file| file.take(USERS_LIMIT).read_to_end(&mut table));
    String::from_utf8_lossy(&table).into_owned()
}

/// The home of a user in a table as /etc/passwd (passwd(5)); the root directory where it has none.
fn home(table: &str, user: u32) -> &str {
    let home = |line| {
        let mut fields = str::split(line, ':').skip(2);
        (fields.next()?.parse() == Ok(user)).then(|| fields.nth(2))?
    };
    table.lines().find_map(home).filter(|home| !home.is_empty()).unwrap_or("/")
}

/// The environment with each variable once: at its first place, with its last value, as runc's
/// setenv leaves it.
fn deduplicated(env: Vec<String>) -> Result<Vec<String>> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut kept: Vec<String> = Vec::with_capacity(env.len());
    for pair in env {
        let Some((name, _)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Error::InvalidArgument(format!("process.env: {pair:?} is not NAME=value")));
        };
        match places.get(name) {
            Some(&place) => kept[place] = pair,
            None => {
                places.insert(name.to_owned(), kept.len());
                kept.push(pair);
            }
        }
    }
    Ok(kept)
}

fn c_strings(field: &str, texts: &[String]) -> Result<Vec<CString>> {
    texts.iter().map(|text| c_string(field, text)).collect()
}

fn c_string(field: &str, text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::InvalidArgument(format!("{field} has a NUL character in it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn the_environment_keeps_its_order_and_each_name_once() {
        let env = strings(&["B=1", "A=x=y", "B=2", "C="]);
        assert_eq!(deduplicated(env).unwrap(), strings(&["B=2", "A=x=y", "C="]));
        for odd in ["broken", "", "=x"] {
            deduplicated(strings(&["A=1", odd])).unwrap_err();
        }
    }

    #[test]
    fn the_home_of_a_user_is_the_containers_own_to_say() {
        let table = "root:x:0:0:root:/root:/bin/sh\nbroken\nx:x:y:0::/y:\nci:x:1000:100::/home/ci\nno:x:7:7::\n";
        for (user, place) in [(0, "/root"), (1000, "/home/ci"), (7, "/"), (8, "/")] {
            assert_eq!(home(table, user), place);
        }
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env = strings(&["PATH=/a", "PATHS=/x", "PATH=/b"]);
        assert_eq!(value(&env, "PATH"), Some("/b"));
        assert_eq!(value(&env, "HOME"), None);
    }
}
