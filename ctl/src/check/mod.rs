//! `bulkhead check`: a line for each thing that a sandbox needs, and what to do about what is
//! missing.

mod containerd;
mod facts;
mod judge;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use bulkhead_protocols::chain;
use bulkhead_shim::service::trial;
use facts::Facts;
use judge::{Level, Line, booted, judge};

/// Looks at this host and says whether it can run sandboxes, by the exit code to whoever does not read it. Only a boot
/// tells of all that may be missing.
pub fn run(boot: bool, out: &mut impl Write) -> ExitCode {
    let facts = Facts::probe();
    let lines = judge(&facts);
    let _ = show(&lines, out);
    let mut failed = lines.iter().any(|line| line.level == Level::Fail);
    if let (true, false, Ok(config)) = (boot, failed, &facts.config) {
        let began = Instant::now();
        let line = booted(trial(config).map(|()| began.elapsed()).map_err(|error| chain(&error)));
        failed = line.level == Level::Fail;
        let _ = show(&[line], out);
    }
    let verdict =
        if failed { "this host cannot run sandboxes yet" } else { "this host can run sandboxes" };
    let _ = writeln!(out, "\n{verdict}");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn show(lines: &[Line], out: &mut impl Write) -> io::Result<()> {
    for line in lines {
        let level = match line.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Fail => "FAIL",
        };
        writeln!(out, "{level:4}  {:18}  {}", line.what, line.says)?;
        if let Some(advice) = &line.advice {
            writeln!(out, "{:26}-> {advice}", "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_its_line() {
        let line = |level, advice: Option<&str>| Line {
            level,
            what: "KVM",
            says: "usable".to_owned(),
            advice: advice.map(str::to_owned),
        };
        let mut out = Vec::new();
        show(&[line(Level::Ok, None), line(Level::Fail, Some("do this"))], &mut out)
            .expect("write");
        let expected = "ok    KVM                 usable\n\
                        FAIL  KVM                 usable\n                          -> do this\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
