//! A network namespace as ip(8) shows it.

use serde_json::{Map, Value};

use crate::ensure;
use crate::failure::{Context, Outcome};

/// Runs a script somewhere and returns what it printed.
pub type Shell<'a> = &'a dyn Fn(&str) -> Outcome<String>;

/// What is compared of an interface.
const INTERFACE: &[&str] = &["ifname", "address", "mtu", "addr_info"];
/// And of one of its addresses.
const ADDRESS: &[&str] =
    &["family", "local", "address", "prefixlen", "broadcast", "scope", "label"];

/// What is asked for, and how.
const PARTS: [(&str, &str); 6] = [
    ("interfaces", "ip -j addr"),
    ("routes", "ip -j -4 route show table all"),
    ("routes, IPv6", "ip -j -6 route show table all"),
    ("rules", "ip -j -4 rule"),
    ("rules, IPv6", "ip -j -6 rule"),
    ("neighbours", "ip -j neigh show nud permanent"),
];

/// Stands between the answers.
const BREAK: &str = "-----";

/// All that a namespace has, but for its loopback interface and for taps.
pub fn of(shell: Shell<'_>) -> Outcome<Value> {
    let mut found = Map::new();
    let all = shell(&PARTS.map(|(_, command)| format!("{command}\necho {BREAK}\n")).concat())?;
    let texts = all.split(BREAK);
    for ((name, command), text) in PARTS.into_iter().zip(texts) {
        let text = if text.trim().is_empty() { "[]" } else { text };
        let list: Vec<Value> = serde_json::from_str(text).context(command)?;
        let list = list.into_iter().filter_map(|entry| match name {
            "interfaces" => interface(&entry),
            _ => of_others(entry),
        });
        let mut list: Vec<Value> = list.collect();
        list.sort_by_key(ToString::to_string);
        found.insert(name.to_owned(), list.into());
    }
    Ok(found.into())
}

/// Requires that both have the same.
pub fn equal(host: Shell<'_>, guest: Shell<'_>) -> Outcome {
    let (host, guest) = (of(host)?, of(guest)?);
    for (part, expected) in host.as_object().into_iter().flatten() {
        ensure!(guest[part] == *expected, "{part}:\nhost  {expected}\nguest {}", guest[part]);
    }
    Ok(())
}

fn interface(entry: &Value) -> Option<Value> {
    let name = entry["ifname"].as_str()?;
    if name == "lo" || name.starts_with("bulk") {
        return None;
    }
    let mut kept = only(entry, INTERFACE);
    let flag = |name: &str| entry["flags"].as_array().is_some_and(|all| all.contains(&name.into()));
    kept["up"] = flag("UP").into();
    kept["noarp"] = flag("NOARP").into();
    let addresses = entry["addr_info"].as_array().into_iter().flatten();
    let mut addresses: Vec<Value> = addresses.map(|address| only(address, ADDRESS)).collect();
    // The first one of a subnet is its primary one; between subnets there is no order.
    addresses.sort_by_key(|address| address["prefixlen"].to_string());
    kept["addr_info"] = addresses.into();
    Some(kept)
}

/// The kernel's own routes and rules are not compared, nor is what is true for the moment.
fn of_others(mut entry: Value) -> Option<Value> {
    let own = entry["table"] == "local" || entry["dev"] == "lo";
    let taps = entry["dev"].as_str().is_some_and(|dev| dev.starts_with("bulk"));
    if own || taps {
        return None;
    }
    if let Some(fields) = entry.as_object_mut() {
        for passing in ["flags", "pref", "state", "expires", "cache"] {
            let onlink = passing == "flags"
                && fields.get(passing).is_some_and(|flags| flags.to_string().contains("onlink"));
            if onlink {
                fields.insert("onlink".to_owned(), true.into());
            }
            fields.remove(passing);
        }
    }
    Some(entry)
}

fn only(entry: &Value, names: &[&str]) -> Value {
    let kept = names.iter().filter(|name| !entry[**name].is_null());
    kept.map(|name| ((*name).to_owned(), entry[*name].clone())).collect::<Map<_, _>>().into()
}
