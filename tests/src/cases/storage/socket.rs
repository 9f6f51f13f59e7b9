//! Sockets of the host, as containers reach them.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use super::disk::alone_of;
use crate::bed::Test;
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("storage.socket", "a socket of the host is reached, and found again", socket),
    Case::bulkhead(
        "storage.socket_swapped",
        "a link that the guest puts in the place of a socket leads nowhere",
        swapped,
    ),
    Case::bulkhead(
        "storage.socket_refused",
        "a socket that nobody has named is not reached",
        refused,
    ),
];

/// Answers every connection to this path with what it says, once it has said all of it.
fn serve(path: &Path) -> Outcome {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    chown(path, Some(7), Some(8))?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    thread::spawn(move || {
        // It ends with its name: a connection of our own says so.
        for connection in listener.incoming().flatten() {
            let mut said = Vec::new();
            let mut connection: UnixStream = connection;
            if connection.read_to_end(&mut said).is_err() || said == b"stop" {
                return;
            }
            let _ = connection.write_all(&said);
        }
    });
    Ok(())
}

fn stop(path: &Path) -> Outcome {
    let mut connection = UnixStream::connect(path)?;
    connection.write_all(b"stop")?;
    connection.shutdown(Shutdown::Write)?;
    let _ = connection.read_to_end(&mut Vec::new());
    Ok(fs::remove_file(path)?)
}

fn named(t: &Test<'_>) -> Outcome<(PathBuf, String)> {
    let path = t.directory()?.join("host.sock");
    let mount =
        format!("--mount=type=bind,src={},dst=/run/host.sock,options=rbind", path.display());
    Ok((path, mount))
}

fn socket(t: &Test<'_>) -> Outcome {
    let (path, mount) = named(t)?;
    serve(&path)?;
    let named = path.to_string_lossy();
    let container = alone_of(t.programs()?, &[("forward_sockets", &named)], &[&mount])?;
    let said = container
        .sh("stat -c '%F %a %u %g' /run/host.sock; echo hello | nc.openbsd -N -U /run/host.sock")?;
    ensure!(said == "socket 660 7 8\nhello\n", "{said:?}");
    // Much, both ways, and many at once.
    let said =
        container.sh("head -c 3000000 /dev/urandom > /tmp/all; sha256sum < /tmp/all > /tmp/want
         for n in 1 2 3 4; do nc.openbsd -N -U /run/host.sock < /tmp/all | sha256sum > /tmp/$n & done; wait
         for n in 1 2 3 4; do cmp /tmp/want /tmp/$n && echo same; done")?;
    ensure!(said == "same\n".repeat(4), "{said:?}");
    if !t.is_bulkhead() {
        return Ok(());
    }
    // Nobody listens: the connection ends. One who comes later is found.
    stop(&path)?;
    ensure!(
        container.sh("echo hello | nc.openbsd -N -U /run/host.sock")?.is_empty(),
        "somebody answers"
    );
    serve(&path)?;
    let said = container.sh("echo again | nc.openbsd -N -U /run/host.sock")?;
    ensure!(said == "again\n", "{said:?}");
    stop(&path)
}

fn swapped(t: &Test<'_>) -> Outcome {
    let dir = t.directory()?;
    let (public, secret) = (dir.join("public"), dir.join("secret.sock"));
    fs::create_dir(&public)?;
    let path = public.join("x.sock");
    serve(&path)?;
    serve(&secret)?;
    // By another name, as Kubernetes has paths before containerd resolves them.
    symlink("public", dir.join("named"))?;
    let named = dir.join("named/x.sock").display().to_string();
    let mounts = [
        format!("--mount=type=bind,src={},dst=/run/x.sock,options=rbind", path.display()),
        format!("--mount=type=bind,src={},dst=/public,options=rbind", public.display()),
    ];
    let mounts = mounts.each_ref().map(String::as_str);
    let container = alone_of(t.programs()?, &[("forward_sockets", &named)], &mounts)?;
    let ask = "echo hello | nc.openbsd -N -U /run/x.sock";
    ensure!(container.sh(ask)? == "hello\n", "the socket is not reached");
    container.sh(&format!(
        "mv /public/x.sock /public/y.sock; ln -s {} /public/x.sock",
        secret.display()
    ))?;
    ensure!(container.sh(ask)?.is_empty(), "the link was followed");
    fs::remove_file(&path)?;
    stop(&public.join("y.sock"))?;
    stop(&secret)
}

fn refused(t: &Test<'_>) -> Outcome {
    let (path, mount) = named(t)?;
    serve(&path)?;
    let flags = ["--annotation", "io.bulkhead.forward_sockets=/run/other.sock", &mount];
    let said = t.container().run(&flags, &["true"])?;
    said.refused(&[
        "].source of the OCI spec: a socket of the host",
        "io.bulkhead.forward_sockets",
    ])?;
    let flags = ["--annotation", "io.bulkhead.forward_sockets=run/x"];
    t.container().run(&flags, &["true"])?.refused(&["forward_sockets", "absolute paths"])?;
    stop(&path)
}
