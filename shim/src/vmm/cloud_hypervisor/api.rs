//! A client of cloud-hypervisor's API: HTTP/1.1 on a Unix socket. A VM starts and ends without
//! it; `bulkhead inspect` asks it what the VM consists of, and disks come and go by it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use super::command::Disk;

/// The API socket's name in the sandbox's directory.
pub const API_SOCKET: &str = "api";

/// The longest header and the longest body of a response that are read, in bytes.
const LONGEST_HEAD: usize = 8 << 10;
const LONGEST_BODY: usize = 1 << 20;
/// How much of an error's body becomes part of our error.
const LONGEST_REASON: usize = 1 << 10;

/// An API call that failed.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Nobody listens, or the connection broke.
    #[error("cloud-hypervisor's API at {} cannot be used", socket.display())]
    Io {
        /// The API socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The VMM takes too long.
    #[error("cloud-hypervisor did not answer {call} within {} ms", after.as_millis())]
    Deadline {
        /// The call.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The VMM refuses.
    #[error("cloud-hypervisor answered {call} with status {status}: {reason}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The HTTP status.
        status: u16,
        /// What it says.
        reason: String,
    },
    /// The answer is not what the API's description says.
    #[error("cloud-hypervisor's answer to {call} is not understood: {what}")]
    Malformed {
        /// The call.
        call: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// What `vm.info` says about a VM, as far as it is used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmInfo {
    /// `Created`, `Running`, `Shutdown` or `Paused`.
    pub state: String,
    /// The devices by their names.
    #[serde(default)]
    pub device_tree: BTreeMap<String, Device>,
}

/// A device of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// Where it sits on the PCI bus, if it does.
    pub pci_bdf: Option<String>,
}

/// A client of one VM's API.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
    deadline: Duration,
}

impl Api {
    /// Of the VM whose API socket this is. Each call takes at most `deadline`.
    #[must_use]
    pub fn new(socket: &Path, deadline: Duration) -> Api {
        Api { socket: socket.to_owned(), deadline }
    }

    /// What the VM consists of.
    ///
    /// # Errors
    /// [`ApiError`]
    pub fn info(&self) -> Result<VmInfo, ApiError> {
        const CALL: &str = "vm.info";
        let body = self.call("GET", CALL, "")?;
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::Malformed { call: CALL, what: error.to_string() })
    }

    /// Plugs a disk in.
    ///
    /// # Errors
    /// [`ApiError`]
    pub(super) fn add_disk(&self, disk: &Disk) -> Result<(), ApiError> {
        self.call("PUT", "vm.add-disk", &json!(disk).to_string()).map(drop)
    }

    /// Asks the guest to let go of a device.
    ///
    /// # Errors
    /// [`ApiError`]
    pub(super) fn remove_device(&self, id: &str) -> Result<(), ApiError> {
        self.call("PUT", "vm.remove-device", &json!({ "id": id }).to_string()).map(drop)
    }

    fn call(&self, method: &str, name: &'static str, body: &str) -> Result<Vec<u8>, ApiError> {
        let end = Instant::now() + self.deadline;
        let connected = UnixStream::connect(&self.socket);
        let stream =
            connected.map_err(|source| ApiError::Io { socket: self.socket.clone(), source })?;
        let mut call = Call { api: self, name, stream, end };
        call.send(method, body)?;
        call.receive()
    }
}

/// One request and its response on a connection of its own.
struct Call<'a> {
    api: &'a Api,
    name: &'static str,
    stream: UnixStream,
    end: Instant,
}

/// The parts of a response's header that are used.
struct Head {
    status: u16,
    body_at: usize,
    body_len: usize,
}

