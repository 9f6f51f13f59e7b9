//! Asks a file system for what programs expect of one: `bulkhead-probe CHECK DIRECTORY`. It runs in a container, and
//! says what is not so; the rules are those of POSIX and of Linux' manual pages.

mod calls;
mod data;
mod handles;
mod locks;
mod names;
mod nodes;
mod random;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

/// What a check finds; the text says what is not so.
type Found = Result<(), String>;

/// Requires something of the file system.
#[macro_export]
macro_rules! require {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// Says what was attempted.
trait Attempt<T> {
    fn at(self, what: &str) -> Result<T, String>;
}

impl<T, E: Display> Attempt<T> for Result<T, E> {
    fn at(self, what: &str) -> Result<T, String> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [check, directory] = arguments.as_slice() else {
        eprintln!("usage: bulkhead-probe CHECK DIRECTORY");
        return ExitCode::from(2);
    };
    let directory = Path::new(directory);
    let found = match check.as_str() {
        "names" => names::check(directory),
        "many" => names::many(directory),
        "nodes" => nodes::check(directory),
        "data" => data::check(directory),
        "huge" => data::huge(directory),
        "mapped" => data::leave_mapped(directory),
        "random" => random::check(directory),
        "locks" => locks::check(directory),
        "hold" => locks::hold(directory),
        "held" => locks::held(directory),
        "calls" => calls::check(directory),
        "handles" => handles::check(directory),
        other => Err(format!("there is no check {other:?}")),
    };
    match found {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{check}: {text}");
            ExitCode::FAILURE
        }
    }
}
