//! The life of a spare until it is a sandbox's server.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bulkhead_protocols::chain;
use slog::error;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::server::{self, ServeError, inherited, prepare};
use crate::args::Args;
use crate::config::Config;
use crate::logging::Later;
use crate::sandbox::{Origin, Pod, Spare};
use crate::spare::{Claim, Claimed, Likeness, Place, agree, hear};

/// How long the sandbox before has the host to itself after its first container has begun.
const HEAD_START: Duration = Duration::from_secs(3);

/// Waits until the sandbox before runs, has a guest boot, waits until a sandbox needs it, and serves that.
///
/// # Errors
/// [`ServeError`]; why there is no spare stands in its place then.
pub fn wait(args: &Args) -> Result<(), ServeError> {
    let [lock] = inherited().map_err(ServeError::Descriptor)?;
    let lock = File::from(lock);
    let ready = || -> Result<_, ServeError> {
        // The other end is closed once the sandbox before runs, or is over.
        io::stdin().read_to_end(&mut Vec::new()).map_err(ServeError::Descriptor)?;
        let like = Likeness::own().map_err(ServeError::Descriptor)?;
        let runtime = prepare()?;
        // Nobody's guest is worth as little to the host as any process.
        server::take_oom_score(None).map_err(ServeError::Runtime)?;
        Ok((like, runtime))
    };
    let failed = |error: &ServeError| Place::leave_word(&lock, &chain(error));
    let (like, runtime) = ready().inspect_err(failed)?;
    server::to_the_end(runtime, async {
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
        let log = Later::default();
        let found = tokio::select! {
            found = be_found(args, lock, like, &log) => found,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let Some((spare, claimed)) = found else { return Ok(()) };
        let Claimed { claim, listener, began } = claimed;
        let (config, opened) = server::open(&claim.args);
        log.open(&opened);
        let origin = Origin { spare: Some(spare), began };
        let served = server::run(&claim.args, claim.events, config, listener, origin, &opened);
        served.await.inspect_err(|error| error!(opened, "{}", chain(error)))
    })
}

/// Where a spare listens, for as long as it does.
struct Findable<'a>(&'a Place);

impl Drop for Findable<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The spare, and what it is to become. None if there is nothing to wait for any more.
async fn be_found(
    args: &Args,
    lock: File,
    like: Likeness,
    log: &Later,
) -> Option<(Spare, Claimed)> {
    sleep(HEAD_START).await;
    Place::is_held(&lock).ok()?;
    let mut config = Config::load(args.config.as_deref()).ok()?;
    let place = Place::named(&config, &args.id)?;
    // As large as the guest of the sandbox that has it made: the next is likely to be like that.
    let own = args.size.unwrap_or((config.vcpus, config.memory));
    (config.vcpus, config.memory) = own;
    Place::leave_word(&lock, "");
    let failed = |word: String| Place::leave_word(&lock, &word);
    let spare = Spare::boot(&config, &Pod::default(), &log.logger()).await;
    let spare = spare.map_err(|error| failed(chain(&error))).ok()?;
    let findable = Findable(&place);
    let waiting = place.listen(&lock).and_then(|socket| {
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket)
    });
    let waiting = waiting.map_err(|error| failed(error.to_string())).ok()?;
    let wants = |claim: &Claim| (claim.args.size, claim.args.config.clone());
    let fits = |claim: &Claim| claim.args.size == Some(own) && claim.args.config == args.config;
    let mut missed = HashSet::new();
    let (stream, asked) = loop {
        let asked = tokio::select! {
            asked = waiting.accept() => asked,
            reason = spare.over() => Err(io::Error::other(format!("the VM has ended: {reason}"))),
            gone = place.is_gone() => gone.and(Err(io::Error::other("its place was removed"))),
        };
        let stream = asked.and_then(|(stream, _)| stream.into_std());
        let stream: UnixStream = stream.map_err(|error| failed(error.to_string())).ok()?;
        let (like, lent) = (like.clone(), lock.try_clone().ok()?);
        let hearing = spawn_blocking(move || (hear(&stream, &like, &lent), stream));
        let (heard, stream) = hearing.await.ok()?;
        match heard {
            Ok(asked) if fits(&asked.0) && !asked.0.missed => break (stream, asked),
            Ok((it, _)) if fits(&it) || !it.missed || missed.insert(wants(&it)) => continue,
            // Nobody can have it, or what asks comes too late for the second time: who has asked has another made, once
            // the stream is closed.
            Ok(_) | Err(_) => {
                drop((waiting, findable, lock));
                return None;
            }
        }
    };
    // Nobody else finds it, and who has its place next makes a socket of his own.
    drop((waiting, findable, lock));
    let agreed = spawn_blocking(move || agree(stream, asked)).await;
    Some((spare, agreed.ok()?.ok()?))
}
