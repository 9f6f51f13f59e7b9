//! Images of disks and systems that a privileged job makes and looks into, with the programs that such jobs use.

use super::disk::alone_of;
use crate::bed::Test;
use crate::failure::Outcome;
use crate::runner::Case;

/// The tests of this file.
pub const CASES: &[Case] = &[
    Case::bulkhead(
        "storage.images",
        "images of vfat, squashfs and ISO 9660 are made and mounted",
        images,
    ),
    Case::bulkhead(
        "storage.mapper",
        "disks are put together, copied on write, and encrypted",
        mapper,
    ),
];

/// Runs a script in a privileged container with Debian's programs and a scratch disk.
fn inside(t: &Test<'_>, script: &str) -> Outcome<String> {
    alone_of(t.programs()?, &[("scratch_paths", "/work")], &[])?.sh(&format!("cd /work; {script}"))
}

fn images(t: &Test<'_>) -> Outcome {
    let script = "
        mkdir -p tree/sub m; cp /bin/busybox tree/sub; echo short > 'tree/a name of some length'
        look() { mount -o loop,$2 $1.img m; diff -r tree m; umount m; }
        for by in gzip lz4 xz zstd; do
            mksquashfs tree $by.img -comp $by -quiet -no-progress; look $by ro
        done
        genisoimage -quiet -J -r -o iso.img tree; look iso ro; look iso ro,norock
        truncate -s 16M vfat.img; mkfs.vfat vfat.img
        mount -o loop,utf8 vfat.img m; cp -r tree/* m; umount m; look vfat ro,utf8";
    inside(t, script).map(drop)
}

fn mapper(t: &Test<'_>) -> Outcome {
    // There is no udev to wait for.
    let script = "
        export DM_DISABLE_UDEV=1
        truncate -s 32M one two new
        A=$(losetup -f); losetup $A one; B=$(losetup -f); losetup $B two
        printf \"0 65536 linear $A 0\\n65536 65536 linear $B 0\\n\" | dmsetup create both
        mke2fs /dev/mapper/both
        mkdir m; mount /dev/mapper/both m; cp /bin/busybox m; umount m

        C=$(losetup -f); losetup $C new
        echo \"0 131072 snapshot /dev/mapper/both $C N 16\" | dmsetup create copy
        mount /dev/mapper/copy m; rm m/busybox; umount m
        dmsetup remove copy; losetup -d $C
        mount -o ro /dev/mapper/both m; cmp m/busybox /bin/busybox; umount m
        dmsetup remove both

        echo secret | cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $A -
        echo secret | cryptsetup open --key-file - $A plain
        mke2fs /dev/mapper/plain
        mount /dev/mapper/plain m; cp /bin/busybox m; umount m; cryptsetup close plain
        ! grep -q BusyBox one";
    inside(t, script).map(drop)
}
