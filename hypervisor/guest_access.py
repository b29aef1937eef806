"""Reaching a guest's memory by the addresses that the guest uses.

A pointer in a hypercall is a guest virtual address. It is translated as the processor would, by walking the four levels
of page tables that the vCPU has loaded, and the outcome is remembered in the vCPU's software TLB: `tlb_r` and `tlb_w`
map a virtual page number to the machine address of the page, for reads and for writes. A write entry exists only after
the walk found the page writable at every level and set its dirty bit.

Whoever takes a mapping away or changes one drops the entries (`flush_va`, `flush_entry`, `flush_all`); a new mapping in
place of none needs no flush, since a miss is never remembered. So an entry is always what the page tables say now.

The idiom for hot code that has the vCPU at hand:

    base = vcpu.tlb_r.get(va >> 12)
    if base is None:
        base = walk_read(vcpu, va)
    value = memory.i[(base + (va & 0xFFF)) >> 2]

Xen's own range of addresses is refused to pointers in hypercalls (its access_ok), though a guest's own loads may read
the M2P there (`translate_load`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi.cpu import PageFault
from hypervisor.errors import HypercallError

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.machine.memory import Memory
    from hypervisor.vcpu import VCpu

XEN_VIRT_START = 0xFFFF800000000000
XEN_VIRT_END = 0xFFFF880000000000
"""HYPERVISOR_VIRT_START and _END of xen-x86_64.h: the 16 slots of the root table that belong to Xen."""

EFAULT = 14

_U64 = 0xFFFFFFFFFFFFFFFF
_P, _RW, _US, _A, _D, _PSE = 0x01, 0x02, 0x04, 0x20, 0x40, 0x80
_FRAME = 0x000FFFFFFFFFF000
_LOW_END = 0x0000800000000000


def walk(vcpu: VCpu, va: int, write: bool) -> int:
    """Translate by the page tables alone; returns the machine address of the page, or -1 for a page fault.

    Sets accessed and dirty bits on the way, as the processor does, once the access is known to be allowed.
    """
    root = vcpu.kernel_cr3
    if not root or not (va < _LOW_END or va >= XEN_VIRT_START):
        return -1
    q = vcpu.hv.memory.q
    frames = vcpu.hv.memory.frames
    table = root << 12
    need = _P | _US | _RW if write else _P | _US
    path = []
    fresh = False
    for shift in (39, 30, 21, 12):
        index = (table >> 3) + (va >> shift & 511)
        entry = q[index]
        if entry & need != need:
            return -1
        path.append(index)
        if not entry & _A:
            fresh = True
        table = entry & _FRAME
        if table >> 12 >= frames:
            return -1
        if shift == 21 and entry & _PSE:
            table = table & ~0x1FFFFF | va & 0x1FF000
            break
    if fresh:
        for index in path:
            q[index] |= _A
    if write and not entry & _D:
        q[index] |= _D
    return table


def walk_from(memory: Memory, root: int, va: int) -> int:
    """Translate by the page tables below a root, as a look that leaves no trace; returns -1 for a page fault."""
    q, frames, table = memory.q, memory.frames, root << 12
    for shift in (39, 30, 21, 12):
        entry = q[(table >> 3) + (va >> shift & 511)]
        if not entry & _P:
            return -1
        table = entry & _FRAME
        if table >> 12 >= frames:
            return -1
        if shift == 21 and entry & _PSE:
            return table & ~0x1FFFFF | va & 0x1FF000
    return table


def walk_read(vcpu: VCpu, va: int) -> int:
    """Translate a readable guest page and remember it; returns its machine address. Raises HypercallError(EFAULT)."""
    va &= _U64
    base = -1 if XEN_VIRT_START <= va < XEN_VIRT_END else walk(vcpu, va, write=False)
    if base < 0:
        raise HypercallError(EFAULT)
    vcpu.tlb_r[va >> 12] = base
    return base


def walk_write(vcpu: VCpu, va: int) -> int:
    """Translate a writable guest page and remember it; returns its machine address. Raises HypercallError(EFAULT)."""
    va &= _U64
    base = -1 if XEN_VIRT_START <= va < XEN_VIRT_END else walk(vcpu, va, write=True)
    if base < 0:
        raise HypercallError(EFAULT)
    vcpu.tlb_w[va >> 12] = base
    return base


def translate(vcpu: VCpu, va: int, write: bool) -> int:
    """Return the machine address behind a pointer of a hypercall. Raises HypercallError(EFAULT)."""
    if write:
        base = vcpu.tlb_w.get(va >> 12)
        if base is None:
            base = walk_write(vcpu, va)
    else:
        base = vcpu.tlb_r.get(va >> 12)
        if base is None:
            base = walk_read(vcpu, va)
    return base + (va & 0xFFF)


def translate_load(vcpu: VCpu, va: int, write: bool) -> int:
    """Return the machine address that a guest's own load or store reaches. Raises PageFault.

    Differs from `translate` in Xen's range, where the guest may read what Xen maps for it (the M2P).
    """
    base = (vcpu.tlb_w if write else vcpu.tlb_r).get(va >> 12)
    if base is not None:
        return base + (va & 0xFFF)
    va &= _U64
    base = walk(vcpu, va, write)
    if base < 0:
        raise PageFault(va, write)
    if not XEN_VIRT_START <= va < XEN_VIRT_END:
        (vcpu.tlb_w if write else vcpu.tlb_r)[va >> 12] = base
    return base + (va & 0xFFF)


def pages_in_a_row(vcpu: VCpu, va: int, most: int, write: bool) -> int:
    """Return how many pages from `va` on are known to be translated alike, to neighbours in memory: at least 1.

    `va` itself has been translated. Counted are those of its L1 table, if their entries differ by nothing but the
    frame, and the processor has no bits to set there; and only if that holds for all of these, up to `most`.
    """
    va &= _U64
    q, frames, table = vcpu.hv.memory.q, vcpu.hv.memory.frames, vcpu.kernel_cr3 << 12
    for shift in (39, 30, 21):
        entry = q[(table >> 3) + (va >> shift & 511)]
        table = entry & _FRAME
        if not entry & _P or table >> 12 >= frames or (shift == 21 and entry & _PSE):
            return 1
    index = va >> 12 & 511
    count = min(most, 512 - index)
    at = (table >> 3) + index
    entry = q[at]
    needed = _A | _D if write else _A
    if entry & needed != needed or ((entry & _FRAME) >> 12) + count > frames:
        return 1
    return count if q[at : at + count].tolist() == list(range(entry, entry + (count << 12), 4096)) else 1


def access_ok(va: int) -> bool:
    """Whether a guest may name this address at all in a pointer: canonical, and not in Xen's range (__addr_ok)."""
    va &= _U64
    return va < _LOW_END or va >= XEN_VIRT_END


