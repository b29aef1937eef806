"""Bitmaps of pCPUs and NUMA nodes in a toolstack's memory (struct xenctl_bitmap of xen.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.guest_access import copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.abi.layout import Value
    from hypervisor.vcpu import VCpu

CHUNK = 4096


def read_bitmap(vcpu: VCpu, bitmap: Value, nbits: int) -> int:
    """Return the first `nbits` bits of a guest's bitmap as a number. Raises HypercallError(EFAULT)."""
    given: int = bitmap.nr_bits
    size = min(-(-given // 8), -(-nbits // 8))
    if not size:
        return 0
    value = int.from_bytes(copy_from_guest(vcpu, bitmap.bitmap, size), "little")
    return value & (1 << min(given, nbits)) - 1


def write_bitmap(vcpu: VCpu, bitmap: Value, value: int, nbits: int) -> None:
    """Write `nbits` bits into a guest's bitmap: what does not fit is cut off, what is left is zeroed.

    The guest says how long its bitmap is, up to 2^32 bits: it is written piece by piece. Raises HypercallError(EFAULT).
    """
    size = -(-bitmap.nr_bits // 8)
    data = value.to_bytes(-(-nbits // 8), "little")[:size]
    if data:
        copy_to_guest(vcpu, bitmap.bitmap, data)
    for done in range(len(data), size, CHUNK):
        copy_to_guest(vcpu, bitmap.bitmap + done, bytes(min(CHUNK, size - done)))
