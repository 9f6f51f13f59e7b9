//! Streams: nothing lost, nothing changed, and a slow reader slows the writer.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::bed::Test;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::image::hex;
use crate::runner::Case;
use crate::session::Session;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("streams.out", "a long stdout arrives byte by byte as it was written", out),
    Case::any(
        "streams.in_and_out",
        "a long stdin, sent back, arrives with its SHA-256 unchanged",
        in_and_out,
    ),
    Case::any(
        "streams.in_digest",
        "the program reads from stdin what was written, by its own SHA-256",
        in_digest,
    ),
    Case::any(
        "streams.tail",
        "nothing is lost when the program ends right after its last byte",
        tail,
    ),
    Case::any(
        "streams.slow_reader",
        "a slow reader slows the writer, and memory does not fill",
        slow_reader,
    ),
    Case::any(
        "streams.unread_input",
        "a program that does not read slows its client, and memory does not fill",
        unread_input,
    ),
    Case::any(
        "streams.background",
        "output goes to a log file that is given, while nobody is attached",
        background,
    ),
    Case::any(
        "streams.reader_gone",
        "a reader that goes away does not end the container",
        reader_gone,
    ),
];

/// One MiB that doesn't repeat within itself.
fn block() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(1 << 20);
    while bytes.len() < 1 << 20 {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// What arrives, as its length and digest.
fn digest_of(session: &mut Session) -> Outcome<(u64, String)> {
    let (mut length, mut digest) = (0, Sha256::new());
    while let Some(piece) = session.read()? {
        length += piece.len() as u64;
        digest.update(&piece);
    }
    Ok((length, hex(&digest.finalize())))
}

fn out(t: &Test<'_>) -> Outcome {
    let dir = t.directory()?;
    let block = block();
    fs::write(dir.join("block"), &block)?;
    let megabytes = t.bed.options.megabytes;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", dir.display());
    let script =
        format!("i=0; while [ $i -lt {megabytes} ]; do cat /data/block; i=$((i+1)); echo $i; done");
    let mut session = t.container().converse(&["--mount", &mount], &["sh", "-c", &script])?;
    let mut expected =
        (1..=megabytes).map(|number| [&block, format!("{number}\n").as_bytes()].concat());
    let (mut place, mut part, mut at, mut wrong) = (0, Vec::new(), 0, None);
    while let Some(piece) = session.read()? {
        let mut piece = &piece[..];
        while !piece.is_empty() && wrong.is_none() {
            if at == part.len() {
                (part, at) = (expected.next().unwrap_or_default(), 0);
            }
            let rest = &part[at..];
            let size = piece.len().min(rest.len());
            let same = size > 0 && piece[..size] == rest[..size];
            if !same {
                wrong = Some(place + piece.iter().zip(rest).take_while(|(a, b)| a == b).count());
            }
            place += size;
            piece = &piece[size..];
            at += size;
        }
    }
    session.finish()?.ok()?;
    if let Some(wrong) = wrong {
        return Err(Failure::new(format!("byte {wrong} is not what was sent")));
    }
    ensure!(
        at == part.len() && expected.next().is_none(),
        "after {place} bytes {} of that MiB are missing, and {} MiB after it",
        part.len() - at,
        expected.count()
    );
    Ok(())
}

fn in_and_out(t: &Test<'_>) -> Outcome {
    let megabytes = t.bed.options.megabytes;
    let total = megabytes << 20;
    let mut session = t.container().converse(&[], &["head", "-c", &total.to_string()])?;
    let mut input = session.take_input().ok_or_else(|| Failure::new("no input"))?;
    let block = block();
    let writer = thread::spawn(move || {
        let mut sent = Sha256::new();
        for number in 0..megabytes {
            let mut block = block.clone();
            block[..8].copy_from_slice(&number.to_le_bytes());
            input.write_all(&block)?;
            sent.update(&block);
        }
        // ctr passes on the end of its input only in some versions: head counts.
        Ok::<_, std::io::Error>((hex(&sent.finalize()), input))
    });
    let arrived = digest_of(&mut session)?;
    let (sent, input) = writer.join().map_err(|_| Failure::new("the writer panicked"))??;
    drop(input);
    session.finish()?.ok()?;
    ensure!(arrived == (total, sent), "sent {total} bytes, {} came back, or changed", arrived.0);
    Ok(())
}

fn in_digest(t: &Test<'_>) -> Outcome {
    // The program's own arithmetic is what takes its time.
    let blocks = t.bed.options.megabytes.min(128);
    let script = format!("head -c {} | sha256sum", blocks << 20);
    let mut session = t.container().converse(&[], &["sh", "-c", &script])?;
    let mut input = session.take_input().ok_or_else(|| Failure::new("no input"))?;
    let block = block();
    let mut sent = Sha256::new();
    for _ in 0..blocks {
        input.write_all(&block)?;
        sent.update(&block);
    }
    let line = session.read_until("\n")?;
    ensure!(line == format!("{}  -\n", hex(&sent.finalize())), "the program read {line:?}");
    drop(input);
    session.finish()?.ok().map(drop)
}

fn tail(t: &Test<'_>) -> Outcome {
    for _ in 0..3 {
        let script =
            "head -c 1000000 /dev/zero; head -c 500000 /dev/zero >&2; printf end; printf END >&2";
        let done = t.container().run(&[], &["sh", "-c", script])?.ok()?;
        ensure!(
            done.stdout.len() == 1_000_003 && done.stdout.ends_with(b"end"),
            "stdout: {}",
            done.stdout.len()
        );
        ensure!(
            done.stderr.len() == 500_003 && done.stderr.ends_with(b"END"),
            "stderr: {}",
            done.stderr.len()
        );
    }
    Ok(())
}

fn slow_reader(t: &Test<'_>) -> Outcome {
    const BLOCKS: usize = 1024;
    let container = t.container();
    // Each block of 64 KiB is counted once it is written, on a tmpfs, so that counting is cheap.
    let script = format!(
        "i=0; while [ $i -lt {BLOCKS} ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > /dev/shm/count; done"
    );
    let mut session = container.converse(&[], &["sh", "-c", &script])?;
    // The first byte says that the program runs. From then on nothing is read for a while.
    let mut length = session.read()?.map_or(0, |piece| piece.len());
    let count = || -> Outcome<usize> {
        let done = container.exec("look", &[], &["cat", "/dev/shm/count"])?.ok()?;
        Ok(done.out().trim().parse()?)
    };
    let mut before = count()?;
    let limit = std::time::Instant::now() + t.deadline(30);
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = count()?;
        if now == before {
            break;
        }
        ensure!(std::time::Instant::now() < limit, "the writer does not stop: {now} blocks");
        before = now;
    }
    // The FIFO, two pipes, ctr and the harness hold a block each, more or less.
    ensure!(before < 16, "{before} blocks of {BLOCKS} were taken with nobody reading");
    while let Some(piece) = session.read()? {
        length += piece.len();
    }
    session.finish()?.ok()?;
    ensure!(length == BLOCKS * 65536, "{length} bytes arrived");
    Ok(())
}

