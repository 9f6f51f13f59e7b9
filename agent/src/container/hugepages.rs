//! Huge pages that a container was promised: the guest's kernel sets them aside for as long as the container is there.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use bulkhead_protocols::agent::HugePages;
use nix::sys::sysinfo::sysinfo;

use crate::error::{Error, Result};
use crate::sys::lock;

/// Where the kernel has its pools, one for each size.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// How large a pool is to be is read and written.
static TURN: Mutex<()> = Mutex::new(());

/// Sets pages aside.
///
/// # Errors
/// [`Error::InvalidArgument`] if the guest has no pages of this size, [`Error::FailedPrecondition`] if it has not so
/// much memory free in one piece.
pub fn reserve(pages: &HugePages) -> Result<()> {
    let (size, count) = (pages.size >> 10, pages.count);
    let short = |got: u64| {
        Error::FailedPrecondition(format!(
            "the guest has memory for {got} huge pages of {size} KiB, and {count} are wanted: a larger \
             io.bulkhead.memory has room for them"
        ))
    };
    // Asked for more than there is at all, the kernel would take from everybody first.
    let all = sysinfo().map_or(u64::MAX, |info| info.ram_total());
    if count > all / pages.size.max(1) {
        return Err(short(all / pages.size.max(1)));
    }
    let _turn = lock(&TURN);
    let (before, after) = change(pages, |there| there.saturating_add(count)).map_err(|error| {
        let text = format!("linux.resources.hugepageLimits: no huge pages of {size} KiB: {error}");
        Error::InvalidArgument(text)
    })?;
    let got = after.saturating_sub(before);
    if got < count {
        let _ = change(pages, |_| before);
        return Err(short(got));
    }
    Ok(())
}

/// Gives them back to the guest, in a thread of its own: somebody else's may be on their way, which takes time.
pub fn release(pages: Vec<HugePages>) {
    if pages.is_empty() {
        return;
    }
    thread::spawn(move || {
        let _turn = lock(&TURN);
        for pages in pages {
            if let Err(error) = change(&pages, |there| there.saturating_sub(pages.count)) {
                log::warn!("huge pages stay set aside: {error}");
            }
        }
    });
}

/// How many there were, and how many there are now.
fn change(pages: &HugePages, change: impl Fn(u64) -> u64) -> io::Result<(u64, u64)> {
    let pool = PathBuf::from(format!("{POOLS}/hugepages-{}kB/nr_hugepages", pages.size >> 10));
    let read = || fs::read_to_string(&pool)?.trim().parse().map_err(io::Error::other);
    let before = read()?;
    fs::write(&pool, change(before).to_string())?;
    Ok((before, read()?))
}
