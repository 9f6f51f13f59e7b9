//! Traffic between a container and everybody else.

use std::fs;

use k8s_cri::v1::{DnsConfig, PodSandboxStatsRequest, PortMapping, Protocol};

use super::interfaces::Pair;
use crate::bed::{Container, Test};
use crate::cri::cgroup::PodCgroup;
use crate::cri::node::Node;
use crate::ensure;
use crate::failure::{Failure, Outcome};
use crate::network::Network;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::any("net.tcp", "TCP both ways, in both families, complete", tcp),
    Case::any("net.udp", "UDP both ways, in fragments too", udp),
    Case::any("net.jumbo", "packets of 9000 bytes pass whole, longer ones do not", jumbo),
    Case::any("net.too_big", "a smaller MTU on the way is found out", too_big),
    Case::any(
        "net.dial_in",
        "who dials the namespace's own address reaches the container",
        dial_in,
    ),
    Case::any("net.cni", "`ctr run --cni` gives a container its network", cni),
    Case::any("pods.addresses", "pods meet on the addresses that the node knows them by", pods),
    Case::any("pods.host_port", "a port of the node leads to its pod", host_port),
    Case::any("pods.policy", "what the node forbids between pods does not pass", policy),
    Case::any(
        "pods.service",
        "services and their DNS are reached as the node translates them",
        service,
    ),
    Case::any("pods.nat", "the node's address translation takes a pod to the world", nat),
    Case::any("pods.statistics", "a pod's traffic is in its statistics", statistics),
];

/// Echoes what it gets, on port 7000 of every address.
const ECHO: &str = "busybox nc -ll -p 7000 -e cat > /dev/null 2>&1 < /dev/null &";

/// Sends a megabyte there and back.
fn echo(address: &str) -> String {
    format!(
        "head -c 1000000 /bin/busybox > /tmp/sent
         nc.openbsd -N -w 20 {address} 7000 < /tmp/sent > /tmp/got
         cmp /tmp/sent /tmp/got"
    )
}

/// The same from a namespace of the tests, with files of its own.
fn echo_from(t: &Test<'_>, network: &Network, address: &str) -> Outcome {
    let dir = t.directory()?;
    let script = echo(address).replace("/tmp/", &format!("{}/", dir.display()));
    network.sh(&script).map(drop)
}

/// A process that ends with the test's own namespace, at the latest.
struct Server(std::process::Child);

