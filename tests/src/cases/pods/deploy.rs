//! What `deploy/` has for a node.

use std::fs;
use std::path::Path;

use crate::bed::Test;
use crate::command::{self, Input};
use crate::ensure;
use crate::failure::Outcome;
use crate::options::Generation;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[Case::bulkhead(
    "pods.drop_in",
    "containerd takes the section that deploy/ has for its version",
    drop_in,
)];

fn drop_in(t: &Test<'_>) -> Outcome {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/containerd");
    let file = t.directory()?.join("config.toml");
    match t.bed.options.generation {
        Generation::One => drop(fs::copy(deploy.join("bulkhead-v2.toml"), &file)?),
        Generation::Two => {
            let drop_in = deploy.join("bulkhead-v3.toml");
            fs::write(&file, format!("version = 3\nimports = [{drop_in:?}]\n"))?;
        }
    }
    let mut dump = t.bed.containerd.tool("containerd");
    dump.arg("--config").arg(&file).args(["config", "dump"]);
    let merged = command::run(dump, Input::Null, t.deadline(30))?.ok()?.out().replace('\'', "\"");
    let section = merged.split("runtimes.bulkhead]").nth(1).unwrap_or_default();
    let section = section.split("\n\n").next().unwrap_or_default();
    let mut lines = vec![
        "runtime_type = \"io.containerd.bulkhead.v2\"",
        "pod_annotations = [\"io.bulkhead.*\"]",
        "privileged_without_host_devices = true",
    ];
    // containerd 1.6 knows no such key.
    if t.bed.options.generation == Generation::Two {
        lines.push("privileged_without_host_devices_all_devices_allowed = true");
    }
    for line in lines {
        ensure!(section.contains(line), "{line} is not in containerd's configuration:\n{section}");
    }
    Ok(())
}
