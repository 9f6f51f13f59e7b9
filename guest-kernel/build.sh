#!/bin/bash
# Builds the guest kernel: OUT_DIR/vmlinux, an uncompressed ELF image with a PVH entry, stripped and without padding.
#
#   build.sh OUT_DIR
#
# The source is $KERNEL_SRC (a source tree or a tarball of one), else Debian's linux-source package, else the
# tarball of kernel.org. Source, objects and results are kept in a cache ($BULKHEAD_CACHE, else
# ~/.cache/bulkhead): a second run that would build the same only copies. A newer Debian package is
# looked for when the cached source is removed (kernel/source-debian).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/kernel

oldest=6.12
debian_suite=trixie debian_package=linux-source-6.12
tarball=linux-6.12.80.tar.xz
tarball_sha256=c92591d896e79ecddbc3319136f0c2f855e832b397de7593f013ad7590a43e53
tarball_url=https://cdn.kernel.org/pub/linux/kernel/v6.x/$tarball

say() { echo "guest kernel: $*" >&2; }
die() { say "$*"; exit 1; }
digest() { sha256sum | cut -c1-16; }

# The kernel's own list is in its Documentation/process/changes.rst.
need_tools() {
    local tool missing=()
    for tool in gcc:gcc make:make flex:flex bison:bison bc:bc strip:binutils tar:tar xz:xz-utils perl:perl \
        python3:python3; do
        command -v "${tool%:*}" >/dev/null || missing+=("${tool#*:}")
    done
    echo '#include <gelf.h>' | gcc -E - >/dev/null 2>&1 || missing+=(libelf-dev)
    [[ ${#missing[@]} -eq 0 ]] || die "these Debian packages are missing: ${missing[*]}"
}

# unpack TARBALL DIR: DIR appears whole or not at all.
unpack() {
    local part=$2.part
    rm -rf "$part" && mkdir -p "$part" || exit
    tar -xf "$1" -C "$part" --strip-components=1 || die "cannot unpack $1"
    mv "$part" "$2" || exit
}

# Sets $tree to a source tree.
find_source() {
    if [[ -d ${KERNEL_SRC-} ]]; then
        tree=$(cd "$KERNEL_SRC" && pwd)
        return
    fi
    if [[ -n ${KERNEL_SRC-} ]]; then
        [[ -f $KERNEL_SRC ]] || die "KERNEL_SRC=$KERNEL_SRC is neither a directory nor a tarball"
        tree=$cache/source-$(stat -Lc '%n %s %Y' "$(realpath "$KERNEL_SRC")" | digest)
        [[ -d $tree ]] || unpack "$KERNEL_SRC" "$tree"
        return
    fi
    tree=$cache/source-debian
    [[ -d $tree ]] || debian_source "$tree" || {
        tree=$cache/source-${tarball%.tar.xz}
        [[ -d $tree ]] || kernel_org_source "$tree"
    }
}

debian_source() {
    local unpacked=$cache/debian-package
    say "fetching $debian_package from Debian $debian_suite"
    "$here/debian-package.sh" "$debian_suite" "$unpacked" "$debian_package" || return 1
    unpack "$unpacked/usr/src/$debian_package.tar.xz" "$1"
    rm -rf "$unpacked"
}

kernel_org_source() {
    say "fetching $tarball from kernel.org"
    command -v curl >/dev/null || die "curl is missing"
    curl -fsSL --retry 3 -o "$cache/$tarball" "$tarball_url" || die "cannot fetch $tarball_url: set KERNEL_SRC"
    echo "$tarball_sha256  $cache/$tarball" | sha256sum -c --quiet - || die "$tarball is not the file that was pinned"
    unpack "$cache/$tarball" "$1"
    rm "$cache/$tarball"
}

# configure BUILD: tinyconfig and our fragments, every option of which must come through.
configure() {
    (cd "$tree" && scripts/kconfig/merge_config.sh -n -O "$1" kernel/configs/tiny-base.config "${fragments[@]}") \
        >"$1/configure.log" 2>&1 || { cat "$1/configure.log" >&2; die "the configuration fails"; }
    awk 'FNR == NR { got[$0]; if (/^CONFIG_/) { split($0, o, "="); set[o[1]] } next }
         /^CONFIG_/ && !($0 in got) { print "  " $0; bad = 1 }
         /^# CONFIG_.* is not set$/ && ($2 in set) { print "  " $0; bad = 1 }
         END { exit bad }' "$1/.config" "${fragments[@]}" >&2 ||
        die "Kconfig did not take the options above: a dependency is missing, or Linux $version has no such option"
}

[[ $# -eq 1 ]] || { echo "usage: build.sh OUT_DIR" >&2; exit 2; }
out=$1
mkdir -p "$out" "$cache"
exec 9>"$cache/lock"
flock 9

need_tools
find_source
[[ -f $tree/Kbuild ]] || die "$tree is not a kernel source tree"
version=$(awk '$2 == "=" && /^(VERSION|PATCHLEVEL|SUBLEVEL) / { printf "%s%s", sep, $3; sep = "." }' "$tree/Makefile")
printf '%s\n' $oldest "$version" | sort -CV || die "$tree is Linux $version; $oldest or later is needed"

fragments=("$here"/config/*.config)
key=$({ echo "$tree" "$version" "$(gcc -dumpfullversion)"; cat "${fragments[@]}" "$here"/{build.sh,holes.py}; } | digest)
built=$cache/$key/vmlinux
# A tree that someone works in may have changed under the same version.
if [[ -d ${KERNEL_SRC-} && -f $built && -n $(find "$tree" -newer "$built" -type f -print -quit) ]]; then
    rm "$built"
fi
if [[ ! -f $built ]]; then
    build=$cache/build-$(digest <<<"$tree")
    mkdir -p "$build" "$cache/$key"
    configure "$build"
    say "building Linux $version"
    # Nothing of this machine, of the hour, or of the make that called this goes into the image.
    unset MAKEFLAGS MFLAGS MAKELEVEL
    export KBUILD_BUILD_TIMESTAMP='1970-01-01' KBUILD_BUILD_USER=bulkhead KBUILD_BUILD_HOST=bulkhead KBUILD_BUILD_VERSION=1
    make -s -C "$tree" O="$build" -j"$(nproc)" vmlinux >"$build/build.log" 2>&1 ||
        { tail -n 30 "$build/build.log" >&2; die "the build failed: $build/build.log"; }
    strip --strip-all -o "$built.part" "$build/vmlinux"
    "$here/holes.py" "$built.part"
    mv "$built.part" "$built"
fi
cmp -s "$built" "$out/vmlinux" || cp "$built" "$out/vmlinux"
say "Linux $version, $(stat -c %s "$built") bytes: $out/vmlinux"
