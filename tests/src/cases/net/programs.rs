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
    Case::bulkhead("net.tunnels", "tunnels of each kind, and routing tables of their own", tunnels),
    Case::bulkhead("net.shaping", "queues are shaped, and packets redirected", shaping),
    Case::bulkhead("net.virtual_server", "IPVS and sets, as kube-proxy has them", virtual_server),
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
         nft add rule inet own out tcp dport 7 ct count over 9 quota over 9 mbytes drop
         nft add chain inet own pass '{ type filter hook forward priority 0; }'
         nft add flowtable inet own quick '{ hook ingress priority 0; devices = { eth0 }; }'
         nft add rule inet own pass tcp dport 9 flow add @quick
         nft add chain inet own proxy '{ type filter hook prerouting priority -150; }'
         nft add rule inet own proxy tcp dport 9 socket transparent 1 accept
         nft add rule inet own proxy tcp dport 9 tproxy to :9
         nft add table arp own; nft add chain arp own in '{ type filter hook input priority 0; }'
         nft add table netdev own
         nft add chain netdev own in '{ type filter hook ingress device eth0 priority 0; }'
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
             $tool -A OUTPUT -p tcp --dport 9 -m length --length 9 -m connlimit --connlimit-above 9 -j REJECT
             $tool -A OUTPUT -p tcp --dport 9 -m string --string own --algo bm -m time --timestop 10:00 -j DROP
             $tool -A OUTPUT -p tcp --dport 9 -m u32 --u32 0=9 -m tcpmss --mss 9 -m dscp --dscp 9 -j ACCEPT
             $tool -A OUTPUT -p tcp --dport 9 -m bpf --bytecode '1,6 0 0 0' -j NFLOG --nflog-group 9
             $tool -A INPUT -p tcp --dport 9 -m mac --mac-source 02:00:00:00:00:01 -m pkttype --pkt-type host -j DROP
             $tool -A INPUT -p tcp --dport 9 -m ipvs --ipvs -j DROP
             $tool -t raw -A PREROUTING -m rpfilter --invert -j DROP
             $tool -t raw -A PREROUTING -p tcp --dport 9 -j TRACE
             $tool -t mangle -A PREROUTING -p tcp --dport 9 -m socket --transparent -j MARK --set-mark 9
             $tool -t mangle -A PREROUTING -p tcp --dport 9 -j TPROXY --on-port 9 --tproxy-mark 9
             $tool -t mangle -A OUTPUT -p tcp --dport 9 -j DSCP --set-dscp 9
             $tool -S OUTPUT | grep -q 'dport 9 '
             $tool -t nat -S POSTROUTING | grep -q MASQUERADE
         done
         iptables -A OUTPUT -m iprange --dst-range 10.99.0.8-10.99.0.9 -m ttl --ttl-eq 9 -j DROP
         iptables -t mangle -A OUTPUT -d 10.99.0.9 -j TEE --gateway 10.9.0.1
         iptables -t nat -A OUTPUT -d 10.98.0.0/24 -j NETMAP --to 10.97.0.0/24
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

fn tunnels(t: &Test<'_>) -> Outcome {
    let script = "
        ip -n one addr add fd66::2/64 dev eth0 nodad; ip -n two addr add fd66::3/64 dev eth0 nodad
        tunnel() {
            name=$1 one=$2 two=$3 address=$4; shift 4
            ip -n one link add $name type $* local $one remote $two
            ip -n two link add $name type $* local $two remote $one
            ends $address
        }
        ends() {
            ip -n one addr add $1.1/24 dev $name; ip -n one link set $name up
            ip -n two addr add $1.2/24 dev $name; ip -n two link set $name up
            ip netns exec one ping -c 1 -W 10 $1.2
        }
        tunnel ipip0 10.66.0.2 10.66.0.3 10.69.0 ipip
        tunnel gre0 10.66.0.2 10.66.0.3 10.69.1 gre key 1
        tunnel tap0 10.66.0.2 10.66.0.3 10.69.2 gretap key 2
        tunnel six0 fd66::2 fd66::3 10.69.3 ip6tnl mode ipip6
        name=geneve0
        ip -n one link add geneve0 type geneve id 7 remote 10.66.0.3
        ip -n two link add geneve0 type geneve id 7 remote 10.66.0.2
        ends 10.69.4
        ip -n one link add sit0 type sit local 10.66.0.2 remote 10.66.0.3
        ip link add red type vrf table 7; ip link set red up; ip link set two-out master red
        ip route show vrf red";
    inside(t, &format!("{ROOM}{script}")).map(drop)
}

fn virtual_server(t: &Test<'_>) -> Outcome {
    let seen = inside(
        t,
        &format!(
            "{ROOM}
             ip netns exec one sh -c 'mkdir /www; echo served > /www/x; webfsd -p 8000 -r /www'
             sysctl -qw net.ipv4.vs.conntrack=1
             ip link add kube-ipvs0 type dummy; ip addr add 10.96.0.1/32 dev kube-ipvs0
             for how in rr wrr lc sh; do
                 ipvsadm -A -t 10.96.0.1:80 -s $how; ipvsadm -a -t 10.96.0.1:80 -r 10.66.0.2:8000 -m
                 curl -sS -m 10 --retry 5 --retry-connrefused http://10.96.0.1/x
                 ipvsadm -C
             done
             ipset create ports bitmap:port range 30000-32767; ipset add ports 30080
             ipset create services hash:ip,port; ipset add services 10.96.0.1,6:80
             ipset create loop hash:ip,port,ip; ipset add loop 10.66.0.2,6:80,10.66.0.2
             ipset create ranges hash:ip,port,net; ipset add ranges 10.96.0.1,6:80,10.66.0.0/24
             ipset create all list:set; ipset add all services; ipset add all ranges
             iptables -t nat -A POSTROUTING -m set --match-set loop dst,dst,src -j MASQUERADE
             iptables -A FORWARD -m set --match-set services dst,dst -j ACCEPT"
        ),
    )?;
    ensure!(seen.matches("served").count() == 4, "{seen}");
    Ok(())
}

fn shaping(t: &Test<'_>) -> Outcome {
    let script = "
        ip netns exec one tc qdisc add dev eth0 root handle 1: htb default 1
        ip netns exec one tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
        tc qdisc add dev one-out ingress
        tc filter add dev one-out ingress matchall action mirred egress mirror dev two-out
        ip link add ifb0 type ifb; ip link set ifb0 up
        tc qdisc add dev ifb0 root handle 1: prio
        tc qdisc add dev ifb0 parent 1:1 sfq; tc qdisc add dev ifb0 parent 1:2 fq
        ip netns exec one sysctl -w net.ipv4.tcp_congestion_control=bbr
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
