//! What is in a file: holes, mappings, appends, direct I/O.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::{Attempt, Found, require};

const MIB: u64 = 1 << 20;

/// A block of direct I/O.
#[repr(align(4096))]
struct Block([u8; 4096]);

pub fn check(dir: &Path) -> Found {
    holes(dir)?;
    mapping(dir)?;
    append(dir)?;
    direct(dir)
}

fn open(path: &Path) -> Result<File, String> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).at("open")
}

fn holes(dir: &Path) -> Found {
    let path = dir.join("sparse");
    let file = open(&path)?;
    file.set_len(64 * MIB).at("truncate")?;
    file.write_all_at(b"data", 32 * MIB).at("write")?;
    let seen = file.metadata().at("stat")?;
    require!(
        seen.len() == 64 * MIB && seen.blocks() * 512 < 8 * MIB,
        "a hole takes {} blocks",
        seen.blocks()
    );
    let mut start = [1; 512];
    file.read_exact_at(&mut start, 0).at("read")?;
    require!(start == [0; 512], "a hole is not zero");
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MIB).at("fallocate")?;
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 32 * MIB, MIB)
        .at("punch")?;
    let mut word = [1; 4];
    file.read_exact_at(&mut word, 32 * MIB).at("read")?;
    require!(word == [0; 4], "what was punched out is still there");
    file.set_len(10).at("truncate")?;
    require!(file.metadata().at("stat")?.len() == 10, "truncate leaves another length");
    fs::remove_file(path).at("remove")
}

/// Maps the start of a file; what is written there is the file's.
fn write_mapped(file: &File, text: &[u8]) -> Found {
    let length = 2 * MIB as usize;
    // SAFETY: the mapping is new, and nothing else knows of it.
    let map = unsafe {
        mmap(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)
    };
    let map = map.at("mmap")?;
    // SAFETY: the text is shorter than the mapping, and the file is as long as that.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), map.cast(), text.len()) };
    // SAFETY: nothing refers to it any more.
    unsafe { munmap(map, length) }.at("munmap")
}

fn mapping(dir: &Path) -> Found {
    let path = dir.join("mapped");
    let mut file = open(&path)?;
    file.set_len(2 * MIB).at("truncate")?;
    write_mapped(&file, b"written to memory")?;
    let mut text = [0; 17];
    file.read_exact(&mut text).at("read")?;
    require!(&text == b"written to memory", "a shared mapping is not the file's: {text:?}");
    fs::remove_file(path).at("remove")
}

/// Writes by a mapping and ends: nothing asks for it to be written to anywhere.
pub fn leave_mapped(dir: &Path) -> Found {
    let file = open(&dir.join("left"))?;
    file.set_len(2 * MIB).at("truncate")?;
    write_mapped(&file, b"left in memory")
}

/// Takes two pages of a hugetlbfs, all that there are, and finds that there are no more.
pub fn huge(dir: &Path) -> Found {
    let take = |name| {
        let file = open(&dir.join(name))?;
        file.set_len(2 * MIB).at("truncate")?;
        write_mapped(&file, b"in a huge page")
    };
    take("one").and_then(|()| take("two"))?;
    require!(take("three").is_err(), "there are more pages than were promised");
    Ok(())
}

fn append(dir: &Path) -> Found {
    let path = dir.join("appended");
    let open = || OpenOptions::new().append(true).create(true).open(&path).at("open");
    let (mut one, mut two) = (open()?, open()?);
    for _ in 0..100 {
        one.write_all(b"one\n").at("append")?;
        two.write_all(b"two\n").at("append")?;
    }
    let length = one.seek(SeekFrom::End(0)).at("seek")?;
    require!(length == 800, "appends have overwritten each other: {length} bytes");
    fs::remove_file(&path).at("remove")
}

fn direct(dir: &Path) -> Found {
    let path = dir.join("direct");
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let file = match file {
        // open(2): a file system may have none.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
        file => file.at("open with O_DIRECT")?,
    };
    let block = Block([7; 4096]);
    file.write_all_at(&block.0, 4096).at("write directly")?;
    let mut read = Block([0; 4096]);
    file.read_exact_at(&mut read.0, 4096).at("read directly")?;
    require!(read.0 == block.0, "what was written directly is not what is read");
    require!(fs::read(&path).at("read")?.len() == 8192, "the length is another");
    fs::remove_file(&path).at("remove")
}
