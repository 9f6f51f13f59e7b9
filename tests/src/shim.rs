//! A shim started by hand, as containerd starts it, and spoken to over its own socket: the task API
//! without containerd's smoothing in between.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use nix::sys::stat::Mode;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::Value;
use ttrpc::{Client, Code, Request};

use crate::command::{self, Input};
use crate::containerd::{Containerd, NAMESPACE};
use crate::failure::{Context, Failure, Outcome};
use crate::options::{Generation, Options, Runtime};

/// The two names of the one task API.
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// As containerd 2.x calls it.
pub const TASK_V3: &str = "containerd.task.v3.Task";

/// A call that the shim refused.
#[derive(Debug)]
pub struct Refusal {
    /// The status code.
    pub code: Code,
    /// Its text.
    pub message: String,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(format!("{:?}: {}", refusal.code, refusal.message))
    }
}

/// What a call returns.
pub type Reply<T = Empty> = Result<T, Refusal>;

/// A running shim with one container that it may be asked to make.
pub struct Shim {
    /// The container's name.
    pub id: String,
    /// The bundle directory.
    pub bundle: PathBuf,
    client: Client,
    service: &'static str,
    deadline: Duration,
    // Held open, so that the shim's log always has a reader.
    _log: File,
}

impl Shim {
    /// Writes a bundle with this spec and starts a shim in it.
    ///
    /// # Errors
    /// The shim's `start` fails, or prints no address.
    pub fn start(
        options: &Options,
        node: &Containerd,
        id: &str,
        bundle: PathBuf,
        spec: &Value,
    ) -> Outcome<Self> {
        fs::create_dir_all(bundle.join("rootfs"))?;
        fs::write(bundle.join("config.json"), serde_json::to_vec(spec)?)?;
        let fifo = bundle.join("log");
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let log = File::options().read(true).write(true).open(&fifo)?;
        let mut command = node.tool(program(options.runtime));
        let address = node.dir().join("c.sock");
        command
            .arg("-namespace")
            .arg(NAMESPACE)
            .arg("-address")
            .arg(&address)
            .args(["-id", id, "start"]);
        command
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", address.display()))
            .env("MAX_SHIM_VERSION", "2");
        command.current_dir(&bundle);
        let printed = command::run(command, Input::Null, options.deadline(20))?.ok()?.out();
        let address = address_in(&printed)?;
        let client = Client::connect(&address).context(format!("cannot connect to {address}"))?;
        // Debian's 1.6 has the runc shim of task v2, 2.x that of v3. Ours serves both.
        let service = match options.generation {
            Generation::One => TASK_V2,
            Generation::Two => TASK_V3,
        };
        Ok(Self {
            id: id.to_owned(),
            bundle,
            client,
            service,
            deadline: options.deadline(40),
            _log: log,
        })
    }

    /// The same shim, called by another name of the API.
    pub fn under(&mut self, service: &'static str) {
        self.service = service;
    }

    /// One call.
    ///
    /// # Errors
    /// The shim refuses, or is gone.
    pub fn call<Q: Message, R: Message>(&self, method: &str, request: &Q) -> Reply<R> {
        let broken = |error: &dyn std::fmt::Display| Refusal {
            code: Code::UNKNOWN,
            message: error.to_string(),
        };
        let mut message = Request::new();
        message.service = self.service.to_owned();
        message.method = method.to_owned();
        message.timeout_nano = i64::try_from(self.deadline.as_nanos()).unwrap_or(i64::MAX);
        message.payload = request.write_to_bytes().map_err(|error| broken(&error))?;
        match self.client.request(message) {
            Ok(response) => R::parse_from_bytes(&response.payload).map_err(|error| broken(&error)),
            Err(ttrpc::Error::RpcStatus(status)) => {
                Err(Refusal { code: status.code(), message: status.message().to_owned() })
            }
            Err(error) => Err(broken(&error)),
        }
    }

