//! Versions of the programs. Asking a program for its version costs up to 15 ms, so it is done
//! where an operator asks, or where a VM has failed; never on the way of a start.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use thiserror::Error;

use crate::process::output;

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program's version, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A program that does not say its version.
#[derive(Debug, Error)]
pub enum VersionError {
    /// It cannot be run.
    #[error("{} --version cannot be run", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It prints no version.
    #[error("{} --version prints no version but {printed:?}", program.display())]
    Unknown {
        /// The program.
        program: PathBuf,
        /// Its first line.
        printed: String,
    },
}

impl Version {
    /// What is to be said of a program that is older than this, the oldest that works; else nothing.
    #[must_use]
    pub fn complaint(self, program: &Path) -> String {
        let found = Version::of(program).ok().filter(|found| *found < self);
        let told = |found| format!(" (this is version {found}; {self} is the oldest that works)");
        found.map(told).unwrap_or_default()
    }

    /// Asks a program.
    ///
    /// # Errors
    /// [`VersionError`]
    pub fn of(program: &Path) -> Result<Version, VersionError> {
        let output = output(Command::new(program).arg("--version"), PATIENCE);
        let output =
            output.map_err(|source| VersionError::Run { program: program.to_owned(), source })?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let first = printed.lines().next().unwrap_or_default();
        Version::in_line(first).ok_or_else(|| VersionError::Unknown {
            program: program.to_owned(),
            printed: first.to_owned(),
        })
    }

    /// The first word of a line that is a version: `53.0`, `v53.0-dirty`, `7.2.22`.
    #[must_use]
    pub fn in_line(line: &str) -> Option<Version> {
        line.split_ascii_whitespace().find_map(|word| {
            let mut numbers = word.trim_start_matches('v').split(['.', '-', '+']);
            let major = numbers.next()?.parse().ok()?;
            let minor = numbers.next()?.parse().ok()?;
            Some(Version { major, minor })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_the_programs_print() {
        let cases = [
            ("cloud-hypervisor v53.0-dirty", 53, 0),
            ("cloud-hypervisor v50.2.1", 50, 2),
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", 7, 2),
            ("virtiofsd 1.13.3", 1, 13),
            ("vhost-device-vsock 0.3.0", 0, 3),
            ("6.1.0-37-amd64", 6, 1),
        ];
        for (line, major, minor) in cases {
            assert_eq!(Version::in_line(line), Some(Version { major, minor }), "{line}");
        }
        assert_eq!(Version::in_line("usage: x [options]"), None);
        assert_eq!(Version::in_line(""), None);
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(Version { major: 7, minor: 2 } < Version { major: 10, minor: 0 });
        assert!(Version { major: 7, minor: 2 } < Version { major: 7, minor: 10 });
    }
}
