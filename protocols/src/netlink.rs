//! rtnetlink(7): what the kernel knows of its network. The wire carries its messages as they are.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteAttribute;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

pub use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

/// More than the kernel puts into one datagram, in bytes.
const DATAGRAM: usize = 64 << 10;

/// A way to ask the kernel about the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// All that there is of a kind: the answers to an `RTM_GET...` message.
    ///
    /// # Errors
    /// The kernel's, and `InvalidData` for an answer that cannot be read.
    pub fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let sequence = self.send(request, NLM_F_DUMP)?;
        let mut found = Vec::new();
        while self.receive(sequence, &mut |message| found.push(message))? {}
        Ok(found)
    }

    /// Has the kernel change something. `flags` are `NLM_F_CREATE` and its like.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let sequence = self.send(request, NLM_F_ACK | flags)?;
        while self.receive(sequence, &mut |_| ())? {}
        Ok(())
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        self.socket.send(&bytes(message), 0)?;
        Ok(self.sequence)
    }

    /// Takes one datagram; whether there is more to come. Answers to an earlier request, which was broken off, are
    /// left out.
    fn receive(
        &self,
        sequence: u32,
        take: &mut dyn FnMut(RouteNetlinkMessage),
    ) -> io::Result<bool> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        self.socket.recv(&mut datagram, 0)?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = parse(rest)?;
            let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            rest = &rest[length.max(4).min(rest.len())..];
            if message.header.sequence_number != sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => take(inner),
                NetlinkPayload::Done(_) => return Ok(false),
                // An acknowledgement is an error without a code.
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(false),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(true)
    }
}

/// A message as the wire carries it: with netlink's own header.
#[must_use]
pub fn encode(message: RouteNetlinkMessage) -> Vec<u8> {
    bytes(NetlinkMessage::from(message))
}

/// The message in these bytes.
///
/// # Errors
/// `InvalidData`
pub fn decode(bytes: &[u8]) -> io::Result<RouteNetlinkMessage> {
    match parse(bytes)?.payload {
        NetlinkPayload::InnerMessage(message) => Ok(message),
        other => Err(invalid(&format!("{other:?}"))),
    }
}

/// Shows the number of every interface in a message about an address, a neighbour, a rule or a route.
pub fn visit_interfaces(message: &mut RouteNetlinkMessage, visit: &mut dyn FnMut(&mut u32)) {
    use RouteNetlinkMessage as M;
    match message {
        M::NewAddress(address) | M::DelAddress(address) => visit(&mut address.header.index),
        M::NewNeighbour(neighbour) | M::DelNeighbour(neighbour) => {
            visit(&mut neighbour.header.ifindex);
        }
        M::NewRoute(route) | M::DelRoute(route) => {
            for attribute in &mut route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) | RouteAttribute::Iif(index) => visit(index),
                    RouteAttribute::MultiPath(hops) => {
                        hops.iter_mut().for_each(|hop| visit(&mut hop.interface_index));
                    }
                    _ => {}
                }
            }
        }
        // Rules know interfaces by their names.
        _ => {}
    }
}

fn bytes(mut message: NetlinkMessage<RouteNetlinkMessage>) -> Vec<u8> {
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn parse(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(bytes).map_err(|error| invalid(&error.to_string()))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no rtnetlink message: {what}"))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressMessage;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    #[test]
    fn the_kernel_tells_of_its_interfaces() {
        let mut netlink = Netlink::open().unwrap();
        for _ in 0..2 {
            let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
            let is_loopback = |message: &RouteNetlinkMessage| match message {
                RouteNetlinkMessage::NewLink(link) => {
                    link.attributes.contains(&LinkAttribute::IfName("lo".to_owned()))
                }
                _ => false,
            };
            assert!(links.iter().any(is_loopback), "{links:?}");
        }
    }

    #[test]
    fn a_refusal_is_the_kernels() {
        let mut netlink = Netlink::open().unwrap();
        let mut link = LinkMessage::default();
        link.header.index = u32::MAX >> 1;
        let error = netlink.change(RouteNetlinkMessage::SetLink(link), 0).unwrap_err();
        // ENODEV, or EPERM for who may not ask.
        assert!(matches!(error.raw_os_error(), Some(19 | 1)), "{error}");
    }

    #[test]
    fn a_message_survives_the_wire() {
        let mut message = AddressMessage::default();
        message.header.index = 7;
        let message = RouteNetlinkMessage::NewAddress(message);
        assert_eq!(decode(&encode(message.clone())).unwrap(), message);
        for broken in [&b""[..], &[0; 16], &encode(message)[..12]] {
            assert!(decode(broken).is_err(), "{broken:?}");
        }
    }
}
