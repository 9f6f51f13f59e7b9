//! `bulkhead list`.

use std::io::{self, Write};
use std::time::Duration;

use bulkhead_shim::record::{Entry, Record, now_ms};
use serde_json::{Value, json};

use crate::text;

/// Whether a sandbox's shim is there, and what for.
pub fn state(record: &Record) -> &'static str {
    match (record.shim.is_alive(), record.is_spare()) {
        (true, true) => "spare",
        (true, false) => "running",
        (false, _) => "left over",
    }
}

/// Shows all sandboxes.
///
/// # Errors
/// Those of `out`.
pub fn run(entries: &[Entry], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        let values: Vec<Value> = entries.iter().map(value).collect();
        return writeln!(out, "{:#}", Value::Array(values));
    }
    let header = ["ID", "NAMESPACE", "STATE", "HYPERVISOR", "VCPUS", "MEMORY", "VMM PID", "AGE"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(row));
    text::table(out, &rows)
}

fn row(entry: &Entry) -> Vec<String> {
    let Ok(record) = &entry.record else {
        return vec!["?".to_owned(), "?".to_owned(), "no record".to_owned(), directory(entry)];
    };
    let age = Duration::from_millis(now_ms().saturating_sub(record.created_ms));
    vec![
        record.id.clone(),
        record.namespace.clone(),
        state(record).to_owned(),
        format!("{} ({})", record.hypervisor, record.accel),
        record.vcpus.to_string(),
        text::mib(record.memory),
        record.processes.first().map_or_else(|| "-".to_owned(), |vmm| vmm.pid.to_string()),
        text::age(age),
    ]
}

fn value(entry: &Entry) -> Value {
    match &entry.record {
        Ok(record) => json!({
            "id": record.id,
            "namespace": record.namespace,
            "state": state(record),
            "hypervisor": record.hypervisor,
            "accel": record.accel,
            "vcpus": record.vcpus,
            "memory": record.memory,
            "created_ms": record.created_ms,
            "directory": directory(entry),
        }),
        Err(_) => json!({ "state": "no record", "directory": directory(entry) }),
    }
}

fn directory(entry: &Entry) -> String {
    entry.directory.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find::tests::entry;

    fn shown(entries: &[Entry], json: bool) -> String {
        let mut out = Vec::new();
        run(entries, json, &mut out).expect("write");
        String::from_utf8(out).expect("text")
    }

    fn without_record() -> Entry {
        let record = Record::read("/nowhere".as_ref());
        Entry { directory: "/run/bulkhead/y".into(), record }
    }

    #[test]
    fn a_sandbox_is_a_line() {
        let text = shown(&[entry("default", "web"), without_record()], false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID   NAMESPACE  STATE"), "{text}");
        assert!(lines[1].starts_with("web  default    left over  qemu (tcg)"), "{text}");
        assert!(lines[2].contains("no record  /run/bulkhead/y"), "{text}");
    }

    #[test]
    fn json_is_a_list_also_of_nothing() {
        assert_eq!(shown(&[], true), "[]\n");
        let text = shown(&[entry("default", "web"), without_record()], true);
        let value: Value = serde_json::from_str(&text).expect("json");
        assert_eq!(value[0]["id"], "web");
        assert_eq!(value[0]["state"], "left over");
        assert_eq!(value[1]["directory"], "/run/bulkhead/y");
    }
}
