//! The command line by which containerd runs a shim: Go-style flags, then an action.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the shim is asked to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Start a server, or find the one of the pod, and print its address.
    #[default]
    Start,
    /// Clean up after a server that is gone, and print the exit status.
    Delete,
    /// Be the server. `Start` runs this.
    Serve,
    /// Have a guest boot, and wait until a sandbox needs it. `Start` runs this.
    Spare,
    /// Print the version.
    Version,
    /// Print what the runtime is, as a `containerd.types.RuntimeInfo`.
    Info,
}

/// The command line, parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The id of the container for which containerd runs the shim.
    pub id: String,
    /// The address of containerd's gRPC socket.
    pub address: String,
    /// The container's bundle; the working directory where containerd names none.
    pub bundle: PathBuf,
    /// Whether containerd asks for debug messages.
    pub debug: bool,
    /// vCPUs, and bytes of memory, of the guest, as far as that is known; in JSON on the command line of a spare.
    pub size: Option<(u32, u64)>,
    /// The configuration file that containerd's options for the runtime name.
    pub config: Option<PathBuf>,
}

/// A command line that is not understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    /// The flag is not one of a shim's.
    #[error(
        "unknown flag {0}; known are -namespace, -id, -address, -publish-binary, -bundle, -socket, -debug, -v, -info"
    )]
    UnknownFlag(String),
    /// A flag that needs a value stands last.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// There is no action, or another one.
    #[error("{0:?} is no action; known are start, delete, serve and spare")]
    UnknownAction(String),
    /// The action cannot do without this flag.
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    /// An argument is not text.
    #[error("argument {0:?} is not UTF-8")]
    NotText(OsString),
}

impl Args {
    /// Parses the arguments after the program's name. Flags may have one dash or two, and their
    /// value behind `=` or in the next argument, as Go's flag package has it.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut action = None;
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let argument = argument.into_string().map_err(ArgsError::NotText)?;
            let Some(flag) = argument.strip_prefix('-') else {
                action = Some(match argument.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "serve" => Action::Serve,
                    "spare" => Action::Spare,
                    _ => return Err(ArgsError::UnknownAction(argument)),
                });
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = flag.split_once('=').map_or((flag, None), |(n, v)| (n, Some(v)));
            match name {
                "v" | "version" => action = Some(Action::Version),
                "info" => action = Some(Action::Info),
                "debug" => args.debug = inline.is_none_or(|value| value == "true"),
                "namespace" | "id" | "address" | "bundle" | "size" | "config"
                | "publish-binary" | "socket" => {
                    let value = inline.map(OsString::from).or_else(|| arguments.next());
                    let value = value.ok_or_else(|| ArgsError::NoValue(name.to_owned()))?;
                    let value = value.into_string().map_err(ArgsError::NotText)?;
                    match name {
                        "namespace" => args.namespace = value,
                        "id" => args.id = value,
                        "address" => args.address = value,
                        "bundle" => args.bundle = PathBuf::from(value),
                        "config" => args.config = Some(PathBuf::from(value)),
                        "size" => args.size = serde_json::from_str(&value).unwrap_or_default(),
                        // Events go over ttrpc, and the socket's place is our own choice.
                        _ => {}
                    }
                }
                _ => return Err(ArgsError::UnknownFlag(argument)),
            }
        }
        args.action = action.ok_or_else(|| ArgsError::UnknownAction(String::new()))?;
        if !matches!(args.action, Action::Version | Action::Info) {
            let needed = [("namespace", &args.namespace), ("id", &args.id)];
            if let Some((flag, _)) = needed.into_iter().find(|(_, value)| value.is_empty()) {
                return Err(ArgsError::Missing(flag));
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn takes_the_line_that_containerd_writes() {
        let args = parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a1 -bundle /b -debug start")
            .unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "a1"));
        assert_eq!(args.address, "/run/c.sock");
        assert_eq!(args.bundle, PathBuf::from("/b"));
        assert!(args.debug);
    }

    #[test]
    fn takes_two_dashes_and_inline_values() {
        let args = parse("--namespace=n --id=i --debug=false delete").unwrap();
        assert_eq!((args.action, args.debug), (Action::Delete, false));
        assert_eq!(parse("-namespace n -id i -size [2,9] spare").unwrap().size, Some((2, 9)));
    }

    #[test]
    fn asks_for_nothing_to_print_its_version() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(parse("-id x start"), Err(ArgsError::Missing("namespace")));
        assert_eq!(parse("-namespace x start"), Err(ArgsError::Missing("id")));
        assert_eq!(parse("-namespace"), Err(ArgsError::NoValue("namespace".into())));
        assert_eq!(parse("-colour red start"), Err(ArgsError::UnknownFlag("-colour".into())));
        assert_eq!(parse("stop"), Err(ArgsError::UnknownAction("stop".into())));
        assert_eq!(parse(""), Err(ArgsError::UnknownAction(String::new())));
    }
}
