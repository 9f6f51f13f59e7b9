//! Networks that a privileged job makes for itself, with the programs that such jobs use.

use super::interfaces::Pair;
use crate::bed::Test;
use crate::ensure;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead("net.nftables", "nft filters and counts", nftables),
    Case::bulkhead("net.iptables", "iptables filters and translates, in both families", iptables),
    Case::bulkhead("net.bridge", "bridges, veths and namespaces, with a way out", bridge),
    Case::bulkhead("net.tun", "tun and tap devices", tun),
    Case::bulkhead("net.wireguard", "a wireguard tunnel carries traffic", wireguard),
    Case::bulkhead("net.tc", "queues are shaped, and packets redirected", tc),
    Case::any("net.iperf", "iperf3 measures both ways", iperf),
    Case::any("net.curl", "curl fetches many small files, and one large one", curl),
];

/// Runs a script in a privileged container that has an interface.
fn inside(t: &Test<'_>, script: &str) -> Outcome<String> {
    let pair = Pair::new()?;
    pair.container(t)?.sh(script)
}

fn nftables(t: &Test<'_>) -> Outcome {
    let seen = inside(
        t,
        "nft add table inet own
         nft add chain inet own out '{ type filter hook output priority 0; }'
         nft add rule inet own out ip daddr 10.9.0.1 icmp type echo-request counter accept
         nft add set inet own blocked '{ type ipv4_addr; }'
         nft add element inet own blocked '{ 10.9.0.9 }'
         nft add rule inet own out ip daddr @blocked log prefix blocked drop
         nft add rule inet own out ip daddr 10.9.0.8 queue num 7 bypass
         ping -c 2 -i 0.2 -W 5 10.9.0.1 > /dev/null
         ! ping -c 1 -W 1 10.9.0.9 > /dev/null 2>&1
         nft list chain inet own out",
    )?;
    ensure!(seen.contains("counter packets 2 "), "{seen}");
    Ok(())
}

fn iptables(t: &Test<'_>) -> Outcome {
    inside(
        t,
        "for tool in iptables ip6tables; do
             $tool -A OUTPUT -p tcp --dport 9 -m conntrack --ctstate NEW -m comment --comment own -j REJECT
             $tool -t nat -A POSTROUTING -o eth0 -j MASQUERADE
             $tool -t mangle -A OUTPUT -p udp --dport 9 -j NFQUEUE --queue-num 7 --queue-bypass
             $tool -t mangle -A OUTPUT -p udp --dport 68 -j CHECKSUM --checksum-fill
             $tool -t raw -A OUTPUT -p udp --dport 9 -j CT --notrack
             $tool -A OUTPUT -p udp --dport 9 -m hashlimit --hashlimit-upto 1/s --hashlimit-name own -j LOG
             $tool -S OUTPUT | grep -q 'dport 9 '
             $tool -t nat -S POSTROUTING | grep -q MASQUERADE
         done
         iptables -t nat -A OUTPUT -p tcp -d 10.99.0.1 --dport 80 -j DNAT --to-destination 127.0.0.1:7000
         busybox nc -l -p 7000 -e echo translated > /dev/null 2>&1 < /dev/null &
         sleep 1
         nc.openbsd -w 5 10.99.0.1 80 < /dev/null | grep -q translated",
    )
    .map(drop)
}

/// Makes a namespace with an interface, joined to `bridge0`.
const ROOM: &str = "
    room() {
        ip netns add $1
        ip link add $1-out type veth peer name eth0 netns $1
        ip link set $1-out master bridge0 up
        ip -n $1 link set eth0 up; ip -n $1 link set lo up
        ip -n $1 addr add $2/24 dev eth0; ip -n $1 route add default via 10.66.0.1
    }
    ip link add bridge0 type bridge; ip link set bridge0 up; ip addr add 10.66.0.1/24 dev bridge0
    room one 10.66.0.2; room two 10.66.0.3
";

fn bridge(t: &Test<'_>) -> Outcome {
    let script = "
        ip netns exec one ping -c 1 -W 5 10.66.0.3
        sysctl -qw net.ipv4.ip_forward=1
        iptables -t nat -A POSTROUTING -s 10.66.0.0/24 -o eth0 -j MASQUERADE
        ip netns exec two ping -c 1 -W 5 10.9.0.1";
    inside(t, &format!("{ROOM}{script}")).map(drop)
}

fn tun(t: &Test<'_>) -> Outcome {
    let seen = inside(
        t,
        "ip tuntap add own0 mode tun; ip tuntap add own1 mode tap
         ip addr add 10.67.0.1/24 dev own0; ip link set own0 up; ip link set own1 up
         ip tuntap",
    )?;
    ensure!(seen.contains("own0: tun") && seen.contains("own1: tap"), "{seen}");
    Ok(())
}

fn wireguard(t: &Test<'_>) -> Outcome {
    let script = "
        end() {
            wg genkey > /tmp/$1
            ip -n $1 link add wg0 type wireguard
            ip -n $1 addr add $2/24 dev wg0
        }
        end one 10.68.0.1; end two 10.68.0.2
        join() {
            ip netns exec $1 wg set wg0 private-key /tmp/$1 listen-port 51820 peer $(wg pubkey < /tmp/$2) \
                allowed-ips 10.68.0.0/24 endpoint $3:51820
            ip -n $1 link set wg0 up
        }
        join one two 10.66.0.3; join two one 10.66.0.2
        ip netns exec one ping -c 1 -W 10 10.68.0.2";
    inside(t, &format!("{ROOM}{script}")).map(drop)
}

fn tc(t: &Test<'_>) -> Outcome {
    let script = "
        ip netns exec one tc qdisc add dev eth0 root handle 1: htb default 1
        ip netns exec one tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
        tc qdisc add dev one-out ingress
        tc filter add dev one-out ingress matchall action mirred egress mirror dev two-out
        ip netns exec one ping -c 1 -W 5 10.66.0.1";
    inside(t, &format!("{ROOM}{script}")).map(drop)
}

fn iperf(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    // A server of its own for each: one that has just ended a test may refuse the next.
    for (port, direction) in [(5201, ""), (5202, "-R")] {
        container.sh(&format!(
            "iperf3 -s -D -p {port}
             for i in $(seq 100); do
                 grep -q ':{port:04X} .* 0A ' /proc/net/tcp6 && exit; sleep 0.1
             done
             exit 1"
        ))?;
        let client = format!("iperf3 -c 10.9.0.2 -p {port} -t 1 -J {direction} || true");
        let seen: serde_json::Value = serde_json::from_str(&pair.peer.sh(&client)?)?;
        let rate = seen["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_default();
        ensure!(rate as u64 > 1_000_000, "{rate} bits a second: {}", seen["error"]);
    }
    Ok(())
}

fn curl(t: &Test<'_>) -> Outcome {
    let pair = Pair::new()?;
    let container = pair.container(t)?;
    container.sh(
        "mkdir /www; cp /bin/busybox /www/large; seq 200 | while read n; do echo $n > /www/$n; done
         webfsd -p 8000 -r /www
         for i in $(seq 50); do curl -s -o /dev/null http://127.0.0.1:8000/1 && exit; sleep 0.1; done; exit 1",
    )?;
    let seen = pair
        .peer
        .sh("curl -sS 'http://10.9.0.2:8000/[1-200]' | grep -v '^--' | cksum; seq 200 | cksum")?;
    let sums: Vec<&str> = seen.lines().collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "{seen}");
    pair.peer.sh("curl -sS http://10.9.0.2:8000/large | cmp - /bin/busybox").map(drop)
}