impl Call<'_> {
    fn send(&mut self, method: &str, body: &str) -> Result<(), ApiError> {
        let mut request = format!("{method} /api/v1/{} HTTP/1.1\r\nHost: localhost\r\n", self.name);
        if !body.is_empty() {
            let length = body.len();
            request += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        request += &format!("\r\n{body}");
        let timeout = self.stream.set_write_timeout(Some(self.left()?));
        timeout.and_then(|()| self.stream.write_all(request.as_bytes())).map_err(|e| self.io(e))
    }

    fn io(&self, source: io::Error) -> ApiError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.late(),
            _ => ApiError::Io { socket: self.api.socket.clone(), source },
        }
    }

    fn late(&self) -> ApiError {
        ApiError::Deadline { call: self.name, after: self.api.deadline }
    }

    fn malformed(&self, what: String) -> ApiError {
        ApiError::Malformed { call: self.name, what }
    }

    fn receive(&mut self) -> Result<Vec<u8>, ApiError> {
        let mut text = Vec::new();
        let head = loop {
            if let Some(head) = self.parse_head(&text)? {
                break head;
            }
            if text.len() > LONGEST_HEAD {
                return Err(
                    self.malformed(format!("its header has more than {LONGEST_HEAD} bytes"))
                );
            }
            self.read_more(&mut text)?;
        };
        let end = head.body_at + head.body_len;
        while text.len() < end {
            self.read_more(&mut text)?;
        }
        let body = text[head.body_at..end].to_vec();
        if (200..300).contains(&head.status) {
            return Ok(body);
        }
        let reason = String::from_utf8_lossy(&body[..body.len().min(LONGEST_REASON)]).into_owned();
        Err(ApiError::Refused { call: self.name, status: head.status, reason })
    }

    /// The response's header, once all of it is there.
    fn parse_head(&self, text: &[u8]) -> Result<Option<Head>, ApiError> {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(text).map_err(|e| self.malformed(e.to_string()))?;
        let httparse::Status::Complete(body_at) = parsed else {
            return Ok(None);
        };
        let header = |name: &str| {
            let found = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
            found.map(|h| String::from_utf8_lossy(h.value).trim().to_owned())
        };
        let status = response.code.unwrap_or_default();
        let body_len = match header("Content-Length") {
            Some(length) => {
                length.parse().map_err(|_| self.malformed(format!("its length is {length:?}")))?
            }
            // Nothing follows (RFC 9110, 204 No Content).
            None if status == 204 => 0,
            None => return Err(self.malformed("it has no length".to_owned())),
        };
        if body_len > LONGEST_BODY {
            let what = format!("it has {body_len} bytes; at most {LONGEST_BODY} are taken");
            return Err(self.malformed(what));
        }
        Ok(Some(Head { status, body_at, body_len }))
    }

    fn read_more(&mut self, text: &mut Vec<u8>) -> Result<(), ApiError> {
        let timeout = self.stream.set_read_timeout(Some(self.left()?));
        let mut buffer = [0; 4096];
        let read = timeout.and_then(|()| self.stream.read(&mut buffer));
        match read.map_err(|e| self.io(e))? {
            0 => Err(self.malformed(format!("it ends after {} bytes", text.len()))),
            n => {
                text.extend_from_slice(&buffer[..n]);
                Ok(())
            }
        }
    }

    /// The time that is left; never zero, which would mean no timeout at all.
    fn left(&self) -> Result<Duration, ApiError> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.late());
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Serves one connection: reads the request's header, then does `answer`.
    fn served<T>(
        call: impl FnOnce(&Api) -> T,
        answer: impl FnOnce(UnixStream) + Send + 'static,
    ) -> (T, String) {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).expect("bind");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).expect("request");
                request.push(byte[0]);
            }
            answer(stream);
            String::from_utf8(request).expect("text")
        });
        let result = call(&Api::new(&socket, Duration::from_millis(300)));
        (result, server.join().expect("server"))
    }

    fn asked(
        answer: impl FnOnce(UnixStream) + Send + 'static,
    ) -> (Result<VmInfo, ApiError>, String) {
        served(Api::info, answer)
    }

    fn answered(response: &str) -> Result<VmInfo, ApiError> {
        let response = response.to_owned();
        // The client may hang up in the middle of a response that it refuses.
        let write = move |mut stream: UnixStream| drop(stream.write_all(response.as_bytes()));
        asked(write).0
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn message(response: &str) -> String {
        answered(response).expect_err(response).to_string()
    }

    const INFO: &str = r#"{"config":{"cpus":{"boot_vcpus":1}},"state":"Running",
        "device_tree":{"_fs0":{"id":"_fs0","pci_bdf":"0000:00:02.0"},"__serial":{"pci_bdf":null}}}"#;

    #[test]
    fn info_is_read() {
        let (info, request) = asked(|mut s| s.write_all(ok(INFO).as_bytes()).expect("write"));
        let info = info.expect("info");
        assert_eq!(info.state, "Running");
        let place = info.device_tree.get("_fs0").and_then(|d| d.pci_bdf.clone());
        assert_eq!(place.as_deref(), Some("0000:00:02.0"));
        assert!(request.starts_with("GET /api/v1/vm.info HTTP/1.1\r\n"), "{request}");
    }

    #[test]
    fn what_is_done_is_answered_without_a_body() {
        let done = |mut stream: UnixStream| drop(stream.write_all(b"HTTP/1.1 204 \r\n\r\n"));
        let (removed, request) = served(|api| api.remove_device("disk1"), done);
        removed.expect("removed");
        assert!(request.starts_with("PUT /api/v1/vm.remove-device HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nContent-Length: 14\r\n"), "{request}");
    }

    #[test]
    fn an_answer_may_come_byte_by_byte() {
        let (info, _) = asked(|mut stream| {
            for byte in ok(INFO).bytes() {
                stream.write_all(&[byte]).expect("write");
            }
        });
        assert_eq!(info.expect("info").state, "Running");
    }

    #[test]
    fn a_refusal_carries_its_reason() {
        let text = message("HTTP/1.1 500 \r\nContent-Length: 17\r\n\r\nVM is not created");
        assert!(text.ends_with("vm.info with status 500: VM is not created"), "{text}");
        let long = "x".repeat(100_000);
        let text = message(&format!("HTTP/1.1 404 \r\nContent-Length: 100000\r\n\r\n{long}"));
        assert!(text.len() < 2 * LONGEST_REASON, "{}", text.len());
    }

    #[test]
    fn a_truncated_answer_is_no_answer() {
        let text = message("HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{\"state\":");
        assert!(text.contains("it ends after"), "{text}");
        assert!(message("HTTP/1.1 200 \r\nContent-").contains("it ends after"));
        assert!(message("").contains("it ends after 0 bytes"));
    }

    #[test]
    fn an_oversized_answer_is_not_read() {
        let text = message("HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n");
        assert!(text.contains("it has 99999999 bytes; at most 1048576 are taken"), "{text}");
        let text = message(&format!("HTTP/1.1 200 \r\nX: {}", "y".repeat(100_000)));
        assert!(text.contains("its header has more than 8192 bytes"), "{text}");
    }

    #[test]
    fn garbage_is_named_as_such() {
        assert!(message("SSH-2.0-OpenSSH\r\n\r\n").contains("not understood"));
        assert!(message("HTTP/1.1 200 \r\n\r\n").contains("it has no length"));
        assert!(message("HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n").contains("its length is"));
        assert!(message(&ok("{}")).contains("missing field"));
        assert!(message(&ok("not json")).contains("not understood"));
    }

    #[test]
    fn a_hanging_vmm_costs_no_more_than_the_deadline() {
        let start = Instant::now();
        let (result, _) = asked(|stream| {
            thread::sleep(Duration::from_millis(600));
            drop(stream);
        });
        let text = result.expect_err("no answer").to_string();
        assert!(text.ends_with("did not answer vm.info within 300 ms"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_slow_drip_does_not_extend_the_deadline() {
        let (result, _) = asked(|mut stream| {
            for byte in ok(INFO).bytes().take(20) {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
        });
        assert!(matches!(result, Err(ApiError::Deadline { .. })), "{result:?}");
    }

    #[test]
    fn nobody_at_the_socket_is_named_with_its_path() {
        let api = Api::new(Path::new("/nowhere/api"), Duration::from_secs(1));
        let text = api.info().expect_err("nobody").to_string();
        assert_eq!(text, "cloud-hypervisor's API at /nowhere/api cannot be used");
    }
}
