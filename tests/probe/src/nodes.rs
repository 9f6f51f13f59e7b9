//! What a file has beside its content: owners, modes, times, attributes; and files of other kinds.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, getxattr, listxattr, makedev,
    mknodat, removexattr, setxattr, utimensat,
};

use crate::{Attempt, Found, require};

pub fn check(dir: &Path) -> Found {
    owners(dir)?;
    times(dir)?;
    attributes(dir)?;
    kinds(dir)
}

fn owners(dir: &Path) -> Found {
    let path = dir.join("owned");
    File::create(&path).at("create")?;
    fs::set_permissions(&path, Permissions::from_mode(0o6755)).at("chmod")?;
    chown(&path, Some(1234), Some(4_000_000)).at("chown")?;
    let seen = fs::metadata(&path).at("stat")?;
    require!(
        (seen.uid(), seen.gid()) == (1234, 4_000_000),
        "it is owned by {}:{}",
        seen.uid(),
        seen.gid()
    );
    require!(
        seen.mode() & 0o6000 == 0,
        "a new owner has the old one's set-uid bits: {:o}",
        seen.mode()
    );
    fs::set_permissions(&path, Permissions::from_mode(0o1777)).at("chmod")?;
    require!(fs::metadata(&path).at("stat")?.mode() & 0o7777 == 0o1777, "the mode is another");
    let inside = dir.join("group");
    fs::create_dir(&inside).at("mkdir")?;
    chown(&inside, None, Some(77)).at("chown")?;
    fs::set_permissions(&inside, Permissions::from_mode(0o2755)).at("chmod")?;
    File::create(inside.join("file")).at("create")?;
    let seen = fs::metadata(inside.join("file")).at("stat")?.gid();
    require!(seen == 77, "a file in a set-gid directory is of group {seen}");
    fs::remove_dir_all(inside).at("remove")?;
    fs::remove_file(path).at("remove")
}

fn times(dir: &Path) -> Found {
    let path = dir.join("timed");
    fs::write(&path, "").at("write")?;
    let (access, change) = (1_234_567_890, 987_654_321);
    let times = Timestamps {
        last_access: Timespec { tv_sec: access, tv_nsec: 123_456_789 },
        last_modification: Timespec { tv_sec: change, tv_nsec: 987_654_321 },
    };
    utimensat(CWD, &path, &times, AtFlags::empty()).at("utimensat")?;
    let seen = fs::metadata(&path).at("stat")?;
    require!(
        (seen.mtime(), seen.mtime_nsec()) == (change, 987_654_321),
        "nanoseconds are lost: {seen:?}"
    );
    require!(
        (seen.atime(), seen.atime_nsec()) == (access, 123_456_789),
        "nanoseconds are lost: {seen:?}"
    );
    fs::write(&path, "later").at("write")?;
    let seen = fs::metadata(&path).at("stat")?.mtime();
    require!(seen > access, "a write leaves the time of modification at {seen}");
    fs::remove_file(path).at("remove")
}

fn attributes(dir: &Path) -> Found {
    let path = dir.join("attributed");
    fs::write(&path, "").at("write")?;
    setxattr(&path, "user.colour", b"blue\0green", XattrFlags::CREATE).at("setxattr")?;
    let mut value = [0_u8; 64];
    let length = getxattr(&path, "user.colour", &mut value).at("getxattr")?;
    require!(&value[..length] == b"blue\0green", "an attribute is {:?}", &value[..length]);
    let mut names = [0_u8; 256];
    let length = listxattr(&path, &mut names).at("listxattr")?;
    require!(
        names[..length].starts_with(b"user.colour\0")
            || names[..length].windows(12).any(|w| w == b"user.colour\0"),
        "it is not listed"
    );
    removexattr(&path, "user.colour").at("removexattr")?;
    require!(getxattr(&path, "user.colour", &mut value).is_err(), "an attribute stays");
    fs::remove_file(path).at("remove")
}

fn kinds(dir: &Path) -> Found {
    let (fifo, device, socket) = (dir.join("fifo"), dir.join("device"), dir.join("socket"));
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).at("mkfifo")?;
    let reader = {
        let fifo = fifo.clone();
        thread::spawn(move || fs::read(fifo))
    };
    fs::write(&fifo, "through").at("write to a fifo")?;
    let read =
        reader.join().map_err(|_| "the reader broke off".to_owned())?.at("read from a fifo")?;
    require!(read == b"through", "a fifo carries {read:?}");
    mknodat(CWD, &device, FileType::CharacterDevice, Mode::RUSR, makedev(1, 5)).at("mknod")?;
    let seen = fs::metadata(&device).at("stat")?;
    require!(
        seen.file_type().is_char_device() && seen.rdev() == makedev(1, 5),
        "a node is {seen:?}"
    );
    let listener = UnixListener::bind(&socket).at("bind")?;
    let mut client = UnixStream::connect(&socket).at("connect")?;
    client.write_all(b"hello").at("send")?;
    drop(client);
    let mut text = String::new();
    listener.accept().at("accept")?.0.read_to_string(&mut text).at("receive")?;
    require!(text == "hello", "a socket carries {text:?}");
    for path in [fifo, device, socket] {
        fs::remove_file(path).at("remove")?;
    }
    Ok(())
}
