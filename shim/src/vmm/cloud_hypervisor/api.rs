//! A client of cloud-hypervisor's API: HTTP/1.1 on a Unix socket. A VM starts and ends without
//! it; `bulkhead inspect` asks it what the VM consists of, and disks come and go by it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_protocols::chain;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::command::Disk;

/// The API socket's name in the sandbox's directory.
pub const API_SOCKET: &str = "api";

/// The longest head and the longest body of a response that are read, in bytes.
const LONGEST_HEAD: usize = 8 << 10;
const LONGEST_BODY: usize = 1 << 20;
/// How much of an error's body becomes part of our error.
const LONGEST_REASON: usize = 1 << 10;

/// An API call that failed.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Nobody listens.
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

/// What the VM with this API socket consists of; waits for it, `deadline` at most.
///
/// # Errors
/// [`ApiError`]
pub fn vm_info(socket: &Path, deadline: Duration) -> Result<VmInfo, ApiError> {
    let api = Api::new(socket, deadline);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| api.unusable(error))?.block_on(api.info())
}

/// A client of one VM's API.
#[derive(Debug)]
pub(super) struct Api {
    socket: PathBuf,
    deadline: Duration,
}

impl Api {
    /// Of the VM whose API socket this is. Each call takes at most `deadline`.
    pub(super) fn new(socket: &Path, deadline: Duration) -> Api {
        Api { socket: socket.to_owned(), deadline }
    }

