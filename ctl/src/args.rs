//! The command line.

use std::ffi::OsString;

use lexopt::{Arg, Parser, ValueExt};

/// What is printed for `--help` and after a mistake.
pub const USAGE: &str = "\
Usage: bulkhead COMMAND

  check [--boot]           say whether this host can run sandboxes, and what it lacks; boot one to see
  list [--json]            show the sandboxes of this host
  inspect ID [--json]      show one sandbox: VMM, guest, processes, phases of its start
  gc [--dry-run] [--spares]
                           end and remove the sandboxes whose shim is gone; with --spares also what is kept for later
                           ones: guests that wait, and an empty disk

  -n, --namespace NAME     with inspect: containerd's namespace, where an id is in several
  -h, --help               show this
  -V, --version            show the version

ID may be shortened as long as it is unique.
Exit status: 0 yes or done, 1 no or failed, 2 the command line is wrong.";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub command: Command,
    /// Whether the answer is for a program.
    pub json: bool,
    /// The namespace of the sandbox.
    pub namespace: Option<String>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Look whether this host can run sandboxes.
    Check {
        /// Boot a guest, too.
        boot: bool,
    },
    /// Show all sandboxes.
    List,
    /// Show one.
    Inspect {
        /// Its id, or the start of it.
        id: String,
    },
    /// Remove what is left over.
    Gc {
        /// Only say what would be removed.
        dry_run: bool,
        /// End the spares, too, whatever the configuration says of them.
        spares: bool,
    },
    /// Show the usage.
    Help,
    /// Show the version.
    Version,
}

impl Args {
    /// Parses a command line, the program's name first.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, String> {
        parse(Parser::from_iter(args)).map_err(|e| e.to_string())
    }
}

fn parse(mut parser: Parser) -> Result<Args, lexopt::Error> {
    let mut words: Vec<String> = Vec::new();
    let (mut json, mut dry_run, mut spares, mut boot) = (false, false, false, false);
    let mut namespace = None;
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(plain(Command::Help)),
            Arg::Short('V') | Arg::Long("version") => return Ok(plain(Command::Version)),
            Arg::Short('n') | Arg::Long("namespace") => {
                namespace = Some(parser.value()?.string()?);
            }
            Arg::Long("json") => json = true,
            Arg::Long("dry-run") => dry_run = true,
            Arg::Long("spares") => spares = true,
            Arg::Long("boot") => boot = true,
            Arg::Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = match words[..] {
        ["check"] => Command::Check { boot },
        ["list"] => Command::List,
        ["inspect", id] => Command::Inspect { id: id.to_owned() },
        ["gc"] => Command::Gc { dry_run, spares },
        ["inspect"] => return Err("inspect needs an id".into()),
        [] => return Err("a command is missing".into()),
        ["check" | "list" | "inspect" | "gc", .., last] => {
            return Err(format!("{last:?} is one argument too many").into());
        }
        [other, ..] => return Err(format!("{other:?} is no command").into()),
    };
    let inspect = matches!(command, Command::Inspect { .. });
    let gc = matches!(command, Command::Gc { .. });
    let misplaced = [
        ("--json", json && !inspect && command != Command::List),
        ("--dry-run", dry_run && !gc),
        ("--spares", spares && !gc),
        ("--boot", boot && !matches!(command, Command::Check { .. })),
        ("--namespace", namespace.is_some() && !inspect),
    ];
    if let Some((flag, _)) = misplaced.iter().find(|(_, wrong)| *wrong) {
        return Err(format!("{flag} does not go with {}", words[0]).into());
    }
    Ok(Args { command, json, namespace })
}

fn plain(command: Command) -> Args {
    Args { command, json: false, namespace: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, String> {
        let words = std::iter::once("bulkhead").chain(line.split_whitespace());
        Args::parse(words.map(OsString::from))
    }

    fn refused(line: &str) -> String {
        parsed(line).expect_err(line)
    }

    #[test]
    fn commands_and_flags_are_understood_in_any_order() {
        assert_eq!(parsed("check").expect("check"), plain(Command::Check { boot: false }));
        assert_eq!(parsed("check --boot").expect("check"), plain(Command::Check { boot: true }));
        let gc = |dry_run, spares| plain(Command::Gc { dry_run, spares });
        assert_eq!(parsed("gc --dry-run").expect("gc"), gc(true, false));
        assert_eq!(parsed("--spares gc").expect("gc"), gc(false, true));
        let expected = Args {
            command: Command::Inspect { id: "web".to_owned() },
            json: true,
            namespace: Some("k8s.io".to_owned()),
        };
        assert_eq!(parsed("--json -n k8s.io inspect web").expect("inspect"), expected);
        assert_eq!(parsed("inspect web --namespace=k8s.io --json").expect("inspect"), expected);
        assert_eq!(parsed("anything --help").expect("help"), plain(Command::Help));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(refused(""), "a command is missing");
        assert_eq!(refused("destroy"), "\"destroy\" is no command");
        assert_eq!(refused("inspect"), "inspect needs an id");
        assert_eq!(refused("inspect a b"), "\"b\" is one argument too many");
        assert_eq!(refused("check --json"), "--json does not go with check");
        assert_eq!(refused("list --dry-run"), "--dry-run does not go with list");
        assert_eq!(refused("check --spares"), "--spares does not go with check");
        assert_eq!(refused("gc --boot"), "--boot does not go with gc");
        assert_eq!(refused("list -n x"), "--namespace does not go with list");
        assert!(refused("list --all").contains("--all"));
        assert!(refused("inspect web -n").contains("-n"));
    }
}
