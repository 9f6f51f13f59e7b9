#!/bin/bash
# cargo-deny on licences, sources and bans (deny.toml). Security advisories need a database that is fetched over
# git; `cargo deny check` checks them too where that is reachable.
set -euo pipefail

cd "$(dirname "$0")/.."
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
version=0.18.3
program=$(command -v cargo-deny || echo "$cache/tools/bin/cargo-deny")
if [[ ! -x $program ]]; then
    # The lock of setup.sh, which builds in the same place.
    mkdir -p "$cache"
    exec 8>"$cache/setup.lock"
    flock 8
    echo "deny: building cargo-deny $version, once" >&2
    cargo install --quiet --debug --locked --root "$cache/tools" --target-dir "$cache/build" "cargo-deny@$version"
    rm -rf "$cache/build"
fi
exec "$program" --log-level warn --all-features check bans licenses sources
