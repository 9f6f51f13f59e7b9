//! Security contexts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{Capability, Int64Value, LinuxContainerSecurityContext, SecurityProfile};
use serde_json::json;

use crate::bed::Test;
use crate::cri::container::words;
use crate::cri::pod::Pod;
use crate::ensure;
use crate::failure::Outcome;
use crate::options::{Generation, Runtime};
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("pods.run_as", "runAsUser, runAsGroup, supplementalGroups", run_as),
    Case::any("pods.run_as_name", "a user by the name that the image gives it", run_as_name),
    Case::any("pods.fs_group", "files of a volume belong to the pod's fsGroup", fs_group),
    Case::any(
        "pods.privileged",
        "a privileged container does what it wants, in its pod",
        privileged,
    ),
    Case::any("pods.capabilities", "capabilities are added and dropped", capabilities),
    Case::any(
        "pods.seccomp_default",
        "seccomp RuntimeDefault, with calls that are newer than the profile",
        seccomp_default,
    ),
    Case::any("pods.seccomp_localhost", "a seccomp profile of the node's", seccomp_localhost),
    Case::any(
        "pods.read_only_root",
        "readOnlyRootFilesystem, with volumes that can be written",
        read_only_root,
    ),
    Case::any("pods.no_new_privs", "allowPrivilegeEscalation: false", no_new_privs),
    Case::any("pods.proc_mount", "procMount hides parts of /proc, or does not", proc_mount),
];

/// Runs a script under a security context, to its end; returns what it prints.
fn under(
    pod: &Pod<'_>,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> Outcome<String> {
    Ok(pod.container(name).script(script).security(change).run()?.exits(0)?.out())
}

fn run_as(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod
        .container("app")
        .security(|security| {
            security.run_as_user = Some(Int64Value { value: 1000 });
            security.run_as_group = Some(Int64Value { value: 2500 });
            security.supplemental_groups = vec![4000, 4001];
        })
        .start()?;
    // With the groups of the image's user 1000; the order is nobody's business.
    let groups = "id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '";
    app.prints(&format!("id -u; id -g; {groups}"), "1000\n2500\n2000 2500 3000 4000 4001 ")?;
    app.prints("touch /home/user/file && stat -c %u:%g /home/user/file", "1000:2500\n")?;
    app.prints("touch /file 2> /dev/null || echo refused", "refused\n")
}

fn run_as_name(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod.container("app");
    let app = app.security(|security| "user".clone_into(&mut security.run_as_username)).start()?;
    app.prints("id -u; id -g", "1000\n1000\n")
}

fn fs_group(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    // The kubelet gives the volume to the group, and the group to the container.
    let dir = t.directory()?;
    chown(&dir, None, Some(4000))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775))?;
    let app = pod.container("app").mount(&dir, "/data").security(|security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.supplemental_groups = vec![4000];
    });
    app.start()?.prints("touch /data/file && stat -c %u:%g /data/file", "1000:4000\n")?;
    let file = dir.join("file").metadata()?;
    ensure!((file.uid(), file.gid()) == (1000, 4000), "on the host {}:{}", file.uid(), file.gid());
    Ok(())
}

/// Names the character devices that are none of the kernel's.
const DEAD_DEVICES: &str = "
    find /dev -path /dev/pts -prune -o -type c -print | grep -v /dev/console | while read node; do
        set -- $(stat -c '%t %T' $node)
        test -e /sys/dev/char/$((0x$1)):$((0x$2)) || echo $node
    done";

fn privileged(t: &Test<'_>) -> Outcome {
    let pod = t.pod().security(|security| security.privileged = true).run()?;
    let app = pod.container("app").security(|security| {
        security.privileged = true;
        (security.masked_paths, security.readonly_paths) = (Vec::new(), Vec::new());
    });
    let app = app.start()?;
    app.sh("mount -t tmpfs none /mnt 2> /dev/null || { mkdir /mnt && mount -t tmpfs none /mnt; }")?;
    app.sh("ip link set lo down && ip link set lo up")?;
    // containerd 1.6 cannot be told to allow them.
    if t.bed.options.generation == Generation::Two {
        app.sh(
            "test -c /dev/fuse && : < /dev/fuse && test -c /dev/loop-control && test -b /dev/loop0",
        )?;
        app.sh("truncate -s 1M /disk && losetup -f /disk && losetup -d /dev/loop0")?;
        // Docker's and podman's users open it: anyone may, as udev's rules have it, on whatever host.
        if t.bed.options.runtime == Runtime::Bulkhead {
            app.prints("stat -c %a /dev/net/tun", "666\n")?;
            app.prints(DEAD_DEVICES, "")?;
        }
    }
    app.sh("cat /proc/sys/net/ipv4/ip_forward > /proc/sys/net/ipv4/ip_forward")?;
    app.prints("awk '/^NoNewPrivs|^Seccomp:/ { print $2 }' /proc/self/status", "0\n0\n")
}

