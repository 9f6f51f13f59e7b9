//! Locks between processes: flock(2), and those of fcntl(2).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};

use crate::{Attempt, Found, require};

fn file(dir: &Path, name: &str) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(name))
        .at("open")
}

/// A lock on some bytes of a file, of the process or of the open file.
fn lock_bytes(file: &File, command: libc::c_int, start: i64) -> io::Result<()> {
    let wanted = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 10,
        l_pid: 0,
    };
    // SAFETY: the structure is whole, and the call only reads it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const wanted) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes one lock of each kind.
fn take(dir: &Path) -> Result<[File; 3], String> {
    let files = [file(dir, "flock")?, file(dir, "posix")?, file(dir, "open")?];
    flock(&files[0], FlockOperation::NonBlockingLockExclusive).at("flock")?;
    lock_bytes(&files[1], libc::F_SETLK, 100).at("F_SETLK")?;
    lock_bytes(&files[2], libc::F_OFD_SETLK, 100).at("F_OFD_SETLK")?;
    Ok(files)
}

/// Holds locks until its input ends.
pub fn hold(dir: &Path) -> Found {
    let _files = take(dir)?;
    println!("held");
    io::stdin().read_to_end(&mut Vec::new()).at("wait").map(drop)
}

/// Finds all of them held by somebody else, and what is beside them free.
pub fn held(dir: &Path) -> Found {
    let (whole, posix, open) = (file(dir, "flock")?, file(dir, "posix")?, file(dir, "open")?);
    require!(
        flock(&whole, FlockOperation::NonBlockingLockExclusive).is_err(),
        "flock is given twice"
    );
    require!(lock_bytes(&posix, libc::F_SETLK, 105).is_err(), "F_SETLK is given twice");
    require!(lock_bytes(&open, libc::F_OFD_SETLK, 95).is_err(), "F_OFD_SETLK is given twice");
    lock_bytes(&posix, libc::F_SETLK, 110).at("bytes that nobody has locked")
}

pub fn check(dir: &Path) -> Found {
    let own = std::env::current_exe().at("own program")?;
    let mut holder = Command::new(own);
    holder.arg("hold").arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().at("another process")?;
    let mut word = [0; 5];
    holder.stdout.take().ok_or("no output")?.read_exact(&mut word).at("the other process")?;
    held(dir)?;
    let mut input = holder.stdin.take().ok_or("no input")?;
    input.flush().at("input")?;
    drop(input);
    require!(holder.wait().at("wait")?.success(), "the other process failed");
    take(dir).map(drop)
}
