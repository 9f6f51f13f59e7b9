//! Finding the program to execute, with the errors that runc's users know.

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

/// The file that a command names: itself if it has a slash, else the first executable file of that
/// name in `path`, the value of `$PATH`.
///
/// # Errors
/// A sentence in the words of Go's `os/exec`, as runc reports it.
pub fn find(command: &str, path: &str) -> Result<String, String> {
    if command.contains('/') {
        check(command).map_err(|reason| format!("exec: {command:?}: {reason}"))?;
        return Ok(command.to_owned());
    }
    path.split(':')
        .filter(|_| !path.is_empty())
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| format!("{}/{command}", directory.trim_end_matches('/')))
        .find(|file| check(file).is_ok())
        .ok_or_else(|| format!("exec: {command:?}: executable file not found in $PATH"))
        .and_then(|file| {
            if file.starts_with('/') {
                return Ok(file);
            }
            Err(format!(
                "exec: {command:?}: cannot run executable found relative to current directory"
            ))
        })
}

/// Whether the file can be executed by the process as it is now.
fn check(file: &str) -> Result<(), String> {
    let metadata = Path::new(file).metadata().map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        format!("stat {file}: {}", describe(errno))
    })?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    faccessat(nix::fcntl::AT_FDCWD, file, AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(describe)
}

/// What the C library says of an errno, in lower case as Go writes it.
pub fn describe(errno: Errno) -> String {
    crate::sys::describe(errno).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_a_shell_finds_them() {
        assert_eq!(find("sh", "/nowhere:/usr/bin:/bin").unwrap(), "/usr/bin/sh");
        assert_eq!(find("/bin/sh", "").unwrap(), "/bin/sh");
        assert_eq!(find("sh", "/bin/").unwrap(), "/bin/sh");
    }

    #[test]
    fn errors_are_in_the_words_of_runc() {
        for (command, path, error) in [
            ("foo", "/usr/bin:/bin", "exec: \"foo\": executable file not found in $PATH"),
            ("sh", "", "exec: \"sh\": executable file not found in $PATH"),
            ("/x/y", "/bin", "exec: \"/x/y\": stat /x/y: no such file or directory"),
            ("/etc", "/bin", "exec: \"/etc\": is a directory"),
            ("/etc/passwd", "/bin", "exec: \"/etc/passwd\": permission denied"),
            (
                "/etc/passwd/x",
                "/bin",
                "exec: \"/etc/passwd/x\": stat /etc/passwd/x: not a directory",
            ),
        ] {
            assert_eq!(find(command, path).unwrap_err(), error);
        }
        assert_eq!(find("", "/usr").unwrap_err(), "exec: \"\": executable file not found in $PATH");
        // The tests run in the directory of the crate.
        assert!(find("build.sh", "/bin:.").unwrap_err().ends_with("relative to current directory"));
    }

    #[test]
    fn a_directory_in_the_path_is_no_command() {
        find("bin", "/usr").unwrap_err();
    }
}
