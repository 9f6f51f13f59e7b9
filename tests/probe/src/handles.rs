//! Files by their handles (open_by_handle_at(2)): those of the file system itself, and nothing that a guess finds.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{Attempt, Found, require};

/// `struct file_handle`, as large as the kernel makes one.
#[repr(C)]
#[derive(Clone)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    content: [u8; 128],
}

/// How many numbers of inodes are guessed.
const GUESSES: u64 = 20_000;

/// Opens what guessed handles lead to: none may be a file that holds the host's secret.
pub fn check(dir: &Path) -> Found {
    let path = dir.join("handled");
    fs::write(&path, "mine").at("write")?;
    let mut handle = Handle { bytes: 128, kind: 0, content: [0; 128] };
    let name = [path.as_os_str().as_bytes(), b"\0"].concat();
    let mut mount = 0;
    // SAFETY: the name ends with a NUL, and the handle has as much room as it says.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    if named != 0 {
        // The file system gives none: there is nothing to guess.
        return fs::remove_file(path).at("remove");
    }
    let root = File::open(dir).at("open")?;
    let mut opened = 0;
    for guess in 0..GUESSES {
        let mut guessed = handle.clone();
        guessed.content[..8].copy_from_slice(&guess.to_ne_bytes());
        // SAFETY: the handle is whole, and the call only reads it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                root.as_raw_fd(),
                &raw const guessed,
                libc::O_RDONLY | libc::O_NONBLOCK,
            )
        };
        if fd >= 0 {
            opened += 1;
            // SAFETY: the descriptor is new, and nobody else's.
            let mut file = unsafe { File::from_raw_fd(fd as i32) };
            let mut start = [0; 64];
            let length = file.read(&mut start).unwrap_or(0);
            require!(
                !start[..length].starts_with(b"a secret of the host"),
                "handle {guess} opens the host's secret"
            );
        }
    }
    println!("{opened} guesses were right");
    fs::remove_file(path).at("remove")
}
