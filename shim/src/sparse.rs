//! Files with holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Copies what is in one file into another, but for holes.
///
/// # Errors
/// What the system says.
pub fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let (mut from, mut to) = (from, to);
    let mut hole = 0;
    while let Some(at) = seek(from, hole, Whence::SeekData)? {
        // After data there is always a hole; the end of the file counts as one (lseek(2)).
        hole = seek(from, at, Whence::SeekHole)?.unwrap_or(at);
        from.seek(SeekFrom::Start(at))?;
        to.seek(SeekFrom::Start(at))?;
        io::copy(&mut from.take(hole - at), &mut to)?;
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
