"""What the machine's firmware tells of its address space: a PC's, as its e820 map and interrupt controllers lay it out.

    0          640 KiB         1 MiB                end of memory
    | RAM      | VGA, ROMs      | RAM ............... | ACPI tables |   ...   | APICs | ... | flash | 4 GiB

Nothing is there in fact but the memory. The first MiB is memory too, but nobody's: Xen gives all of it to I/O.
"""

from typing import NamedTuple

PAGE_SIZE = 4096
IO_FRAMES = 256
"""The frames below 1 MiB are never given to a domain."""
IO_APIC = 0xFEC00
"""The frame of the I/O APIC."""
LOCAL_APICS = range(0xFEE00, 0xFEF00)
"""The frames of the local APICs and of message-signalled interrupts."""
PHYSICAL_BITS = 46
"""How many bits a machine address has."""

RAM, RESERVED = 1, 2
"""Types of the e820 map."""
ACPI_TABLES = 128 << 10
"""Size in bytes of the firmware's own tables, which lie behind the memory that is free to use."""
_FOUR_GIB = 1 << 32


class Region(NamedTuple):
    """A piece of the address space: start and size in bytes, type."""

    start: int
    size: int
    type: int


def memory_map(frames: int) -> list[Region]:
    """Return the e820 map of a machine with so many frames of memory."""
    end = frames * PAGE_SIZE
    regions = [
        Region(0, 0x9FC00, RAM),
        Region(0x9FC00, 0x400, RESERVED),
        Region(0xF0000, 0x10000, RESERVED),
        Region(0x100000, end - 0x100000, RAM),
        Region(end, ACPI_TABLES, RESERVED),
    ]
    high = (Region(0xFEFFC000, 0x4000, RESERVED), Region(0xFFFC0000, 0x40000, RESERVED))
    return regions + [region for region in high if region.start >= end + ACPI_TABLES]


def io_frames() -> list[range]:
    """Return the frames that the hardware domain may map as I/O memory and pass on: all but interrupt controllers."""
    return [
        range(IO_APIC),
        range(IO_APIC + 1, LOCAL_APICS.start),
        range(LOCAL_APICS.stop, 1 << PHYSICAL_BITS - 12),
    ]
