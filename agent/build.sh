#!/bin/sh
# Builds bulkhead-agent, or another package for the guest, as one static binary and copies it to OUT:
#
#     agent/build.sh OUT [PACKAGE]
#
# Needs libseccomp.a, libelf.a and libz.a (Debian: libseccomp-dev, libelf-dev, zlib1g-dev).
# CARGO_TARGET_DIR is honoured; other arguments of cargo go into CARGO_ARGS.
set -eu

out=${1:?usage: agent/build.sh OUT [PACKAGE]}
package=${2:-bulkhead-agent}
cd "$(dirname "$0")/.."

# Named explicitly, so that the flags below reach the agent and not cargo's build scripts. At a fixed address the
# program needs no relocations, which would cost each of its processes seventy pages and the time to fill them.
target=x86_64-unknown-linux-gnu
flags='-C target-feature=+crt-static -C relocation-model=static'
# Nor are there tables for unwinding, an eighth of the file: a panic aborts.
flags="$flags -C link-arg=-Wl,--no-eh-frame-hdr,--script=agent/no-unwind.ld"
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$flags"
export LIBSECCOMP_LINK_TYPE=static
export LIBSECCOMP_LIB_PATH="${LIBSECCOMP_LIB_PATH:-/usr/lib/x86_64-linux-gnu}"

# The program's file is memory of every guest, so it is made as small as it gets: half a megabyte less than by "s".
# shellcheck disable=SC2086
cargo build --release --locked --package "$package" --target "$target" --config 'profile.release.opt-level="z"' \
    ${CARGO_ARGS:-}

# Copied only when it has changed, so that what is made from it is not made again without a cause.
built=${CARGO_TARGET_DIR:-target}/$target/release/$package
cmp -s "$built" "$out" || install -D -m 0755 "$built" "$out"
