//! Runs the tests side by side; each line of output names a test and its time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::bed::{Bed, Test};
use crate::failure::{Failure, Outcome, both};
use crate::options::{Options, Runtime};

/// A test.
pub struct Case {
    /// Its name: `group.test`.
    pub name: &'static str,
    /// What a user relies on.
    pub relies_on: &'static str,
    /// Which runtimes it is about.
    pub subject: Subject,
    /// Whether it takes the whole machine, so that nothing else runs beside it.
    pub alone: bool,
    /// The test itself.
    pub run: fn(&Test<'_>) -> Outcome,
}

/// Which runtimes a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Every one: runc proves the test right.
    Any,
    /// What only a runtime with a VM can show.
    Bulkhead,
}

impl Case {
    /// A test that runc passes too.
    pub const fn any(
        name: &'static str,
        relies_on: &'static str,
        run: fn(&Test<'_>) -> Outcome,
    ) -> Self {
        Self { name, relies_on, subject: Subject::Any, alone: false, run }
    }

    /// A test of what runc doesn't have.
    pub const fn bulkhead(
        name: &'static str,
        relies_on: &'static str,
        run: fn(&Test<'_>) -> Outcome,
    ) -> Self {
        Self { name, relies_on, subject: Subject::Bulkhead, alone: false, run }
    }
}

impl Case {
    /// The same test with nothing beside it.
    #[must_use]
    pub const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }
}

/// How many tests ended which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// They did what they should.
    pub passed: usize,
    /// They did not.
    pub failed: usize,
    /// What they are about is not here, or the command line left them out.
    pub skipped: usize,
}

/// Splits the tests into those to run and the number of those to leave out.
pub fn select<'c>(cases: &[&'c Case], options: &Options) -> (VecDeque<&'c Case>, usize) {
    let holds = |patterns: &[String], case: &Case| {
        patterns.iter().any(|pattern| case.name.contains(pattern.as_str()))
    };
    let named: Vec<&&Case> = cases
        .iter()
        .filter(|case| options.patterns.is_empty() || holds(&options.patterns, case))
        .collect();
    let chosen: VecDeque<&Case> = named
        .iter()
        .filter(|case| !holds(&options.skipped, case))
        .filter(|case| case.subject == Subject::Any || options.runtime == Runtime::Bulkhead)
        .map(|case| **case)
        .collect();
    let skipped = named.len() - chosen.len();
    (chosen, skipped)
}

/// Runs the tests on as many threads as the command line says, and then those that run alone.
pub fn run(bed: &Bed, cases: VecDeque<&Case>, skipped: usize) -> Tally {
    let (alone, beside): (VecDeque<_>, VecDeque<_>) =
        cases.into_iter().partition(|case| case.alone);
    let tally = Mutex::new(Tally { skipped, ..Tally::default() });
    run_on(bed, beside, bed.options.threads.max(1), &tally);
    run_on(bed, alone, 1, &tally);
    tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn run_on(bed: &Bed, cases: VecDeque<&Case>, threads: usize, tally: &Mutex<Tally>) {
    let queue = Mutex::new(cases);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = next(&queue) {
                    let started = Instant::now();
                    let mut outcome = attempt(bed, case);
                    if let (Err(failure), Runtime::Runc) = (&outcome, bed.options.runtime) {
                        // runc is here to prove the tests right: one that it fails twice is wrong.
                        // Under load it, or ctr with it, loses an output now and then.
                        println!("again   {:<34} {failure}", case.name);
                        outcome = attempt(bed, case);
                    }
                    let seconds = started.elapsed().as_secs_f64();
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(()) => {
                            tally.passed += 1;
                            println!("ok      {:<34} {seconds:6.1} s", case.name);
                        }
                        Err(failure) if failure.is_skip() => {
                            tally.skipped += 1;
                            println!("skipped {:<34} {failure}", case.name);
                        }
                        Err(failure) => {
                            tally.failed += 1;
                            let text = failure.to_string().replace('\n', "\n        ");
                            println!(
                                "FAILED  {:<34} {seconds:6.1} s\n        {}\n        {text}",
                                case.name, case.relies_on
                            );
                        }
                    }
                }
            });
        }
    });
}

fn next<'c>(queue: &Mutex<VecDeque<&'c Case>>) -> Option<&'c Case> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// One test, and the check that it left nothing.
fn attempt(bed: &Bed, case: &Case) -> Outcome {
    let test = Test::new(bed, case.name);
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&test)))
        .unwrap_or_else(|_| Err(Failure::new("the test itself panicked")));
    both(outcome, test.close())
}
