"""Bits of x86-64 page table entries, and what Xen makes of the entries that a 64-bit PV guest writes.

Sources: the processor's manual for the bits; arch-x86/xen-x86_64.h for Xen's slots. Guest kernel and guest user code
both run in ring 3, so every entry that is stored gets USER; bit 52 remembers that an L1 entry had come without it (a
page of the guest kernel), and an entry that came with it gets GLOBAL, as user pages stay the same over a system call.
"""

PRESENT = 0x001
RW = 0x002
USER = 0x004
PWT = 0x008
PCD = 0x010
ACCESSED = 0x020
DIRTY = 0x040
PSE = 0x080
"""A superpage, in L2 and L3 entries."""
PAT = 0x080
"""The third cache attribute bit, in L1 entries."""
GLOBAL = 0x100
AVAIL = 0xE00
"""Bits 9 to 11: left to software."""
GUEST_KERNEL = 1 << 52
"""Xen's mark: the guest wrote this L1 entry without USER."""
AVAIL_HIGH = 0x7FF << 52
NX = 1 << 63

FRAME_MASK = 0x000FFFFFFFFFF000
ENTRIES = 512
ALL_ONES_FRAME = FRAME_MASK >> 12

CACHE_ATTRIBUTES = PWT | PCD | PAT
L1_DISALLOWED = CACHE_ATTRIBUTES
"""Bits that a domain without any hardware may not set in L1 entries."""
TABLE_DISALLOWED = PWT | PCD | PSE | GLOBAL
"""Bits that nobody may set in L2, L3 and L4 entries."""

HARMLESS = NX | AVAIL_HIGH | AVAIL | GLOBAL | DIRTY | ACCESSED | USER
"""Bits that a guest may change in a present entry without its being validated again.

RW is not among them, at no level: a read-only self-map that turns writable is a way to write page tables (XSA-182).
"""

FIRST_XEN_SLOT = 256
LAST_XEN_SLOT = 271
"""The L4 slots that Xen fills in and guests may not touch."""


def adjust_l1(entry: int) -> int:
    """Return a present L1 entry as Xen stores it."""
    if not entry & USER:
        return entry | GUEST_KERNEL | USER
    if not entry & GUEST_KERNEL:
        return entry | GLOBAL
    return entry


def adjust_table(entry: int, level: int) -> int:
    """Return a present L2, L3 or L4 entry as Xen stores it."""
    return entry | USER | ACCESSED if level == 4 else entry | USER


def moves_code(old: int, new: int) -> bool:
    """Whether code may have been executed through an entry that leads elsewhere from now on."""
    return not old & NX and bool((old ^ new) & (FRAME_MASK | PRESENT))
