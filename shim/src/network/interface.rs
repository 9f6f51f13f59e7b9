//! The interfaces of a pod's network namespace.

use std::io;

use bulkhead_protocols::netlink::{CARRIED_FLAGS, Netlink};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};

use super::NetworkError;
use super::tap::{MAX_MTU, MIN_MTU};

/// An interface that a network device of the guest can carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub address: [u8; 6],
    /// The longest packet, in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Those of [`LinkFlags`] that the guest's has, too.
    pub flags: u32,
    /// Whether it takes addresses and routes from routers (RFC 4861).
    pub accept_ra: bool,
}

impl Interface {
    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.flags & LinkFlags::Up.bits() != 0
    }
}

/// Every interface of the namespace that is somebody's: those that can be carried, and why the others cannot.
///
/// # Errors
/// The kernel's.
pub fn list(netlink: &mut Netlink) -> io::Result<Vec<Result<Interface, NetworkError>>> {
    let links = netlink.dump(&Message::GetLink(LinkMessage::default()))?;
    let links = links.into_iter().filter_map(|message| match message {
        Message::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links.filter_map(|link| interface(&link).transpose()).collect())
}

/// Nothing for one that no traffic comes by: the loopback interface, what belongs to a bridge, and tunnels that the
/// kernel has put into each namespace.
fn interface(link: &LinkMessage) -> Result<Option<Interface>, NetworkError> {
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        address: [0; 6],
        mtu: 0,
        flags: (link.header.flags & CARRIED_FLAGS).bits(),
        accept_ra: false,
    };
    let (mut kind, mut below, mut elsewhere, mut address) = (None, None, false, &[][..]);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(bytes) => address = bytes,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(_) => return Ok(None),
            LinkAttribute::AfSpecUnspec(families) => found.accept_ra = accepts_routers(families),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let layer = link.header.link_layer_type;
    if layer == LinkLayerType::Loopback {
        return Ok(None);
    }
    let refused = |reason| Err(NetworkError::Interface { name: found.name.clone(), reason });
    if layer != LinkLayerType::Ether {
        let kind = kind.map_or_else(|| format!("{layer:?}").to_lowercase(), ToString::to_string);
        let reason = format!("it is of type {kind}; only Ethernet interfaces can be carried");
        return if found.is_up() { refused(reason) } else { Ok(None) };
    }
    // Both ends of a veth may be here; all else that says so is made of another interface.
    let stacked = below.is_some_and(|below| below != 0 && below != found.index) && !elsewhere;
    if stacked && kind != Some(&InfoKind::Veth) {
        let kind = kind.map(ToString::to_string).unwrap_or_default();
        let reason = format!(
            "it is of type {kind} and made of an interface of the same namespace, whose traffic the guest gets"
        );
        return if found.is_up() { refused(reason) } else { Ok(None) };
    }
    found.address = match address.try_into() {
        Ok(address) if valid(address) => address,
        // As tunnels are that the kernel has put here.
        _ if !found.is_up() => return Ok(None),
        _ => return refused(format!("its address {address:02x?} is not a station's")),
    };
    if !(MIN_MTU..=MAX_MTU).contains(&found.mtu) {
        let mtu = found.mtu;
        return refused(format!("its MTU is {mtu}; allowed are {MIN_MTU} to {MAX_MTU} bytes"));
    }
    Ok(Some(found))
}

fn accepts_routers(families: &[AfSpecUnspec]) -> bool {
    families.iter().any(|family| match family {
        AfSpecUnspec::Inet6(all) => all.iter().any(|one| match one {
            AfSpecInet6::DevConf(conf) => conf.accept_ra > 0 && conf.disable_ipv6 == 0,
            _ => false,
        }),
        _ => false,
    })
}

/// Not zero, and no group's (IEEE 802).
fn valid(address: [u8; 6]) -> bool {
    address != [0; 6] && address[0] & 1 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(layer: LinkLayerType, attributes: &[LinkAttribute]) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = 2;
        link.header.link_layer_type = layer;
        link.header.flags = LinkFlags::Up | LinkFlags::Broadcast;
        link.attributes = vec![
            LinkAttribute::IfName("net1".to_owned()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        link.attributes.extend_from_slice(attributes);
        link
    }

    fn kind(kind: InfoKind) -> LinkAttribute {
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])
    }

    #[test]
    fn an_interface_of_a_pod_is_carried() {
        let peer = [kind(InfoKind::Veth), LinkAttribute::Link(9), LinkAttribute::LinkNetNsId(0)];
        let found = interface(&link(LinkLayerType::Ether, &peer)).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.mtu, found.flags), ("net1", 1500, 1));
        let macvlan =
            [kind(InfoKind::MacVlan), LinkAttribute::Link(9), LinkAttribute::LinkNetNsId(0)];
        assert!(interface(&link(LinkLayerType::Ether, &macvlan)).unwrap().is_some());
    }

    #[test]
    fn what_carries_nothing_of_the_pods_is_left_alone() {
        let mut tunnel = link(LinkLayerType::Tunnel, &[kind(InfoKind::Other("ipip".to_owned()))]);
        tunnel.header.flags = LinkFlags::empty();
        let port = link(LinkLayerType::Ether, &[LinkAttribute::Controller(3)]);
        let mut fallback = link(LinkLayerType::Ether, &[LinkAttribute::Address(vec![0; 6])]);
        fallback.header.flags = LinkFlags::empty();
        for other in [link(LinkLayerType::Loopback, &[]), tunnel, port, fallback] {
            assert_eq!(interface(&other).unwrap(), None);
        }
    }

    #[test]
    fn what_cannot_be_carried_is_named_with_its_reason() {
        let vlan = [kind(InfoKind::Vlan), LinkAttribute::Link(3)];
        for (link, reason) in [
            (link(LinkLayerType::None, &[kind(InfoKind::Wireguard)]), "of type wireguard; only"),
            (link(LinkLayerType::None, &[]), "of type none; only"),
            (link(LinkLayerType::Ether, &vlan), "of type vlan and made of"),
            (link(LinkLayerType::Ether, &[LinkAttribute::Mtu(65_535)]), "MTU is 65535; allowed"),
            (link(LinkLayerType::Ether, &[LinkAttribute::Mtu(10)]), "are 68 to 65521 bytes"),
            (link(LinkLayerType::Ether, &[LinkAttribute::Address(vec![1; 6])]), "a station's"),
            (link(LinkLayerType::Ether, &[LinkAttribute::Address(vec![2; 8])]), "a station's"),
        ] {
            let error = interface(&link).unwrap_err().to_string();
            assert!(error.starts_with("interface net1 of the pod cannot"), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }
}
