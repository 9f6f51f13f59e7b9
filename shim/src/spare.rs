//! Spares: shims whose guests have booted and wait for a sandbox. `start` hands the socket of a new sandbox to a spare
//! instead of to a new server; from then on the spare is that sandbox's shim.
//!
//! Each has a place in the state directory: whoever holds the lock on `spare-0.lock` has it, and listens on `spare-0`.
//!
//! ```text
//! start                      spare
//!   claim, descriptors  -->
//!                       <--  yes: its place is free again
//!   go                  -->        else nothing has happened, and it ends
//! ```
//!
//! A spare of another size, or of another configuration file, hangs up and goes on waiting. A sandbox that got none tells
//! the spares one by one, by a claim that asks for nothing any more, until one has ended for which the like came too late
//! before: in its place `start` has one made that is like the sandbox.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use rustix::fs::inotify::{self, WatchFlags};
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::config::{Config, FILE_VARIABLE};
use crate::sys::watcher;

/// How long the other side may take for its next word. Both have nothing else to do.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest claim, in bytes.
const LONGEST: usize = 64 << 10;

const YES: u8 = b'y';
const GO: u8 = b'g';

/// What both must have in common: they then are the same program, and see the same files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Likeness {
    program: (u64, u64, i64, i64),
    mounts: PathBuf,
    config: Option<String>,
}

impl Likeness {
    /// This process's own.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn own() -> io::Result<Likeness> {
        let program = fs::metadata("/proc/self/exe")?;
        Ok(Likeness {
            program: (program.dev(), program.ino(), program.ctime(), program.ctime_nsec()),
            mounts: fs::read_link("/proc/self/ns/mnt")?,
            config: env::var(FILE_VARIABLE).ok(),
        })
    }
}

/// What a spare is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What containerd has asked for, with the bundle of the sandbox's first container.
    pub args: Args,
    /// The address of containerd's events' socket.
    pub events: String,
    /// Who asks.
    pub likeness: Likeness,
    /// Whether it comes too late: there was no spare of the sandbox's size.
    pub missed: bool,
}

/// A claim that was agreed on.
#[derive(Debug)]
pub struct Claimed {
    /// What the spare is now.
    pub claim: Claim,
    /// The socket on which containerd talks to the sandbox's shim.
    pub listener: UnixListener,
    /// Closing it tells the next spare that it may begin.
    pub began: OwnedFd,
}

/// A place for a spare.
#[derive(Debug, Clone)]
pub struct Place(PathBuf);

impl Place {
    /// All of them.
    pub fn all(config: &Config) -> impl Iterator<Item = Place> + use<> {
        let dir = config.state_dir.clone();
        (0..config.spares).map(move |number| Place(dir.join(format!("spare-{number}"))))
    }

    /// The one of this name, as [`Place::name`] has it.
    #[must_use]
    pub fn named(config: &Config, name: &str) -> Option<Place> {
        Place::all(config).find(|place| place.name() == name)
    }

