//! What the host's processor can do.

use std::fs::File;
use std::io::{self, Read};

/// Whether it shows one of these flags. The first processor speaks for all: to tell of each takes
/// the kernel long where they are many.
pub(super) fn has(flags: &[&str]) -> bool {
    first().is_ok_and(|text| shows(&text, flags))
}

fn first() -> io::Result<String> {
    let mut text = Vec::new();
    File::open("/proc/cpuinfo")?.take(8192).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn shows(cpuinfo: &str, flags: &[&str]) -> bool {
    let shown = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim_end() == "flags").then_some(value)
    });
    let mut shown = shown.unwrap_or_default().split_ascii_whitespace();
    shown.any(|flag| flags.contains(&flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_a_flag_of_its_own() {
        let virtual_machines = |text| shows(text, &["vmx", "svm"]);
        assert!(virtual_machines("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(virtual_machines("flags : svm\nflags : none"));
        assert!(!virtual_machines("flags\t\t: fpu svme vmx2\nmodel name: vmx\n"));
        assert!(!virtual_machines(""));
    }
}
