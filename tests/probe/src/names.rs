//! Names, links and directories.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::{Attempt, Found, require};

/// How deep the deep path is: longer than PATH_MAX, which is 4096.
const DEEP: usize = 600;

pub fn check(dir: &Path) -> Found {
    bytes(dir)?;
    long(dir)?;
    deep(dir)?;
    links(dir)?;
    renames(dir)?;
    unlinked(dir)
}

/// A name is any bytes but `/` and NUL.
fn bytes(dir: &Path) -> Found {
    for name in
        [&b"\xff\xfe not UTF-8"[..], b"new\nline", b" blank ", b"-dash", b"\x01\x7f", b"*?[\\"]
    {
        let path = dir.join(OsStr::from_bytes(name));
        fs::write(&path, name).at("a name of bytes")?;
        let listed = fs::read_dir(dir)
            .at("list")?
            .flatten()
            .any(|one| one.file_name() == path.file_name().unwrap_or_default());
        require!(listed, "the name {name:?} is not listed");
        require!(fs::read(&path).at("read")? == name, "the file {name:?} holds something else");
        fs::remove_file(&path).at("remove")?;
    }
    Ok(())
}

fn long(dir: &Path) -> Found {
    let longest = dir.join("n".repeat(255));
    fs::write(&longest, "").at("a name of 255 bytes")?;
    fs::remove_file(&longest).at("remove")?;
    let error = File::create(dir.join("n".repeat(256))).err().and_then(|e| e.raw_os_error());
    require!(error == Some(libc::ENAMETOOLONG), "a name of 256 bytes: {error:?}");
    Ok(())
}

fn deep(dir: &Path) -> Found {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut open = vec![openat(CWD, dir, flags, Mode::empty()).at("open")?];
    for level in 0..DEEP {
        let parent = &open[open.len() - 1];
        mkdirat(parent, "directory", Mode::RWXU).at(&format!("level {level}"))?;
        let child =
            openat(parent, "directory", flags, Mode::empty()).at(&format!("level {level}"))?;
        open.push(child);
    }
    open.pop();
    while let Some(parent) = open.pop() {
        unlinkat(&parent, "directory", rustix::fs::AtFlags::REMOVEDIR).at("remove")?;
    }
    Ok(())
}

fn links(dir: &Path) -> Found {
    let (file, hard, soft) = (dir.join("file"), dir.join("hard"), dir.join("soft"));
    fs::write(&file, "content").at("write")?;
    fs::hard_link(&file, &hard).at("link")?;
    let (one, two) = (fs::metadata(&file).at("stat")?, fs::metadata(&hard).at("stat")?);
    require!(
        one.ino() == two.ino() && two.nlink() == 2,
        "a hard link is another file: {one:?} {two:?}"
    );
    fs::remove_file(&file).at("remove")?;
    require!(fs::metadata(&hard).at("stat")?.nlink() == 1, "the link count stays");
    require!(fs::read(&hard).at("read")? == b"content", "the other name has lost its content");
    symlink("../nowhere/\u{e4}", &soft).at("symlink")?;
    require!(
        fs::read_link(&soft).at("readlink")? == Path::new("../nowhere/\u{e4}"),
        "a link leads elsewhere"
    );
    require!(
        fs::metadata(&soft).is_err_and(|e| e.kind() == ErrorKind::NotFound),
        "a dangling link is followed"
    );
    let (a, b) = (dir.join("loop-a"), dir.join("loop-b"));
    symlink("loop-b", &a).at("symlink")?;
    symlink("loop-a", &b).at("symlink")?;
    let error = File::open(&a).err().and_then(|error| error.raw_os_error());
    require!(error == Some(libc::ELOOP), "a loop of links: {error:?}");
    for path in [hard, soft, a, b] {
        fs::remove_file(path).at("remove")?;
    }
    Ok(())
}

fn renames(dir: &Path) -> Found {
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "a").at("write")?;
    fs::write(&b, "b").at("write")?;
    let refused = renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE);
    require!(refused == Err(Errno::EXIST), "RENAME_NOREPLACE on what is there: {refused:?}");
    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).at("RENAME_EXCHANGE")?;
    require!(fs::read(&a).at("read")? == b"b", "the names were not exchanged");
    fs::rename(&a, &b).at("rename")?;
    require!(!a.exists() && fs::read(&b).at("read")? == b"b", "rename did not replace");
    let (full, empty) = (dir.join("full"), dir.join("empty"));
    fs::create_dir_all(full.join("below")).at("mkdir")?;
    fs::create_dir(&empty).at("mkdir")?;
    let error = fs::rename(&empty, &full).err().and_then(|error| error.raw_os_error());
    require!(
        matches!(error, Some(libc::ENOTEMPTY | libc::EEXIST)),
        "a full directory was replaced: {error:?}"
    );
    let error = fs::rename(&full, full.join("below/self")).err().and_then(|e| e.raw_os_error());
    require!(error == Some(libc::EINVAL), "a directory was moved into itself: {error:?}");
    fs::rename(&full, &empty).at("a directory over an empty one")?;
    fs::remove_dir_all(&empty).at("remove")?;
    fs::remove_file(&b).at("remove")
}

/// A file lives as long as somebody has it open.
fn unlinked(dir: &Path) -> Found {
    let path = dir.join("gone");
    fs::write(&path, "still here").at("write")?;
    let mut file = File::open(&path).at("open")?;
    fs::remove_file(&path).at("remove")?;
    let mut text = String::new();
    file.read_to_string(&mut text).at("read what has no name")?;
    require!(text == "still here" && file.metadata().at("stat")?.nlink() == 0, "it is {text:?}");
    Ok(())
}

/// A directory of many entries is listed whole, each name once, and can be emptied.
pub fn many(dir: &Path) -> Found {
    let count = std::env::var("COUNT").ok().and_then(|count| count.parse().ok());
    let many: usize = count.unwrap_or(100_000);
    let dir = dir.join("many");
    fs::create_dir(&dir).at("mkdir")?;
    for number in 0..many {
        File::create(dir.join(format!("entry-{number:06}"))).at("create")?;
    }
    let mut seen = HashSet::with_capacity(many);
    for entry in fs::read_dir(&dir).at("list")? {
        let name = entry.at("list")?.file_name();
        require!(seen.insert(name.clone()), "{name:?} is listed twice");
    }
    require!(seen.len() == many, "{} entries of {many} are listed", seen.len());
    fs::remove_dir_all(&dir).at("remove")
}
