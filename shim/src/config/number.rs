//! Numbers in the configuration: counts, and sizes such as `"512MiB"`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(pub(super) i64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Count, E> {
        Ok(Count(value))
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl Size {
    /// What a size is.
    pub(super) const EXPECTED: &str =
        "a number of bytes, or a size such as \"512MiB\" (units KiB, MiB, GiB)";

    /// The size that is written so, if it is one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        parse(text).map(Self)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Size::EXPECTED)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Size, E> {
        match u64::try_from(value) {
            Ok(bytes) => Ok(Size(bytes)),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Size, E> {
        match parse(value) {
            Some(bytes) => Ok(Size(bytes)),
            None => Err(E::invalid_value(Unexpected::Str(value), &self)),
        }
    }
}

fn parse(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let number: u64 = digits.parse().ok()?;
    let factor: u64 = match unit.trim_start() {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A size in the largest unit that shows it without a fraction.
pub fn show(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("64KiB"), Some(64 << 10));
        assert_eq!(parse("512 MiB"), Some(512 << 20));
        assert_eq!(parse("2GiB"), Some(2 << 30));
    }

    #[test]
    fn other_text_is_no_size() {
        for text in ["", "MiB", "1.5GiB", "-1", "12MB", "12mib", "1 2MiB", "99999999999GiB"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_shown_size_is_read_back() {
        for bytes in [0, 1, 1023, 1 << 10, 5 << 20, 3 << 30, (1 << 30) + (1 << 20)] {
            assert_eq!(parse(&show(bytes)), Some(bytes), "{}", show(bytes));
        }
    }
}
