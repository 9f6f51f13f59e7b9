//! The specs, one for each property.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{compare, env, push};
use crate::runner::Case;
use crate::spec::mount;

/// A spec as a test: its name, the property, and what it changes in the plain spec.
macro_rules! specs {
    ($($name:literal, $property:literal, |$spec:ident, $shared:ident| $change:expr;)*) => {
        /// The tests of this directory.
        pub const CASES: &[Case] = &[
            $(Case::any(concat!("diff.", $name), $property, |t| {
                compare(t, |$spec, $shared| { let _ = (&$spec, $shared); $change; })
            }),)*
        ];
    };
}

/// A profile that has no sockets.
fn without_sockets() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{
            "names": ["socket", "connect", "accept", "accept4", "sendto", "sendmsg", "recvfrom", "recvmsg"],
            "action": "SCMP_ACT_KILL_PROCESS",
        }],
    })
}

specs! {
    "plain", "a plain container looks the same", |spec, _shared| {};
    "args", "arguments arrive as they are", |spec, _shared|
        spec["process"]["args"] = json!(["/bin/sh", "/probe.sh", "two words", "", "$HOME", "\u{e4}\\n*"]);
    "env", "the environment is the spec's", |spec, _shared| {
        env(spec, "EMPTY", "");
        env(spec, "EQUALS", "a=b=c");
        env(spec, "SPACES", " x  y ");
        env(spec, "TERM", "xterm");
    };
    "cwd", "the working directory is the spec's, and is made when missing", |spec, _shared|
        spec["process"]["cwd"] = json!("/home/user/made/for/it");
    "cwd_of_user", "a user starts in a directory of its own", |spec, _shared| {
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        spec["process"]["cwd"] = json!("/home/user");
    };
    "user", "user and group ids", |spec, _shared|
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 2000 });
    "user_unknown", "ids that no passwd entry has", |spec, _shared|
        spec["process"]["user"] = json!({ "uid": 12345, "gid": 54321 });
    "groups", "supplementary groups", |spec, _shared|
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [2000, 3000, 77777] });
    "umask", "the umask", |spec, _shared|
        spec["process"]["user"] = json!({ "uid": 0, "gid": 0, "umask": 0o077 });
    "capabilities_none", "no capability at all", |spec, _shared|
        spec["process"]["capabilities"] = json!({ "bounding": [], "effective": [], "permitted": [] });
    "capabilities_few", "exactly the capabilities that are named", |spec, _shared| {
        let few = json!(["CAP_CHOWN", "CAP_NET_ADMIN", "CAP_SYS_TIME"]);
        spec["process"]["capabilities"] = json!({ "bounding": few, "effective": few, "permitted": few });
    };
    "capabilities_ambient", "ambient capabilities of an ordinary user", |spec, _shared| {
        let one = json!(["CAP_NET_BIND_SERVICE"]);
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        spec["process"]["capabilities"] =
            json!({ "bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one });
    };
    "capabilities_ambient_alone", "ambient capabilities that cannot be had", |spec, _shared| {
        let one = json!(["CAP_NET_BIND_SERVICE"]);
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        spec["process"]["capabilities"] =
            json!({ "bounding": one, "effective": one, "permitted": one, "inheritable": [], "ambient": one });
    };
    "capabilities_inheritable", "inheritable capabilities alone", |spec, _shared| {
        let one = json!(["CAP_NET_BIND_SERVICE"]);
        spec["process"]["capabilities"] =
            json!({ "bounding": one, "effective": [], "permitted": [], "inheritable": one });
    };
    "capabilities_missing", "a spec without capabilities", |spec, _shared|
        spec["process"]["capabilities"].take();
    "new_privileges", "no_new_privs only when asked for", |spec, _shared|
        spec["process"]["noNewPrivileges"] = json!(false);
    "rlimits", "every resource limit that is named, soft and hard", |spec, _shared|
        spec["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            { "type": "RLIMIT_NPROC", "soft": 500, "hard": 1000 },
            { "type": "RLIMIT_STACK", "soft": 1048576, "hard": 8388608 },
            { "type": "RLIMIT_FSIZE", "soft": 1048576, "hard": 2097152 },
            { "type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 65536 },
            { "type": "RLIMIT_CPU", "soft": 100, "hard": 100 },
        ]);
    "hostname", "the host name", |spec, _shared| spec["hostname"] = json!("another-name.example");
    "oom_score_adj", "oom_score_adj", |spec, _shared| spec["process"]["oomScoreAdj"] = json!(321);
    "read_only_root", "a read-only root", |spec, _shared| spec["root"]["readonly"] = json!(true);
    "masked_paths", "masked files and directories are empty", |spec, _shared| {
        env(spec, "PROBE_PATHS", "/etc/group /home");
        push(&mut spec["linux"]["maskedPaths"], json!("/etc/group"));
        push(&mut spec["linux"]["maskedPaths"], json!("/home"));
        push(&mut spec["linux"]["maskedPaths"], json!("/no/such/path"));
    };
    "masked_link", "a masked link hides what it leads to", |spec, _shared| {
        let root = PathBuf::from(spec["root"]["path"].as_str().unwrap_or_default());
        let linked = symlink("group", root.join("etc/linked"));
        env(spec, "PROBE_RUN", &format!("echo {}; wc -c < /etc/group; wc -c < /etc/linked", linked.is_ok()));
        push(&mut spec["linux"]["maskedPaths"], json!("/etc/linked"));
    };
    "read_only_paths", "read-only paths", |spec, _shared| {
        env(spec, "PROBE_PATHS", "/etc/new /tmp/new");
        push(&mut spec["linux"]["readonlyPaths"], json!("/etc"));
        push(&mut spec["linux"]["readonlyPaths"], json!("/no/such/path"));
    };
    "read_only_paths_none", "nothing is read-only that the spec doesn't name", |spec, _shared|
        spec["linux"]["readonlyPaths"] = json!([]);
    "sysctls", "namespaced sysctls", |spec, _shared| {
        env(spec, "PROBE_SYSCTLS", "net/ipv4/ip_unprivileged_port_start kernel/msgmax kernel/shm_rmid_forced");
        spec["linux"]["sysctl"] = json!({
            "net.ipv4.ip_unprivileged_port_start": "81",
            "kernel.msgmax": "65537",
            "kernel.shm_rmid_forced": "1",
        });
    };
    "seccomp_errno", "a seccomp profile that refuses a call with an error of its choice", |spec, _shared| {
        env(spec, "PROBE_RUN", "mkdir /tmp/dir; echo code $?; rm -f /tmp/none; echo code $?");
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
        });
    };
    "seccomp_arguments", "a seccomp profile that looks at arguments", |spec, _shared| {
        env(spec, "PROBE_RUN", "chmod 700 /tmp; echo code $?; chmod 755 /tmp; echo code $?");
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{
                "names": ["chmod"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{ "index": 1, "value": 0o755, "op": "SCMP_CMP_EQ" }],
            }],
        });
    };
    "seccomp_masked", "a seccomp profile that looks at some bits of an argument", |spec, _shared| {
        env(spec, "PROBE_RUN", "for mode in 700 500 050; do chmod $mode /tmp; echo code $?; done");
        let bits = json!({ "index": 1, "value": 0o700, "valueTwo": 0o500, "op": "SCMP_CMP_MASKED_EQ" });
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [bits] }],
        });
    };
    "seccomp_kill", "a seccomp profile that kills", |spec, _shared| {
        env(spec, "PROBE_RUN", "sh -c 'mkdir /tmp/dir'; echo code $?");
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" }],
        });
    };
    "seccomp_narrow", "a seccomp profile without what only runtimes do", |spec, _shared|
        spec["linux"]["seccomp"] = without_sockets();
    "seccomp_narrow_privileges", "the same without no_new_privs, and another user", |spec, _shared| {
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        spec["linux"]["seccomp"] = without_sockets();
    };
    "bind_directory", "a directory of the host, read-write", |spec, shared| {
        env(spec, "PROBE_PATHS", "/host/file /host/new");
        push(&mut spec["mounts"], mount("/host", "bind", &shared.to_string_lossy(), &["rbind", "rw"]));
    };
    "bind_read_only", "a directory of the host, read-only, with flags", |spec, shared| {
        env(spec, "PROBE_PATHS", "/host/file /host/new");
        let options = ["bind", "ro", "nosuid", "nodev", "noexec"];
        push(&mut spec["mounts"], mount("/host", "bind", &shared.to_string_lossy(), &options));
    };
    "bind_file", "a file of the host over one of the image, and one where none is", |spec, shared| {
        env(spec, "PROBE_PATHS", "/etc/group /made/for/it");
        let source = shared.join("file").to_string_lossy().into_owned();
        push(&mut spec["mounts"], mount("/etc/group", "bind", &source, &["bind", "ro"]));
        push(&mut spec["mounts"], mount("/made/for/it", "bind", &source, &["bind", "rw"]));
    };
    "bind_on_device", "a file of the host where each container has a device", |spec, shared| {
        env(spec, "PROBE_PATHS", "/dev/random /dev/null");
        env(spec, "PROBE_RUN", "cat /dev/random; echo code $?; head -c 1 /dev/zero | wc -c");
        let source = shared.join("file").to_string_lossy().into_owned();
        push(&mut spec["mounts"], mount("/dev/random", "bind", &source, &["rbind", "ro", "noexec"]));
    };
    "bind_inside_bind", "a mount inside a mount", |spec, shared| {
        env(spec, "PROBE_PATHS", "/host/new /host/inner/new");
        push(&mut spec["mounts"], mount("/host", "bind", &shared.to_string_lossy(), &["rbind", "rw"]));
        push(&mut spec["mounts"], mount("/host/inner", "tmpfs", "tmpfs", &["ro", "size=1024k"]));
    };
    "bind_on_dangling_link", "a file of the host on a link to what is not there", |spec, shared| {
        let root = PathBuf::from(spec["root"]["path"].as_str().unwrap_or_default());
        let linked = symlink("../run/none/stub", root.join("etc/linked"));
        env(spec, "PROBE_PATHS", "/run/none/stub /etc/linked");
        env(spec, "PROBE_RUN", &format!("echo {}; ls -l /etc/linked | sed 's/.*->/->/'", linked.is_ok()));
        let source = shared.join("file").to_string_lossy().into_owned();
        push(&mut spec["mounts"], mount("/etc/linked", "bind", &source, &["bind", "ro"]));
    };
    "mount_without_source", "a file system that is on nothing", |spec, _shared| {
        env(spec, "PROBE_PATHS", "/scratch/new");
        push(&mut spec["mounts"], json!({ "destination": "/scratch", "type": "tmpfs" }));
    };
    "tmpfs", "a tmpfs with size, mode and flags", |spec, _shared| {
        env(spec, "PROBE_PATHS", "/scratch/new");
        env(spec, "PROBE_RUN", "head -c 3000000 /dev/zero > /scratch/big; ls -ld /scratch | cut -c1-10");
        let options = ["nosuid", "noexec", "mode=1700", "size=2m"];
        push(&mut spec["mounts"], mount("/scratch", "tmpfs", "tmpfs", &options));
    };
    "tmpfs_read_only", "a read-only tmpfs with a mount inside", |spec, shared| {
        env(spec, "PROBE_PATHS", "/scratch/new /scratch/deep/host/file");
        push(&mut spec["mounts"], mount("/scratch", "tmpfs", "tmpfs", &["ro", "nosuid"]));
        let source = shared.to_string_lossy().into_owned();
        push(&mut spec["mounts"], mount("/scratch/deep/host", "bind", &source, &["rbind", "ro"]));
    };
    "keyring", "a session keyring of the container's own", |spec, _shared| {
        // Under runc the host's others are there, too.
        env(spec, "PROBE_RUN", "grep -q '[0-9] keyring   _ses' /proc/keys; echo $?");
        if let Some(masked) = spec["linux"]["maskedPaths"].as_array_mut() {
            masked.retain(|path| path != "/proc/keys");
        }
    };
    "sysfs_writable", "a sysfs that is not read-only", |spec, _shared|
        spec["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev"]);
    "devices", "device nodes with mode and owner", |spec, _shared|
        spec["linux"]["devices"] = json!([
            { "path": "/dev/own-null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 1000, "gid": 2000 },
            { "path": "/dev/deep/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 0, "gid": 0 },
        ]);
    "device_twice", "of two devices at one place the first", |spec, _shared|
        spec["linux"]["devices"] = json!([
            { "path": "/dev/own", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 1000, "gid": 2000 },
            { "path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 0, "gid": 0 },
        ]);
    "device_cgroup", "a device that the spec doesn't allow can't be opened", |spec, _shared| {
        env(spec, "PROBE_RUN", "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem; echo code $?; head -c 1 /dev/zero | wc -c");
        spec["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    };
    "device_rules", "rules for one device, one after the other", |spec, _shared| {
        let script = "mknod /tmp/z c 1 5; head -c 1 /tmp/z | wc -c; echo > /tmp/z; echo code $?; echo 1<>/tmp/z; echo code $?
            mknod /tmp/c c 5 1; echo > /tmp/c; echo code $?";
        env(spec, "PROBE_RUN", script);
        let rule = |allow: bool, access: &str| json!({ "allow": allow, "type": "c", "major": 1, "minor": 5, "access": access });
        let none = json!({ "allow": false, "access": "rwm" });
        spec["linux"]["resources"] = json!({ "devices": [none, rule(true, "m"), rule(true, "r")] });
    };
    "pids_limit", "a limit on the number of processes", |spec, _shared| {
        // Only what is built into the shell runs while the limit is reached.
        let script = "(for i in $(seq 40); do sleep 3 & done) 2>/tmp/e; \
                      while read line; do case $line in *fork*) echo refused;; esac; done </tmp/e";
        env(spec, "PROBE_RUN", script);
        spec["linux"]["resources"] = json!({ "pids": { "limit": 20 } });
    };
    "processors", "which processors and memory nodes of the host", |spec, _shared|
        spec["linux"]["resources"] = json!({ "cpu": { "cpus": "0", "mems": "0", "shares": 512 } });
    "memory_limit", "a limit on memory, and what happens above it", |spec, _shared| {
        env(spec, "PROBE_RUN", "sh -c 'head -c 200000000 /dev/zero | tail > /dev/null; exit $?'; echo code $?");
        spec["linux"]["resources"] = json!({ "memory": { "limit": 67108864, "swap": 67108864 } });
    };
    "exit_code", "the exit code", |spec, _shared| env(spec, "PROBE_EXIT", "42");
}
