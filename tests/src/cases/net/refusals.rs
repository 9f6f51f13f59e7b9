//! Networks that cannot be had: the answer says why, no VM starts, and the namespace stays as it is.

use super::interfaces::{Pair, traces};
use crate::bed::Test;
use crate::ensure;
use crate::failure::Outcome;
use crate::network::Network;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "net.no_namespace",
        "a path that is no network namespace is refused",
        no_namespace,
    ),
    Case::bulkhead("net.no_ethernet", "an interface that is no Ethernet is named", no_ethernet),
    Case::bulkhead("net.stacked", "an interface on top of another one is named", stacked),
    Case::bulkhead("net.mtu", "an MTU that does not fit is named with what does", mtu),
    Case::bulkhead(
        "net.taken",
        "a namespace that another sandbox has is refused, and that one goes on",
        taken,
    ),
    Case::bulkhead("net.hundred", "a hundred interfaces are refused", hundred),
];

fn refused(t: &Test<'_>, path: &str, texts: &[&str]) -> Outcome {
    for text in texts {
        let container = t.container();
        let namespace = format!("network:{path}");
        let done = container.run(&["--with-ns", &namespace], &["echo", "ran"])?;
        done.refused(&[text])?;
        container.remove();
    }
    Ok(())
}

/// The same for a namespace, which is to stay as it is.
fn refused_there(t: &Test<'_>, network: &Network, texts: &[&str]) -> Outcome {
    let before = traces(network)?;
    refused(t, &network.path(), texts)?;
    let after = traces(network)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

fn no_namespace(t: &Test<'_>) -> Outcome {
    refused(t, "/nowhere/net", &["/nowhere/net: No such file or directory"])?;
    refused(t, "/etc/hostname", &["/etc/hostname: it is no network namespace"])?;
    refused(t, "/proc/self/ns/uts", &["/proc/self/ns/uts: it is no network namespace"])?;
    let own = format!("/proc/{}/ns/net", std::process::id());
    refused(t, &own, &["it is the host's own"])
}

fn no_ethernet(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.pod.sh("ip tuntap add tun3 mode tun; ip link set tun3 up")?;
    refused_there(t, &pair.pod, &["interface tun3", "of type tun; only Ethernet"])
}

fn stacked(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.pod.sh("ip link add link eth0 name mac5 type macvlan mode bridge; ip link set mac5 up")?;
    refused_there(t, &pair.pod, &["interface mac5", "of type macvlan and made of an interface"])
}

fn mtu(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.pod.sh("ip link set eth0 mtu 65535")?;
    refused_there(t, &pair.pod, &["interface eth0", "its MTU is 65535; allowed are 68 to 65521"])
}

fn taken(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    refused_there(t, &pair.pod, &["another sandbox has its interfaces"])?;
    container.sh("ping -c 1 -W 5 10.9.0.1").map(drop)
}

fn hundred(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.pod.sh("for n in $(seq 50); do
             echo link add many$n type veth peer name more$n
             echo link set many$n up; echo link set more$n up
         done | ip -batch -")?;
    refused_there(t, &pair.pod, &["there are 101 interfaces", "interface m"])
}
