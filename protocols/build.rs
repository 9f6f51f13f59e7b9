//! Generates the Rust side of `proto/`.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto", "proto/cri.proto", "proto/runtimeoptions.proto"])
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;
    for name in ["agent.rs", "agent_ttrpc.rs", "cri.rs", "runtimeoptions.rs"] {
        without_inner_attributes(&out.join(name))?;
    }
    Ok(())
}

/// `include!` takes no file that starts with inner attributes or inner documentation.
fn without_inner_attributes(path: &Path) -> io::Result<()> {
    let code = fs::read_to_string(path)?;
    let kept = code.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!"));
    fs::write(path, kept.collect::<Vec<_>>().join("\n"))
}
