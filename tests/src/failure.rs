//! Why a test failed: a text for the person who reads the run's output.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

/// What every step of a test returns.
pub type Outcome<T = ()> = Result<T, Failure>;

/// A failed step. Any error becomes one by `?`.
pub struct Failure {
    text: String,
    out_of_place: bool,
}

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), out_of_place: false }
    }

    /// What the test is about is not here, for this reason: it counts as skipped.
    pub fn not_here(why: impl Into<String>) -> Self {
        Self { text: why.into(), out_of_place: true }
    }

    /// Whether the test is skipped.
    pub fn is_skip(&self) -> bool {
        self.out_of_place
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        Self::new(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Says in which step an error arose.
pub trait Context<T> {
    /// Puts `step` before the error's own text.
    ///
    /// # Errors
    /// The error itself, with the step's name.
    fn context(self, step: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, step: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{step}: {}", error.into())))
    }
}

/// Ends the test with a text unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::failure::Failure::new(format!($($text)+)));
        }
    };
}

/// Looks again and again until what is waited for is there, where nothing tells of it.
///
/// # Errors
/// It can't be looked at, which ends the waiting at once; or what was there instead, after the deadline.
pub fn again<T>(deadline: Duration, look: impl Fn() -> Outcome<Result<T, String>>) -> Outcome<T> {
    let limit = Instant::now() + deadline;
    loop {
        match look()? {
            Ok(there) => return Ok(there),
            Err(instead) if Instant::now() >= limit => return Err(Failure::new(instead)),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// What [`again`] waits for, where it is that something holds.
pub fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> Outcome<Result<(), String>> {
    Ok(condition.then_some(()).ok_or_else(otherwise))
}

/// The outcome of two steps, of which the second was taken whatever became of the first.
///
/// # Errors
/// Those of either, or of both.
pub fn both(first: Outcome, second: Outcome) -> Outcome {
    match (first, second) {
        (Err(first), Err(second)) => Err(Failure::new(format!("{first}\n{second}"))),
        (first, second) => first.and(second),
    }
}