# -- copies ---------------------------------------------------------------------------------------------------------


def copy_from_guest(vcpu: VCpu, va: int, size: int) -> bytes:
    """Copy bytes out of guest memory. May cross pages. Raises HypercallError(EFAULT)."""
    offset = va & 0xFFF
    if offset + size <= 4096 and size > 0:
        base = vcpu.tlb_r.get(va >> 12)
        if base is None:
            base = walk_read(vcpu, va)
        base += offset
        return vcpu.hv.memory.b[base : base + size].tobytes()
    parts = []
    while size > 0:
        length = min(size, 4096 - (va & 0xFFF))
        parts.append(copy_from_guest(vcpu, va, length))
        va += length
        size -= length
    return b"".join(parts)


def copy_to_guest(vcpu: VCpu, va: int, data: bytes | bytearray | memoryview) -> None:
    """Copy bytes into guest memory and mark the frames. May cross pages. Raises HypercallError(EFAULT).

    Pages before the one that faults have been written, as with Xen's copy_to_guest.
    """
    size = len(data)
    offset = va & 0xFFF
    if 0 < size <= 4096 - offset:
        base = vcpu.tlb_w.get(va >> 12)
        if base is None:
            base = walk_write(vcpu, va)
        vcpu.hv.memory.write(base + offset, data)
        return
    done = 0
    while done < size:
        length = min(size - done, 4096 - (va & 0xFFF))
        copy_to_guest(vcpu, va, data[done : done + length])
        va += length
        done += length


