//! Errors of libcontainer, made readable.

use nix::errno::Errno;

use crate::error::Error;
use crate::sys::describe;

/// What libcontainer says of itself before it comes to the point.
const PREAMBLES: [&str; 6] = [
    "failed to create container: ",
    "exec process failed with error ",
    "error in executing process : ",
    "intermediate process error ",
    "oci spec error: ",
    "failed to unix syscall: ",
];

/// The last errno that the kernel knows by a name.
const LAST_ERRNO: i32 = 133;

/// A helper's error, with what was wrong. `causes` are the records on the way to it, the innermost
/// first: errors lose their causes between libcontainer's processes.
pub fn explain(error: Error, causes: &[String]) -> Error {
    let (mut text, internal) = match error {
        Error::Internal(text) => (text, true),
        Error::InvalidArgument(text) => (text, false),
        // The helper has no others.
        other => return other,
    };
    if internal
        && let Some(cause) = causes.first()
        && !text.contains(cause.as_str())
    {
        text = format!("{text}: {cause}");
    }
    for preamble in PREAMBLES {
        text = text.replace(preamble, "");
    }
    let text = without_structs(&text);
    let text = text.trim_end_matches(": syscall");
    let errno = errno_in(text).or_else(|| causes.iter().find_map(|cause| errno_in(cause)));
    let text = match errno.map(describe) {
        Some(reason) if !text.contains(&reason) => format!("{text}: {reason}"),
        _ => text.to_owned(),
    };
    if internal && !errno.is_some_and(is_the_specs) {
        Error::Internal(text)
    } else {
        Error::InvalidArgument(text)
    }
}

/// Whether an errno tells of something that the spec names and the guest doesn't have, or of a value
/// that can't be.
fn is_the_specs(errno: Errno) -> bool {
    use Errno::{EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENODEV, ENOENT, ENOTDIR, EOPNOTSUPP, ERANGE};
    [EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENODEV, ENOENT, ENOTDIR, EOPNOTSUPP, ERANGE]
        .contains(&errno)
}

/// The first errno that a text mentions by its name, or as Rust prints the number.
fn errno_in(text: &str) -> Option<Errno> {
    let by_number = || {
        let (_, number) = text.split_once("os error ")?;
        let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().map(Errno::from_raw)
    };
    let known = || (1..=LAST_ERRNO).map(Errno::from_raw);
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| word.len() > 2 && word.starts_with('E'))
        .find_map(|word| known().find(|errno| format!("{errno:?}") == word))
        .or_else(by_number)
}

/// A text without values in Rust's debug notation: of `Mount { destination: "/x", ... }` only
/// `"/x"` is left.
fn without_structs(text: &str) -> String {
    let mut rest = text;
    let mut result = String::with_capacity(text.len());
    while let Some(start) = rest.find(" { ") {
        let Some(length) = closing(&rest[start..]) else {
            break;
        };
        let inner = &rest[start + 3..start + length];
        let name = rest[..start].trim_end_matches(|c: char| c.is_ascii_alphanumeric()).len();
        result.push_str(&rest[..name]);
        let first = inner.split_once(": ").map_or(inner, |(_, value)| value);
        result.push_str(first.split_once(", ").map_or(first, |(value, _)| value).trim());
        rest = &rest[start + length + 1..];
    }
    result.push_str(rest);
    result
}

/// Where the brace that opens in `text` is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (c == '}' && depth == 0).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_fails_is_named_with_the_kernels_reason() {
        let text = "failed to create container: exec process failed with error error in executing \
                    process : failed to prepare rootfs";
        let error = explain(
            Error::Internal(text.to_owned()),
            &[
                "failed to mount Mount { destination: \"/x\", typ: Some(\"nofs\"), options: None }: \
                 syscall"
                    .to_owned(),
                "failed to prepare rootfs (err Mount(Syscall(Nix(ENODEV))))".to_owned(),
            ],
        );
        assert!(matches!(error, Error::InvalidArgument(_)));
        assert_eq!(
            error.to_string(),
            "failed to prepare rootfs: failed to mount \"/x\": No such device"
        );
    }

    #[test]
    fn an_argument_of_any_letters_is_shown_as_it_is() {
        assert_eq!(
            without_structs("exec: \"\u{e4} { }\": not found"),
            "exec: \"\u{e4}\": not found"
        );
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let text = "cannot read x: No such file or directory (os error 2)";
        let error = explain(Error::Internal(text.to_owned()), &[text.to_owned()]);
        assert!(matches!(error, Error::InvalidArgument(_)));
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_failure_of_the_guest_stays_one() {
        let error = Error::Internal("cannot fork".to_owned());
        let error = explain(error, &["no memory (err ENOMEM)".to_owned()]);
        assert!(matches!(error, Error::Internal(_)));
        assert!(error.to_string().starts_with("cannot fork: no memory"));
    }

    #[test]
    fn values_are_cut_down_to_their_first_field() {
        for (text, cut) in [
            ("a Foo { x: \"1\", y: Bar { z: 2 } } b", "a \"1\" b"),
            ("open { but never closed", "open { but never closed"),
        ] {
            assert_eq!(without_structs(text), cut);
        }
    }

    #[test]
    fn errors_are_found_by_name_and_by_number() {
        assert_eq!(errno_in("failed (err Nix(EINVAL))"), Some(Errno::EINVAL));
        assert_eq!(errno_in("gone (os error 2)"), Some(Errno::ENOENT));
        assert_eq!(errno_in("an Error of EVERYONE"), None);
    }
}
