//! Which containers and processes there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::{Container, Process};
use crate::error::{Error, Result};
use crate::sys::lock;

/// A container with its processes; the first one's key is the empty name.
struct Entry {
    container: Arc<Container>,
    processes: HashMap<String, Arc<Process>>,
}

/// All containers. Its lock is held for a look-up, never during the work itself.
#[derive(Default)]
pub struct Containers(Mutex<HashMap<String, Entry>>);

impl Containers {
    /// Takes the name of a new container.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`].
    pub fn reserve(&self, container: &Arc<Container>) -> Result<()> {
        let mut table = lock(&self.0);
        if table.contains_key(container.id()) {
            return Err(Error::AlreadyExists(format!(
                "container {} is there already",
                container.id()
            )));
        }
        let entry = Entry { container: Arc::clone(container), processes: HashMap::new() };
        table.insert(container.id().to_owned(), entry);
        Ok(())
    }

    /// Makes a process known.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if its name is taken, [`Error::NotFound`] if its container is gone.
    pub fn add(&self, process: &Arc<Process>) -> Result<()> {
        let mut table = lock(&self.0);
        let id = process.container().id();
        let entry = table.get_mut(id).ok_or_else(|| no_container(id))?;
        if entry.processes.contains_key(process.exec()) {
            return Err(Error::AlreadyExists(format!("{} is there already", process.name())));
        }
        entry.processes.insert(process.exec().to_owned(), Arc::clone(process));
        Ok(())
    }

    /// A container by name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        let table = lock(&self.0);
        let entry = table.get(id).ok_or_else(|| no_container(id))?;
        Ok(Arc::clone(&entry.container))
    }

    /// A process by name; an empty `exec` is the container's first process.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        let table = lock(&self.0);
        let entry = table.get(id).ok_or_else(|| no_container(id))?;
        entry.processes.get(exec).map(Arc::clone).ok_or_else(|| {
            if exec.is_empty() {
                Error::FailedPrecondition(format!("container {id} is still being created"))
            } else {
                Error::NotFound(format!("container {id} has no exec {exec}"))
            }
        })
    }

    /// The execs of a container that run, by their pids.
    pub fn execs(&self, id: &str) -> HashMap<u32, String> {
        let table = lock(&self.0);
        let processes = table.get(id).into_iter().flat_map(|entry| &entry.processes);
        let execs = processes.filter(|(exec, process)| !exec.is_empty() && process.is_running());
        execs.filter_map(|(exec, process)| Some((process.pid()?, exec.clone()))).collect()
    }

    /// Forgets an exec.
    pub fn remove_process(&self, process: &Process) {
        if let Some(entry) = lock(&self.0).get_mut(process.container().id()) {
            entry.processes.remove(process.exec());
        }
    }

    /// Forgets a container with all its processes.
    pub fn remove_container(&self, id: &str) {
        lock(&self.0).remove(id);
    }
}

fn no_container(id: &str) -> Error {
    Error::NotFound(format!("there is no container {id}"))
}

#[cfg(test)]
mod tests {
    use super::super::process::State;
    use super::*;
    use crate::events::Events;

    #[test]
    fn names_are_taken_once_and_given_back() {
        let table = Containers::default();
        let container = Arc::new(Container::new("c"));
        table.reserve(&container).unwrap();
        assert!(matches!(table.reserve(&container), Err(Error::AlreadyExists(_))));
        assert!(matches!(table.process("c", ""), Err(Error::FailedPrecondition(_))));
        assert!(matches!(table.process("c", "e"), Err(Error::NotFound(_))));

        let events = Arc::new(Events::new());
        let exec = Process::new(container, "e", events, State::Running);
        table.add(&exec).unwrap();
        assert!(matches!(table.add(&exec), Err(Error::AlreadyExists(_))));
        assert!(table.process("c", "e").unwrap().is_running());
        table.remove_process(&exec);
        assert!(matches!(table.process("c", "e"), Err(Error::NotFound(_))));

        table.remove_container("c");
        assert!(matches!(table.container("c"), Err(Error::NotFound(_))));
        assert!(matches!(table.add(&exec), Err(Error::NotFound(_))));
    }
}
