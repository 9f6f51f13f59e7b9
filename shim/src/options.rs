//! What containerd's options for this runtime say: which configuration file holds for the sandbox.
//!
//! They are those of a runtime that containerd has no message for: `ConfigPath` of the handler in the CRI plugin's
//! configuration, and `ctr run --runtime-config-path`.

use std::path::PathBuf;

use bulkhead_protocols::runtimeoptions::Options;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use thiserror::Error;

use crate::config::Config;

/// The name of their type, in front of which containerd may put a host's.
const TYPE: &str = "runtimeoptions.v1.Options";

/// Why the options cannot be honoured.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// They are no such message.
    #[error("containerd's options for this runtime: {0}")]
    Decode(#[from] protobuf::Error),
    /// The handler has options of another runtime.
    #[error(
        "containerd's options for this runtime may have ConfigPath, a file, and no other: {0:?}"
    )]
    Unknown(String),
    /// The file would depend on who reads it.
    #[error("ConfigPath = {0:?} is not allowed: an absolute path")]
    Relative(PathBuf),
    /// `delete` and the tool would look elsewhere for the sandbox.
    #[error("{file:?}: state_dir = {own:?} is not allowed: {all:?}, which all sandboxes share")]
    StateDir {
        /// The file.
        file: PathBuf,
        /// What it says.
        own: PathBuf,
        /// What the file for all sandboxes says.
        all: PathBuf,
    },
}

/// The configuration file that the options name, if they do. Those of another type are another runtime's.
///
/// # Errors
/// [`OptionsError`]. What else is wrong with the file, who reads it says.
pub fn config_file(options: &[Any]) -> Result<Option<PathBuf>, OptionsError> {
    let Some(ours) = options.iter().find(|any| any.type_url.rsplit('/').next() == Some(TYPE))
    else {
        return Ok(None);
    };
    let ours = Options::parse_from_bytes(&ours.value)?;
    if !ours.config_body.is_empty() {
        return Err(OptionsError::Unknown(String::from_utf8_lossy(&ours.config_body).into_owned()));
    }
    if ours.config_path.is_empty() {
        return Ok(None);
    }
    let file = PathBuf::from(ours.config_path);
    if !file.is_absolute() {
        return Err(OptionsError::Relative(file));
    }
    let all = Config::load(None).unwrap_or_default().state_dir;
    match Config::load(Some(&file)) {
        Ok(Config { state_dir: own, .. }) if own != all => {
            Err(OptionsError::StateDir { file, own, all })
        }
        _ => Ok(Some(file)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, body: &str) -> Result<Option<PathBuf>, OptionsError> {
        let options = Options {
            config_path: path.to_owned(),
            config_body: body.as_bytes().to_vec(),
            ..Default::default()
        };
        let value = options.write_to_bytes().expect("encode");
        config_file(&[
            Any {
                type_url: "containerd.runc.v1.Options".to_owned(),
                value: b"\xff".to_vec(),
                ..Any::default()
            },
            Any { type_url: TYPE.to_owned(), value, ..Any::default() },
        ])
    }

    #[test]
    fn a_file_may_be_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("large.toml");
        // This machine may have a configuration of its own.
        let all = Config::load(None).unwrap_or_default().state_dir;
        std::fs::write(&path, format!("state_dir = {all:?}\n")).expect("write");
        let path = path.to_str().expect("text");
        assert_eq!(file(path, "").expect("a good file"), Some(PathBuf::from(path)));
        assert_eq!(file("", "").expect("nothing"), None);
        assert_eq!(config_file(&[]).expect("nothing"), None);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let text = |path, body| file(path, body).expect_err("refused").to_string();
        assert!(text("", "SystemdCgroup = true\n").contains("SystemdCgroup = true"));
        assert!(text("large.toml", "").contains("\"large.toml\" is not allowed: an absolute path"));
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("elsewhere.toml");
        std::fs::write(&path, "state_dir = \"/elsewhere\"\n").expect("write");
        let text = text(path.to_str().expect("text"), "");
        assert!(text.contains("state_dir = \"/elsewhere\" is not allowed"), "{text}");
        let broken =
            Any { type_url: format!("x/{TYPE}"), value: b"\xff".to_vec(), ..Any::default() };
        assert!(matches!(config_file(&[broken]), Err(OptionsError::Decode(_))));
    }
}
