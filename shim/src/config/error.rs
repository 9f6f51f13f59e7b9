//! What can be wrong with the configuration, and with what it names.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that was named is not there, or cannot be read.
    #[error("configuration file {} cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not TOML, has a key that does not exist, or a value of the wrong type.
    #[error("{}, line {line}: {message}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with which key, and what is allowed.
        message: String,
    },
    /// A value is of the right type and still of no use.
    #[error("{}: {key} = {value} is not allowed: {allowed}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// The value as it stands in the file.
        value: String,
        /// What may stand there.
        allowed: String,
    },
}

/// A file on the host that a sandbox needs cannot be used.
#[derive(Debug, Error)]
pub enum AssetError {
    /// The key names a file that cannot be used.
    #[error("{key} = {} cannot be used", path.display())]
    Unusable {
        /// The key that names it.
        key: &'static str,
        /// The path that the key names.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The key is not set, and the file is in none of the usual places.
    #[error("{name} is not installed: not found in {}; install it or set {key}", list(looked_in))]
    NotFound {
        /// The file's name.
        name: &'static str,
        /// The key by which it can be named.
        key: &'static str,
        /// Every directory that was looked into.
        looked_in: Vec<PathBuf>,
    },
}

/// Paths in words for people.
#[must_use]
pub fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}
