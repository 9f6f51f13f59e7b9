#!/bin/bash
# Packs the guest's initramfs: the agent as /init, and the least that it needs before it has mounted anything.
#
#   initramfs.sh AGENT OUT
#
# The archive is "newc" (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst), written
# directly: a device node in it then needs no root, and equal agents make equal archives. It is compressed,
# since its pages and those of what is unpacked are the guest's at once; with a small window, since that is, too.
set -euo pipefail

[[ $# -eq 2 ]] || { echo "usage: initramfs.sh AGENT OUT" >&2; exit 2; }
agent=$1 out=$2
command -v zstd >/dev/null || { echo "initramfs: zstd is missing" >&2; exit 1; }
[[ -f $agent && -x $agent ]] || { echo "initramfs: $agent is not an executable file" >&2; exit 1; }

inode=0

# pad LENGTH: zeros from LENGTH up to a multiple of four.
pad() { head -c $(((4 - $1 % 4) % 4)) /dev/zero; }

# entry NAME MODE SIZE [MAJOR MINOR]: the header of an entry owned by root, dated 1970. The content follows it.
entry() {
    local name=$1 mode=$2 size=$3 major=${4-0} minor=${5-0}
    printf 070701
    printf %08X $((inode += 1)) "$mode" 0 0 1 0 "$size" 0 0 "$major" "$minor" $((${#name} + 1)) 0
    printf '%s\0' "$name"
    pad $((110 + ${#name} + 1))
}

{
    for directory in dev proc run sys tmp; do
        entry $directory 0040755 0
    done
    entry dev/console 0020600 0 5 1
    entry dev/null 0020666 0 1 3
    size=$(stat -Lc %s "$agent")
    entry init 0100755 "$size"
    cat "$agent"
    pad "$size"
    entry 'TRAILER!!!' 0 0
} | zstd -q -f -19 --zstd=wlog=17 --no-check -o "$out.part"
mv "$out.part" "$out"
