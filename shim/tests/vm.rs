//! Boots real VMs. The kernel and the VMM are those of the configuration (`BULKHEAD_CONFIG`).
//! The guest has an init of busybox, so nothing of the agent is needed.
//!
//! `cargo test -p bulkhead-shim --test vm -- --ignored`

// The helpers of tests are tests too.
#![allow(clippy::expect_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_shim::config::Config;
use bulkhead_shim::storage::virtiofsd::{Daemon, Virtiofsd};
use bulkhead_shim::vmm::{Selection, Share, Vm, VmExit, VmSpec, Wires};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

/// Enough for a guest in the nested test bed on a busy machine, where it takes 5 to 50 s.
const PATIENCE: Duration = Duration::from_secs(180);

/// A VM and what it stands on.
struct Guest {
    vm: Box<dyn Vm>,
    virtiofsd: Daemon,
    console: Console,
    share: PathBuf,
    started: Instant,
    _dir: TempDir,
}

/// Collects what the guest prints.
struct Console {
    reader: thread::JoinHandle<String>,
    /// Our own writing end: without one, a FIFO reads as ended before the VMM has come.
    writer: File,
}

impl Console {
    fn read(path: &Path) -> Console {
        mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).expect("mkfifo");
        // Opened for both, it waits for nobody.
        let writer = OpenOptions::new().read(true).write(true).open(path).expect("console");
        let mut fifo = File::open(path).expect("console");
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            fifo.read_to_end(&mut text).expect("console");
            String::from_utf8_lossy(&text).into_owned()
        });
        Console { reader, writer }
    }

    /// All of it, once the VMM has ended.
    fn text(self) -> String {
        drop(self.writer);
        self.reader.join().expect("console")
    }
}

/// An initramfs in which busybox runs `init`; without one there is no init at all.
fn initramfs(dir: &Path, init: Option<&str>) -> PathBuf {
    let tree = dir.join("tree");
    for sub in ["bin", "proc", "sys", "mnt", "dev"] {
        fs::create_dir_all(tree.join(sub)).expect("mkdir");
    }
    let mut names = String::from(".\nbin\nproc\nsys\nmnt\ndev\n");
    if let Some(init) = init {
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
        let script = format!("#!/bin/busybox sh\n{init}\n");
        let mut file = OpenOptions::new();
        let file = file.create(true).write(true).truncate(true).mode(0o755).open(tree.join("init"));
        file.expect("init").write_all(script.as_bytes()).expect("init");
        names += "bin/busybox\ninit\n";
    }
    let image = dir.join("initramfs.cpio");
    let mut cpio = Command::new("cpio")
        .args(["-o", "-H", "newc", "--quiet"])
        .current_dir(&tree)
        .stdin(Stdio::piped())
        .stdout(File::create(&image).expect("image"))
        .spawn()
        .expect("cpio is installed");
    cpio.stdin.take().expect("stdin").write_all(names.as_bytes()).expect("names");
    assert!(cpio.wait().expect("cpio").success());
    image
}

async fn boot(init: Option<&str>) -> Guest {
    boot_with(init, |_| ()).await
}

async fn boot_with(init: Option<&str>, prepare: impl FnOnce(&mut VmSpec)) -> Guest {
    let config = Config::load().expect("configuration");
    let dir = tempfile::tempdir().expect("tempdir");
    let share = dir.path().join("share");
    fs::create_dir(&share).expect("mkdir");
    let sandbox = dir.path().join("sandbox");
    fs::create_dir(&sandbox).expect("mkdir");
    let socket = dir.path().join("virtiofs");
    let program = config.files.virtiofsd().expect("virtiofsd");
    let virtiofsd = Virtiofsd {
        program: &program,
        dir: &share,
        socket: &socket,
        cache: config.virtiofsd_cache,
        threads: config.virtiofsd_threads,
    };
    let virtiofsd = virtiofsd.start().expect("virtiofsd");
    let mut spec = VmSpec {
        dir: sandbox,
        kernel: config.files.kernel().expect("kernel"),
        initramfs: initramfs(dir.path(), init),
        cmdline: config.kernel_params.clone(),
        vcpus: 2,
        memory: 128 << 20,
        nested: false,
        network_devices: 0,
        disks: Vec::new(),
        console: dir.path().join("console"),
        share: Some(Share { tag: "share".to_owned(), socket }),
    };
    let console = Console::read(&spec.console);
    prepare(&mut spec);
    let selection = Selection::of(&config).expect("a VMM");
    eprintln!("{selection}");
    let started = Instant::now();
    let namespace = File::open("/proc/self/ns/net").expect("namespace").into();
    let wires = Wires { taps: Vec::new(), namespace };
    let vm = selection.start(&spec, wires).await.expect("start");
    eprintln!("VMM spawned after {:?}", started.elapsed());
    Guest { vm, virtiofsd, console, share, started, _dir: dir }
}