    /// Removes the places from this one on: there are to be no spares there. Those that are there end by themselves.
    pub fn remove_from(first: u32, config: &Config) {
        let all = Place::all(&Config { spares: Config::MOST_SPARES, ..config.clone() });
        for path in all.skip(first as usize).flat_map(|place| [place.note(), place.0]) {
            // Most are not there.
            let _ = fs::remove_file(path);
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn note(&self) -> PathBuf {
        self.0.with_extension("lock")
    }

    /// Takes it, as long as the returned file is open somewhere. None if it is somebody's.
    ///
    /// # Errors
    /// The system's.
    pub fn take(&self) -> io::Result<Option<File>> {
        if let Some(dir) = self.0.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(false).mode(0o600).open(self.note())?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Leaves word of why there is no spare here; none if there will be one.
    pub fn leave_word(lock: &File, word: &str) {
        // Nobody needs it to go on.
        let _ = lock.set_len(0).and_then(|()| lock.write_all_at(word.as_bytes(), 0));
    }

    /// Why the last spare here has ended before its time, if it has.
    #[must_use]
    pub fn last_word(&self) -> Option<String> {
        let mut word = String::new();
        File::open(self.note()).ok()?.take(4096).read_to_string(&mut word).ok()?;
        Some(word).filter(|word| !word.is_empty())
    }

    /// Whether a spare is here that waits. One that was killed has left its socket, but not the lock.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let held = |note: File| matches!(note.try_lock_shared(), Err(fs::TryLockError::WouldBlock));
        self.0.exists() && File::open(self.note()).is_ok_and(held)
    }

    /// Waits until whoever listens here cannot be found any more, and would wait for ever.
    ///
    /// # Errors
    /// The system's.
    pub async fn is_gone(&self) -> io::Result<()> {
        let changes = watcher()?;
        // How many names a file has is one of its attributes.
        inotify::add_watch(changes.get_ref(), &self.0, WatchFlags::ATTRIB)?;
        while self.0.exists() {
            changes.readable().await?.clear_ready();
        }
        Ok(())
    }

    /// Requires that who has taken a place has it still.
    ///
    /// # Errors
    /// It was removed, and may be another's by now.
    pub fn is_held(lock: &File) -> io::Result<()> {
        let held = lock.metadata()?.nlink() > 0;
        held.then_some(()).ok_or_else(|| io::Error::other("its place was removed"))
    }

    /// Listens for who wants the spare. Only who has taken the place may, which the lock shows.
    ///
    /// # Errors
    /// The system's, and [`Place::is_held`]'s.
    pub fn listen(&self, lock: &File) -> io::Result<UnixListener> {
        Place::is_held(lock)?;
        self.leave();
        UnixListener::bind(&self.0)
    }

    /// Is not to be found any more.
    pub fn leave(&self) {
        let _ = fs::remove_file(&self.0);
    }

    /// Asks the spare that is here, if one is, to become what the claim says.
    ///
    /// # Errors
    /// It does not, and has not begun to.
    pub fn claim(
        &self,
        claim: &Claim,
        listener: BorrowedFd<'_>,
        began: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut stream = UnixStream::connect(&self.0)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let text = serde_json::to_vec(claim)?;
        let descriptors = [listener.as_raw_fd(), began.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let text = [IoSlice::new(&text)];
        sendmsg::<()>(stream.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer != [YES] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.write_all(&[GO])
    }
}

/// A claim, and the descriptors that came with it.
pub type Asked = (Claim, [OwnedFd; 2]);

/// Agrees with who has asked. Its place is free by then.
///
/// # Errors
/// There is no agreement, and will be none: the spare is to end.
pub fn agree(mut stream: UnixStream, asked: Asked) -> io::Result<Claimed> {
    let (claim, [listener, began]) = asked;
    stream.write_all(&[YES])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer != [GO] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(Claimed { claim, listener, began })
}

/// Hears who has connected to a spare that is `like` this. `lock` is on its place.
///
/// # Errors
/// There will be no agreement: the spare is to end, and its place says why.
pub fn hear(stream: &UnixStream, like: &Likeness, lock: &File) -> io::Result<Asked> {
    asked(stream, like).inspect_err(|error| {
        Place::leave_word(lock, &format!("it was asked for in vain: {error}"));
    })
}

fn asked(stream: &UnixStream, like: &Likeness) -> io::Result<Asked> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (claim, descriptors) = receive(stream)?;
    if claim.likeness != *like {
        let what = "another program, mount namespace or configuration asks";
        return Err(io::Error::other(format!("{what}: {:?}, not {like:?}", claim.likeness)));
    }
    let descriptors = <[OwnedFd; 2]>::try_from(descriptors);
    Ok((claim, descriptors.map_err(|_| io::Error::other("without two descriptors"))?))
}

fn receive(stream: &UnixStream) -> io::Result<(Claim, Vec<OwnedFd>)> {
    let mut text = vec![0; LONGEST];
    let mut rights = nix::cmsg_space!([i32; 2]);
    let mut into = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut rights), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel has made these descriptors for this message, and nobody else knows them.
            let owned = received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            descriptors.extend(owned);
        }
    }
    let length = message.bytes;
    Ok((serde_json::from_slice(&text[..length])?, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;

    fn place() -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = Config { spares: 1, state_dir: dir.path().to_owned(), ..Config::default() };
        let place = Place::all(&config).next().expect("one");
        (dir, place)
    }

    fn claim() -> Claim {
        Claim {
            args: Args { id: "c1".to_owned(), bundle: "/b".into(), ..Args::default() },
            events: "/run/c.sock.ttrpc".to_owned(),
            likeness: Likeness::own().expect("proc"),
            missed: false,
        }
    }

    #[test]
    fn a_place_is_one_spares() {
        let (_dir, place) = place();
        let lock = place.take().expect("lock").expect("free");
        assert!(place.take().expect("lock").is_none());
        Place::leave_word(&lock, "why");
        Place::leave_word(&lock, "no more");
        drop(lock);
        assert_eq!(place.last_word().as_deref(), Some("no more"));
        assert!(place.take().expect("lock").is_some());
    }

    #[test]
    fn a_spare_becomes_what_is_claimed() {
        let (dir, place) = place();
        let lock = place.take().expect("lock").expect("free");
        let waiting = place.listen(&lock).expect("listen");
        let socket = dir.path().join("shim");
        let listener = UnixListener::bind(&socket).expect("bind");
        let (mut next, began) = io::pipe().expect("pipe");
        let spare = thread::spawn(move || {
            let (stream, _) = waiting.accept().expect("accept");
            let asked = hear(&stream, &Likeness::own().expect("proc"), &lock).expect("hear");
            drop(lock);
            agree(stream, asked).expect("agree")
        });
        place.claim(&claim(), listener.as_fd(), began.as_fd()).expect("claim");
        drop((listener, began));
        let claimed = spare.join().expect("join");
        assert_eq!(claimed.claim, claim());
        assert!(place.take().expect("lock").is_some(), "its place is still taken");
        UnixStream::connect(&socket).expect("somebody listens");
        drop(claimed.began);
        assert_eq!(next.read(&mut [0]).expect("end"), 0);
    }

    #[test]
    fn a_spare_of_another_kind_does_not_agree() {
        let (_dir, place) = place();
        let lock = place.take().expect("lock").expect("free");
        let waiting = place.listen(&lock).expect("listen");
        let spare = thread::spawn(move || {
            let (stream, _) = waiting.accept().expect("accept");
            let like = Likeness { config: Some("/elsewhere".to_owned()), ..claim().likeness };
            hear(&stream, &like, &lock).expect_err("agreed")
        });
        let (_, began) = io::pipe().expect("pipe");
        assert!(place.claim(&claim(), began.as_fd(), began.as_fd()).is_err());
        assert!(spare.join().expect("join").to_string().contains("elsewhere"));
        assert!(place.last_word().is_some_and(|word| word.contains("in vain")));
    }

    #[test]
    fn a_place_that_was_removed_is_nobodys() {
        let (dir, place) = place();
        let lock = place.take().expect("lock").expect("free");
        let _waiting = place.listen(&lock).expect("listen");
        assert!(place.is_ready());
        let config = Config { state_dir: dir.path().to_owned(), ..Config::default() };
        Place::remove_from(1, &config);
        assert!(place.is_ready());
        Place::remove_from(0, &config);
        assert!(!place.is_ready());
        place.listen(&lock).expect_err("another may have it");
        let lock = place.take().expect("lock").expect("free");
        let _waiting = place.listen(&lock).expect("listen");
        // It is killed.
        drop(lock);
        assert!(!place.is_ready());
    }

    #[test]
    fn where_there_is_no_spare_nothing_is_claimed() {
        let (_dir, place) = place();
        let (_, began) = io::pipe().expect("pipe");
        assert!(place.claim(&claim(), began.as_fd(), began.as_fd()).is_err());
        assert_eq!(place.last_word(), None);
    }
}