    /// What the VM consists of.
    async fn info(&self) -> Result<VmInfo, ApiError> {
        const CALL: &str = "vm.info";
        let body = self.call(Method::GET, CALL, String::new()).await?;
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::Malformed { call: CALL, what: error.to_string() })
    }

    /// Plugs a disk in.
    pub(super) async fn add_disk(&self, disk: &Disk) -> Result<(), ApiError> {
        self.put("vm.add-disk", json!(disk)).await
    }

    /// Asks the guest to let go of a device.
    pub(super) async fn remove_device(&self, id: &str) -> Result<(), ApiError> {
        self.put("vm.remove-device", json!({ "id": id })).await
    }

    async fn put(&self, call: &'static str, body: Value) -> Result<(), ApiError> {
        self.call(Method::PUT, call, body.to_string()).await.map(drop)
    }

    async fn call(
        &self,
        method: Method,
        call: &'static str,
        body: String,
    ) -> Result<Bytes, ApiError> {
        let answer = timeout(self.deadline, self.exchange(method, call, body)).await;
        answer.map_err(|_| ApiError::Deadline { call, after: self.deadline })?
    }

    /// One request and its response on a connection of its own.
    async fn exchange(
        &self,
        method: Method,
        call: &'static str,
        body: String,
    ) -> Result<Bytes, ApiError> {
        let malformed = |what: String| ApiError::Malformed { call, what };
        let http = |error: hyper::Error| malformed(chain(&error));
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{call}"))
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|error| malformed(error.to_string()))?;
        let connected = UnixStream::connect(&self.socket).await;
        let stream = connected.map_err(|error| self.unusable(error))?;
        let client =
            http1::Builder::new().max_buf_size(LONGEST_HEAD).handshake(TokioIo::new(stream));
        let (mut sender, connection) = client.await.map_err(http)?;
        // The connection ends with this call.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_BODY).collect().await;
        let body = body.map_err(|error| malformed(chain(&*error)))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let reason = String::from_utf8_lossy(&body[..body.len().min(LONGEST_REASON)]).into_owned();
        Err(ApiError::Refused { call, status: status.as_u16(), reason })
    }

    fn unusable(&self, source: io::Error) -> ApiError {
        ApiError::Io { socket: self.socket.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;
    use std::time::Instant;

    use tokio::task::spawn_blocking;

    use super::*;

    /// Serves one connection: reads the request's header, then does `answer`.
    async fn served<T>(
        call: impl AsyncFnOnce(&Api) -> T,
        answer: impl FnOnce(UnixStream) + Send + 'static,
    ) -> (T, String) {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).expect("bind");
        let server = spawn_blocking(move || {
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
        let result = call(&Api::new(&socket, Duration::from_millis(300))).await;
        (result, server.await.expect("server"))
    }

    async fn asked(
        answer: impl FnOnce(UnixStream) + Send + 'static,
    ) -> (Result<VmInfo, ApiError>, String) {
        served(Api::info, answer).await
    }

    async fn answered(response: &str) -> Result<VmInfo, ApiError> {
        let response = response.to_owned();
        // The client may hang up in the middle of a response that it refuses.
        let write = move |mut stream: UnixStream| drop(stream.write_all(response.as_bytes()));
        asked(write).await.0
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    async fn message(response: &str) -> String {
        answered(response).await.expect_err(response).to_string()
    }

    const INFO: &str = r#"{"config":{"cpus":{"boot_vcpus":1}},"state":"Running",
        "device_tree":{"_fs0":{"id":"_fs0","pci_bdf":"0000:00:02.0"},"__serial":{"pci_bdf":null}}}"#;

    #[tokio::test]
    async fn info_is_read() {
        let (info, request) = asked(|mut s| s.write_all(ok(INFO).as_bytes()).expect("write")).await;
        let info = info.expect("info");
        assert_eq!(info.state, "Running");
        let place = info.device_tree.get("_fs0").and_then(|d| d.pci_bdf.clone());
        assert_eq!(place.as_deref(), Some("0000:00:02.0"));
        assert!(request.starts_with("GET /api/v1/vm.info HTTP/1.1\r\n"), "{request}");
    }

    #[tokio::test]
    async fn what_is_done_is_answered_without_a_body() {
        let done = |mut stream: UnixStream| drop(stream.write_all(b"HTTP/1.1 204 \r\n\r\n"));
        let (removed, request) =
            served(async |api: &Api| api.remove_device("disk1").await, done).await;
        removed.expect("removed");
        assert!(request.starts_with("PUT /api/v1/vm.remove-device HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\ncontent-length: 14\r\n"), "{request}");
    }

    #[tokio::test]
    async fn an_answer_may_come_byte_by_byte() {
        let (info, _) = asked(|mut stream| {
            for byte in ok(INFO).bytes() {
                stream.write_all(&[byte]).expect("write");
            }
        })
        .await;
        assert_eq!(info.expect("info").state, "Running");
    }

    #[tokio::test]
    async fn a_refusal_carries_its_reason() {
        let text = message("HTTP/1.1 500 \r\nContent-Length: 17\r\n\r\nVM is not created").await;
        assert!(text.ends_with("vm.info with status 500: VM is not created"), "{text}");
        let long = "x".repeat(100_000);
        let text = message(&format!("HTTP/1.1 404 \r\nContent-Length: 100000\r\n\r\n{long}")).await;
        assert!(text.len() < 2 * LONGEST_REASON, "{}", text.len());
    }

    #[tokio::test]
    async fn a_truncated_answer_is_no_answer() {
        let text = message("HTTP/1.1 200 \r\nContent-Length: 100\r\n\r\n{\"state\":").await;
        assert!(text.contains("end of file before message length reached"), "{text}");
        for text in ["HTTP/1.1 200 \r\nContent-", ""] {
            assert!(message(text).await.contains("connection closed before message completed"));
        }
    }

    #[tokio::test]
    async fn an_oversized_answer_is_not_read() {
        let long = "x".repeat(LONGEST_BODY + 1);
        let text = message(&ok(&long)).await;
        assert!(text.contains("length limit exceeded"), "{text}");
        let text = message(&format!("HTTP/1.1 200 \r\nX: {}", "y".repeat(100_000))).await;
        assert!(text.contains("message head is too large"), "{text}");
    }

    #[tokio::test]
    async fn garbage_is_named_as_such() {
        assert!(message("SSH-2.0-OpenSSH\r\n\r\n").await.contains("not understood"));
        assert!(message("HTTP/1.1 200 \r\n\r\n").await.contains("not understood"));
        let negative = message("HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n").await;
        assert!(negative.contains("invalid content-length"), "{negative}");
        assert!(message(&ok("{}")).await.contains("missing field"));
        assert!(message(&ok("not json")).await.contains("not understood"));
    }

    #[tokio::test]
    async fn a_hanging_vmm_costs_no_more_than_the_deadline() {
        let start = Instant::now();
        let (result, _) = asked(|stream| {
            thread::sleep(Duration::from_millis(600));
            drop(stream);
        })
        .await;
        let text = result.expect_err("no answer").to_string();
        assert!(text.ends_with("did not answer vm.info within 300 ms"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_slow_drip_does_not_extend_the_deadline() {
        let (result, _) = asked(|mut stream| {
            for byte in ok(INFO).bytes().take(20) {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
        })
        .await;
        assert!(matches!(result, Err(ApiError::Deadline { .. })), "{result:?}");
    }

    #[tokio::test]
    async fn nobody_at_the_socket_is_named_with_its_path() {
        let api = Api::new(Path::new("/nowhere/api"), Duration::from_secs(1));
        let text = api.info().await.expect_err("nobody").to_string();
        assert_eq!(text, "cloud-hypervisor's API at /nowhere/api cannot be used");
    }
}
