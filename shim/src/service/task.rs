//! The task API, v2 and v3: the two differ in the package's name alone
//! (containerd's `api/runtime/task/v2/shim.proto` and `v3/shim.proto`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status as TaskStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use protobuf::{EnumOrUnknown, MessageField};
use tokio::sync::Notify;
use ttrpc::asynchronous::{Service, TtrpcContext};
use ttrpc::{Code, get_status};

use super::error::{invalid, packed, status};
use super::metrics;
use crate::container::stdio::StdioPaths;
use crate::container::{Container, Exit, NewContainer, Process, Status};
use crate::events::timestamp;
use crate::sandbox::{Sandbox, SandboxError};

/// The service's full name in each version of the API.
const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";

/// By this name containerd's clients know what says which exec a process is.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// The task service of one sandbox.
pub struct TaskService {
    sandbox: Arc<Sandbox>,
    stop: Arc<Notify>,
}

/// Both versions of the API, for a ttrpc server. `stop` is notified when containerd says that the
/// server may end.
pub fn services(sandbox: &Arc<Sandbox>, stop: &Arc<Notify>) -> HashMap<String, Service> {
    let one = || TaskService { sandbox: sandbox.clone(), stop: stop.clone() };
    [V2, V3]
        .into_iter()
        .flat_map(|name| {
            let service = create_task(Arc::new(one()));
            service.into_values().map(move |methods| (name.to_owned(), methods))
        })
        .collect()
}

impl TaskService {
    fn container(&self, id: &str) -> Answer<Arc<Container>> {
        self.sandbox.container(id).map_err(|error| status(&error))
    }

    fn process(&self, id: &str, exec: &str) -> Answer<Arc<Process>> {
        let process = self.container(id)?.process(exec);
        process.map_err(|error| status(&error.into()))
    }
}

type Answer<T> = ttrpc::Result<T>;

/// Carries a call out to its end. ttrpc drops a handler when its caller's time is over and when
/// containerd goes away, and half of a change must not stay behind.
async fn to_its_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, SandboxError>> + Send + 'static,
) -> Answer<T> {
    let done = tokio::spawn(call).await;
    done.unwrap_or(Err(SandboxError::Interrupted)).map_err(|error| status(&error))
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Answer<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(invalid("checkpoints are not supported"));
        }
        let new = NewContainer {
            id: request.id,
            bundle: PathBuf::from(request.bundle),
            rootfs: request.rootfs,
            stdio: StdioPaths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        let sandbox = self.sandbox.clone();
        let pid = to_its_end(async move { sandbox.create(new).await }).await?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let sandbox = self.sandbox.clone();
        let pid =
            to_its_end(async move { sandbox.start(&request.id, &request.exec_id).await }).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        if request.exec_id.is_empty() {
            self.sandbox.give_up(&request.id);
        }
        let pid = self.container(&request.id)?.host_pid;
        let sandbox = self.sandbox.clone();
        let exit =
            to_its_end(async move { sandbox.delete(&request.id, &request.exec_id).await }).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id).map_err(|error| status(&error.into()))?;
        let mut response = StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: container.host_pid,
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            ..Default::default()
        };
        let state = match process.status() {
            Status::Created => TaskStatus::CREATED,
            Status::Running if container.paused() => TaskStatus::PAUSED,
            Status::Running => TaskStatus::RUNNING,
            Status::Stopped(exit) => {
                response.exit_status = exit.status;
                response.exited_at = MessageField::some(timestamp(exit.at));
                TaskStatus::STOPPED
            }
        };
        response.status = EnumOrUnknown::new(state);
        Ok(response)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let process = self.process(&request.id, &request.exec_id)?;
        let Exit { status, at } = process.wait().await;
        Ok(WaitResponse {
            exit_status: status,
            exited_at: MessageField::some(timestamp(at)),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        if request.exec_id.is_empty() {
            return Err(invalid("an exec needs an id"));
        }
        let stdio = StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.into_option().map(|any| any.value).unwrap_or_default();
        let container = self.container(&request.id)?;
        to_its_end(async move { Ok(container.exec(&request.exec_id, spec, stdio).await?) }).await?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let sandbox = self.sandbox.clone();
        to_its_end(async move {
            sandbox.kill(&request.id, &request.exec_id, request.signal, request.all).await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let (exec, width, height) = (request.exec_id, request.width, request.height);
        to_its_end(async move { Ok(container.resize(&exec, width, height).await?) }).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let process = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        let container = self.container(&request.id)?;
        let pids = to_its_end(async move { Ok(container.pids().await) }).await?;
        let info =
            |exec_id| packed(PROCESS_DETAILS, &ProcessDetails { exec_id, ..Default::default() });
        let process = |(pid, exec): (u32, Option<String>)| {
            let info = exec.map(info).transpose()?.into();
            Ok(ProcessInfo { pid, info, ..Default::default() })
        };
        let processes = pids.into_iter().map(process).collect::<Answer<_>>()?;
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        to_its_end(async move { Ok(container.pause().await?) }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        to_its_end(async move { Ok(container.resume().await?) }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        let text = "checkpoints are not supported".to_owned();
        Err(ttrpc::Error::RpcStatus(get_status(Code::UNIMPLEMENTED, text)))
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let Some(resources) = request.resources.into_option() else {
            return Err(invalid("an update needs resources"));
        };
        let container = self.container(&request.id)?;
        to_its_end(async move { Ok(container.update(resources.value).await?) }).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let container = self.container(&request.id)?;
        let stats = to_its_end(async move { Ok(container.stats().await?) }).await?;
        let any = metrics::any(&stats)?;
        Ok(StatsResponse { stats: MessageField::some(any), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Answer<ConnectResponse> {
        let container = self.sandbox.container(&request.id).ok();
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or_else(|| self.sandbox.host_pid(), |one| one.host_pid),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> Answer<Empty> {
        // containerd sends it after every deletion.
        if request.now || self.sandbox.is_empty() {
            self.stop.notify_one();
        }
        Ok(Empty::new())
    }
}
