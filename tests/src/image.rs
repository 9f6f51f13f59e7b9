//! The test image: an OCI image layout (image-spec, image-layout.md) in one tar file, made of
//! Debian's busybox-static, so that no image registry is needed.

mod programs;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::command::{self, Input};
use crate::failure::{Context, Outcome};

/// The name under which containerd knows the image.
pub const NAME: &str = "docker.io/bulkhead/busybox:test";
/// The same files; what a pod's sandbox container runs.
pub const PAUSE: &str = "docker.io/bulkhead/pause:test";
/// The same files, and Debian's programs for networks.
pub const PROGRAMS: &str = "docker.io/bulkhead/programs:test";
/// The same files as in the first, and nothing said about what to run.
pub const BARE: &str = "docker.io/bulkhead/bare:test";

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\nextra:x:2000:user\nmore:x:3000:user\n";

/// A directory of the image's root file system: path, mode, owner.
const DIRECTORIES: &[(&str, u32, u64)] = &[
    ("bin", 0o755, 0),
    ("dev", 0o755, 0),
    ("etc", 0o755, 0),
    ("home", 0o755, 0),
    ("home/user", 0o755, 1000),
    ("proc", 0o755, 0),
    ("root", 0o700, 0),
    ("run", 0o755, 0),
    ("sys", 0o755, 0),
    ("tmp", 0o1777, 0),
    ("usr", 0o755, 0),
    ("var", 0o755, 0),
];

/// Writes these images of `busybox`, and of programs in the tests' cache, to `file`.
///
/// # Errors
/// busybox can't be read or doesn't run, or `file` can't be written.
pub fn write(busybox: &Path, cache: &Path, file: &Path, names: &[&str]) -> Outcome {
    let base = layer(busybox)?;
    let mut blobs = vec![base.clone()];
    let mut entries = Vec::new();
    for name in names {
        let mut layers = vec![base.clone()];
        if *name == PROGRAMS {
            layers.push(programs::layer(cache)?);
            blobs.extend(layers.last().cloned());
        }
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config(name),
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>() },
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        }))?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        entry["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": "test",
        });
        entries.push(entry);
        blobs.extend([config, manifest]);
    }
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries }))?;

    let mut tar = Builder::new(File::create(file).context(file.display())?);
    put_file(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put_file(&mut tar, "index.json", 0o644, &index)?;
    for blob in &blobs {
        let name = digest(blob).replace(':', "/");
        put_file(&mut tar, &format!("blobs/{name}"), 0o644, blob)?;
    }
    tar.into_inner()?.sync_all()?;
    Ok(())
}

/// What an image says about how to run it.
fn config(name: &str) -> Value {
    match name {
        // PID 1 without a handler ignores SIGTERM: only SIGKILL ends it, as containerd sends it.
        PAUSE => json!({ "Entrypoint": ["/bin/sleep", "2147483647"] }),
        BARE => json!({}),
        PROGRAMS => {
            json!({ "Env": ["PATH=/usr/sbin:/usr/bin:/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" })
        }
        _ => json!({ "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" }),
    }
}

/// Unpacks the image's root file system into `dir`, for specs that name a root of their own.
///
/// # Errors
/// As for [`write`].
pub fn unpack(busybox: &Path, dir: &Path) -> Outcome {
    let layer = layer(busybox)?;
    let mut archive = tar::Archive::new(layer.as_slice());
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(dir).context(dir.display())
}

fn layer(busybox: &Path) -> Outcome<Vec<u8>> {
    let program = fs::read(busybox).context(busybox.display())?;
    let mut list = Command::new(busybox);
    list.arg("--list");
    let applets = command::run(list, Input::Null, std::time::Duration::from_secs(10))?.ok()?.out();

    let mut tar = Builder::new(Vec::new());
    for (path, mode, owner) in DIRECTORIES {
        let mut header = header(EntryType::Directory, *mode, 0);
        header.set_uid(*owner);
        header.set_gid(*owner);
        tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
    }
    put_file(&mut tar, "bin/busybox", 0o755, &program)?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        tar.append_link(
            &mut header(EntryType::Symlink, 0o777, 0),
            format!("bin/{applet}"),
            "busybox",
        )?;
    }
    put_file(&mut tar, "etc/passwd", 0o644, PASSWD.as_bytes())?;
    put_file(&mut tar, "etc/group", 0o644, GROUP.as_bytes())?;
    Ok(tar.into_inner()?)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    // The same bytes each time: the image's digest is its cache key.
    header.set_mtime(0);
    header
}

fn put_file<W: Write>(tar: &mut Builder<W>, path: &str, mode: u32, content: &[u8]) -> Outcome {
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    Ok(tar.append_data(&mut header, path, content)?)
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

/// The digest of a blob, in the form of the image specification.
fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(blob)))
}

/// Bytes in lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
