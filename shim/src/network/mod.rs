//! A pod's network namespace on the host, whose interfaces the guest gets.
//!
//! Each interface is carried by a network device of the VM: all that comes in by the interface goes out by the
//! device's tap, and the other way round. The guest gets the interface's name, addresses and routes. What changes
//! later follows. A VM has a device more than it needs at first, for an interface that is added.

mod error;
mod follow;
mod forward;
mod interface;
mod namespace;
mod redirect;
mod routing;
mod sk_lookup;
mod tap;

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use bulkhead_protocols::agent;
use bulkhead_protocols::netlink::{Netlink, decode, encode, make_up_no_address};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

pub use error::NetworkError;
pub use follow::Following;
pub use forward::Forward;
pub use namespace::Namespace;

use interface::Interface;
use tap::Tap;

/// Devices that every VM has: one for the interface that most pods have, and one that is added later.
pub const DEVICES: usize = 2;

/// A namespace that is joined to a VM which is still to be started.
pub struct Joined {
    /// Its interfaces.
    pub network: Network,
    /// The queues of the tap behind each network device.
    pub taps: Vec<Vec<OwnedFd>>,
    /// The namespace that the VMM is to run in. It is the sandbox's where that has no other: whoever looks for a
    /// container's interfaces looks there. Else there is nothing in it.
    pub namespace: OwnedFd,
}

/// A network device of the VM.
#[derive(Debug)]
struct Device {
    /// Its tap's number.
    tap: u32,
    carries: Option<Interface>,
}

/// The interfaces of one namespace, as far as a guest has them. Dropping it leaves the namespace as it was.
pub struct Network {
    namespace: Namespace,
    netlink: Netlink,
    devices: Vec<Device>,
    told: Told,
}

/// What a guest has been told.
#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    interfaces: Vec<agent::Interface>,
    /// What the interfaces have: messages that make it, as the wire carries them.
    messages: Vec<Vec<u8>>,
    /// What the guest was told of last and may have or not, since it has refused some of it.
    doubtful: Vec<Vec<u8>>,
}

/// What was seen of a namespace.
struct Seen {
    /// What the guest is to be told.
    change: agent::Network,
    /// What it will have been told then.
    told: Told,
    /// What cannot be carried, and why.
    refused: Vec<NetworkError>,
}

impl Network {
    /// Joins the namespace at this path, or a new one, to a VM that has at most `limit` network devices, each with
    /// this many queues.
    ///
    /// # Errors
    /// [`NetworkError`]; the namespace is as it was then.
    pub fn open(path: Option<&Path>, queues: u32, limit: usize) -> Result<Joined, NetworkError> {
        let new = || Namespace::new().map_err(NetworkError::kernel("a new namespace"));
        let (namespace, wire) = match path {
            Some(path) => (Namespace::open(path)?, Some(new()?)),
            None => (new()?, None),
        };
        let wire = wire.as_ref().unwrap_or(&namespace).descriptor();
        let wire = wire.map_err(NetworkError::kernel("its namespace"))?;
        let mut netlink =
            namespace.inside(Netlink::open).map_err(NetworkError::kernel("netlink"))?;
        let wanted = wanted(&mut netlink, path, limit)?;
        let count = DEVICES.max(wanted.len() + 1).min(limit);
        let taps = || (0..count).map(|_| Tap::new(queues)).collect::<Result<Vec<_>, _>>();
        let taps = namespace.inside(taps).map_err(NetworkError::kernel("a tap"))?;
        for tap in &taps {
            // A VMM that can see its tap's MTU makes it the largest one that the guest's interface may have.
            set_mtu(&mut netlink, tap.index, tap::MAX_MTU)
                .map_err(NetworkError::kernel("a tap"))?;
        }
        let devices = taps.iter().map(|tap| Device { tap: tap.index, carries: None }).collect();
        let taps = taps.into_iter().map(|tap| tap.queues).collect();
        let mut network = Network { namespace, netlink, devices, told: Told::default() };
        for interface in wanted {
            network.attach(interface)?;
        }
        Ok(Joined { network, taps, namespace: wire })
    }

    /// Moves the taps, none of which carries anything yet, into the namespace at this path, and joins its interfaces.
    ///
    /// # Errors
    /// [`NetworkError`]; the taps may be gone then, and the namespace is as it was.
    fn enter(&mut self, path: &Path) -> Result<(), NetworkError> {
        let namespace = Namespace::open(path)?;
        let mut netlink =
            namespace.inside(Netlink::open).map_err(NetworkError::kernel("netlink"))?;
        // One stays free for an interface that is added.
        let wanted = wanted(&mut netlink, Some(path), self.devices.len().saturating_sub(1))?;
        let its = namespace.descriptor().map_err(NetworkError::kernel("the namespace"))?;
        let mut there = HashSet::new();
        for device in &mut self.devices {
            match move_tap(&mut self.netlink, device.tap, &its, &mut netlink, &there) {
                Ok(index) => device.tap = index,
                Err(error) => {
                    // The VMM ends in its own time, and others may want the namespace at once.
                    there.into_iter().for_each(|index| remove(&mut netlink, index));
                    return Err(error);
                }
            }
            there.insert(device.tap);
        }
        (self.namespace, self.netlink) = (namespace, netlink);
        wanted.into_iter().try_for_each(|interface| self.attach(interface))
    }

