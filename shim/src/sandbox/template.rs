//! Making the host's template: a sandbox without a container, whose guest waits instead of going on.

use std::io;
use std::path::PathBuf;

use bulkhead_protocols::TEMPLATE_PARAM;
use slog::{Discard, Logger, o};
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::launch::{self, Origin, Parts};
use super::phases::Phases;
use super::{Identity, Pod, SandboxError};
use crate::config::Config;
use crate::storage::share::enter_mount_namespace;
use crate::vmm::{Selection, Template, TemplateError};

/// Why there is no template.
#[derive(Debug, Error)]
pub enum CreateError {
    /// A sandbox does not start.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Its guest cannot be kept.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// This process cannot be prepared for a sandbox.
    #[error("a mount namespace and an event loop")]
    Process(#[source] io::Error),
    /// A signal has ended it.
    #[error("interrupted")]
    Interrupted,
}

/// Makes the template that sandboxes with this configuration start from, and puts it in the place of the one that
/// there is. One sandbox has been started from it before it is anybody's. Call it while there is one thread.
///
/// # Errors
/// [`CreateError`]; there is no new template then, and nothing else is left.
pub fn create(config: &Config) -> Result<PathBuf, CreateError> {
    enter_mount_namespace().map_err(CreateError::Process)?;
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(CreateError::Process)?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(CreateError::Process)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CreateError::Process)?;
        tokio::select! {
            made = make(config) => made,
            _ = terminate.recv() => Err(CreateError::Interrupted),
            _ = interrupt.recv() => Err(CreateError::Interrupted),
        }
    })
}

/// The host's template, if it has one that sandboxes with this configuration start from.
///
/// # Errors
/// [`CreateError`]; that it does not fit them is one.
pub fn find(config: &Config) -> Result<Option<Template>, CreateError> {
    let selection = Selection::of(config).map_err(SandboxError::from)?;
    let spec = launch::spec(config, &config.state_dir)?;
    Ok(selection.template(&config.state_dir, &spec)?)
}

async fn make(config: &Config) -> Result<PathBuf, CreateError> {
    let log = Logger::root(Discard, o!());
    let selection = Selection::of(config).map_err(SandboxError::from)?;
    if !selection.has_templates() {
        return Err(TemplateError::Unsupported { vmm: selection.vmm.name() }.into());
    }
    let (parts, template) = boot(config, &log).await?;
    try_out(config, template, &log).await?;
    Ok(Template::publish(&parts.spec.dir, &config.state_dir)?)
}

/// Boots a guest up to where it waits, and keeps it.
async fn boot(config: &Config, log: &Logger) -> Result<(Parts, Template), CreateError> {
    let mut config = config.clone();
    config.kernel_params.push(TEMPLATE_PARAM.to_owned());
    let (phases, pod) = (Phases::start(), Pod::default());
    let (parts, control) =
        launch::devices(&config, &identity("template"), &pod, Origin::Boot, &phases, log).await?;
    // The agent calls to say that it waits; there is nothing else to hear on that connection.
    drop(launch::agent(&parts, control, &config).await?);
    let template = parts.selection.keep(&*parts.vm, &parts.spec)?;
    Ok((parts, template))
}

/// Starts a sandbox from the template, and ends it.
async fn try_out(config: &Config, template: Template, log: &Logger) -> Result<(), SandboxError> {
    let (phases, pod) = (Phases::start(), Pod::default());
    let origin = Origin::Template(template);
    let (parts, control) =
        launch::devices(config, &identity("trial"), &pod, origin, &phases, log).await?;
    let connection = launch::agent(&parts, control, config).await?;
    launch::guest(&parts, connection, config, &pod, &phases, log).await?;
    Ok(())
}

/// Of a sandbox that is no container's.
fn identity(what: &str) -> Identity {
    Identity {
        namespace: "bulkhead".to_owned(),
        id: format!("{what}-{}", std::process::id()),
        socket: PathBuf::new(),
    }
}