fn unread_input(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let mut session = container.converse(&[], &["sh", "-c", "echo ready; exec sleep 100000"])?;
    session.read_until("ready\n")?;
    let mut input = session.take_input().ok_or_else(|| Failure::new("no input"))?;
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    let writer = thread::spawn(move || {
        // Until the client is gone.
        while input.write_all(&[7; 4096]).is_ok() {
            counted.fetch_add(4096, Ordering::Relaxed);
        }
    });
    let mut before = 0;
    loop {
        thread::sleep(t.deadline(1));
        let now = taken.load(Ordering::Relaxed);
        ensure!(now < 1 << 20, "{now} bytes were taken with nobody reading");
        if now == before {
            break;
        }
        before = now;
    }
    ensure!(before > 0, "nothing was taken");
    container.kill("KILL")?;
    session.finish()?.exits(137)?;
    writer.join().map_err(|_| Failure::new("the writer panicked"))
}

fn background(t: &Test<'_>) -> Outcome {
    let log = t.directory()?.join("log");
    let container = t.container();
    let uri = format!("file://{}", log.display());
    container
        .start_with(&["--log-uri", &uri], &["sh", "-c", "echo to the log; echo error too >&2"])?;
    container.wait_stopped()?;
    container.delete()?;
    let text = fs::read_to_string(&log)?;
    ensure!(
        text.contains("to the log\n") && text.contains("error too\n"),
        "the log holds {text:?}"
    );
    Ok(())
}

fn reader_gone(t: &Test<'_>) -> Outcome {
    let container = t.container();
    let mut session = container.converse(
        &[],
        &[
            "sh",
            "-c",
            "i=0; while :; do i=$((i+1)); echo $i; echo $i > /dev/shm/count; sleep 0.05; done",
        ],
    )?;
    session.read_until("3\n")?;
    // ctr dies with its ends of the FIFOs. The container must go on.
    session.signal(nix::sys::signal::Signal::SIGKILL)?;
    drop(session);
    let look = |name: &str| {
        container.exec(name, &[], &["cat", "/dev/shm/count"])?.ok().map(|done| done.out())
    };
    let before = look("one")?;
    thread::sleep(Duration::from_secs(1));
    ensure!(look("two")? != before, "the container stands still at {before:?}");
    container.kill("KILL")?;
    container.wait_stopped()?;
    container.delete().map(drop)
}
