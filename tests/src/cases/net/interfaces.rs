//! Interfaces of a network namespace that somebody else has made, and what becomes of them.

use super::view;
use crate::bed::{Container, Test};
use crate::ensure;
use crate::failure::{Context, Outcome, again, holds};
use crate::network::Network;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any(
        "net.same",
        "names, addresses, routes, rules and neighbours are the host's, of several interfaces",
        same,
    ),
    Case::any("net.kinds", "veth, macvlan, ipvlan, tap and bridge carry traffic", kinds),
    Case::any(
        "net.none",
        "without a network there is a loopback interface, and nothing else",
        none,
    ),
    Case::any("net.localhost", "localhost answers in both families, to any user", localhost),
    Case::any("net.link_local", "an IPv6 link-local address is usable at once", link_local),
    Case::any("net.follow", "interfaces, addresses and routes that change later follow", follow),
    Case::bulkhead("net.queues", "an interface has a queue for each vCPU, and offloads", queues),
    Case::bulkhead("net.vmm", "the VMM has no network but its descriptors", vmm),
    Case::bulkhead("net.left", "a namespace is left as it was found", left),
];

/// A namespace that is to become a container's, and the one beside it.
pub struct Pair {
    /// The container's.
    pub pod: Network,
    /// Its neighbour.
    pub peer: Network,
}

impl Pair {
    /// Joined by a veth, `eth0` in the container's, 10.9.0.2 and fd00:9::2; the neighbour has .1.
    pub fn new() -> Outcome<Self> {
        let pair = Self { pod: Network::new()?, peer: Network::new()? };
        pair.veth("eth0", "peer0")?;
        pair.peer.sh("ip addr add 10.9.0.1/24 dev peer0
             ip addr add fd00:9::1/64 dev peer0 nodad")?;
        pair.pod.sh("ip addr add 10.9.0.2/24 dev eth0
             ip addr add fd00:9::2/64 dev eth0 nodad
             ip route add default via 10.9.0.1
             ip route add default via fd00:9::1")?;
        Ok(pair)
    }

    /// Joins them by one more veth, both ends of it up.
    pub fn veth(&self, pod: &str, peer: &str) -> Outcome {
        let (to, name) = (self.pod.path(), peer);
        self.peer.sh(&format!(
            "ip link add {name} type veth peer name {pod} netns {to}; ip link set {name} up"
        ))?;
        self.pod.sh(&format!("ip link set {pod} up")).map(drop)
    }

    /// A container in it, of the image with Debian's programs, that idles.
    pub fn container<'t>(&self, t: &Test<'t>) -> Outcome<Container<'t>> {
        self.container_with(t, &[])
    }

    /// The same with more flags.
    pub fn container_with<'t>(&self, t: &Test<'t>, flags: &[&str]) -> Outcome<Container<'t>> {
        let container = t.programs()?;
        let namespace = format!("network:{}", self.pod.path());
        let flags = [&["--null-io", "--privileged", "--with-ns", &namespace], flags].concat();
        container.start_with(&flags, &["sleep", "100000"])?;
        Ok(container)
    }

    fn equal(&self, container: &Container<'_>) -> Outcome {
        view::equal(&|script| self.pod.sh(script), &|script| container.sh(script))
    }

    /// Waits until the container has what the namespace has.
    fn await_equal(&self, t: &Test<'_>, container: &Container<'_>) -> Outcome {
        // The container may not answer while its interfaces change.
        again(t.deadline(10), || Ok(self.equal(container).map_err(|failure| failure.to_string())))
    }
}

/// What `ip` may know of a namespace: addresses of both families, several to an interface, and every kind of route.
const MUCH: &str = "
    ip link set eth0 address 02:11:22:33:44:55 mtu 1400
    ip addr add 10.9.0.7/24 dev eth0
    ip addr add 192.168.77.1 peer 192.168.78.1/32 dev eth0
    ip addr add fd00:a::7/128 dev eth0 nodad
    ip route add 172.20.0.0/16 via 10.9.0.1 metric 50 mtu 1300
    ip route add 172.21.0.0/16 via 10.77.0.1 dev eth0 onlink
    ip route add 172.22.0.0/16 nexthop via 10.9.0.1 weight 2 nexthop via 192.168.60.9 dev net1 weight 1
    ip route add blackhole 172.23.0.0/16
    ip route add unreachable 172.24.0.0/16
    ip route add 172.25.0.0/16 via 10.9.0.1 src 10.9.0.7
    ip route add fd00:b::/64 via fd00:9::1 metric 77
    ip route add blackhole fd00:c::/64
    ip route add 172.26.0.0/16 via 10.9.0.1 table 100
    ip rule add from 10.9.0.7 table 100 priority 1000
    ip -6 rule add from fd00:a::7 table 100 priority 1001
    ip neigh add 10.9.0.1 lladdr 02:aa:bb:cc:dd:ee dev eth0 nud permanent
    ip neigh add fd00:9::77 lladdr 02:aa:bb:cc:dd:ef dev eth0 nud permanent
    ip route del 192.168.61.0/24 dev net1";

