//! Random I/O on one file by every way there is, beside a model of it in memory.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::{Attempt, Found, require};

/// The longest that the file becomes, in bytes.
const LONGEST: usize = 512 << 10;

/// How many operations there are.
const OPERATIONS: u32 = 4_000;

/// Numbers that are the same each time (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

pub fn check(dir: &Path) -> Found {
    let path = dir.join("random");
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("open")
    };
    let mut file = open()?;
    let (mut model, mut random) = (Vec::<u8>::new(), Random(0x2545_f491_4f6c_dd1d));
    for number in 0..OPERATIONS {
        let at = random.below(LONGEST - 1);
        let length = 1 + random.below((LONGEST - at).min(64 << 10));
        let byte = number as u8 | 1;
        match random.below(8) {
            0 | 1 => {
                file.write_all_at(&vec![byte; length], at as u64).at("write")?;
                put(&mut model, at, length, byte);
            }
            2 if at + length <= model.len() => {
                map(&file, at, length, byte)?;
                put(&mut model, at, length, byte);
            }
            3 => {
                file.set_len(at as u64).at("truncate")?;
                model.resize(at, 0);
            }
            4 if at < model.len() => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, flags, at as u64, length as u64).at("punch")?;
                let end = model.len().min(at + length);
                model[at..end].fill(0);
            }
            5 => file.sync_data().at("fdatasync")?,
            6 => file = open()?,
            _ => {
                let end = model.len().min(at + length);
                let expected = model.get(at..end).unwrap_or_default();
                let mut found = vec![0; expected.len()];
                file.read_exact_at(&mut found, at as u64).at("read")?;
                require!(
                    found == expected,
                    "operation {number}: {length} bytes at {at} are others"
                );
            }
        }
    }
    require!(fs::read(&path).at("read")? == model, "the file is not what it should be at the end");
    fs::remove_file(path).at("remove")
}

fn put(model: &mut Vec<u8>, at: usize, length: usize, byte: u8) {
    if model.len() < at + length {
        model.resize(at + length, 0);
    }
    model[at..at + length].fill(byte);
}

fn map(file: &File, at: usize, length: usize, byte: u8) -> Found {
    let start = at / 4096 * 4096;
    let whole = at - start + length;
    // SAFETY: the mapping is new, and nothing else knows of it.
    let map = unsafe {
        mmap(
            ptr::null_mut(),
            whole,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            start as u64,
        )
    };
    let map = map.at("mmap")?;
    // SAFETY: the range is inside of the mapping, and of the file.
    unsafe { ptr::write_bytes(map.cast::<u8>().add(at - start), byte, length) };
    // SAFETY: nothing refers to it any more.
    unsafe { munmap(map, whole) }.at("munmap")
}