impl Server {
    fn start(network: &Network, script: &str) -> Outcome<Self> {
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", &format!("exec {script}")]);
        sh.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        Ok(Self(network.inside(|| sh.spawn())??))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until somebody listens there.
fn await_port(network: &Network, kind: &str, port: u16) -> Outcome {
    let script = format!(
        "for i in $(seq 100); do ss -Hln{kind} | grep -q :{port} && exit; sleep 0.1; done; exit 1"
    );
    network.sh(&script).map(drop)
}

fn await_port_inside(container: &Container<'_>, port: u16) -> Outcome {
    let hex = format!("{port:04X}");
    let script = format!(
        "for i in $(seq 100); do grep -qs ':{hex} .* 0A ' /proc/net/tcp /proc/net/tcp6 && exit; sleep 0.1; done; exit 1"
    );
    container.sh(&script).map(drop)
}

fn tcp(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    let _server = Server::start(&pair.peer, "busybox nc -ll -p 7000 -e cat")?;
    await_port(&pair.peer, "t", 7000)?;
    container.sh(ECHO)?;
    await_port_inside(&container, 7000)?;
    for (to, from) in [("10.9.0.1", "10.9.0.2"), ("fd00:9::1", "fd00:9::2")] {
        container.sh(&echo(to))?;
        echo_from(t, &pair.peer, from)?;
    }
    Ok(())
}

fn udp(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    let dir = t.directory()?;
    let got = dir.join("got");
    let _server = Server::start(&pair.peer, &format!("nc.openbsd -u -l 7001 > {}", got.display()))?;
    await_port(&pair.peer, "u", 7001)?;
    container.sh("head -c 8000 /bin/busybox | nc.openbsd -u -w 2 10.9.0.1 7001")?;
    let (sent, got) = (fs::read("/bin/busybox")?, fs::read(got)?);
    ensure!(got == sent[..8000], "{} bytes arrived", got.len());

    container.sh("nc.openbsd -u -l 7001 > /tmp/got 2> /dev/null < /dev/null &
         for i in $(seq 100); do grep -q :1B59 /proc/net/udp && exit; sleep 0.1; done; exit 1")?;
    pair.peer.sh("head -c 8000 /bin/busybox | nc.openbsd -u -w 2 10.9.0.2 7001")?;
    container.sh("head -c 8000 /bin/busybox | cmp - /tmp/got")?;
    container.sh("ping -c 2 -i 0.2 -W 5 -s 20000 10.9.0.1")?;
    pair.peer.sh("ping -c 2 -i 0.2 -W 5 -s 20000 10.9.0.2").map(drop)
}

fn jumbo(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.peer.sh("ip link set peer0 mtu 9000")?;
    pair.pod.sh("ip link set eth0 mtu 9000")?;
    let container = pair.container(t)?;
    container.sh("ping -c 1 -W 5 -M do -s 8972 10.9.0.1")?;
    container.sh("! ping -c 1 -W 5 -M do -s 8973 10.9.0.1")?;
    pair.peer.sh("ping -c 1 -W 5 -M do -s 8972 10.9.0.2")?;
    container.sh(ECHO)?;
    await_port_inside(&container, 7000)?;
    echo_from(t, &pair.peer, "10.9.0.2")
}

fn too_big(t: &Test<'_>) -> Outcome {
    let (pair, far) = (Pair::new()?, Network::new()?);
    pair.peer.sh(&format!(
        "ip link add out type veth peer name in0 netns {}
         ip link set out mtu 1280 up; ip addr add 10.10.0.1/24 dev out
         sysctl -qw net.ipv4.ip_forward=1",
        far.path()
    ))?;
    // A veth device drops what its peer may not receive, so both ends are as small. The far end
    // still says that it takes whole segments, so that what the pod sends meets the small link.
    far.sh("ip link set in0 mtu 1280 up; ip addr add 10.10.0.2/24 dev in0
         ip route add default via 10.10.0.1 advmss 1460")?;
    let container = pair.container(t)?;
    let said = container.sh("ping -c 2 -i 0.5 -W 5 -M do -s 1400 10.10.0.2 2>&1 || true")?;
    ensure!(said.contains("mtu = 1280") || said.contains("mtu=1280"), "{said}");
    let _server = Server::start(&far, "busybox nc -ll -p 7000 -e cat")?;
    await_port(&far, "t", 7000)?;
    container.sh(&echo("10.10.0.2")).map(drop)
}

fn dial_in(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    pair.pod.sh("ip link set lo up")?;
    let container = pair.container(t)?;
    container.sh(ECHO)?;
    await_port_inside(&container, 7000)?;
    for address in ["127.0.0.1", "::1", "10.9.0.2", "fd00:9::2"] {
        echo_from(t, &pair.pod, address)?;
    }
    Ok(())
}

fn cni(t: &Test<'_>) -> Outcome {
    let (container, node) = (t.container(), Network::new()?);
    let dir = t.directory()?;
    let conf = dir.join("net.d");
    fs::create_dir(&conf)?;
    fs::write(conf.join("pods.conflist"), crate::cri::config::network(&dir))?;
    let plugins = t.bed.options.cache.join("cni/usr/lib/cni");
    // The places are ctr's own: it sees ours there, and nobody else does.
    let run = container.run_command(&["--cni"], &["sh", "-c", "ip -4 -o addr show eth0; ip route"]);
    let words: Vec<String> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
        .collect();
    let environment: Vec<String> = run
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)))
        .map(|(name, value)| format!("{}='{}'", name.to_string_lossy(), value.to_string_lossy()))
        .collect();
    let script = format!(
        "unshare -m --propagation private sh -ec '
         mkdir -p /etc/cni/net.d /opt/cni/bin
         mount --bind {} /etc/cni/net.d; mount --bind {} /opt/cni/bin
         exec \"$@\"' sh env {} {}",
        conf.display(),
        plugins.display(),
        environment.join(" "),
        words.join(" ")
    );
    let printed = node.sh(&script)?;
    ensure!(printed.contains("inet 10.88.0."), "{printed}");
    ensure!(printed.contains("default via 10.88.0.1 dev eth0"), "{printed}");
    Ok(())
}

/// A pod's container that serves on port 8080.
const SERVER: &str =
    "mkdir /www; echo page > /www/page; httpd -p 8080 -h /www; echo ready; sleep 100000";

fn pods(t: &Test<'_>) -> Outcome {
    let (pod, other) = (t.pod().run()?, t.pod().run()?);
    let server = pod.container("server").script(SERVER).start()?;
    server.await_log("ready")?;
    let address = pod.address()?;
    server.prints(
        "ip -4 -o addr show eth0 | sed 's/.*inet //; s/ .*//'",
        &format!("{address}/16\n"),
    )?;
    let client = other.container("client").start()?;
    let page = format!("wget -q -O - http://{address}:8080/page");
    client.prints(&page, "page\n")?;
    let refused = format!("wget -q -O - http://{address}/page 2> /dev/null || echo refused");
    client.prints(&refused, "refused\n")?;
    // The node, and the other way.
    ensure!(network(pod.node)?.sh(&format!("busybox {page}"))? == "page\n", "not from the node");
    server.sh("ping -c 1 -W 5 10.88.0.1").map(drop)
}

fn network(node: &Node) -> Outcome<&Network> {
    node.containerd.network().ok_or_else(|| Failure::new("the node has no network of its own"))
}

fn host_port(t: &Test<'_>) -> Outcome {
    let mapping = PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 18080,
        host_ip: String::new(),
    };
    let pod = t.pod().with(|config| config.port_mappings.push(mapping)).run()?;
    pod.container("server").script(SERVER).start()?.await_log("ready")?;
    let page = "busybox wget -q -O - http://10.88.0.1:18080/page";
    ensure!(network(pod.node)?.sh(page)? == "page\n", "the port of the node");
    let client = t.pod().run()?;
    client.container("client").start()?.prints(page, "page\n")
}