impl Guest {
    async fn end(self) -> (VmExit, String) {
        let exit = tokio::time::timeout(PATIENCE, self.vm.wait()).await.expect("an end in time");
        eprintln!("over after {:?}: {exit}", self.started.elapsed());
        for process in self.vm.processes() {
            assert!(!Path::new(&format!("/proc/{}", process.pid)).exists(), "{process:?} lives");
        }
        // Without its VMM the daemon ends by itself, or with this.
        self.virtiofsd.kill();
        (exit, self.console.text())
    }
}

const MOUNT: &str = "/bin/busybox mount -t virtiofs share /mnt || /bin/busybox reboot -f";
const RESET: &str = "/bin/busybox reboot -f";

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_guest_sees_its_share_and_its_reset_is_the_end() {
    let init = format!("{MOUNT}\n/bin/busybox cat /mnt/in >/mnt/out\n{RESET}");
    let guest = boot_with(Some(&init), |spec| {
        let share = spec.console.parent().expect("dir").join("share");
        fs::write(share.join("in"), "through the share").expect("write");
    })
    .await;
    let out = guest.share.join("out");
    let processes = guest.vm.processes();
    assert_eq!(processes[0].pid, guest.vm.pid());
    let exit = tokio::time::timeout(PATIENCE, guest.vm.wait()).await.expect("an end in time");
    assert_eq!(fs::read_to_string(out).expect("out"), "through the share");
    let (again, console) = guest.end().await;
    assert_eq!((&exit, &again), (&VmExit::GuestReset, &VmExit::GuestReset), "{console}");
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_guest_has_the_processors_and_the_memory_of_its_specification() {
    let proc = "/bin/busybox mount -t proc proc /proc";
    let look = "/bin/busybox cat /proc/cpuinfo /proc/meminfo >/mnt/out";
    let guest = boot(Some(&format!("{MOUNT}\n{proc}\n{look}\n{RESET}"))).await;
    let out = guest.share.join("out");
    tokio::time::timeout(PATIENCE, guest.vm.wait()).await.expect("an end in time");
    let text = fs::read_to_string(out).expect("out");
    assert_eq!(text.lines().filter(|line| line.starts_with("processor")).count(), 2, "{text}");
    let flags = text.lines().find(|line| line.starts_with("flags")).expect("flags");
    assert!(!flags.split(' ').any(|flag| flag == "vmx" || flag == "svm"), "{flags}");
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("MemTotal");
    let kib: u64 = total.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!((80 << 10..=128 << 10).contains(&kib), "{kib} KiB");
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_kernel_that_panics_ends_the_vm_and_says_so_on_the_console() {
    let (exit, console) = boot(None).await.end().await;
    assert!(matches!(exit, VmExit::GuestPanic | VmExit::GuestReset), "{exit:?}");
    assert!(console.contains("Kernel panic - not syncing"), "{console}");
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn an_init_that_ends_is_a_panic() {
    let (exit, console) = boot(Some("exit 0")).await.end().await;
    assert!(matches!(exit, VmExit::GuestPanic | VmExit::GuestReset), "{exit:?}");
    assert!(console.contains("Attempted to kill init"), "{console}");
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_killed_vm_leaves_no_process() {
    let guest = boot(Some("/bin/busybox sleep 1000")).await;
    guest.vm.kill();
    guest.vm.kill();
    let (exit, _) = guest.end().await;
    assert_eq!(exit, VmExit::Killed);
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_vmm_killed_by_someone_else_is_told_apart() {
    let guest = boot(Some("/bin/busybox sleep 1000")).await;
    let pid = nix::unistd::Pid::from_raw(guest.vm.pid().try_into().expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    let exit = guest.end().await.0.to_string();
    assert!(exit.contains("was killed by SIGKILL"), "{exit}");
}

#[tokio::test]
#[ignore = "boots a VM"]
async fn a_kernel_that_is_none_is_named_by_the_vmm() {
    let garbage = |spec: &mut VmSpec| {
        spec.kernel = spec.console.with_file_name("kernel");
        fs::write(&spec.kernel, "no kernel at all").expect("write");
    };
    let (exit, _) = boot_with(None, garbage).await.end().await;
    assert!(matches!(&exit, VmExit::Ended { ended, .. } if !ended.output.is_empty()), "{exit:?}");
}
