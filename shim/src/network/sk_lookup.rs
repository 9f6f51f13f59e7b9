//! One listening socket for every TCP port of a network namespace.
//!
//! A BPF program of type `sk_lookup` decides which socket gets a new connection: the kernel's
//! `Documentation/bpf/prog_sk_lookup.rst`. This one is short, and written down as its instructions.
//! Needs Linux 5.17 on the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Commands of bpf(2).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;

/// Types of linux/bpf.h.
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// Offsets in `struct bpf_sk_lookup`.
const PROTOCOL: i16 = 12;

/// Helpers that the program calls.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// What the program answers: go on, with the socket that was assigned if one was.
const SK_PASS: i32 = 1;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    opcode: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    constant: i32,
}

const fn op(opcode: u8, destination: u8, source: u8, offset: i16, constant: i32) -> Instruction {
    Instruction { opcode, registers: destination | source << 4, offset, constant }
}

/// Gives TCP connections to the one socket in `map`, and leaves all else alone. They come from inside: what comes by an
/// interface has been redirected before.
fn program(map: i32) -> [Instruction; 19] {
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x62;
    const CONSTANT_64: u8 = 0x18;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const JUMP_IF: u8 = 0x15;
    const JUMP_UNLESS: u8 = 0x55;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    [
        op(COPY, 6, 1, 0, 0),
        op(LOAD, 2, 1, PROTOCOL, 0),
        op(JUMP_UNLESS, 2, 0, 14, libc::IPPROTO_TCP),
        // The key, on the stack: 0.
        op(STORE, 10, 0, -4, 0),
        op(COPY, 2, 10, 0, 0),
        op(ADD, 2, 0, 0, -4),
        // Takes two places; the source says that it is a map's descriptor.
        op(CONSTANT_64, 1, 1, 0, map),
        op(0, 0, 0, 0, 0),
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(JUMP_IF, 0, 0, 7, 0),
        op(COPY, 7, 0, 0, 0),
        op(COPY, 1, 6, 0, 0),
        op(COPY, 2, 7, 0, 0),
        op(SET, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, SK_ASSIGN),
        op(COPY, 1, 7, 0, 0),
        op(CALL, 0, 0, 0, SK_RELEASE),
        op(SET, 0, 0, 0, SK_PASS),
        op(EXIT, 0, 0, 0, 0),
    ]
}

/// The beginnings of `union bpf_attr`, as far as they are needed; the kernel takes the rest as 0.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: *const u32,
    value: *const u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    count: u32,
    instructions: *const Instruction,
    license: *const libc::c_char,
    /// The verifier's log, the version of a kernel, and flags.
    unused: [u32; 6],
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Gives `socket`, which listens, all TCP connections that are made inside the network namespace. It does so as long as the result is open.
pub fn attach(socket: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map =
        MapCreate { map_type: BPF_MAP_TYPE_SOCKMAP, key_size: 4, value_size: 8, max_entries: 1 };
    let map = descriptor(BPF_MAP_CREATE, &map)?;
    let value = u64::from(number(socket));
    let update =
        MapUpdate { map: number(map.as_fd()), padding: 0, key: &0, value: &value, flags: 0 };
    bpf(BPF_MAP_UPDATE_ELEM, &update)?;
    let instructions = program(map.as_raw_fd());
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_SK_LOOKUP,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr(),
        license: c"Apache-2.0".as_ptr(),
        unused: [0; 6],
        name: *b"bulkhead\0\0\0\0\0\0\0\0",
        ifindex: 0,
        expected_attach_type: BPF_SK_LOOKUP,
    };
    let program = descriptor(BPF_PROG_LOAD, &load)?;
    let link = LinkCreate {
        prog: number(program.as_fd()),
        target: number(namespace),
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    descriptor(BPF_LINK_CREATE, &link)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for its caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are as large as is said, without padding that the compiler added, and what they point to
    // outlives the call, which only reads it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    Ok(Errno::result(result)? as libc::c_int)
}
