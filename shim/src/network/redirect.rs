//! Traffic that goes from one interface straight to another, as tc(8) has it: an ingress qdisc whose only filter
//! matches everything and redirects it. The host's own network stack in that namespace sees none of it.

use std::io;

use bulkhead_protocols::netlink::{NLM_F_CREATE, NLM_F_EXCL, Netlink};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

/// Our filters' place among those of others, at the end; it tells them apart, too.
const PRIORITY: u32 = 0xfff0;

/// All protocols, `ETH_P_ALL`.
const PROTOCOL: u16 = 3;

/// Sends all that comes in by `from` out by `to`.
///
/// # Errors
/// The kernel's: it may be built without `NET_CLS_U32` or `NET_ACT_MIRRED`.
pub fn connect(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    match netlink.change(Message::NewQueueDiscipline(qdisc(from)), NLM_F_CREATE | NLM_F_EXCL) {
        // Somebody else's, or that of a shim that was killed.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let _ = netlink.change(Message::DelTrafficFilter(filter(from)), 0);
        }
        made => made?,
    }
    let mut message = filter(from);
    message.attributes.push(TcAttribute::Options(match_all(to).map(TcOption::U32).into()));
    netlink.change(Message::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL).inspect_err(
        |_| {
            let _ = disconnect(netlink, from);
        },
    )
}

/// Ends it, and leaves what others have made. Repeating it does no harm.
///
/// # Errors
/// The kernel's, where there is nothing to end.
pub fn disconnect(netlink: &mut Netlink, from: u32) -> io::Result<()> {
    let removed = netlink.change(Message::DelTrafficFilter(filter(from)), 0);
    let mut others = filter(from);
    (others.header.info, others.attributes) = (0, Vec::new());
    if netlink.dump(&Message::GetTrafficFilter(others))?.is_empty() {
        return netlink.change(Message::DelQueueDiscipline(qdisc(from)), 0);
    }
    removed
}

fn qdisc(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle { major: TcHandle::INGRESS.major, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

fn filter(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent =
        TcHandle { major: TcHandle::INGRESS.major, minor: TcHandle::MIN_INGRESS };
    message.header.info = PRIORITY << 16 | u32::from(PROTOCOL.to_be());
    message.attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned())];
    message
}

/// The classifier that every distribution's kernel has, told to look at nothing.
fn match_all(to: u32) -> [TcFilterU32Option; 2] {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    [TcFilterU32Option::Selector(selector), TcFilterU32Option::Action(vec![action])]
}