fn policy(t: &Test<'_>) -> Outcome {
    t.on_own_node(|node| {
        let (server, friend, foe) = (t.pod_on(node), t.pod_on(node), t.pod_on(node));
        let (server, friend, foe) = (server.run()?, friend.run()?, foe.run()?);
        server.container("server").script(SERVER).start()?.await_log("ready")?;
        let address = server.address()?;
        network(node)?.sh(&format!(
            "nft add table bridge rules
             nft add chain bridge rules forward '{{ type filter hook forward priority 0; }}'
             nft add rule bridge rules forward ip saddr {} ip daddr {address} drop",
            foe.address()?
        ))?;
        let page =
            format!("timeout 4 wget -q -O - http://{address}:8080/page 2> /dev/null || echo no");
        friend.container("client").start()?.prints(&page, "page\n")?;
        foe.container("client").start()?.prints(&page, "no\n")
    })
}

/// What a node does for services: addresses that are nobody's lead to a pod, and to the node's DNS.
fn service(t: &Test<'_>) -> Outcome {
    t.on_own_node(|node| {
        let server = t.pod_on(node).run()?;
        server.container("server").script(SERVER).start()?.await_log("ready")?;
        let address = server.address()?;
        let network = network(node)?;
        network.sh(&format!(
            "nft add table ip services
             nft add chain ip services pre '{{ type nat hook prerouting priority -100; }}'
             nft add chain ip services post '{{ type nat hook postrouting priority 100; }}'
             nft add rule ip services pre ip daddr 10.96.0.1 tcp dport 80 dnat to {address}:8080
             nft add rule ip services pre ip daddr 10.96.0.53 udp dport 53 dnat to 10.88.0.1:53
             nft add rule ip services post ct status dnat masquerade"
        ))?;
        let _dns = Server::start(
            network,
            "dnsmasq --no-daemon --conf-file=/dev/null --no-resolv --no-hosts --pid-file= --user=root \
             --address=/web.example/10.96.0.1 2> /dev/null",
        )?;
        await_port(network, "u", 53)?;
        let dns = DnsConfig { servers: vec!["10.96.0.53".to_owned()], ..DnsConfig::default() };
        let pod = t.pod_on(node).with(|config| config.dns_config = Some(dns)).run()?;
        let client = pod.container("client").start()?;
        let seen = client.sh("nslookup web.example || true")?;
        ensure!(seen.contains("10.96.0.1"), "{seen}");
        client.prints("wget -q -O - http://10.96.0.1/page", "page\n")
    })
}

fn nat(t: &Test<'_>) -> Outcome {
    t.on_own_node(|node| {
        let world = Network::new()?;
        network(node)?.sh(&format!(
            "ip link add uplink type veth peer name port netns {}
             ip link set uplink up; ip addr add 10.50.0.1/24 dev uplink
             sysctl -qw net.ipv4.ip_forward=1
             nft add table ip nat
             nft add chain ip nat post '{{ type nat hook postrouting priority 100; }}'
             nft add rule ip nat post oifname uplink masquerade",
            world.path()
        ))?;
        world.sh("ip link set port up; ip addr add 10.50.0.2/24 dev port")?;
        let _server = Server::start(&world, "busybox httpd -f -p 7000 -h /bin")?;
        await_port(&world, "t", 7000)?;
        let pod = t.pod_on(node).run()?;
        let client = pod.container("client").start()?;
        client.sh("wget -q -O - http://10.50.0.2:7000/busybox | cmp - /bin/busybox")?;
        client.sh("ping -c 1 -W 5 10.50.0.2").map(drop)
    })
}

fn statistics(t: &Test<'_>) -> Outcome {
    let parent = PodCgroup::new(&t.unique())?;
    let pod = t.pod().linux(|linux| linux.cgroup_parent.clone_from(&parent.path)).run()?;
    let app = pod.container("app").start()?;
    app.sh("ping -c 3 -W 5 -s 60000 10.88.0.1")?;
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let answer = pod.node.client.call(async |mut cri| cri.pod_sandbox_stats(request).await)?;
    let network = answer.stats.unwrap_or_default().linux.unwrap_or_default().network;
    let seen = network.and_then(|all| all.default_interface).unwrap_or_default();
    let bytes = |value: Option<k8s_cri::v1::UInt64Value>| value.unwrap_or_default().value;
    let (received, sent) = (bytes(seen.rx_bytes), bytes(seen.tx_bytes));
    ensure!(seen.name == "eth0" && received > 180_000 && sent > 180_000, "{seen:?}");
    Ok(pod.remove()?)
}
