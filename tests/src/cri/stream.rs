//! Streams through containerd's streaming server, which listens in its network namespace: exec, attach
//! and port-forward, over a WebSocket whose messages begin with the number of their channel
//! (kubernetes/apimachinery, pkg/util/httpstream/wsstream: `v4.channel.k8s.io`).

use std::net::TcpStream;
use std::time::Duration;

use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use serde_json::{Value, json};
use tungstenite::http::Uri;
use tungstenite::{ClientRequestBuilder, Message, WebSocket};

use super::container::{Container, words};
use super::node::Node;
use super::pod::Pod;
use crate::command::tail;
use crate::failure::{Context, Failure, Outcome};

/// Channels of exec and attach.
const INPUT: u8 = 0;
/// Standard output, or the terminal.
pub const OUT: u8 = 1;
/// Standard error.
pub const ERR: u8 = 2;
/// How the program ended.
const STATUS: u8 = 3;
/// The terminal's size.
const SIZE: u8 = 4;

/// Channels of a forwarded port.
const DATA: u8 = 0;
/// Why the port is not forwarded.
const REFUSAL: u8 = 1;

/// What a program is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// A terminal, on which both outputs are one.
    Yes,
    /// Pipes.
    No,
}

/// A connection with several channels.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    received: [Vec<u8>; 5],
    open: bool,
}

impl Stream {
    /// Runs a program in a container, as `kubectl exec` does.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn exec(container: &Container<'_>, command: &[&str], terminal: Terminal) -> Outcome<Self> {
        let tty = terminal == Terminal::Yes;
        let request = ExecRequest {
            container_id: container.id.clone(),
            cmd: words(command),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let node = container.pod.node;
        let url = node.client.call(async |mut cri| cri.exec(request).await)?.url;
        Self::dial(node, &url, container.pod.test.deadline(30))
    }

    /// Takes part in the streams of a container's first program, as `kubectl attach -i` does.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn attach(container: &Container<'_>, terminal: Terminal) -> Outcome<Self> {
        let tty = terminal == Terminal::Yes;
        let request = AttachRequest {
            container_id: container.id.clone(),
            stdin: true,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let node = container.pod.node;
        let url = node.client.call(async |mut cri| cri.attach(request).await)?.url;
        Self::dial(node, &url, container.pod.test.deadline(30))
    }

    fn dial(node: &Node, url: &str, deadline: Duration) -> Outcome<Self> {
        let uri: Uri = url.replacen("http://", "ws://", 1).parse()?;
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let connect = || TcpStream::connect(&address);
        let network = node.containerd.network();
        let connection = match network {
            Some(network) => network.inside(connect)?,
            None => connect(),
        };
        let connection = connection.context(url)?;
        connection.set_read_timeout(Some(deadline))?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol("v4.channel.k8s.io");
        // A handshake that was interrupted has run into the deadline.
        let (socket, _) = tungstenite::client(request, connection)
            .map_err(|error| Failure::new(format!("no WebSocket at {url}: {error}")))?;
        Ok(Self { socket, received: Default::default(), open: true })
    }

