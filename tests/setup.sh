#!/bin/bash
# Installs and fetches what building and testing need; does nothing that is done already.
#
# Debian packages go onto the machine, and need root when one is missing. All else goes into the cache
# ($BULKHEAD_CACHE, else ~/.cache/bulkhead): tools from the crate registry, and the two containerds of the tests,
# which are unpacked there and not installed, so that a containerd of the machine's own is not touched.
set -euo pipefail

cd "$(dirname "$0")/.."
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
tools=$cache/tools
mkdir -p "$tools"

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# Two at once would undo each other's work.
exec 8>"$cache/setup.lock"
flock 8

# For the kernel, the agent, virtiofsd, the VMs, the test image, the CRI client of the tests, and what they do with
# networks and files.
packages=(
    bc binutils bison flex gcc libc6-dev libelf-dev make perl python3 xz-utils zstd
    libcap-ng-dev libseccomp-dev pkg-config zlib1g-dev
    btrfs-progs busybox-static cpio cryptsetup-bin dmsetup dosfstools e2fsprogs erofs-utils genisoimage iproute2 kmod
    qemu-system-x86 squashfs-tools xfsprogs
    protobuf-compiler
    curl dnsmasq-base ethtool fio git iperf3 ipset iptables iputils-ping ipvsadm netcat-openbsd nftables sqlite3
    wireguard-tools wrk
)

install_packages() {
    local missing
    mapfile -t missing < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null |
        awk '$2 == "installed" { print $1 }' | sort -u | comm -13 - <(printf '%s\n' "${packages[@]}" | sort -u))
    [[ ${#missing[@]} -gt 0 ]] || return 0
    [[ $(id -u) == 0 ]] || die "these packages are missing, and installing them needs root: ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# at_least WANTED PROGRAM: whether the program's version is WANTED or later.
at_least() {
    local found
    found=$("$2" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1) || return 1
    [[ $(printf '%s\n' "$1" "$found" | sort -V | head -n 1) == "$1" ]]
}

# crate NAME VERSION OLDEST [WHERE...]: builds a program at a pinned version, unless one that is not older
# than OLDEST is on PATH, at one of WHERE, or in the cache.
crate() {
    local name=$1 version=$2 oldest=$3 program
    shift 3
    for program in "$tools/bin/$name" "$(command -v "$name" || true)" "$@"; do
        [[ -x $program ]] && at_least "$oldest" "$program" && return 0
    done
    say "building $name $version"
    cargo install --quiet --locked --root "$tools" --target-dir "$cache/build" "$name@$version"
    rm -rf "$cache/build"
}

# unpacked DIR SUITE PACKAGE...: the packages of a Debian suite, unpacked into the cache.
unpacked() {
    local dir=$cache/$1 key
    key=$(printf '%s\n' "$@" | sha256sum | cut -c1-16)
    shift
    [[ -f $dir/.stamp && $(cat "$dir/.stamp") == "$key" ]] && return 0
    say "fetching ${*:2} of Debian $1"
    rm -rf "$dir"
    guest-kernel/debian-package.sh "$1" "$dir" "${@:2}"
    echo "$key" >"$dir/.stamp"
}

command -v cargo >/dev/null || die "cargo is missing: install Rust 1.91 or later"
if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    rustup component add rustfmt clippy || say "rustfmt and clippy are missing: make lint and make test need them"
fi
install_packages
# The one in QEMU's own directory (/usr/lib/qemu) is an older program, whose versions are QEMU's.
crate virtiofsd 1.13.3 1.13.0 /usr/libexec/virtiofsd
crate vhost-device-vsock 0.3.0 0.3.0
# runc comes with the older one: the newer suite's needs a newer C library than Debian 12 has.
unpacked containerd-1.6 bookworm containerd runc
unpacked containerd-2 sid containerd
unpacked cni bookworm containernetworking-plugins
# Not installed: it would start serving this machine's files.
unpacked webfs bookworm webfs
