//! What a pod, or a container that is run alone, may say of its guest by annotations of its spec.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

use super::file::File;
use super::number::{Count, Size};
use super::{Config, ConfigError, validate};

/// What the names of our annotations start with.
const PREFIX: &str = "io.bulkhead.";

/// Where the annotations are, for messages.
const PLACE: &str = "annotation io.bulkhead";

/// Those that are known.
const KNOWN: &str = "io.bulkhead.vcpus, io.bulkhead.memory, io.bulkhead.rootfs_upper, io.bulkhead.scratch_size, \
     io.bulkhead.scratch_filesystem, io.bulkhead.scratch_paths and io.bulkhead.forward_sockets";

impl Config {
    /// Whether these annotations say something for a key.
    pub fn annotated(annotations: &HashMap<String, String>, key: &str) -> bool {
        annotations.contains_key(&format!("{PREFIX}{key}"))
    }

    /// The configuration as these annotations change it, within the limits of the same keys.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the annotation and what is allowed; one that starts like ours and is unknown is
    /// an error, too.
    pub fn with(mut self, annotations: &HashMap<String, String>) -> Result<Config, ConfigError> {
        let mut said = File::default();
        for (name, value) in annotations {
            let Some(key) = name.strip_prefix(PREFIX) else {
                continue;
            };
            match key {
                "vcpus" => {
                    let allowed = "a number from 1 to 64";
                    let count = value.parse().map_err(|_| refused("vcpus", value, allowed))?;
                    said.vcpus = Some(Count(count));
                }
                "memory" => said.memory = Some(size("memory", value)?),
                "scratch_size" => said.scratch_size = Some(size("scratch_size", value)?),
                "scratch_filesystem" => {
                    said.scratch_filesystem = Some(choice("scratch_filesystem", value)?);
                }
                "scratch_paths" => {
                    said.scratch_paths = Some(value.split(',').map(Into::into).collect());
                }
                "forward_sockets" => {
                    said.forward_sockets = Some(value.split(',').map(Into::into).collect());
                }
                "rootfs_upper" => said.rootfs_upper = Some(choice("rootfs_upper", value)?),
                _ => {
                    return Err(ConfigError::Value {
                        file: "annotations".into(),
                        key: "their names",
                        value: format!("{name:?}"),
                        allowed: KNOWN.to_owned(),
                    });
                }
            }
        }
        validate::apply(&mut self, Path::new(PLACE), said)?;
        Ok(self)
    }
}

fn refused(key: &'static str, value: &str, allowed: &str) -> ConfigError {
    let (value, allowed) = (format!("{value:?}"), allowed.to_owned());
    ConfigError::Value { file: PLACE.into(), key, value, allowed }
}

fn size(key: &'static str, value: &str) -> Result<Size, ConfigError> {
    Size::parse(value).ok_or_else(|| refused(key, value, Size::EXPECTED))
}

/// One of the words that the same key of a file takes.
fn choice<'a, T: Deserialize<'a>>(key: &'static str, value: &'a str) -> Result<T, ConfigError> {
    let word: StrDeserializer<'_, Error> = value.into_deserializer();
    T::deserialize(word).map_err(|error| refused(key, value, &error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Filesystem, Upper};
    use super::*;

    fn with(list: &[(&str, &str)]) -> Result<Config, String> {
        let annotations =
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::default().with(&annotations.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pod_says_how_large_its_guest_is() {
        let said = [("io.bulkhead.vcpus", "2"), ("io.bulkhead.memory", "1GiB"), ("other", "x")];
        let config = with(&said).unwrap();
        assert_eq!((config.vcpus, config.memory), (2, 1 << 30));
        assert_eq!(with(&[]).unwrap(), Config::default());
    }

    #[test]
    fn a_pod_says_what_its_scratch_disk_is() {
        let said = [
            ("io.bulkhead.scratch_size", "1GiB"),
            ("io.bulkhead.scratch_filesystem", "xfs"),
            ("io.bulkhead.scratch_paths", "/var/lib/docker,/var/lib/containers"),
            ("io.bulkhead.rootfs_upper", "guest"),
        ];
        let config = with(&said).unwrap();
        assert_eq!(config.scratch.size, 1 << 30);
        assert_eq!(config.scratch.filesystem, Filesystem::Xfs);
        assert_eq!(
            config.scratch.paths,
            ["/var/lib/docker", "/var/lib/containers"].map(PathBuf::from)
        );
        assert_eq!(config.rootfs_upper, Upper::Guest);
        let error =
            with(&[("io.bulkhead.scratch_size", "0"), ("io.bulkhead.rootfs_upper", "guest")]);
        assert!(error.unwrap_err().ends_with("a disk, and scratch_size is 0"));
        let error = with(&[
            ("io.bulkhead.scratch_size", "64MiB"),
            ("io.bulkhead.scratch_filesystem", "xfs"),
        ]);
        assert!(error.unwrap_err().contains("from 300MiB (xfs)"));
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        for (name, value, text) in [
            ("io.bulkhead.vcpus", "1000", "vcpus = 1000 is not allowed: a number from 1 to 64"),
            ("io.bulkhead.vcpus", "many", "vcpus = \"many\" is not allowed: a number from 1 to 64"),
            (
                "io.bulkhead.memory",
                "1KiB",
                "memory = 1KiB is not allowed: a size from 64MiB to 1024GiB",
            ),
            ("io.bulkhead.memory", "lots", "units KiB, MiB, GiB"),
            ("io.bulkhead.kernel", "/k", "io.bulkhead.vcpus, io.bulkhead.memory, "),
            (
                "io.bulkhead.scratch_size",
                "1MiB",
                "a multiple of 1MiB from 16MiB (ext4) to 16384GiB",
            ),
            ("io.bulkhead.scratch_size", "big", "units KiB, MiB, GiB"),
            ("io.bulkhead.scratch_filesystem", "fat", "expected one of `ext4`, `xfs`, `btrfs`"),
            ("io.bulkhead.scratch_paths", "/a,b", "absolute paths of directories"),
            ("io.bulkhead.scratch_paths", "", "absolute paths of directories"),
            ("io.bulkhead.rootfs_upper", "here", "expected `host` or `guest`"),
        ] {
            let error = with(&[(name, value)]).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