fn same(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.veth("net1", "peer1")?;
    pair.pod.sh("ip addr add 192.168.60.5/24 dev net1; ip addr add 192.168.61.5/24 dev net1")?;
    pair.pod.sh(MUCH)?;
    let container = pair.container(t)?;
    pair.equal(&container)
}

/// Kinds that this machine's kernel may not know: the interface, and the words that make it of `peer0`.
const KINDS: [(&str, &str); 3] = [
    ("mac0", "type macvlan mode bridge"),
    ("ipl2", "type ipvlan mode l2"),
    ("ipl3", "type ipvlan mode l3"),
];

fn kinds(t: &Test<'_>) -> Outcome {
    let mut tried = Vec::new();
    for (name, words) in KINDS {
        if kind(t, name, words).context(name)? {
            tried.push(name);
        }
    }
    ensure!(tried.contains(&"mac0"), "this kernel has no macvlan: {tried:?}");
    bridge_and_tap(t).context("bridge and tap")
}

/// Made of an interface of a node, for a pod that speaks with somebody far away; false if the kernel cannot.
fn kind(t: &Test<'_>, name: &str, words: &str) -> Outcome<bool> {
    let (pod, node, far) = (Network::new()?, Network::new()?, Network::new()?);
    node.sh(&format!(
        "ip link add up0 type veth peer name far0 netns {}
         ip link set up0 up; ip addr add 10.9.1.254/24 dev up0",
        far.path()
    ))?;
    far.sh("ip link set far0 up; ip addr add 10.9.1.1/24 dev far0")?;
    if node.sh(&format!("ip link add link up0 name {name} {words}")).is_err() {
        return Ok(false);
    }
    node.sh(&format!("ip link set {name} netns {}", pod.path()))?;
    pod.sh(&format!("ip link set {name} up; ip addr add 10.9.1.2/24 dev {name}"))?;
    if name == "ipl3" {
        // On the third layer nobody answers for the pod's address.
        let address = node.sh("ip -br link show up0 | awk '{ print $3 }'")?;
        far.sh(&format!("ip neigh add 10.9.1.2 lladdr {} dev far0", address.trim()))?;
    }
    let pair = Pair { pod, peer: far };
    let container = pair.container(t)?;
    pair.equal(&container)?;
    container.sh("ping -c 3 -i 0.2 -W 5 10.9.1.1")?;
    pair.peer.sh("ping -c 1 -W 5 10.9.1.2")?;
    container.remove();
    Ok(true)
}

