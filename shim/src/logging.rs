//! The shim's log: logfmt lines in the FIFO `log` of the bundle, which containerd copies into its
//! own log. The FIFO's reader may be slow or gone, and neither stops the shim: what does not fit
//! is dropped.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, o};

use crate::config::{Config, LogLevel};

/// How many lines wait for the log's thread before more are dropped.
const BACKLOG: usize = 512;

/// The least important lines that are written: what the configuration says, and all of them where
/// containerd asks for debug messages. A configuration that cannot be used silences nothing.
pub fn level(config: Option<&Config>, debug: bool) -> Level {
    match config.map(|config| config.log_level) {
        _ if debug => Level::Debug,
        Some(LogLevel::Error) => Level::Error,
        Some(LogLevel::Warning) => Level::Warning,
        Some(LogLevel::Info) | None => Level::Info,
        Some(LogLevel::Debug) => Level::Debug,
    }
}

/// Makes the log of one sandbox. Lines carry `sandbox` and whatever a child logger adds.
/// ttrpc's records and panics arrive in it too.
pub fn start(bundle: &Path, namespace: &str, sandbox: &str, level: Level) -> Logger {
    // Opened for reading too, so that opening succeeds without a reader and writing raises no
    // SIGPIPE after the reader has gone.
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(bundle.join("log"));
    let Ok(fifo) = fifo else {
        return Logger::root(slog::Discard, o!());
    };
    let values = || o!("runtime" => "bulkhead", "namespace" => namespace.to_owned(), "sandbox" => sandbox.to_owned());
    if let Ok(fifo) = fifo.try_clone() {
        // Written at once, not by the log's thread: the process ends right after a panic.
        let panics = Logger::root(Logfmt(Mutex::new(fifo)).ignore_res(), values());
        std::panic::set_hook(Box::new(move |info| log_panic(&panics, info)));
    }
    let drain = slog_async::Async::new(Logfmt(Mutex::new(fifo)).ignore_res())
        .chan_size(BACKLOG)
        .overflow_strategy(slog_async::OverflowStrategy::Drop)
        .build();
    let logger = Logger::root(drain.filter_level(level).ignore_res(), values());
    // What ttrpc says below a warning is of no use to an operator.
    log::set_max_level(log::LevelFilter::Warn);
    let bridge = Bridge(logger.clone());
    // It can only be set once in a process, and this is that once.
    let _ = log::set_boxed_logger(Box::new(bridge));
    logger
}

/// The log of a sandbox that is not anybody's yet. What is said before it is opened is dropped.
#[derive(Clone, Default)]
pub struct Later(Arc<OnceLock<Logger>>);

impl Later {
    /// Whoever has it writes to the log once that is opened.
    pub fn logger(&self) -> Logger {
        Logger::root(self.clone(), o!())
    }

    /// Opens it.
    pub fn open(&self, log: &Logger) {
        // It is opened once.
        let _ = self.0.set(log.clone());
    }
}

impl Drain for Later {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        self.0.get().map_or(Ok(()), |log| Drain::log(log, record, values))
    }
}

fn log_panic(logger: &Logger, info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or_default();
    slog::crit!(logger, "panic: {message}"; "place" => place);
}

/// Carries the records of crates that use `log`.
struct Bridge(Logger);

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            slog::warn!(self.0, "{}", record.args(); "target" => record.target().to_owned());
        }
    }

    fn flush(&self) {}
}

/// Writes each record as one logfmt line.
struct Logfmt<W>(Mutex<W>);

impl<W: Write + Send> Drain for Logfmt<W> {
    type Ok = ();
    type Err = io::Error;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> io::Result<()> {
        let mut line = Line(String::with_capacity(256));
        line.pair("time", &humantime::format_rfc3339_micros(SystemTime::now()).to_string());
        line.pair("level", level_name(record.level()));
        line.pair("msg", &record.msg().to_string());
        // Neither can fail: the serializer writes into a string.
        let _ = record.kv().serialize(record, &mut line);
        let _ = values.serialize(record, &mut line);
        line.0.push('\n');
        let mut writer = self.0.lock().map_err(|_| io::Error::other("poisoned"))?;
        writer.write_all(line.0.as_bytes())
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Critical => "fatal",
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

struct Line(String);

impl Line {
    fn pair(&mut self, key: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(key);
        self.0.push('=');
        let plain = !value.is_empty()
            && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'=');
        if plain {
            self.0.push_str(value);
        } else {
            // Rust's escapes of a string are logfmt's: quotes, backslashes, control characters.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

impl slog::Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.pair(key, &value.to_string());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_is_one_line_whatever_it_holds() {
        let out = Shared::default();
        let logger =
            Logger::root(Logfmt(Mutex::new(out.clone())).ignore_res(), o!("sandbox" => "s1"));
        slog::error!(logger, "two\nlines"; "container" => "a b", "code" => 7);
        let line = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(line.contains(r#"level=error msg="two\nlines""#), "{line}");
        for pair in [r#"container="a b""#, "code=7", "sandbox=s1"] {
            assert!(line.contains(pair), "{pair} in {line}");
        }
    }

    #[test]
    fn the_configured_level_is_the_logs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        for (word, expected) in [
            ("error", Level::Error),
            ("warning", Level::Warning),
            ("info", Level::Info),
            ("debug", Level::Debug),
        ] {
            std::fs::write(&file, format!("log_level = {word:?}")).unwrap();
            let config = Config::load_from(&file, true).unwrap();
            assert_eq!(level(Some(&config), false), expected);
            assert_eq!(level(Some(&config), true), Level::Debug);
        }
        assert_eq!(level(None, false), Level::Info);
    }

    #[test]
    fn no_log_is_no_failure() {
        let logger = start(Path::new("/nonexistent"), "n", "s", Level::Info);
        slog::info!(logger, "nobody reads this");
    }
}