def read_u32(vcpu: VCpu, va: int) -> int:
    """Read an unsigned 32-bit word. Raises HypercallError(EFAULT)."""
    if va & 3:
        return int.from_bytes(copy_from_guest(vcpu, va, 4), "little")
    base = vcpu.tlb_r.get(va >> 12)
    if base is None:
        base = walk_read(vcpu, va)
    return vcpu.hv.memory.i[base + (va & 0xFFF) >> 2]


def read_u64(vcpu: VCpu, va: int) -> int:
    """Read an unsigned 64-bit word. Raises HypercallError(EFAULT)."""
    if va & 7:
        return int.from_bytes(copy_from_guest(vcpu, va, 8), "little")
    base = vcpu.tlb_r.get(va >> 12)
    if base is None:
        base = walk_read(vcpu, va)
    return vcpu.hv.memory.q[base + (va & 0xFFF) >> 3]


def read_u16(vcpu: VCpu, va: int) -> int:
    """Read an unsigned 16-bit word. Raises HypercallError(EFAULT)."""
    return int.from_bytes(copy_from_guest(vcpu, va, 2), "little")


def read_u8(vcpu: VCpu, va: int) -> int:
    """Read a byte. Raises HypercallError(EFAULT)."""
    return vcpu.hv.memory.b[translate(vcpu, va, write=False)]


def write_u32(vcpu: VCpu, va: int, value: int) -> None:
    """Write an unsigned 32-bit word. Raises HypercallError(EFAULT)."""
    if va & 3:
        copy_to_guest(vcpu, va, (value & 0xFFFFFFFF).to_bytes(4, "little"))
        return
    base = vcpu.tlb_w.get(va >> 12)
    if base is None:
        base = walk_write(vcpu, va)
    memory = vcpu.hv.memory
    memory.i[base + (va & 0xFFF) >> 2] = value & 0xFFFFFFFF
    memory.written[base >> 12] = 1


def write_u64(vcpu: VCpu, va: int, value: int) -> None:
    """Write an unsigned 64-bit word. Raises HypercallError(EFAULT)."""
    if va & 7:
        copy_to_guest(vcpu, va, (value & _U64).to_bytes(8, "little"))
        return
    base = vcpu.tlb_w.get(va >> 12)
    if base is None:
        base = walk_write(vcpu, va)
    memory = vcpu.hv.memory
    memory.q[base + (va & 0xFFF) >> 3] = value & _U64
    memory.written[base >> 12] = 1


def write_u16(vcpu: VCpu, va: int, value: int) -> None:
    """Write an unsigned 16-bit word. Raises HypercallError(EFAULT)."""
    copy_to_guest(vcpu, va, (value & 0xFFFF).to_bytes(2, "little"))


def write_u8(vcpu: VCpu, va: int, value: int) -> None:
    """Write a byte. Raises HypercallError(EFAULT)."""
    copy_to_guest(vcpu, va, bytes((value & 0xFF,)))


# -- invalidation ---------------------------------------------------------------------------------------------------


def flush_va(domain: Domain, va: int, *, code: bool = True) -> None:
    """Forget one page on all vCPUs of a domain: its mapping went away or changed.

    `code` is whether code could be executed from there: a processor keeps more about code than translations.
    """
    va &= _U64
    for vcpu in domain.vcpus:
        if vcpu is not None:
            vcpu.flush_tlb(va, code=code)


def flush_entry(domain: Domain, entry: int, *, code: bool = True) -> None:
    """Forget the pages that were translated by an L1 entry of a domain's tables, which is gone. `code` as above."""
    for vcpu in domain.vcpus:
        if vcpu is not None:
            vcpu.flush_entry(entry, code=code)


def flush_all(domain: Domain, *, code: bool = True) -> None:
    """Forget every page on all vCPUs of a domain. `code` as above."""
    for vcpu in domain.vcpus:
        if vcpu is not None:
            vcpu.flush_tlb(None, code=code)