/// A bridge of the namespace's own over a veth, and a tap that nobody reads.
fn bridge_and_tap(t: &Test<'_>) -> Outcome {
    let pair = Pair { pod: Network::new()?, peer: Network::new()? };
    pair.veth("port", "peer0")?;
    pair.peer.sh("ip addr add 10.9.0.1/24 dev peer0")?;
    pair.pod.sh("ip link add br0 type bridge; ip link set port master br0; ip link set br0 up
         ip addr add 10.9.0.2/24 dev br0
         ip tuntap add tap7 mode tap; ip link set tap7 up; ip addr add 10.9.7.2/24 dev tap7")?;
    let container = pair.container(t)?;
    container.sh("ping -c 3 -i 0.2 -W 5 10.9.0.1")?;
    container.sh("ip addr show tap7 | grep -q 10.9.7.2")?;
    pair.peer.sh("ping -c 1 -W 5 10.9.0.2").map(drop)
}

fn none(t: &Test<'_>) -> Outcome {
    let done = t.container().run(&[], &["ls", "/sys/class/net"])?.ok()?;
    ensure!(done.out() == "lo\n", "interfaces: {:?}", done.out());
    let flags = t.container().run(&[], &["ip", "addr", "show", "lo"])?.ok()?.out();
    ensure!(!t.is_bulkhead() || flags.contains("inet 127.0.0.1/8"), "lo: {flags}");
    Ok(())
}

fn localhost(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.pod.sh("ip link set lo up")?;
    let container = pair.container(t)?;
    container.sh("sysctl -qw net.ipv4.ping_group_range='0 2147483647'")?;
    container.sh("for address in '127.0.0.1 7000' '::1 7001'; do nc.openbsd -N -l $address < /bin/busybox > /dev/null 2>&1 & done; sleep 1")?;
    for address in ["127.0.0.1 7000", "::1 7001"] {
        container.sh(&format!("nc.openbsd -d {address} | cmp - /bin/busybox"))?;
    }
    // A socket of its own kind, for which nobody needs a privilege.
    for address in ["127.0.0.1", "::1"] {
        let command = ["ping", "-c", "1", "-W", "5", address];
        container.exec(&format!("ping-{}", address.len()), &["--user", "1000"], &command)?.ok()?;
    }
    Ok(())
}

fn link_local(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    let far = pair.peer.sh("ip -6 -o addr show dev peer0 scope link | awk '{ print $4 }'")?;
    let far = far.split('/').next().unwrap_or_default();
    container.sh(&format!("ping -c 1 -W 5 {far}%eth0"))?;
    let tentative = container.sh("ip -6 addr show tentative")?;
    ensure!(!t.is_bulkhead() || tentative.is_empty(), "tentative: {tentative}");
    Ok(())
}

fn follow(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    pair.equal(&container)?;
    for script in [
        "ip addr add 10.9.0.9/24 dev eth0",
        "ip addr add 10.77.0.9/16 dev eth0; ip addr del 10.9.0.9/24 dev eth0",
        "ip route add 172.30.0.0/16 via 10.9.0.1 metric 9; ip link set eth0 mtu 1333",
        "ip link set eth0 address 02:00:00:00:99:99",
        "ip link set eth0 down",
        "ip link set eth0 up; ip route replace default via 10.9.0.1",
        "ip rule add from 10.77.0.9 table 77; ip route add default via 10.9.0.1 table 77",
        "ip rule del from 10.77.0.9 table 77; ip route flush table 77",
    ] {
        pair.pod.sh(script)?;
        pair.await_equal(t, &container)?;
    }
    // An address whose place another one takes: nothing else may go with it in the guest, if it stays on the host.
    for script in [
        "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1; ip addr add 10.9.0.3/24 dev eth0",
        "ip addr del 10.9.0.2/24 dev eth0",
    ] {
        pair.pod.sh(script)?;
        pair.await_equal(t, &container)?;
    }
    container.sh("ping -c 1 -W 5 10.9.0.1")?;
    // A second network, which goes again, and a third.
    for name in ["net1", "net2"] {
        pair.veth(name, "peer1")?;
        pair.peer.sh("ip addr add 10.9.2.1/24 dev peer1")?;
        pair.pod.sh(&format!("ip addr add 10.9.2.2/24 dev {name}"))?;
        pair.await_equal(t, &container)?;
        container.sh("ping -c 1 -W 5 10.9.2.1")?;
        pair.pod.sh(&format!("ip link del {name}"))?;
        pair.await_equal(t, &container)?;
    }
    Ok(())
}

fn queues(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container_with(t, &["--annotation", "io.bulkhead.vcpus=2"])?;
    let queues = container.sh("ethtool -l eth0 | grep Combined | tail -n 1 | tr -d '[:space:]'")?;
    ensure!(queues == "Combined:2", "queues: {queues}");
    let features = container.sh("ethtool -k eth0")?;
    for feature in ["tx-checksumming", "tcp-segmentation-offload", "scatter-gather"] {
        ensure!(features.contains(&format!("{feature}: on")), "{feature}: {features}");
    }
    container.sh("ping -c 1 -W 5 10.9.0.1").map(drop)
}

fn vmm(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    let seen = container.inspect()?;
    let process = seen["processes"].as_array().into_iter().flatten();
    let vmm = process.into_iter().find(|one| one["role"] == t.bed.options.hypervisor.as_str());
    let vmm = vmm.and_then(|one| one["pid"].as_u64()).unwrap_or_default();
    let seen = std::fs::read_to_string(format!("/proc/{vmm}/net/dev"))?;
    let names: Vec<&str> =
        seen.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    ensure!(names == ["lo"], "the VMM's interfaces: {seen}");
    Ok(())
}

/// What a namespace has, but for what comes and goes by itself.
pub fn traces(network: &Network) -> Outcome<String> {
    network.sh("ip -br link | awk '{ print $1, $3 }'; tc qdisc; ip -4 -o addr; ip route; ip rule")
}

fn left(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let before = traces(&pair.pod)?;
    let container = pair.container(t)?;
    ensure!(traces(&pair.pod)?.contains("ingress"), "nothing is redirected");
    container.kill("KILL")?;
    container.wait_stopped()?;
    container.delete()?;
    let after = traces(&pair.pod)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    // A shim that is killed cannot tidy up: `delete`, which containerd runs then, does.
    let container = pair.container(t)?;
    let shim = nix::unistd::Pid::from_raw(container.shim_pid()?);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL)?;
    let gone = again(t.deadline(20), || {
        let after = traces(&pair.pod)?;
        holds(after == before, || format!("before:\n{before}\nafter:\n{after}"))
    });
    container.remove();
    gone
}
