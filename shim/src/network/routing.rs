//! What belongs to the interfaces of a pod's network namespace: addresses, neighbours, rules and routes, each as the
//! message that makes it in another namespace.

use std::collections::HashMap;
use std::io;

use bulkhead_protocols::netlink::{LOOPBACK, Netlink, visit_interfaces};
use netlink_packet_core::Nla;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::interface::Interface;

/// The table of a namespace's own addresses, which the kernel keeps (rtnetlink(7)).
const TABLE_LOCAL: u32 = 255;

/// Refers to an object of the host's; the route itself says the same. Not in the library.
const RTA_NH_ID: u16 = 30;

/// All that these interfaces have, in the order in which it can be made.
///
/// # Errors
/// The kernel's.
pub fn list(netlink: &mut Netlink, carried: &HashMap<u32, &Interface>) -> io::Result<Vec<Message>> {
    let mut found = Vec::new();
    for message in netlink.dump(&Message::GetAddress(AddressMessage::default()))? {
        if let Message::NewAddress(message) = message {
            let routers = carried.get(&message.header.index).is_some_and(|one| one.accept_ra);
            found.extend(address(message, routers).map(Message::NewAddress));
        }
    }
    for message in netlink.dump(&Message::GetNeighbour(NeighbourMessage::default()))? {
        if let Message::NewNeighbour(message) = message {
            found.extend(neighbour(message).map(Message::NewNeighbour));
        }
    }
    for message in netlink.dump(&Message::GetRule(RuleMessage::default()))? {
        if let Message::NewRule(message) = message {
            found.extend(rule(message).map(Message::NewRule));
        }
    }
    let mut routes = Vec::new();
    for message in netlink.dump(&Message::GetRoute(RouteMessage::default()))? {
        if let Message::NewRoute(message) = message {
            routes.extend(route(message));
        }
    }
    // A gateway is reached by a route that has none.
    routes.sort_by_key(has_gateway);
    found.extend(routes.into_iter().map(Message::NewRoute));
    found.retain_mut(|message| {
        let mut all = true;
        visit_interfaces(message, &mut |index| {
            all &= *index == LOOPBACK || carried.contains_key(index);
        });
        all
    });
    Ok(found)
}

/// The message that takes away what this one makes.
pub fn inverse(message: Message) -> Message {
    match message {
        Message::NewAddress(message) => Message::DelAddress(message),
        Message::NewNeighbour(message) => Message::DelNeighbour(message),
        Message::NewRule(message) => Message::DelRule(message),
        Message::NewRoute(message) => Message::DelRoute(message),
        other => other,
    }
}

/// Lives as long as the host has it. It brings no route: the host's are all there, and the host may have taken the
/// kernel's own away. That nobody else has it is for the host to find out. What comes of a router's word the guest has
/// by itself, if it heeds `routers`.
fn address(mut message: AddressMessage, routers: bool) -> Option<AddressMessage> {
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(address) | AddressAttribute::Local(address)
                if address.is_loopback() =>
            {
                return None;
            }
            AddressAttribute::Flags(its) => flags = *its,
            _ => {}
        }
    }
    let lasting = flags.contains(AddressFlags::Permanent);
    if routers && message.header.family == AddressFamily::Inet6 && !lasting {
        return None;
    }
    flags &= AddressFlags::Homeaddress | AddressFlags::Mcautojoin;
    flags |= AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.header.flags = AddressHeaderFlags::empty();
    message.attributes.retain(|attribute| {
        matches!(
            attribute,
            AddressAttribute::Address(_)
                | AddressAttribute::Local(_)
                | AddressAttribute::Label(_)
                | AddressAttribute::Broadcast(_)
        )
    });
    message.attributes.push(AddressAttribute::Flags(flags));
    Some(message)
}

