//! rtnetlink(7): what the kernel knows of its network. The wire carries its messages as they are.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::route::RouteAttribute;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

pub use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

/// The loopback interface has this number in every network namespace.
pub const LOOPBACK: u32 = 1;

/// Flags that an interface of a guest has from the pod's on the host.
pub const CARRIED_FLAGS: LinkFlags =
    LinkFlags::Up.union(LinkFlags::Noarp).union(LinkFlags::Allmulti);

/// Length of netlink's own header, in bytes.
const HEADER: usize = 16;

/// The answer is not of one moment (linux/netlink.h).
const NLM_F_DUMP_INTR: u16 = 0x10;

/// How often a changing thing is asked for.
const ATTEMPTS: usize = 10;

/// More than the kernel puts into one datagram, in bytes.
const DATAGRAM: usize = 64 << 10;

/// The message that keeps an interface from making up an IPv6 address. Without IPv6 the kernel refuses it, and there is
/// nothing to refrain from.
#[must_use]
pub fn make_up_no_address(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])])];
    RouteNetlinkMessage::SetLink(link)
}

/// A way to ask the kernel about the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    unread: Vec<io::Error>,
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
        Ok(Netlink { socket, sequence: 0, unread: Vec::new() })
    }

    /// All that there is of a kind: the answers to an `RTM_GET...` message. One that cannot be read is left out;
    /// [`Netlink::unread`] tells.
    ///
    /// # Errors
    /// The kernel's, and `Interrupted` if what is asked for changes all the time.
    pub fn dump(&mut self, request: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            let sequence = self.send(request.clone(), NLM_F_DUMP)?;
            let (mut found, mut whole) = (Vec::new(), true);
            loop {
                let datagram = self.receive(sequence)?;
                whole &= !datagram.changed;
                found.extend(datagram.messages);
                if datagram.last {
                    break;
                }
            }
            if whole {
                return Ok(found);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Why answers of the kernel since the last time could not be read.
    pub fn unread(&mut self) -> Vec<io::Error> {
        std::mem::take(&mut self.unread)
    }

    /// Has the kernel change something. `flags` are `NLM_F_CREATE` and its like.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let sequence = self.send(request, NLM_F_ACK | flags)?;
        while !self.receive(sequence)?.last {}
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

    /// Takes one datagram. Answers to an earlier request, which was broken off, are left out.
    fn receive(&mut self, sequence: u32) -> io::Result<Datagram> {
        let mut bytes = Vec::with_capacity(DATAGRAM);
        self.socket.recv(&mut bytes, 0)?;
        let mut datagram = Datagram::default();
        let mut rest = bytes.as_slice();
        while rest.len() >= HEADER {
            let header = NetlinkBuffer::new(rest);
            let length = (header.length() as usize).next_multiple_of(4).clamp(HEADER, rest.len());
            let (this, next) = rest.split_at(length);
            rest = next;
            if header.sequence_number() != sequence {
                continue;
            }
            datagram.changed |= header.flags() & NLM_F_DUMP_INTR != 0;
            match parse(this).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(message)) => datagram.messages.push(message),
                Ok(NetlinkPayload::Done(done)) if done.code == 0 => datagram.last = true,
                Ok(NetlinkPayload::Done(done)) => {
                    return Err(io::Error::from_raw_os_error(done.code.abs()));
                }
                // An acknowledgement is an error without a code.
                Ok(NetlinkPayload::Error(error)) if error.code.is_none() => datagram.last = true,
                Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                Ok(_) => {}
                Err(error) => self.unread.push(error),
            }
        }
        Ok(datagram)
    }
}

/// What the kernel has sent at once.
#[derive(Default)]
struct Datagram {
    messages: Vec<RouteNetlinkMessage>,
    /// Whether it ends the answer.
    last: bool,
    /// Whether something has changed since the answer began.
    changed: bool,
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
            let links =
                netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
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
