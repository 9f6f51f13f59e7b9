//! Files with holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// How much is copied at once, in bytes.
const CHUNK: u64 = 2 << 20;

/// Copies what is in one file into another, but for holes.
///
/// # Errors
/// What the system says.
pub fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut hole = 0;
    while let Some(mut at) = seek(from, hole, Whence::SeekData)? {
        // After data there is always a hole; the end of the file counts as one (lseek(2)).
        hole = seek(from, at, Whence::SeekHole)?.unwrap_or(at);
        while at < hole {
            let piece = &mut buffer[..CHUNK.min(hole - at) as usize];
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// Where the next data or hole starts, if there is one.
fn seek(file: &File, offset: u64, whence: Whence) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file, offset, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
