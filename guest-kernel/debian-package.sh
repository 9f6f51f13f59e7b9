#!/bin/bash
# Downloads Debian packages of any suite and unpacks them, without installing anything.
#
#   debian-package.sh [-m] SUITE OUT_DIR PACKAGE...
#
# PACKAGE is a name, or name=version. With -m each PACKAGE is a metapackage (linux-image-cloud-amd64): the
# packages that it depends on are taken in its place. Their content lands in OUT_DIR, merged.
#
# The mirror is the one that this Debian machine is configured for; only the suite differs. apt works in a
# root of its own under the cache ($BULKHEAD_CACHE, else ~/.cache/bulkhead), so the machine's package
# lists, apt configuration and dpkg state stay as they are. Every package is checked against the
# signature of the Debian archive: a release signs its successor and sid too, so its keyring suffices.
set -euo pipefail

die() { echo "debian-package: $*" >&2; exit 1; }

metapackages=
if [[ ${1-} == -m ]]; then metapackages=1; shift; fi
[[ $# -ge 3 ]] || { echo "usage: debian-package.sh [-m] SUITE OUT_DIR PACKAGE..." >&2; exit 2; }
suite=$1 out=$2
shift 2

# shellcheck source=/dev/null
. /etc/os-release
[[ $ID == debian ]] || die "this machine runs $ID: its package sources do not lead to Debian $suite"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -f $keyring ]] || die "$keyring is missing: install debian-archive-keyring"

# apt itself reads the machine's sources, in whichever of its two formats they are written. Third parties
# name their suites like Debian's: a mirror whose path ends in "debian" goes first.
mirrors=$(apt-get update --print-uris | sed -nE "s|^'([^']*)/dists/$VERSION_CODENAME/InRelease' .*|\1|p")
mirror=$(grep -m 1 '/debian$' <<<"$mirrors" || head -n 1 <<<"$mirrors")
[[ -n $mirror ]] || die "apt has no source for Debian $VERSION_CODENAME: see /etc/apt/sources.list.d"

root=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/apt/$suite
mkdir -p "$root"/{lists/partial,archives/partial}
exec 9>"$root/lock"
flock 9

printf '%s\n' "Types: deb" "URIs: $mirror" "Suites: $suite" "Components: main" "Targets: Packages" \
    "Signed-By: $keyring" >"$root/debian.sources"
# Hooks of the machine's apt would work on the machine's own cache.
printf '#clear %s;\n' APT::Update::{Pre,Post}-Invoke APT::Update::Post-Invoke-Success >"$root/apt.conf"

# private_apt COMMAND ARGUMENT...: apt with its sources and all of its state in the root.
private_apt() {
    local command=$1
    shift
    "$command" -qq -c "$root/apt.conf" \
        -o Dir::Etc::SourceList="$root/debian.sources" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o Dir::State="$root" -o Dir::State::Status=/dev/null -o Dir::Cache="$root" \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Update::Error-Mode=any -o APT::Sandbox::User=root \
        "$@"
}

private_apt apt-get update
if [[ $metapackages ]]; then
    mapfile -t packages < <(private_apt apt-cache depends --important "$@" | awk '$1 == "Depends:" { print $2 }')
    [[ ${#packages[@]} -gt 0 ]] || die "in $suite, $* depends on nothing"
    set -- "${packages[@]}"
fi

rm -f "$root"/archives/*.deb
(cd "$root/archives" && private_apt apt-get download "$@")
mkdir -p "$out"
for package in "$root"/archives/*.deb; do
    dpkg-deb -x "$package" "$out"
done
rm -f "$root"/archives/*.deb
