//! The names of containers and execs.

use crate::error::{Error, Result};

/// containerd's own limit for identifiers, in bytes.
const MAX_LENGTH: usize = 76;

/// Checks that a name may become a path component and the name of a cgroup.
///
/// # Errors
/// [`Error::InvalidArgument`] that says what is allowed.
pub fn check(what: &str, id: &str) -> Result<()> {
    let fits = (1..=MAX_LENGTH).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte))
        && id.bytes().any(|byte| byte != b'.');
    if fits {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{what} id {id:?} is not allowed: it must have 1 to {MAX_LENGTH} characters out of letters, \
         digits, _ + - and ., and not dots alone"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containerd_and_kubernetes_pass() {
        for id in ["c1", "a".repeat(64).as_str(), "my-container_1.2", "..a"] {
            assert!(check("container", id).is_ok(), "{id}");
        }
    }

    #[test]
    fn nothing_else_becomes_a_path() {
        for id in ["", ".", "..", "...", "a/b", "../x", "a b", "ä", "a\0", &"a".repeat(77)] {
            assert!(matches!(check("exec", id), Err(Error::InvalidArgument(_))), "{id}");
        }
    }
}
