//! Files with holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use rustix::fs;
use rustix::io::Errno;

/// Copies what is in one file into another, but for holes.
///
/// # Errors
/// What the system says.
pub fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let (mut from, mut to) = (from, to);
    let mut hole = 0;
    while let Some(at) = seek(from, fs::SeekFrom::Data(hole))? {
        // After data there is always a hole; the end of the file counts as one (lseek(2)).
        hole = seek(from, fs::SeekFrom::Hole(at))?.unwrap_or(at);
        from.seek(SeekFrom::Start(at))?;
        to.seek(SeekFrom::Start(at))?;
        if io::copy(&mut from.take(hole - at), &mut to)? < hole - at {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Where the next data or hole starts, if there is one.
fn seek(file: &File, next: fs::SeekFrom) -> io::Result<Option<u64>> {
    match fs::seek(file, next) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
