"""Pin counts: how often a grant entry is in use, and how.

One integer per entry holds four 8-bit counters, so that taking or dropping a use is one addition. A map or a copy adds
what `INCREMENT` says for its flags; a counter whose top bit is set takes no more (128 uses of one kind).
"""

from hypervisor.abi.grant_table import GNTMAP_device_map, GNTMAP_host_map, GNTMAP_readonly

DEVICE_READ = 1 << 0
DEVICE_WRITE = 1 << 8
HOST_READ = 1 << 16
HOST_WRITE = 1 << 24

DEVICE_READ_MASK = 0xFF * DEVICE_READ
DEVICE_WRITE_MASK = 0xFF * DEVICE_WRITE
HOST_READ_MASK = 0xFF * HOST_READ
HOST_WRITE_MASK = 0xFF * HOST_WRITE
WRITE_MASK = DEVICE_WRITE_MASK | HOST_WRITE_MASK
"""Set bits mean that somebody may write through the entry."""

FULL_SHIFT = 7
"""`pin & increment << FULL_SHIFT` is non-zero when a counter that would grow has no room."""

MAP_KIND_MASK = GNTMAP_device_map | GNTMAP_host_map | GNTMAP_readonly


def _increment(flags: int) -> int:
    readonly = flags & GNTMAP_readonly
    pin = 0
    if flags & GNTMAP_device_map:
        pin += DEVICE_READ if readonly else DEVICE_WRITE
    if flags & GNTMAP_host_map:
        pin += HOST_READ if readonly else HOST_WRITE
    return pin


INCREMENT = tuple(_increment(flags) for flags in range(MAP_KIND_MASK + 1))
"""What a mapping adds to the pin of its entry, by `flags & MAP_KIND_MASK`."""


def counts(pin: int) -> tuple[int, int, int, int]:
    """Return the uses of an entry: device read, device write, host read, host write."""
    return pin & 0xFF, pin >> 8 & 0xFF, pin >> 16 & 0xFF, pin >> 24 & 0xFF