    /// Writes to the program's input.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn write(&mut self, text: &str) -> Outcome {
        self.send(INPUT, text.as_bytes())
    }

    /// Gives the terminal a size.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Outcome {
        self.send(SIZE, json!({ "Width": columns, "Height": rows }).to_string().as_bytes())
    }

    /// Reads until a channel's text, what was read before left out, holds `text`; returns it up to there.
    ///
    /// # Errors
    /// It ends, or the deadline comes, without it.
    pub fn read_until(&mut self, channel: u8, text: &str) -> Outcome<String> {
        loop {
            let received = &mut self.received[usize::from(channel)];
            let found = received.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let rest = received.split_off(at + text.len());
                let read = std::mem::replace(received, rest);
                return Ok(String::from_utf8_lossy(&read).into_owned());
            }
            let more = self.receive().context(format!("waiting for {text:?}"))?;
            crate::ensure!(
                more,
                "the stream ended without {text:?}, but with {:?}",
                self.received.each_ref().map(|bytes| tail(&String::from_utf8_lossy(bytes)))
            );
        }
    }

    /// Reads to the end; returns what is unread of the outputs, and the exit code.
    ///
    /// # Errors
    /// It doesn't end before the deadline, or says no exit code.
    pub fn finish(mut self) -> Outcome<Done> {
        while self.receive()? {}
        let status = self.text(STATUS);
        let code = code(&status).context(format!("status {status:?}"))?;
        Ok(Done { code, out: self.text(OUT), err: self.text(ERR) })
    }

    /// What is unread of a channel.
    fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.received[usize::from(channel)]).into_owned()
    }

    /// Says that nothing more comes, and waits until containerd has taken it in.
    ///
    /// # Errors
    /// It doesn't before the deadline.
    pub fn close(mut self) -> Outcome {
        self.socket.close(None)?;
        while self.receive()? {}
        Ok(())
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) -> Outcome {
        let mut message = vec![channel];
        message.extend_from_slice(bytes);
        Ok(self.socket.send(Message::binary(message))?)
    }

    /// Takes in one message; false at the end.
    fn receive(&mut self) -> Outcome<bool> {
        if !self.open {
            return Ok(false);
        }
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => {
                let (channel, rest) =
                    bytes.split_first().ok_or_else(|| Failure::new("a message of no channel"))?;
                let received = self.received.get_mut(usize::from(*channel));
                received
                    .ok_or_else(|| Failure::new("a message of an unknown channel"))?
                    .extend(rest);
            }
            Ok(Message::Close(_))
            | Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::Protocol(_)) => {
                self.open = false;
            }
            Ok(_) => (),
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::ConnectionReset =>
            {
                self.open = false;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(self.open)
    }
}

/// A program that has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// Its exit code.
    pub code: i32,
    /// What was left to read of its output.
    pub out: String,
    /// The same of its errors.
    pub err: String,
}

/// The exit code in a `Status` of the Kubernetes API.
fn code(status: &str) -> Outcome<i32> {
    let status: Value = serde_json::from_str(status)?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status.pointer("/details/causes").and_then(Value::as_array);
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str());
    code.ok_or_else(|| Failure::new("it holds no exit code"))?.parse().context("exit code")
}

/// A connection to a port of a pod.
pub struct Port(Stream);

impl Port {
    /// Has containerd dial the port, as `kubectl port-forward` does.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn forward(pod: &Pod<'_>, port: u16) -> Outcome<Self> {
        let request =
            PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![i32::from(port)] };
        let url = pod.node.client.call(async |mut cri| cri.port_forward(request).await)?.url;
        let mut stream = Stream::dial(pod.node, &url, pod.test.deadline(30))?;
        // Each channel begins with the port's number.
        let number = port.to_le_bytes();
        for channel in [DATA, REFUSAL] {
            while stream.received[usize::from(channel)].len() < number.len() {
                crate::ensure!(stream.receive()?, "port {port}: the stream ended at once");
            }
            stream.received[usize::from(channel)].drain(..number.len());
        }
        Ok(Self(stream))
    }

    /// Sends something.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn write(&mut self, text: &str) -> Outcome {
        self.0.send(DATA, text.as_bytes())
    }

    /// Reads until the answer holds `text`.
    ///
    /// # Errors
    /// It ends, or the deadline comes, without it.
    pub fn read_until(&mut self, text: &str) -> Outcome<String> {
        self.0.read_until(DATA, text)
    }

    /// Reads the answer to its end: how many bytes were left of it.
    ///
    /// # Errors
    /// It doesn't end before the deadline.
    pub fn count_rest(mut self) -> Outcome<usize> {
        while self.0.receive()? {}
        Ok(self.0.received[usize::from(DATA)].len())
    }

    /// Why the port is not forwarded: reads to the end.
    ///
    /// # Errors
    /// The stream doesn't end before the deadline.
    pub fn refusal(mut self) -> Outcome<String> {
        while self.0.receive()? {}
        Ok(self.0.text(REFUSAL))
    }
}
