//! What a pod, or a container that is run alone, may say of its guest by annotations of its spec.

use std::collections::HashMap;
use std::path::Path;

use super::file::File;
use super::number::{Count, Size};
use super::{Config, ConfigError, validate};

/// What the names of our annotations start with.
const PREFIX: &str = "io.bulkhead.";

/// Where the annotations are, for messages.
const PLACE: &str = "annotation io.bulkhead";

/// Those that are known.
const KNOWN: &str = "io.bulkhead.vcpus and io.bulkhead.memory";

impl Config {
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
            let refused = |key, allowed: &str| ConfigError::Value {
                file: PLACE.into(),
                key,
                value: format!("{value:?}"),
                allowed: allowed.to_owned(),
            };
            match key {
                "vcpus" => {
                    let count =
                        value.parse().map_err(|_| refused("vcpus", "a number from 1 to 64"))?;
                    said.vcpus = Some(Count(count));
                }
                "memory" => {
                    let size = Size::parse(value);
                    let size = size.ok_or_else(|| refused("memory", Size::EXPECTED))?;
                    said.memory = Some(size);
                }
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

#[cfg(test)]
mod tests {
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
            ("io.bulkhead.kernel", "/k", "io.bulkhead.vcpus and io.bulkhead.memory"),
        ] {
            let error = with(&[(name, value)]).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
