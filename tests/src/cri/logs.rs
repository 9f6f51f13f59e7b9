//! The kubelet's log files: a line is a time, the stream's name, a tag, and text
//! (kubernetes/design-proposals-archive, node/kubelet-cri-logging.md).

use std::path::Path;

use crate::failure::{Context, Failure, Outcome};

/// A line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the program's line goes on in the next one (tag `P`, not `F`).
    pub partial: bool,
    /// What the program printed.
    pub text: String,
}

/// All lines of a log file.
///
/// # Errors
/// It can't be read, or a line is not in the format.
pub fn read(file: &Path) -> Outcome<Vec<Line>> {
    let text = std::fs::read_to_string(file).context(file.display())?;
    text.lines().map(line).collect()
}

/// What the program printed on one stream, put together.
pub fn text(lines: &[Line], stream: &str) -> String {
    let end = |line: &Line| if line.partial { "" } else { "\n" };
    let lines = lines.iter().filter(|line| line.stream == stream);
    lines.map(|line| format!("{}{}", line.text, end(line))).collect()
}

fn line(line: &str) -> Outcome<Line> {
    let wrong = || Failure::new(format!("not a line of a CRI log: {line:?}"));
    let mut words = line.splitn(4, ' ');
    let (time, stream, tag, text) = (words.next(), words.next(), words.next(), words.next());
    let (Some(time), Some(stream), Some(tag), Some(text)) = (time, stream, tag, text) else {
        return Err(wrong());
    };
    let known = ["stdout", "stderr"].contains(&stream) && ["P", "F"].contains(&tag);
    // RFC 3339 with nanoseconds: 2016-10-06T00:17:09.669794202Z
    let timed = time.len() > 20 && time.as_bytes()[10] == b'T';
    (known && timed)
        .then(|| Line { stream: stream.to_owned(), partial: tag == "P", text: text.to_owned() })
        .ok_or_else(wrong)
}
