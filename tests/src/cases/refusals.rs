//! A host that isn't right: what `ctr run` then says, and that nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bed::Test;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::runner::Case;
use crate::ward::Ward;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "refusals.silent_guest",
        "a guest whose agent never comes ends at the deadline",
        silent_guest,
    ),
    Case::bulkhead(
        "refusals.panic_at_boot",
        "a kernel that panics at boot is seen at once, with its words",
        panic,
    ),
    Case::bulkhead("refusals.config_key", "an unknown key is named, with its file", config_key),
    Case::bulkhead(
        "refusals.config_value",
        "a value out of range is named, with what is allowed",
        config_value,
    ),
    Case::bulkhead("refusals.config_type", "a value of the wrong type is named", config_type),
    Case::bulkhead(
        "refusals.config_syntax",
        "a file that is not TOML is named, with its line",
        config_syntax,
    ),
    Case::bulkhead(
        "refusals.config_missing",
        "a configuration file that isn't there is named",
        config_missing,
    ),
    Case::bulkhead(
        "refusals.config_unreadable",
        "a configuration file that can't be read is named",
        config_unreadable,
    ),
    Case::bulkhead("refusals.no_kernel", "a kernel that isn't there is named", no_kernel),
    Case::bulkhead(
        "refusals.not_a_kernel",
        "a kernel that is none is refused, and quickly",
        not_a_kernel,
    ),
    Case::bulkhead("refusals.no_initramfs", "an initramfs that isn't there is named", no_initramfs),
    Case::bulkhead("refusals.no_vmm", "a VMM that isn't there is named", no_vmm),
    Case::bulkhead(
        "refusals.vmm_not_executable",
        "a VMM that can't be executed is named",
        vmm_not_executable,
    ),
    Case::bulkhead(
        "refusals.vmm_ends",
        "a VMM that ends at once is told with its last words",
        vmm_ends,
    ),
    Case::bulkhead("refusals.no_virtiofsd", "a virtiofsd that isn't there is named", no_virtiofsd),
    Case::bulkhead(
        "refusals.virtiofsd_ends",
        "a virtiofsd that ends at once is told",
        virtiofsd_ends,
    ),
    Case::bulkhead("refusals.no_vsock", "a vsock daemon that isn't there is named", no_vsock),
    Case::bulkhead(
        "refusals.then_all_is_well",
        "after a refusal the next container starts",
        then_all_is_well,
    ),
];

fn silent_guest(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    // busybox as init starts no agent, but says on the console that it lacks its start-up script.
    let initramfs = ward.initramfs(Path::new("/bin/busybox"))?;
    // A kernel on a busy host may take this long to come to its init.
    let patience = 20 * u64::from(t.bed.options.patience);
    ward.configure(&format!("initramfs = {initramfs:?}\nagent_timeout = {patience}\n"))?;
    let done = ward.refused(40, &["rcS"])?;
    ensure!(
        done.took >= Duration::from_secs(patience),
        "it gave up after {:.1} s",
        done.took.as_secs_f64()
    );
    Ok(())
}

fn panic(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let init = PathBuf::from(ward.script("init", "true")?);
    // Nothing in the initramfs can run it.
    fs::write(&init, "#!/no/such/interpreter\n")?;
    let initramfs = ward.initramfs(&init)?;
    ward.configure(&format!("initramfs = {initramfs:?}\nagent_timeout = 600\n"))?;
    ward.refused(15, &["panic"]).map(drop)
}

fn config_key(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("no_such_key = 1")?;
    ward.refused(10, &["no_such_key", &ward.config_file()]).map(drop)
}

fn config_value(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    for (line, texts) in [
        ("vcpus = 0", ["vcpus", "1 to 64"]),
        ("memory = \"3MiB\"", ["memory", "64"]),
        ("agent_timeout = 100000", ["agent_timeout", "600"]),
    ] {
        ward.configure(line)?;
        ward.refused(10, &[texts[0], texts[1], &ward.config_file()])?;
    }
    Ok(())
}

fn config_type(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("vcpus = \"many\"")?;
    ward.refused(10, &["vcpus", &ward.config_file()]).map(drop)
}

fn config_syntax(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.node.configure("# fine\nthis is not TOML\n")?;
    ward.refused(10, &["line 2", &ward.config_file()]).map(drop)
}

fn config_missing(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    fs::remove_file(ward.node.config_file())?;
    ward.refused(10, &["No such file", &ward.config_file()]).map(drop)
}

fn config_unreadable(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    // Permissions don't stop root; a directory in the file's place does.
    fs::remove_file(ward.node.config_file())?;
    fs::create_dir(ward.node.config_file())?;
    ward.refused(10, &["directory", &ward.config_file()]).map(drop)
}

fn no_kernel(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("kernel = \"/no/such/vmlinux\"")?;
    ward.refused(10, &["kernel", "/no/such/vmlinux", "No such file"]).map(drop)
}

fn not_a_kernel(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let file = ward.scratch.join("vmlinux");
    fs::write(&file, "not a kernel\n".repeat(10_000))?;
    ward.configure(&format!("kernel = {file:?}\nagent_timeout = 600"))?;
    ward.refused(20, &["kernel"]).map(drop)
}

fn no_initramfs(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("initramfs = \"/no/such/initramfs\"")?;
    ward.refused(10, &["initramfs", "/no/such/initramfs", "No such file"]).map(drop)
}

fn no_vmm(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure(&format!("{} = \"/no/such/vmm\"", ward.vmm_key()))?;
    ward.refused(10, &[ward.vmm_key(), "/no/such/vmm"]).map(drop)
}

fn vmm_not_executable(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let file = ward.scratch.join("vmm");
    fs::write(&file, "")?;
    ward.configure(&format!("{} = {file:?}", ward.vmm_key()))?;
    ward.refused(10, &[ward.vmm_key(), &file.to_string_lossy()]).map(drop)
}

fn vmm_ends(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let vmm = ward.script("vmm", "echo these are my last words >&2; exit 3")?;
    ward.configure(&format!("{} = {vmm:?}\nagent_timeout = 600", ward.vmm_key()))?;
    ward.refused(15, &["these are my last words"]).map(drop)
}

fn no_virtiofsd(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("virtiofsd = \"/no/such/virtiofsd\"")?;
    ward.refused(10, &["virtiofsd", "/no/such/virtiofsd"]).map(drop)
}

fn virtiofsd_ends(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    let daemon = ward.script("virtiofsd", "echo no share today >&2; exit 1")?;
    ward.configure(&format!("virtiofsd = {daemon:?}\nagent_timeout = 600"))?;
    ward.refused(20, &["virtiofsd", "no share today"]).map(drop)
}

fn no_vsock(t: &Test<'_>) -> Outcome {
    if t.bed.options.hypervisor != "qemu" {
        return Err(Failure::not_here("the VMM has its vsock itself"));
    }
    let ward = Ward::new(t)?;
    ward.configure("vhost_device_vsock = \"/no/such/daemon\"")?;
    ward.refused(10, &["vhost_device_vsock", "/no/such/daemon"]).map(drop)
}

fn then_all_is_well(t: &Test<'_>) -> Outcome {
    let ward = Ward::new(t)?;
    ward.configure("vcpus = 0")?;
    ward.refused(10, &["vcpus"])?;
    ward.configure("")?;
    let container = ward.container();
    container.run(&[], &["true"])?.ok()?;
    ward.nothing_left(&container.id)
}
