//! Pods through the CRI, as a kubelet starts them: RunPodSandbox, CreateContainer, StartContainer.

use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::bed::Test;
use bulkhead_tests::failure::{Failure, Outcome};

use super::{Results, seconds};

/// How often one pod is started.
const ROUNDS: usize = 5;

/// How often many are, and how many.
const ROUNDS_OF_MANY: usize = 2;
const MANY: usize = 10;

/// The runtime handlers; the last one is the peer.
const HANDLERS: [&str; 3] = ["bulkhead", "bulkhead-sandbox", "runc"];

/// The times from the first call until every container runs.
pub fn measure(t: &Test<'_>, results: &mut Results) -> Outcome {
    // The first of each fills the page cache, and doesn't count.
    for handler in HANDLERS {
        at_once(t, handler, 1)?;
    }
    one_after_another(t, results, "pod start", 1, ROUNDS)?;
    one_after_another(t, results, "ten pods at once, until all run", MANY, ROUNDS_OF_MANY)
}

fn one_after_another(
    t: &Test<'_>,
    results: &mut Results,
    name: &str,
    pods: usize,
    rounds: usize,
) -> Outcome {
    let mut times = HANDLERS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (times, handler) in times.iter_mut().zip(HANDLERS) {
            times.push(at_once(t, handler, pods)?);
        }
    }
    let [podsandbox, shim, runc] = times.map(|times| seconds(&times));
    results.pair(&format!("{name} (sandboxer podsandbox)"), "s", podsandbox, runc);
    results.pair(&format!("{name} (sandboxer shim)"), "s", shim, runc);
    Ok(())
}

/// Starts this many pods side by side; the time until the last one runs.
fn at_once(t: &Test<'_>, handler: &str, pods: usize) -> Outcome<Duration> {
    let started = Instant::now();
    let ids = side_by_side((0..pods).collect(), |_| one(t, handler))?;
    let time = started.elapsed();
    side_by_side(ids, |id| Ok(t.bed.pods()?.remove_pod(&id)?))?;
    Ok(time)
}

fn one(t: &Test<'_>, handler: &str) -> Outcome<String> {
    let pod = t.pod().handler(handler).run()?;
    pod.container("app").command(&["sleep", "100000"]).start()?;
    Ok(pod.id)
}

/// Does the same to all of `list`, each in a thread of its own.
fn side_by_side<I: Send, O: Send>(
    list: Vec<I>,
    work: impl Fn(I) -> Outcome<O> + Sync,
) -> Outcome<Vec<O>> {
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> =
            list.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let panicked = |_| Err(Failure::new("a thread panicked"));
        running.into_iter().map(|one| one.join().unwrap_or_else(panicked)).collect()
    })
}
