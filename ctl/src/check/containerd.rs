//! containerd on this host: the program, and whether its configuration has a handler for us.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_shim::info::RUNTIME;
use toml::{Table, Value};

/// containerd's main configuration file.
pub const CONFIG: &str = "/etc/containerd/config.toml";

/// The CRI plugin, as files of version 3 call it, and as earlier ones may besides.
const PLUGINS: [&str; 3] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"];

/// What containerd's configuration says about us. Only Kubernetes needs it to say something:
/// `ctr` and `nerdctl` name the runtime themselves.
#[derive(Debug, PartialEq, Eq)]
pub enum Handler {
    /// The handler of this name runs pods with us.
    Configured(String),
    /// There is no configuration, or one without us.
    Absent,
    /// A configuration file cannot be read.
    Unreadable(String),
}

/// Looks into containerd's main file and what that imports; containerd reads nothing else.
pub fn handler(main: &Path) -> Handler {
    let mut files = vec![main.to_owned()];
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        next += 1;
        let table = match fs::read_to_string(&file) {
            Ok(text) => text.parse::<Table>(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Handler::Unreadable(format!("{}: {e}", file.display())),
        };
        let table = match table {
            Ok(table) => table,
            Err(e) => return Handler::Unreadable(format!("{}: {}", file.display(), e.message())),
        };
        if let Some(name) = find_handler(&table) {
            return Handler::Configured(name);
        }
        for import in imports(&table, &file) {
            // Each file once, for files may import each other.
            if !files.contains(&import) {
                files.push(import);
            }
        }
    }
    Handler::Absent
}

/// The name of our runtime in the plugin that the file's version has for it; what stands elsewhere containerd does not read.
fn find_handler(table: &Table) -> Option<String> {
    let version = table.get("version").and_then(Value::as_integer).unwrap_or(1);
    let known = if version < 3 { PLUGINS.as_slice() } else { &PLUGINS[..1] };
    let plugin = known.iter().find_map(|plugin| table.get("plugins")?.get(plugin));
    let runtimes = plugin?.get("containerd")?.get("runtimes")?;
    let ours =
        |runtime: &Value| runtime.get("runtime_type").and_then(Value::as_str) == Some(RUNTIME);
    let mut found = runtimes.as_table()?.iter().filter(|(_, runtime)| ours(runtime));
    found.next().map(|(name, _)| name.clone())
}

/// The files that `imports` of a file names: paths, from its own directory, or patterns as `dir/*.toml`.
fn imports(table: &Table, file: &Path) -> Vec<PathBuf> {
    let imports = table.get("imports").and_then(Value::as_array).into_iter().flatten();
    let dir = file.parent().unwrap_or(Path::new("/"));
    imports.filter_map(Value::as_str).flat_map(|path| matching(&dir.join(path))).collect()
}

/// The files that a path names, which may have a `*` in its last part.
fn matching(path: &Path) -> Vec<PathBuf> {
    let pattern = path.file_name().and_then(|name| name.to_str()?.split_once('*'));
    let (Some((before, after)), Some(dir)) = (pattern, path.parent()) else {
        return vec![path.to_owned()];
    };
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let named = |name: &str| name.strip_prefix(before).is_some_and(|rest| rest.ends_with(after));
    let names = names.filter(|name| name.to_str().is_some_and(named));
    let mut files: Vec<PathBuf> = names.map(|name| dir.join(name)).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = r#"
        version = 2
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vm]
        runtime_type = "io.containerd.bulkhead.v2"
    "#;

    fn looked(main: &str) -> Handler {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("config.toml");
        fs::write(&file, main).expect("write");
        handler(&file)
    }

    #[test]
    fn a_handler_is_found_in_every_version_of_the_file() {
        assert_eq!(looked(V2), Handler::Configured("vm".to_owned()));
        let v3 = V2.replace("grpc.v1.cri", "cri.v1.runtime").replace("= 2", "= 3");
        assert_eq!(looked(&v3), Handler::Configured("vm".to_owned()));
    }

    #[test]
    fn a_handler_that_containerd_does_not_read_is_none() {
        assert_eq!(looked(&V2.replace("= 2", "= 3")), Handler::Absent);
    }

    #[test]
    fn another_runtime_is_not_ours() {
        assert_eq!(looked(&V2.replace("bulkhead", "kata")), Handler::Absent);
        assert_eq!(looked(""), Handler::Absent);
    }

    #[test]
    fn a_broken_file_is_named() {
        assert!(
            matches!(looked("version = "), Handler::Unreadable(text) if text.contains("config.toml: "))
        );
    }

    #[test]
    fn no_file_is_no_error() {
        assert_eq!(handler(Path::new("/nowhere/config.toml")), Handler::Absent);
    }

    #[test]
    fn imports_are_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (main, imported) = (dir.path().join("config.toml"), dir.path().join("conf.d"));
        fs::create_dir(&imported).expect("mkdir");
        let import = |path: &Path| format!("imports = [\"{}\"]", path.display());
        fs::write(&main, import(Path::new("conf.d/*.toml"))).expect("write");
        // A circle ends.
        fs::write(imported.join("a.toml"), import(&main)).expect("write");
        assert_eq!(handler(&main), Handler::Absent);
        fs::write(imported.join("b.toml"), V2).expect("write");
        assert_eq!(handler(&main), Handler::Configured("vm".to_owned()));
        // A directory that nothing imports is not read.
        fs::write(&main, "").expect("write");
        assert_eq!(handler(&main), Handler::Absent);
    }
}