    /// How many network devices the VM has.
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Looks at the namespace again.
    ///
    /// # Errors
    /// The kernel's.
    fn look(&mut self) -> Result<Seen, NetworkError> {
        let mut refused = Vec::new();
        let mut found = Vec::new();
        for interface in list(&mut self.netlink)? {
            match interface {
                // Taps are not the pod's, whichever sandbox has made them.
                Ok(interface) if tap::is_named_like_one(&interface.name) => {}
                Ok(interface) => found.push(interface),
                Err(error) => refused.push(error),
            }
        }
        for place in 0..self.devices.len() {
            let Some(old) = &self.devices[place].carries else { continue };
            match found.iter().position(|new| new.index == old.index) {
                Some(at) => self.change(place, found.swap_remove(at))?,
                None => self.detach(place),
            }
        }
        for interface in found.into_iter().filter(Interface::is_up) {
            if let Err(error) = self.attach(interface) {
                refused.push(error);
            }
        }
        let devices = self.devices.iter().filter_map(|device| device.carries.as_ref());
        let carried = devices.map(|interface| (interface.index, interface)).collect();
        let messages = routing::list(&mut self.netlink, &carried)
            .map_err(NetworkError::kernel("addresses and routes"))?;
        let unread = self.netlink.unread().into_iter();
        refused.extend(unread.map(NetworkError::kernel("something of the namespace is left out")));
        let messages = messages.into_iter().map(encode).collect();
        let told = Told { interfaces: self.wire_interfaces(), messages, doubtful: Vec::new() };
        Ok(Seen { change: self.told.until(&told), told, refused })
    }

    fn wire_interfaces(&self) -> Vec<agent::Interface> {
        let devices = (0..).zip(&self.devices);
        let carried =
            devices.filter_map(|(number, device)| Some((number, device.carries.as_ref()?)));
        carried
            .map(|(device, interface)| agent::Interface {
                device,
                index: interface.index,
                name: interface.name.clone(),
                address: interface.address.to_vec(),
                mtu: interface.mtu,
                flags: interface.flags,
                accept_ra: interface.accept_ra,
                ..Default::default()
            })
            .collect()
    }

    /// Joins an interface to a device that carries none.
    fn attach(&mut self, interface: Interface) -> Result<(), NetworkError> {
        let refused = |reason| NetworkError::Interface { name: interface.name.clone(), reason };
        let Some(device) = self.devices.iter_mut().find(|device| device.carries.is_none()) else {
            return Err(refused("the VM has no network device left".to_owned()));
        };
        let (tap, index) = (device.tap, interface.index);
        let netlink = &mut self.netlink;
        // Up at last: what the guest sends is the pod's, and never the host's.
        let joined = redirect::connect(netlink, tap, index)
            .and_then(|()| redirect::connect(netlink, index, tap))
            .and_then(|()| set_up(netlink, tap, interface.mtu));
        if let Err(error) = joined {
            let _ = redirect::disconnect(netlink, index);
            let _ = redirect::disconnect(netlink, tap);
            return Err(refused(error.to_string()));
        }
        device.carries = Some(interface);
        Ok(())
    }

    /// Notes how the interface of a device is now.
    fn change(&mut self, place: usize, interface: Interface) -> Result<(), NetworkError> {
        let device = &mut self.devices[place];
        if device.carries.as_ref().is_some_and(|old| old.mtu != interface.mtu) {
            set_mtu(&mut self.netlink, device.tap, interface.mtu)
                .map_err(NetworkError::kernel(format!("the MTU of {}", interface.name)))?;
        }
        device.carries = Some(interface);
        Ok(())
    }

    /// Takes a device's interface away from it. The interface may be gone.
    fn detach(&mut self, place: usize) {
        let device = &mut self.devices[place];
        if let Some(interface) = device.carries.take() {
            let _ = set_flags(&mut self.netlink, device.tap, LinkFlags::empty());
            let _ = redirect::disconnect(&mut self.netlink, interface.index);
            let _ = redirect::disconnect(&mut self.netlink, device.tap);
        }
    }
}