/// Those that somebody has written down; the others are found by the guest itself.
fn neighbour(mut message: NeighbourMessage) -> Option<NeighbourMessage> {
    let fixed = message.header.state == NeighbourState::Permanent;
    if !fixed || message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    message.attributes.retain(|attribute| {
        matches!(
            attribute,
            NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_)
        )
    });
    Some(message)
}

/// All but those that every namespace has.
fn rule(message: RuleMessage) -> Option<RuleMessage> {
    let kernels = RuleAttribute::Protocol(RouteProtocol::Kernel);
    (!message.attributes.contains(&kernels)).then_some(message)
}

fn route(mut message: RouteMessage) -> Option<RouteMessage> {
    let mut table = u32::from(message.header.table);
    let mut on_loopback = false;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(LOOPBACK) => on_loopback = true,
            _ => {}
        }
    }
    let kernels = message.header.protocol == RouteProtocol::Kernel && on_loopback;
    let cached = message.header.flags.contains(RouteFlags::Cloned);
    // The guest hears routers itself, and has no encapsulation; the library cannot write all that it reads of one.
    let others = message.header.protocol == RouteProtocol::Ra
        || message.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Encap(_)));
    if table == TABLE_LOCAL || table == 0 || kernels || cached || others {
        return None;
    }
    message.header.flags &= RouteFlags::Onlink;
    message.attributes.retain_mut(|attribute| match attribute {
        RouteAttribute::CacheInfo(_)
        | RouteAttribute::Expires(_)
        | RouteAttribute::MulticastExpires(_)
        | RouteAttribute::MfcStats(_) => false,
        RouteAttribute::Other(other) => other.kind() != RTA_NH_ID,
        RouteAttribute::MultiPath(hops) => {
            hops.iter_mut().for_each(|hop| hop.flags &= RouteNextHopFlags::Onlink);
            true
        }
        _ => true,
    });
    Some(message)
}

fn has_gateway(message: &RouteMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netlink_packet_route::route::{RouteAddress, RouteHeader};

    use super::*;

    #[test]
    fn an_address_is_the_guests_at_once_and_brings_no_route() {
        let mut message = AddressMessage::default();
        let ip: IpAddr = "fe80::1".parse().unwrap();
        message.attributes = vec![
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(AddressFlags::Tentative | AddressFlags::Permanent),
        ];
        let found = address(message, false).unwrap();
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        assert_eq!(
            found.attributes,
            [AddressAttribute::Address(ip), AddressAttribute::Flags(flags)]
        );
        let mut message = AddressMessage::default();
        message.attributes = vec![AddressAttribute::Local("127.0.0.1".parse().unwrap())];
        assert_eq!(address(message, false), None);
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.attributes = vec![AddressAttribute::Flags(AddressFlags::Managetempaddr)];
        assert_eq!(address(message.clone(), true), None);
        assert!(address(message, false).is_some());
    }

    #[test]
    fn the_kernels_own_routes_are_not_carried() {
        let mut message = RouteMessage::default();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes = vec![RouteAttribute::Oif(2)];
        message.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
        assert_eq!(route(message.clone()).unwrap().header.flags, RouteFlags::Onlink);
        let mut local = message.clone();
        local.attributes.push(RouteAttribute::Table(TABLE_LOCAL));
        assert_eq!(route(local), None);
        let mut cached = message.clone();
        cached.header.flags = RouteFlags::Cloned;
        assert_eq!(route(cached), None);
        let mut kernels = message;
        kernels.header.protocol = RouteProtocol::Kernel;
        assert!(route(kernels.clone()).is_some());
        kernels.attributes = vec![RouteAttribute::Oif(LOOPBACK)];
        assert_eq!(route(kernels), None);
    }

    #[test]
    fn gateways_come_after_the_routes_to_them() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into()));
        let mut far = RouteMessage::default();
        far.attributes = vec![gateway];
        let mut routes = [far.clone(), RouteMessage::default()];
        routes.sort_by_key(has_gateway);
        assert_eq!(routes[1], far);
    }
}
