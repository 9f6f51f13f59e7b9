//! The end-to-end tests' program: see `--help`.

use std::process::ExitCode;

use bulkhead_tests::bed::Bed;
use bulkhead_tests::failure::Outcome;
use bulkhead_tests::options::{Options, USAGE};
use bulkhead_tests::{cases, leftovers, product, runner};

fn main() -> ExitCode {
    match work() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("bulkhead-e2e: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
fn work() -> Outcome<bool> {
    let Some(options) = Options::parse(std::env::args_os().skip(1))? else {
        println!("{USAGE}");
        return Ok(true);
    };
    let all = cases::all();
    for pattern in options.patterns.iter().chain(&options.skipped) {
        let known = all.iter().any(|case| case.name.contains(pattern.as_str()));
        bulkhead_tests::ensure!(known, "no test's name holds {pattern:?}");
    }
    let (chosen, skipped) = runner::select(&all, &options);
    if options.list {
        for case in chosen {
            println!("{:<34} {}", case.name, case.relies_on);
        }
        return Ok(true);
    }
    bulkhead_tests::ensure!(!chosen.is_empty(), "all of them are left out");
    let devices = leftovers::network_devices();
    let mut bed = Bed::make(options)?;
    let mut tally = runner::run(&bed, chosen, skipped);

    // The whole run leaves nothing either: no process of any containerd, no mount, no device.
    let deadline = bed.options.deadline(20);
    if let Err(failure) = bed.remove_pods() {
        tally.failed += 1;
        println!("FAILED  the host after the run\n        {failure}");
    }
    for containerd in bed.shared() {
        let word = containerd.dir().to_string_lossy().into_owned();
        containerd.stop()?;
        let paths = leftovers::entries(&product::state_dir(containerd.dir()));
        if let Err(failure) = leftovers::none(&word, &paths, deadline) {
            tally.failed += 1;
            println!("FAILED  the host after the run\n        {failure}");
        }
        if tally.failed > 0 {
            println!("logs and state are kept in {}", containerd.keep().display());
        }
    }
    if let Err(failure) = leftovers::same_devices(&devices) {
        tally.failed += 1;
        println!("FAILED  the host after the run\n        {failure}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(tally.failed == 0)
}