impl Told {
    /// What leads from here to there.
    fn until(&self, new: &Told) -> agent::Network {
        let (old, kept): (HashSet<_>, HashSet<_>) =
            (self.messages.iter().collect(), new.messages.iter().collect());
        // What was made last goes first.
        let gone = self.doubtful.iter().rev().chain(self.messages.iter().rev());
        let gone = gone.filter(|message| !kept.contains(message));
        let removed: Vec<_> =
            gone.filter_map(|message| decode(message).ok()).map(routing::inverse).collect();
        // With an address go others of its subnet, and routes and neighbours of its interface; with an interface that
        // is brought down, its routes.
        let more_goes = removed.iter().any(|message| matches!(message, Message::DelAddress(_)))
            || self.interfaces != new.interfaces;
        let added = new.messages.iter().filter(|message| more_goes || !old.contains(message));
        agent::Network {
            interfaces: new.interfaces.clone(),
            removed: removed.into_iter().map(encode).collect(),
            added: added.cloned().collect(),
            ..Default::default()
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in 0..self.devices.len() {
            self.detach(place);
            remove(&mut self.netlink, self.devices[place].tap);
        }
    }
}

/// Ends the redirections that a shim has left in the namespace at this path. One that is gone has none.
pub fn clean(path: &Path) {
    let Ok(namespace) = Namespace::open(path) else { return };
    let Ok(mut netlink) = namespace.inside(Netlink::open) else { return };
    let found: Vec<_> = list(&mut netlink).unwrap_or_default().into_iter().flatten().collect();
    // Another sandbox has it by now: the dead one's taps have ended with its VMM.
    if found.iter().any(|interface| tap::is_named_like_one(&interface.name)) {
        return;
    }
    for interface in found {
        let _ = redirect::disconnect(&mut netlink, interface.index);
    }
}

/// The interfaces of a namespace that a VM with at most `limit` network devices is to carry: those that are up. A
/// namespace with a path may be another sandbox's already.
fn wanted(
    netlink: &mut Netlink,
    path: Option<&Path>,
    limit: usize,
) -> Result<Vec<Interface>, NetworkError> {
    let found = list(netlink)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = path
        && found.iter().any(|interface| tap::is_named_like_one(&interface.name))
    {
        let reason = "another sandbox has its interfaces";
        return Err(NetworkError::Refused { path: path.to_owned(), reason });
    }
    let wanted: Vec<_> = found.into_iter().filter(Interface::is_up).collect();
    if let Some(interface) = wanted.get(limit) {
        let reason = format!(
            "there are {} interfaces, and the VM has at most {limit} network devices",
            wanted.len()
        );
        return Err(NetworkError::Interface { name: interface.name.clone(), reason });
    }
    Ok(wanted)
}

fn list(netlink: &mut Netlink) -> Result<Vec<Result<Interface, NetworkError>>, NetworkError> {
    interface::list(netlink).map_err(NetworkError::kernel("its interfaces"))
}

/// Moves a tap into a namespace, in which `there` are the taps that were moved before. Returns the number that it has
/// there, which may be another one.
fn move_tap(
    from: &mut Netlink,
    tap: u32,
    namespace: &OwnedFd,
    to: &mut Netlink,
    there: &HashSet<u32>,
) -> Result<u32, NetworkError> {
    let mut link = LinkMessage::default();
    link.header.index = tap;
    link.attributes = vec![LinkAttribute::NetNsFd(namespace.as_raw_fd())];
    from.change(Message::SetLink(link), 0).map_err(NetworkError::kernel("moving a tap"))?;
    let found = list(to)?.into_iter().flatten();
    let mut taps = found.filter(|interface| tap::is_named_like_one(&interface.name));
    let new = taps.find(|interface| !there.contains(&interface.index));
    let lost = || NetworkError::kernel("a tap that was moved")(std::io::ErrorKind::NotFound.into());
    new.map(|interface| interface.index).ok_or_else(lost)
}

/// Removes a tap. Where it is gone already, the VMM is.
fn remove(netlink: &mut Netlink, tap: u32) {
    let mut link = LinkMessage::default();
    link.header.index = tap;
    let _ = netlink.change(Message::DelLink(link), 0);
}

fn set_mtu(netlink: &mut Netlink, tap: u32, mtu: u32) -> std::io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = tap;
    link.attributes = vec![LinkAttribute::Mtu(mtu)];
    netlink.change(Message::SetLink(link), 0)
}

/// Brings a tap up. The host has no business on it: no address, and nothing to say.
fn set_up(netlink: &mut Netlink, tap: u32, mtu: u32) -> std::io::Result<()> {
    set_mtu(netlink, tap, mtu)?;
    let _ = netlink.change(make_up_no_address(tap), 0);
    set_flags(netlink, tap, LinkFlags::Up)
}

/// Brings a tap up or down.
fn set_flags(netlink: &mut Netlink, tap: u32, flags: LinkFlags) -> std::io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = tap;
    (link.header.flags, link.header.change_mask) = (flags, LinkFlags::Up);
    netlink.change(Message::SetLink(link), 0)
}
