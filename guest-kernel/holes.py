#!/usr/bin/env python3
"""Leaves out of a kernel's ELF image what is nothing but padding, so that no VMM writes it into a guest's memory.

    holes.py VMLINUX

The kernel's linker script aligns to 2 MiB and fills with the breakpoint instruction (0xcc): megabytes that no guest runs
and each guest has, for they lie within a loadable segment. Such a segment becomes several, around its holes. A guest's
memory is zero where nothing is loaded, so zeros are left out too. What is where does not change, in the file or in memory.
"""

import struct
import sys

PAGE = 4096
# Fewer pages than these are not worth a segment.
LEAST = 16
PT_LOAD = 1
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
# type, flags, offset, virtual address, physical address, size in the file, size in memory, alignment
SEGMENT = struct.Struct("<IIQQQQQQ")


def parts(content):
    """The ranges of a segment that are left, in whole pages."""
    blank = [page.count(page[:1]) == len(page) and page[0] in (0, 0xCC)
             for page in (content[at:at + PAGE] for at in range(0, len(content), PAGE))]
    start = at = 0
    while at < len(blank):
        end = at
        while end < len(blank) and blank[end]:
            end += 1
        if end - at >= LEAST:
            if at > start:
                yield start * PAGE, at * PAGE
            start = end
        at = max(end, at + 1)
    if start < len(blank):
        yield start * PAGE, len(content)


def main(path):
    with open(path, "rb") as file:
        image = bytearray(file.read())
    header = list(HEADER.unpack_from(image))
    if header[0][:6] != b"\x7fELF\x02\x01" or header[9] != SEGMENT.size:
        sys.exit(f"{path} is not a 64-bit little-endian ELF image")
    segments, left_out = [], 0
    for number in range(header[10]):
        kind, flags, offset, virtual, physical, filed, memory, align = SEGMENT.unpack_from(
            image, header[5] + number * SEGMENT.size)
        if kind != PT_LOAD:
            segments.append((kind, flags, offset, virtual, physical, filed, memory, align))
            continue
        ranges = list(parts(image[offset:offset + filed])) or [(0, 0)]
        left_out += filed - sum(end - start for start, end in ranges)
        for start, end in ranges:
            # The last one has what only memory has.
            size = memory - start if (start, end) == ranges[-1] else end - start
            segments.append((kind, flags, offset + start, virtual + start, physical + start, end - start, size, align))
    header[5], header[10] = HEADER.size, len(segments)
    table = b"".join(SEGMENT.pack(*segment) for segment in segments)
    if HEADER.size + len(table) > min(segment[2] for segment in segments):
        sys.exit(f"{path} has no room for {len(segments)} segments")
    image[:HEADER.size + len(table)] = HEADER.pack(*header) + table
    with open(path, "wb") as file:
        file.write(image)
    print(f"guest kernel: {left_out >> 10} KiB of padding left out", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
