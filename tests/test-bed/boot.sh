#!/bin/bash
# Runs a command in the test bed: a machine of its own with usable KVM, emulated by QEMU, that sees this
# machine's files and can change none of them. Its output and exit code are those of the command.
#
#   boot.sh [-t SECONDS] COMMAND [ARGUMENT...]
#
# A processor without vmx or svm runs no KVM guests, but QEMU's TCG emulates AMD's SVM with nested paging: inside,
# KVM works, slowly. The processor lacks cmpxchg16b, after which QEMU before 8.0 has nonsense in the flags. The kernel
# is Debian's cloud kernel, unpacked into the cache. Inside, /bed is an empty ext4 disk, the root is an overlay of this
# machine's with a tmpfs, and cgroup v2 is mounted. It has no network. It reads this machine's files once; with
# BED_CACHE=auto, virtiofsd's default, anew whenever one is opened or executed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
export PATH=$PATH:/usr/sbin:/sbin

die() { echo "test bed: $*" >&2; exit 125; }

limit=1800
if [[ ${1-} == -t ]]; then limit=$2; shift 2; fi
[[ $# -gt 0 ]] || die "usage: boot.sh [-t SECONDS] COMMAND [ARGUMENT...]"
[[ $(id -u) == 0 ]] || die "needs root, to share / and to make a file system"

# Only one file system is shared: a share with mounts in it can't be an overlay's lower.
for dir in "$PWD" "$cache" "$here"; do
    [[ $(stat -c %d "$dir") == $(stat -c %d /) ]] || die "$dir is not on the root file system"
done

virtiofsd=$(PATH=$cache/tools/bin:$PATH:/usr/libexec command -v virtiofsd) || die "virtiofsd is missing: run make setup"

# The kernel, once.
kernel=$cache/test-bed/kernel
mkdir -p "$cache/test-bed"
exec 8>"$cache/test-bed/lock"
flock 8
if [[ ! -f $kernel/.complete ]]; then
    rm -rf "$kernel"
    "$here/../../guest-kernel/debian-package.sh" -m bookworm "$kernel" linux-image-cloud-amd64
    for release in "$kernel"/lib/modules/*; do depmod -b "$kernel" "${release##*/}"; done
    touch "$kernel/.complete"
fi
exec 8>&-
release=$(basename "$kernel"/lib/modules/*)

work=$(mktemp -d /tmp/bed-XXXXXX)
processes=()
cleanup() {
    local pid
    for pid in "${processes[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The initramfs: busybox, the modules in the order in which they load, the two scripts and the command.
root=$work/initramfs
mkdir -p "$root"/{bin,modules,proc,sys,dev,host,upper,root}
cp /bin/busybox "$root/bin/"
number=100
for module in virtio_pci virtio_blk loop ext4 erofs fuse virtiofs overlay kvm-amd tun bridge veth macvlan ipvlan \
    sch_ingress cls_u32 act_mirred nf_tables nft_chain_nat nft_masq nft_ct nft_compat nft_counter nft_nat \
    nft_meta_bridge nf_conntrack_bridge xt_MASQUERADE xt_nat xt_addrtype xt_comment xt_multiport xt_mark xt_conntrack; do
    while read -r word file rest; do
        [[ $word == insmod ]] || continue
        # What one module needs, another may have needed before.
        compgen -G "$root/modules/*-$(basename "$file")" >/dev/null && continue
        cp "$file" "$root/modules/$((number += 1))-$(basename "$file")"
    done < <(modprobe -d "$kernel" -S "$release" --show-depends "$module" 2>/dev/null)
done
install -m 755 "$here/init" "$root/init"
install -m 755 "$here/main" "$root/main"
{
    printf 'cd %q\n' "$PWD"
    printf 'export HOME=%q PATH=%q BULKHEAD_CACHE=%q\n' "$HOME" "$PATH" "$cache"
    printf '%q ' "$@"
    echo
} >"$root/command"
(cd "$root" && find . | cpio --quiet -o -H newc) >"$work/initramfs.cpio"

truncate -s 16G "$work/disk"
mkfs.ext4 -q -F -O ^has_journal "$work/disk"

# A bind mount of / alone, without what is mounted below it, in a mount namespace that ends with the daemon.
mkdir "$work/share"
unshare -m --propagation private sh -c "
    mount --bind / '$work/share' && mount -o remount,bind,ro '$work/share' &&
    exec '$virtiofsd' --shared-dir '$work/share' --socket-path '$work/fs.sock' --sandbox none --seccomp none \
        --cache '${BED_CACHE:-always}' --log-level error" 2>"$work/virtiofsd.log" &
processes+=($!)
for ((i = 0; i < 100; i++)); do [[ -S $work/fs.sock ]] && break; sleep 0.1; done
[[ -S $work/fs.sock ]] || die "virtiofsd does not listen: $(cat "$work/virtiofsd.log")"

mkfifo "$work/out"
# All memory from the start: else the first use of each page is the host's work, in the middle of what is measured.
# The FIFO is opened here, too, so that its reader below sees the end of a QEMU that does not start.
timeout --kill-after=10 "$limit" qemu-system-x86_64 \
    -M q35 -cpu EPYC,+svm,+npt,-cx16 -accel tcg,thread=multi -smp 1 -m 4G \
    -object memory-backend-memfd,id=mem,size=4G,share=on,prealloc=on -numa node,memdev=mem \
    -nodefaults -no-user-config -no-reboot -display none \
    -kernel "$kernel/boot/vmlinuz-$release" -initrd "$work/initramfs.cpio" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog" \
    -chardev "file,id=console,path=$work/console" -serial chardev:console \
    -chardev "file,id=out,path=$work/out" -serial chardev:out \
    -chardev "socket,id=fs,path=$work/fs.sock" -device vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024 \
    -drive "file=$work/disk,format=raw,if=none,id=disk,cache=unsafe" -device virtio-blk-pci,drive=disk \
    2>"$work/qemu.log" 3>"$work/out" &
qemu=$!
processes+=("$qemu")

# The command's output, live. Its last line is the exit code, after a character that no text holds.
code=
while IFS= read -r line || [[ -n $line ]]; do
    if [[ $line == *$'\x1eexit '* ]]; then
        code=${line##*$'\x1eexit '}
        line=${line%$'\x1eexit '*}
        [[ -n $line ]] || continue
    fi
    printf '%s\n' "$line"
done <"$work/out"
status=0
wait "$qemu" || status=$?
if [[ -z $code ]]; then
    echo "test bed: the machine ended (QEMU's status $status) without the command's exit code; its console:" >&2
    tail -n 40 "$work/qemu.log" "$work/console" >&2
    [[ $status == 124 ]] && die "stopped after $limit s"
    die "the command did not end"
fi
exit "$code"
