//! What the shim says about itself.

use std::io::{self, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, MessageField};

/// The runtime's name in containerd.
pub const RUNTIME: &str = "io.containerd.bulkhead.v2";

/// For `-v`, in the form of containerd's own shims.
pub fn print_version() -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "containerd-shim-bulkhead-v2:")?;
    writeln!(stdout, "  Version:  {}", env!("CARGO_PKG_VERSION"))
}

/// For `-info`, which containerd 2.x runs: a `containerd.types.RuntimeInfo` on stdout.
pub fn print_info() -> io::Result<()> {
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    io::stdout().write_all(&info.write_to_bytes().map_err(io::Error::other)?)
}