    /// Create, with no streams.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn create(&self) -> Reply<CreateTaskResponse> {
        self.create_with(|_| ())
    }

    /// Create, with changes to the request.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn create_with(
        &self,
        change: impl FnOnce(&mut CreateTaskRequest),
    ) -> Reply<CreateTaskResponse> {
        let mut request = CreateTaskRequest::new();
        request.id = self.id.clone();
        request.bundle = self.bundle.to_string_lossy().into_owned();
        change(&mut request);
        self.call("Create", &request)
    }

    /// Start of the container, or of an exec.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn start_process(&self, exec: &str) -> Reply<StartResponse> {
        let request =
            StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Start", &request)
    }

    /// State of the container, or of an exec.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn state(&self, exec: &str) -> Reply<StateResponse> {
        let request =
            StateRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("State", &request)
    }

    /// Exec of these arguments under this name.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn exec(&self, exec: &str, args: &[&str]) -> Reply {
        self.exec_with(exec, args, |_| ())
    }

    /// The same, with changes to the request.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn exec_with(
        &self,
        exec: &str,
        args: &[&str],
        change: impl FnOnce(&mut ExecProcessRequest),
    ) -> Reply {
        let process = serde_json::json!({ "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
        let mut any = Any::new();
        any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
        any.value = process.to_string().into_bytes();
        let mut request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            spec: MessageField::some(any),
            ..Default::default()
        };
        change(&mut request);
        self.call("Exec", &request)
    }

    /// Kill.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn kill(&self, exec: &str, signal: u32, all: bool) -> Reply {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.call("Kill", &request)
    }

    /// Pause, or Resume.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn set_paused(&self, paused: bool) -> Reply {
        let id = self.id.clone();
        if paused {
            return self.call("Pause", &PauseRequest { id, ..Default::default() });
        }
        self.call("Resume", &ResumeRequest { id, ..Default::default() })
    }

    /// Wait: returns when the process has ended.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn wait(&self, exec: &str) -> Reply<WaitResponse> {
        let request =
            WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Wait", &request)
    }

    /// Delete.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn delete(&self, exec: &str) -> Reply<DeleteResponse> {
        let request =
            DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.call("Delete", &request)
    }

    /// Pids.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn pids(&self) -> Reply<PidsResponse> {
        self.call("Pids", &PidsRequest { id: self.id.clone(), ..Default::default() })
    }

    /// Connect.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn connect(&self) -> Reply<ConnectResponse> {
        self.call("Connect", &ConnectRequest { id: self.id.clone(), ..Default::default() })
    }

    /// Stats.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn stats(&self) -> Reply<StatsResponse> {
        self.call("Stats", &StatsRequest { id: self.id.clone(), ..Default::default() })
    }

    /// Update with these OCI `linux.resources`.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn update(&self, resources: &Value) -> Reply {
        let mut any = Any::new();
        any.type_url =
            "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned();
        any.value = resources.to_string().into_bytes();
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: MessageField::some(any),
            ..Default::default()
        };
        self.call("Update", &request)
    }

    /// `CloseIO` of standard input.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn close_input(&self, exec: &str) -> Reply {
        let request = CloseIORequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.call("CloseIO", &request)
    }

    /// Shutdown: the shim ends when it has no container, be it before its reply is out.
    ///
    /// # Errors
    /// As for [`Shim::call`].
    pub fn shutdown(&self) -> Reply {
        let request = ShutdownRequest { id: self.id.clone(), ..Default::default() };
        match self.call("Shutdown", &request) {
            Err(refusal) if refusal.message.contains("socket disconnected") => Ok(Empty::new()),
            reply => reply,
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // The way out of a failed test; after a good one there is nothing to do here.
        self.deadline = Duration::from_secs(5);
        if self.kill("", 9, true).is_ok() {
            let _ = self.wait("");
        }
        let _ = self.delete("");
        let _ = self.shutdown();
    }
}

/// The shim's program (containerd's runtime-v2 document).
pub fn program(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Runc => "containerd-shim-runc-v2",
        Runtime::Bulkhead => "containerd-shim-bulkhead-v2",
        Runtime::Kata => "containerd-shim-kata-v2",
    }
}

/// The address in what `start` prints: bare, or in JSON.
fn address_in(printed: &str) -> Outcome<String> {
    let printed = printed.trim();
    if printed.starts_with("unix://") {
        return Ok(printed.to_owned());
    }
    let value: Value =
        serde_json::from_str(printed).context(format!("`start` printed {printed:?}"))?;
    let address = value["address"]
        .as_str()
        .ok_or_else(|| Failure::new(format!("no address in {printed:?}")))?;
    Ok(address.to_owned())
}