fn capabilities(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let effective = "awk '/^CapEff/ { print $2 }' /proc/self/status";
    // As capabilities(7) numbers them: containerd's fourteen; those without CHOWN (0) and with NET_ADMIN (12);
    // none; NET_BIND_SERVICE (10) alone.
    let cases: [(&str, &[&str], &[&str], &str); 4] = [
        ("default", &[], &[], "00000000a80425fb"),
        ("changed", &["NET_ADMIN"], &["CHOWN"], "00000000a80435fa"),
        ("none", &[], &["ALL"], "0000000000000000"),
        ("one", &["NET_BIND_SERVICE"], &["ALL"], "0000000000000400"),
    ];
    for (name, add, drop, mask) in cases {
        let printed = under(&pod, name, effective, |security| {
            security.capabilities = Some(Capability {
                add_capabilities: words(add),
                drop_capabilities: words(drop),
                ..Capability::default()
            });
        })?;
        ensure!(printed == format!("{mask}\n"), "{name}: {printed:?}, not {mask}");
    }
    Ok(())
}

fn profile(kind: ProfileType, file: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: file.to_owned() })
}

fn seccomp_default(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let mode = "awk '/^Seccomp:/ { print $2 }' /proc/self/status";
    let printed = under(&pod, "filtered", mode, |security| {
        security.seccomp = profile(ProfileType::RuntimeDefault, "");
    })?;
    ensure!(printed == "2\n", "RuntimeDefault: {printed:?}");
    let printed = under(&pod, "free", mode, |security| {
        security.seccomp = profile(ProfileType::Unconfined, "");
    })?;
    ensure!(printed == "0\n", "Unconfined: {printed:?}");
    let app =
        pod.container("newer").mount(&t.bed.options.target.join("guest/bulkhead-probe"), "/probe");
    let app = app.security(|security| security.seccomp = profile(ProfileType::RuntimeDefault, ""));
    app.start()?.sh("/probe calls /")?;
    Ok(())
}

fn seccomp_localhost(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let file = t.directory()?.join("profile.json");
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 },
        ],
    });
    fs::write(&file, text.to_string())?;
    let path = file.to_string_lossy().into_owned();
    let app = pod.container("app").security(|security| {
        security.seccomp = profile(ProfileType::Localhost, &path);
    });
    let app = app.start()?;
    app.prints(
        "mkdir /dir 2>&1; awk '/^Seccomp:/ { print $2 }' /proc/self/status",
        "mkdir: can't create directory '/dir': Operation not supported\n2\n",
    )
}

fn read_only_root(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let dir = t.directory()?;
    let app = pod.container("app").mount(&dir, "/data");
    let app = app.security(|security| security.readonly_rootfs = true).start()?;
    app.prints(
        "touch /file 2>&1; touch /data/file /dev/shm/file && echo written",
        "touch: /file: Read-only file system\nwritten\n",
    )
}

fn no_new_privs(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let script = "awk '/^NoNewPrivs/ { print $2 }' /proc/self/status";
    for (name, denied, text) in [("denied", true, "1\n"), ("allowed", false, "0\n")] {
        let printed = under(&pod, name, script, |security| security.no_new_privs = denied)?;
        ensure!(printed == text, "{name}: {printed:?}");
    }
    Ok(())
}

fn proc_mount(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let usual = pod.container("usual").start()?;
    usual.prints(
        "for path in /proc/acpi /proc/scsi /sys/firmware; do test ! -d $path || ls -A $path; done; \
         for path in /proc/kcore /proc/keys /proc/timer_list; do test ! -e $path || head -c 1 $path; done; \
         echo 1 2> /dev/null > /proc/sys/vm/overcommit_memory || echo read-only",
        "read-only\n",
    )?;
    let unmasked = pod.container("unmasked").security(|security| {
        (security.masked_paths, security.readonly_paths) = (Vec::new(), Vec::new());
    });
    let unmasked = unmasked.start()?;
    unmasked.prints(
        "cat /proc/sys/vm/overcommit_memory > /tmp/value && \
         cat /tmp/value > /proc/sys/vm/overcommit_memory && echo written",
        "written\n",
    )
}
