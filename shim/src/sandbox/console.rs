//! The guest's serial console: read from a named pipe as it comes, kept in files of a limited size.
//!
//! A guest can write without end. The newest output is what matters, so of two files of half the
//! limit the older one is given up.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::stat::Mode;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::guest::clean;
use crate::sys::lock;

/// How much of the end is kept at hand, for errors.
const TAIL: usize = 8192;

/// How many lines of it an error shows.
const LINES: usize = 12;

/// How a kernel begins to tell of its end.
const FAULTS: [&str; 3] = ["Kernel panic", "Oops: ", "BUG: "];

/// The console of one sandbox. Dropping it ends the reading.
pub struct Console {
    tail: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl Console {
    /// Makes the pipe and starts to read it into a file beside it, of which at most `limit` bytes
    /// are kept.
    pub fn open(pipe: &Path, limit: u64) -> io::Result<Self> {
        nix::unistd::mkfifo(pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // With a writer of our own the VMM need not be there yet, and may go.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(pipe)?;
        let files = Rotating::create(pipe.with_extension("log"), limit)?;
        let tail = Arc::default();
        let reading = tokio::spawn(read(receiver, files, Arc::clone(&tail)));
        Ok(Self { tail, reading })
    }

    /// The last lines, fit for an error's text.
    pub fn tail(&self) -> String {
        let tail = lock(&self.tail);
        let text = String::from_utf8_lossy(&tail);
        let lines: Vec<_> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
        // Why the kernel gives up stands in its first line about it, and where in those after that.
        let fault = lines.iter().position(|line| FAULTS.iter().any(|fault| line.contains(fault)));
        let first = fault.unwrap_or(lines.len()).min(lines.len().saturating_sub(LINES));
        let last = lines.len().min(first + LINES);
        if lines.is_empty() { "nothing".to_owned() } else { lines[first..last].join("; ") }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

async fn read(mut pipe: pipe::Receiver, mut files: Rotating, tail: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let bytes = &buffer[..count];
        {
            let mut tail = lock(&tail);
            tail.extend_from_slice(bytes);
            let excess = tail.len().saturating_sub(TAIL);
            tail.drain(..excess);
        }
        // A full disk costs the log, not the VM.
        let _ = files.write(bytes);
    }
}

struct Rotating {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl Rotating {
    fn create(path: PathBuf, limit: u64) -> io::Result<Self> {
        let file = File::create_new(&path)?;
        Ok(Self { path, file, written: 0, limit: limit / 2 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written + bytes.len() as u64 > self.limit {
            match fs::rename(&self.path, self.path.with_extension("log.1")) {
                // The last attempt came no further: the disk was full.
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => self.file = File::create_new(&self.path)?,
            }
            self.written = 0;
        }
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("console-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_guest_that_writes_without_end_fills_no_disk() {
        let dir = dir("limit");
        let pipe = dir.join("console");
        let console = Console::open(&pipe, 64 << 10).unwrap();
        let mut pipe = fs::OpenOptions::new().write(true).open(pipe).unwrap();
        let writer = tokio::task::spawn_blocking(move || {
            for line in 0..40_000 {
                writeln!(pipe, "line {line} of a guest").unwrap();
            }
        });
        writer.await.unwrap();
        while !console.tail().ends_with("line 39999 of a guest") {
            tokio::task::yield_now().await;
        }
        let kept: u64 = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("console.log"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert!(kept > 30 << 10 && kept <= 64 << 10, "{kept}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_disk_that_was_full_costs_no_more_than_that_moment() {
        let dir = dir("full");
        let path = dir.join("console.log");
        let mut files = Rotating::create(path.clone(), 8).unwrap();
        files.write(b"1234").unwrap();
        // As far as it came when there was no room for another file.
        fs::rename(&path, path.with_extension("log.1")).unwrap();
        files.write(b"5678").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"5678");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn the_tail_is_text() {
        let dir = dir("tail");
        let pipe = dir.join("console");
        let console = Console::open(&pipe, 64 << 10).unwrap();
        fs::write(pipe, b"\x1b[31mone\r\n\r\n\xfftwo\n").unwrap();
        assert_eq!(console.tail(), "nothing");
        while console.tail() == "nothing" {
            tokio::task::yield_now().await;
        }
        assert_eq!(console.tail(), "[31mone; \u{fffd}two");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn the_tail_of_a_fault_begins_with_it() {
        let dir = dir("fault");
        let pipe = dir.join("console");
        let console = Console::open(&pipe, 64 << 10).unwrap();
        let registers = "RAX: 0\n".repeat(20);
        let text = format!("before\nOops: int3: 0000 [#1]\nRIP: 0010:f\n{registers}Kernel panic\n");
        fs::write(pipe, text).unwrap();
        while console.tail() == "nothing" {
            tokio::task::yield_now().await;
        }
        let tail = console.tail();
        assert!(tail.starts_with("Oops: int3: 0000 [#1]; RIP: 0010:f; RAX: 0; "), "{tail}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
