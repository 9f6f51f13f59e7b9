//! The guest's interfaces, as the pod has them on the host.
//!
//! The VM has more network devices than a pod needs. Those that carry nothing have no driver: there is no interface
//! that would have to be explained to anybody.

mod device;

use std::collections::HashMap;
use std::fs;
use std::io;

use bulkhead_protocols::agent;
use bulkhead_protocols::netlink::{
    CARRIED_FLAGS, LOOPBACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink,
    decode, make_up_no_address, visit_interfaces,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use nix::errno::Errno;

use self::device::Device;
use crate::error::{Error, Result};

/// The guest's network devices.
pub struct Network {
    devices: HashMap<u32, Device>,
    carried: Vec<Carried>,
}

/// An interface of the pod.
struct Carried {
    interface: agent::Interface,
    /// Its number here.
    index: u32,
}

impl Network {
    /// Takes the VM's network devices, with interfaces whose names are in nobody's way.
    pub fn take() -> Self {
        let mut devices: HashMap<_, _> = device::list().into_iter().collect();
        if !devices.is_empty()
            && let Err(error) = give_way(&mut devices)
        {
            log::warn!("cannot rename the VM's own interfaces: {error}");
        }
        Self { devices, carried: Vec::new() }
    }

    /// Begins to take the interfaces away that carry nothing.
    pub fn release_rest(&mut self) {
        for (number, device) in &mut self.devices {
            if !self.carried.iter().any(|carried| carried.interface.device == *number) {
                device.unbind();
            }
        }
    }

    /// Returns when all that was to be taken away is gone.
    pub fn settle(&mut self) {
        self.devices.values_mut().for_each(Device::settle);
    }

    /// Makes the guest's interfaces, addresses and routes those that the host tells of. All that can be had is there
    /// afterwards.
    ///
    /// # Errors
    /// The first thing that cannot be had.
    pub fn apply(&mut self, network: &agent::Network) -> Result<()> {
        let mut netlink = Netlink::open().map_err(|error| Error::io("netlink", error))?;
        let mut result = Ok(());
        let mut note = |done: Result<()>| {
            if let Err(error) = done
                && result.is_ok()
            {
                result = Err(error);
            }
        };
        for message in &network.removed {
            note(self.remove(&mut netlink, message));
        }
        self.release(&network.interfaces);
        for interface in &network.interfaces {
            note(self.carry(&mut netlink, interface));
        }
        for message in &network.added {
            note(self.add(&mut netlink, message));
        }
        result
    }

    /// Gives up the interfaces that are not in the list.
    fn release(&mut self, interfaces: &[agent::Interface]) {
        let carries = |carried: &Carried| {
            let own = &carried.interface;
            interfaces.iter().any(|other| (other.device, other.index) == (own.device, own.index))
        };
        let (kept, gone) = std::mem::take(&mut self.carried).into_iter().partition(carries);
        self.carried = kept;
        for carried in gone {
            if let Some(device) = self.devices.get_mut(&carried.interface.device) {
                device.unbind();
            }
        }
    }

    fn carry(&mut self, netlink: &mut Netlink, interface: &agent::Interface) -> Result<()> {
        let known = self.carried.iter().position(|one| one.interface.device == interface.device);
        if known.is_some_and(|at| self.carried[at].interface == *interface) {
            return Ok(());
        }
        let failed = |error: io::Error| {
            Error::io(format_args!("cannot set up interface {}", interface.name), error)
        };
        let index = match known {
            Some(at) => self.carried[at].index,
            None => {
                let device = self.devices.get_mut(&interface.device).ok_or_else(|| {
                    Error::InvalidArgument(format!("there is no device {}", interface.device))
                })?;
                device.bind().map_err(failed)?
            }
        };
        let at = known.unwrap_or(self.carried.len());
        if known.is_none() {
            // As far as it is known by now; what is not set up is set up the next time.
            let (device, number) = (interface.device, interface.index);
            let begun = agent::Interface { device, index: number, ..Default::default() };
            self.carried.push(Carried { interface: begun, index });
        }
        configure(netlink, index, interface).map_err(failed)?;
        self.carried[at].interface = interface.clone();
        Ok(())
    }

    fn add(&self, netlink: &mut Netlink, message: &[u8]) -> Result<()> {
        let Some(message) = self.translated(message)? else { return Ok(()) };
        let flags = match message {
            // Two routes may differ in their gateway alone.
            Message::NewRoute(_) => NLM_F_APPEND,
            Message::NewRule(_) => NLM_F_EXCL,
            _ => NLM_F_REPLACE,
        };
        let Err(error) = netlink.change(message.clone(), NLM_F_CREATE | flags) else {
            return Ok(());
        };
        match error.raw_os_error().map(Errno::from_raw) {
            // A kernel that was told to do without IPv6 does.
            Some(Errno::EEXIST | Errno::EAFNOSUPPORT) => Ok(()),
            _ => Err(Error::io(format_args!("cannot add the {}", describe(&message)), error)),
        }
    }

    fn remove(&self, netlink: &mut Netlink, message: &[u8]) -> Result<()> {
        let Some(message) = self.translated(message)? else { return Ok(()) };
        let Err(error) = netlink.change(message.clone(), 0) else { return Ok(()) };
        match error.raw_os_error().map(Errno::from_raw) {
            // It went by itself, with an interface or an address.
            Some(Errno::ESRCH | Errno::ENOENT | Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(()),
            _ => Err(Error::io(format_args!("cannot take the {} away", describe(&message)), error)),
        }
    }

    /// The message with our numbers for its interfaces; nothing if one of them is not here.
    fn translated(&self, message: &[u8]) -> Result<Option<Message>> {
        let mut message = decode(message)
            .map_err(|error| Error::InvalidArgument(format!("the network: {error}")))?;
        let mut known = true;
        visit_interfaces(&mut message, &mut |index| {
            let carried = self.carried.iter().find(|one| one.interface.index == *index);
            match carried {
                Some(carried) => *index = carried.index,
                None => known &= *index == LOOPBACK,
            }
        });
        Ok(known.then_some(message))
    }
}

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1 by itself.
///
/// # Errors
/// What the kernel says.
pub fn loopback_up() -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = LOOPBACK;
    (link.header.flags, link.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    Netlink::open()?.change(Message::SetLink(link), 0)
}

/// Renames the devices' interfaces, whose names may be those of others that they are to carry.
fn give_way(devices: &mut HashMap<u32, Device>) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    for (number, device) in devices {
        let mut link = LinkMessage::default();
        link.header.index = device.bind()?;
        link.attributes = vec![LinkAttribute::IfName(format!("bulkhead{number}"))];
        netlink.change(Message::SetLink(link), 0)?;
    }
    Ok(())
}

/// What a message is about, for people.
fn describe(message: &Message) -> String {
    match message {
        Message::NewRoute(route) | Message::DelRoute(route) => {
            let to = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(ip.to_string()),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(ip.to_string()),
                _ => None,
            });
            let length = route.header.destination_prefix_length;
            to.map_or_else(|| "default route".to_owned(), |to| format!("route to {to}/{length}"))
        }
        Message::NewAddress(address) | Message::DelAddress(address) => {
            let ip = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(ip.to_string()),
                _ => None,
            });
            format!("address {}", ip.unwrap_or_default())
        }
        Message::NewRule(_) | Message::DelRule(_) => "routing rule".to_owned(),
        _ => "neighbour".to_owned(),
    }
}

/// Gives an interface its name and all else that is its own. It makes up no address: the host's are all there.
fn configure(netlink: &mut Netlink, index: u32, interface: &agent::Interface) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![
        LinkAttribute::IfName(interface.name.clone()),
        LinkAttribute::Address(interface.address.clone()),
        LinkAttribute::Mtu(interface.mtu),
    ];
    netlink.change(Message::SetLink(link.clone()), 0)?;
    let _ = netlink.change(make_up_no_address(index), 0);
    let accept = if interface.accept_ra { "1" } else { "0" };
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/accept_ra", interface.name), accept);
    link.attributes.clear();
    link.header.flags = LinkFlags::from_bits_retain(interface.flags) & CARRIED_FLAGS;
    link.header.change_mask = CARRIED_FLAGS;
    netlink.change(Message::SetLink(link), 0)
}
