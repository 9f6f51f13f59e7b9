//! The sandbox that a person means.

use std::path::PathBuf;

use bulkhead_shim::record::{Entry, Record};
use thiserror::Error;

/// An id that names no sandbox, or several.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FindError {
    /// None.
    #[error("no sandbox {0:?} on this host; `bulkhead list` shows all")]
    None(String),
    /// Several.
    #[error("{id:?} may be any of {candidates}; write more of the id, or its --namespace")]
    Several {
        /// What was asked for.
        id: String,
        /// What it may be.
        candidates: String,
    },
}

/// Finds a sandbox that has a record by its id or the start of it; an id written in full wins.
///
/// # Errors
/// [`FindError`]
pub fn find(
    entries: Vec<Entry>,
    id: &str,
    namespace: Option<&str>,
) -> Result<(PathBuf, Record), FindError> {
    let known = entries.into_iter().filter_map(|entry| Some((entry.directory, entry.record.ok()?)));
    let mut found: Vec<(PathBuf, Record)> = known
        .filter(|(_, record)| namespace.is_none_or(|namespace| namespace == record.namespace))
        .filter(|(_, record)| record.id.starts_with(id))
        .collect();
    if found.iter().any(|(_, record)| record.id == id) {
        found.retain(|(_, record)| record.id == id);
    }
    match found.len() {
        0 => Err(FindError::None(id.to_owned())),
        1 => Ok(found.remove(0)),
        _ => {
            let name =
                |(_, record): &(_, Record)| format!("{} (in {})", record.id, record.namespace);
            let candidates = found.iter().map(name).collect::<Vec<_>>().join(", ");
            Err(FindError::Several { id: id.to_owned(), candidates })
        }
    }
}

#[cfg(test)]
pub mod tests {
    use bulkhead_shim::record::ProcessId;

    use super::*;

    /// A sandbox whose shim is gone.
    pub fn entry(namespace: &str, id: &str) -> Entry {
        let gone = ProcessId { role: "shim".to_owned(), pid: u32::MAX, start_time: 1 };
        let vmm = ProcessId { role: "qemu".to_owned(), ..gone };
        let record = Record {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            created_ms: 1_700_000_000_000,
            shim: gone,
            socket: PathBuf::from("/nowhere/shim"),
            processes: vec![vmm],
            hypervisor: "qemu".to_owned(),
            accel: "tcg".to_owned(),
            reason: "why".to_owned(),
            kernel: PathBuf::from("/k"),
            initramfs: PathBuf::from("/i"),
            vcpus: 2,
            memory: 256 << 20,
            share: None,
            api: None,
            devices: vec!["vsock on /v".to_owned()],
            network: None,
            scratch: None,
            alias: None,
            cgroups: Vec::new(),
            phases: Vec::new(),
        };
        Entry { directory: PathBuf::from("/run/bulkhead/x"), record: Ok(record) }
    }

    fn found(id: &str, namespace: Option<&str>) -> Result<String, FindError> {
        let all = [("a", "web"), ("a", "web-2"), ("b", "web"), ("b", "data")];
        let entries = all.map(|(namespace, id)| entry(namespace, id)).into();
        let (_, record) = find(entries, id, namespace)?;
        Ok(format!("{}/{}", record.namespace, record.id))
    }

    #[test]
    fn the_start_of_an_id_is_enough_if_it_is_unique() {
        assert_eq!(found("da", None).as_deref(), Ok("b/data"));
        assert_eq!(found("web-", None).as_deref(), Ok("a/web-2"));
        assert_eq!(found("we", Some("b")).as_deref(), Ok("b/web"));
    }

    #[test]
    fn an_id_in_full_is_not_its_longer_neighbour() {
        assert_eq!(found("web", Some("a")).as_deref(), Ok("a/web"));
    }

    #[test]
    fn several_are_listed() {
        let text = found("web", None).expect_err("two").to_string();
        assert!(text.contains("web (in a), web (in b)"), "{text}");
        assert!(matches!(found("w", None), Err(FindError::Several { .. })));
    }

    #[test]
    fn none_is_none() {
        assert_eq!(found("x", None), Err(FindError::None("x".to_owned())));
        assert_eq!(found("data", Some("a")), Err(FindError::None("data".to_owned())));
    }
}
