//! The master side of a process's terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::Winsize;
use nix::unistd::{Uid, fchown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A master side, to be read or written. Its end comes as an error (EIO): no process has the
/// terminal any more.
pub struct Terminal(AsyncFd<File>);

impl Terminal {
    /// Another handle of the same terminal.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(master: &OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(master, FcntlArg::F_GETFL)?);
        fcntl(master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let file = File::from(master.try_clone()?);
        // SAFETY: a file's descriptor stays the same, and open, for as long as the file lives.
        Ok(Self(unsafe { AsyncFd::register(file) }?))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            if let Ok(result) = guard.try_io(|fd| fd.get_ref().read(unfilled)) {
                return Poll::Ready(result.map(|length| buffer.advance(length)));
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| fd.get_ref().write(bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sets the size of a terminal, in characters. The kernel knows sizes up to 65535.
///
/// # Errors
/// What the kernel says, if it is no terminal.
pub fn set_window_size(terminal: impl AsFd, width: u64, height: u64) -> nix::Result<()> {
    let clamp = |size: u64| u16::try_from(size).unwrap_or(u16::MAX);
    let size = Winsize { ws_row: clamp(height), ws_col: clamp(width), ws_xpixel: 0, ws_ypixel: 0 };
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, and the request reads a window size.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Tells who has the terminal that nobody sits at it any more (ioctl_tty(2)). What they have written stays to be read.
pub fn hang_up(slave: &OwnedFd) {
    /// `TIOCVHANGUP`.
    const HANG_UP: libc::c_ulong = 0x5437;
    // SAFETY: the descriptor is borrowed, and the request takes no argument.
    if let Err(error) = Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), HANG_UP) }) {
        log::warn!("cannot hang a terminal up: {error}");
    }
}

/// Gives a terminal to the user who will sit at it. The other side is opened by way of this one: its
/// name has a meaning in the container only. As long as it is held there is somebody who has the terminal: a process may
/// close it and open it again (systemd does so with its console).
///
/// # Errors
/// What the kernel says.
pub fn give_to(master: &OwnedFd, uid: u32) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the descriptor is borrowed, and the request takes open flags.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    // SAFETY: the kernel has just made this descriptor, and nothing else has it.
    let slave = unsafe { OwnedFd::from_raw_fd(Errno::result(slave)?) };
    fchown(&slave, Some(Uid::from_raw(uid)), None)?;
    Ok(slave)
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn a_terminal_is_read_to_its_end_and_written_to() {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let pty = openpty(None, None).unwrap();
            let mut reader = Terminal::new(&pty.master).unwrap();
            let mut writer = Terminal::new(&pty.master).unwrap();
            let mut slave = File::from(pty.slave);
            writer.write_all(b"in\n").await.unwrap();
            let mut line = [0; 3];
            slave.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"in\n");
            slave.write_all(b"tail").unwrap();
            drop(slave);
            let mut output = Vec::new();
            reader.read_to_end(&mut output).await.unwrap_err();
            assert_eq!(output, b"in\r\ntail");
        });
    }

    #[test]
    fn a_terminal_that_nobody_has_for_a_moment_goes_on() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pty = openpty(None, None).unwrap();
            let held = give_to(&pty.master, nix::unistd::getuid().as_raw()).unwrap();
            let name =
                std::fs::read_link(format!("/proc/self/fd/{}", pty.slave.as_raw_fd())).unwrap();
            let (near, mut host) = tokio::net::UnixStream::pair().unwrap();
            let copying =
                tokio::spawn(crate::stdio::send(Terminal::new(&pty.master).unwrap(), near));
            File::from(pty.slave).write_all(b"one").unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            assert!(!copying.is_finished());
            let mut again = File::options().write(true).open(name).unwrap();
            again.write_all(b"two").unwrap();
            // The process ends, and one of its children has the terminal a little longer.
            drop(held);
            again.write_all(b"three").unwrap();
            drop(again);
            let mut output = Vec::new();
            host.read_to_end(&mut output).await.unwrap();
            assert_eq!(output, b"onetwothree");
        });
    }

    #[test]
    fn who_has_a_terminal_that_hangs_up_reads_its_end() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let pty = openpty(None, None).unwrap();
        let held = give_to(&pty.master, 0).unwrap();
        hang_up(&held);
        let mut end = [0; 1];
        assert_eq!(File::from(pty.slave).read(&mut end).unwrap(), 0);
    }

    #[test]
    fn sizes_beyond_the_kernels_are_cut() {
        let pty = openpty(None, None).unwrap();
        set_window_size(&pty.master, 80, 1 << 40).unwrap();
        assert!(set_window_size(File::open("/dev/null").unwrap(), 1, 1).is_err());
    }
}
