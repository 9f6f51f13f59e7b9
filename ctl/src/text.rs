//! How things look: tables, sizes, times.

use std::io::{self, Write};
use std::time::Duration;

/// Writes rows as columns of equal width, two blanks apart. What a VMM says may be a guest's that has taken it over: no
/// character of it acts on a terminal.
///
/// # Errors
/// Those of `out`.
pub fn table(out: &mut impl Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ").replace(char::is_control, " ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Bytes, in MiB with one digit after the point.
pub fn mib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + (1 << 19)) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// Microseconds, in milliseconds with one digit after the point.
pub fn ms(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

/// A time span, to the second.
pub fn age(span: Duration) -> String {
    humantime::format_duration(Duration::from_secs(span.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let mut out = Vec::new();
        table(&mut out, &[row(["a", "b"]), row(["long", ""]), row(["ü", "c"])]).expect("write");
        table(&mut out, &[row(["e\u{1b}[31m", "two\nlines"])]).expect("write");
        let expected = "a     b\nlong\nü     c\ne [31m  two lines\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn numbers_have_one_digit_after_the_point() {
        assert_eq!(mib(0), "0.0 MiB");
        assert_eq!(mib(1536 << 10), "1.5 MiB");
        assert_eq!(mib(u64::MAX), "17592186044416.0 MiB");
        assert_eq!(ms(1_999), "1.9 ms");
        assert_eq!(age(Duration::from_millis(61_900)), "1m 1s");
    }
}
