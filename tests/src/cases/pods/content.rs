//! What a PodSpec says about a container's surroundings.

use std::collections::HashMap;
use std::fs;

use k8s_cri::v1::DnsConfig;

use crate::bed::Test;
use crate::cri::container::words;
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "pods.hostname",
        "the pod's host name, in each of the places where programs look",
        hostname,
    ),
    Case::any("pods.dns", "resolv.conf as the pod's DNS policy makes it", dns),
    Case::any("pods.hosts", "the kubelet's /etc/hosts", hosts),
    Case::any(
        "pods.shm",
        "/dev/shm has 64 MiB, of which a pod's containers see each other's files",
        shm,
    ),
    Case::any("pods.sysctls", "the pod's sysctls", sysctls),
    Case::any("pods.env", "environment variables, whatever is in them", env),
    Case::any("pods.working_dir", "workingDir, made if the image lacks it", working_dir),
    Case::any(
        "pods.command_args",
        "command and args as Kubernetes merges them with the image's",
        command_args,
    ),
];

fn hostname(t: &Test<'_>) -> Outcome {
    let pod = t.pod().with(|config| config.hostname = "web-0".to_owned()).run()?;
    for name in ["one", "two"] {
        let container = pod.container(name).start()?;
        container.prints("hostname; cat /etc/hostname; echo $HOSTNAME", "web-0\nweb-0\nweb-0\n")?;
    }
    Ok(())
}

fn dns(t: &Test<'_>) -> Outcome {
    let config = DnsConfig {
        servers: words(&["10.96.0.10", "10.96.0.11"]),
        searches: words(&["default.svc.cluster.local", "svc.cluster.local"]),
        options: words(&["ndots:5", "timeout:1"]),
    };
    let pod = t.pod().with(|pod| pod.dns_config = Some(config)).run()?;
    let expected = "search default.svc.cluster.local svc.cluster.local\n\
                    nameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5 timeout:1\n";
    pod.container("app").start()?.prints("cat /etc/resolv.conf", expected)
}

fn hosts(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let file = t.directory()?.join("etc-hosts");
    fs::write(&file, "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n10.1.2.3\tweb-0\n")?;
    let app = pod.container("app").mount(&file, "/etc/hosts").start()?;
    app.prints("grep -c . /etc/hosts; echo 10.9.9.9 added >> /etc/hosts", "3\n")?;
    ensure!(
        fs::read_to_string(&file)?.ends_with("10.9.9.9 added\n"),
        "the host's file is the old one"
    );
    Ok(())
}

fn shm(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let one = pod.container("one").start()?;
    one.prints(
        "df -k /dev/shm | tail -n 1 | awk '{ print $1, $2 }'; stat -c %a /dev/shm",
        "shm 65536\n1777\n",
    )?;
    one.sh("echo kept > /dev/shm/file")?;
    one.stop(0)?;
    pod.container("two").start()?.prints("cat /dev/shm/file", "kept\n")
}

fn sysctls(t: &Test<'_>) -> Outcome {
    let wanted = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("net.ipv4.tcp_syncookies", "0"),
    ];
    let map: HashMap<String, String> =
        wanted.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let pod = t.pod().linux(|linux| linux.sysctls = map).run()?;
    let app = pod.container("app").start()?;
    for (key, value) in wanted {
        let file = key.replace('.', "/");
        app.prints(&format!("cat /proc/sys/{file}"), &format!("{value}\n"))?;
    }
    Ok(())
}

fn env(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let app = pod
        .container("app")
        .env("PLAIN", "value")
        .env("EMPTY", "")
        .env("STRANGE", "two words = \"quoted\"\nand a line\t$HOME ü")
        .env("PATH", "/bin:/extra")
        .start()?;
    app.prints(
        "echo $PLAIN:${EMPTY-unset}:$PATH; echo \"$STRANGE\"",
        "value::/bin:/extra\ntwo words = \"quoted\"\nand a line\t$HOME ü\n",
    )
}

fn working_dir(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    for (name, dir) in [("there", "/home/user"), ("new", "/made/up")] {
        let plan = pod.container(name).command(&["pwd"]);
        let done = plan.with(|config| config.working_dir = dir.to_owned()).run()?.exits(0)?;
        ensure!(done.out() == format!("{dir}\n"), "{:?}", done.lines);
    }
    Ok(())
}

fn command_args(t: &Test<'_>) -> Outcome {
    let pod = t.pod().run()?;
    let both = pod.container("both").command(&["echo", "a"]);
    let done = both.with(|config| config.args = words(&["b", "c d"])).run()?.exits(0)?;
    ensure!(done.out() == "a b c d\n", "{:?}", done.lines);
    let args = pod.container("args").command(&[]);
    let done = args.with(|config| config.args = words(&["echo", "args"])).run()?.exits(0)?;
    ensure!(done.out() == "args\n", "{:?}", done.lines);
    // The image's own: a shell, whose input is at its end.
    pod.container("neither").command(&[]).run()?.exits(0).map(drop)
}
