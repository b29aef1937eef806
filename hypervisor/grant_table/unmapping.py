"""GNTTABOP_unmap_grant_ref and GNTTABOP_unmap_and_replace: take a mapping away, by its handle.

As in `mapping`, `unmap_one` is the operation and `_unmap_run` does the common case in place: a mapping of one part, by
its own address, in a version 1 or 2 table alike.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.tracepoints import GNTTAB_UNMAP
from hypervisor.errors import HypercallError
from hypervisor.grant_table.host_mapping import HostMappings
from hypervisor.grant_table.mapping import drop
from hypervisor.grant_table.pins import INCREMENT, MAP_KIND_MASK, WRITE_MASK
from hypervisor.guest_access import copy_from_guest, copy_to_guest, flush_va, translate
from hypervisor.mm.pte import FRAME_MASK, PRESENT, RW
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_grant_table_op
SIZE = abi.gnttab_unmap_grant_ref.size
STATUS = abi.gnttab_unmap_grant_ref.offset("status")
CODEC = Struct("<QQI4x")
"""host_addr, dev_bus_addr (new_addr for unmap_and_replace), handle: both structures are laid out alike."""

HOST, DEVICE = abi.GNTMAP_host_map, abi.GNTMAP_device_map
READONLY, CONTAINS_PTE = abi.GNTMAP_readonly, abi.GNTMAP_contains_pte
PARTS = HOST | DEVICE
READING_WRITING = abi.GTF_reading | abi.GTF_writing
BATCH = 32
"""After so many unmaps Xen flushes TLBs, and can be preempted (GNTTAB_UNMAP_BATCH_SIZE)."""


class UnmapOps:
    """Unmapping, for all domains."""

    def __init__(self, hv: Hypervisor, hosts: HostMappings) -> None:
        self._hv = hv
        self._hosts = hosts
        self.plain = False
        """Take the general way for everything (tests compare the two)."""

    def unmap_grant_ref(self, vcpu: VCpu, va: int, count: int) -> int:
        """Run `count` operations at guest address `va`; each gets its status. Raises HypercallError(EFAULT)."""
        preempt = self._hv.preempt
        alone = preempt.imminent()
        left = BATCH
        while count:
            here = min(count, (4096 - (va & 0xFFF)) // SIZE)
            if alone:
                here = min(here, left)
            done = 0
            if here and not va & 7 and not self.plain and self._hv.trace is None:
                done = self._try_run(vcpu, va, here)
            if not done:
                host_addr, bus, handle = CODEC.unpack(copy_from_guest(vcpu, va, SIZE))
                self._put_status(vcpu, va, self.unmap_one(vcpu, host_addr, bus, handle))
                done = 1
            va += done * SIZE
            count -= done
            left -= done
            if left <= 0:
                left = BATCH
                if count and preempt.check():
                    raise Continuation(HYPERCALL, abi.GNTTABOP_unmap_grant_ref, va, count)
        return 0

    def unmap_and_replace(self, vcpu: VCpu, va: int, count: int) -> int:
        """Run a batch of unmaps that leave another of the guest's entries in place of the mapping."""
        for done in range(count):
            if done and not done % BATCH and self._hv.preempt.check():
                raise Continuation(HYPERCALL, abi.GNTTABOP_unmap_and_replace, va, count - done)
            host_addr, new_addr, handle = CODEC.unpack(copy_from_guest(vcpu, va, SIZE))
            self._put_status(vcpu, va, self.unmap_one(vcpu, host_addr, 0, handle, new_addr))
            va += SIZE
        return 0

    def _put_status(self, vcpu: VCpu, va: int, status: int) -> None:
        copy_to_guest(vcpu, va + STATUS, status.to_bytes(2, "little", signed=True))

    def _try_run(self, vcpu: VCpu, va: int, count: int) -> int:
        """Do `count` operations within one page, or fewer; 0 when the page cannot be written (the slow way tells)."""
        try:
            maddr = translate(vcpu, va, write=True)
        except HypercallError:
            return 0
        return self._unmap_run(vcpu, va, maddr, count)

    # -- one operation ------------------------------------------------------------------------------------------------

    def unmap_one(self, vcpu: VCpu, host_addr: int, dev_bus_addr: int, handle: int, new_addr: int = 0) -> int:
        """Unmap the parts of a mapping whose addresses are given (zero: leave that part); returns the status."""
        status = self._unmap(vcpu, host_addr, dev_bus_addr, handle, new_addr)
        trace = self._hv.trace
        if trace is not None:
            trace(vcpu.domain.domid, vcpu.vcpu_id, GNTTAB_UNMAP, handle, status)
        return status

    def _unmap(self, vcpu: VCpu, host_addr: int, dev_bus_addr: int, handle: int, new_addr: int) -> int:
        mine = vcpu.domain.grant_table
        maptrack = mine.maptrack
        flags = maptrack.flags[handle] if handle < len(maptrack.flags) else 0
        table = maptrack.table[handle] if flags else None
        if table is None:
            return abi.GNTST_bad_handle
        if table.dead:
            # The guest made the entry in its page table vanish itself, so nothing kept the granter from going.
            self._hv.domain_ops.crash(vcpu.domain, f"unmap of grant handle {handle}, whose granter no longer exists")
            return abi.GNTST_bad_domain
        ref = maptrack.ref[handle]
        mfn = table.mfn[ref]
        done = 0
        if dev_bus_addr and flags & DEVICE:
            if dev_bus_addr != mfn << 12:
                return abi.GNTST_bad_dev_addr
            done |= DEVICE
        if host_addr and flags & HOST:
            if not self._hosts.replace(vcpu, host_addr, mfn, new_addr, flags):
                return abi.GNTST_general_error
            done |= HOST
        if not done:
            return abi.GNTST_okay
        if flags & PARTS == done:
            maptrack.put(handle)
            mine.stats.unmaps += 1
        else:
            maptrack.flags[handle] = flags & ~done
        readonly = bool(flags & READONLY)
        table.release(ref, INCREMENT[done | flags & READONLY], readonly=readonly)
        if not readonly:
            table.memory.written[mfn] = 1
        for part in (DEVICE, HOST):
            if done & part:
                drop(table, mfn, readonly)
        return abi.GNTST_okay

    # -- many operations ----------------------------------------------------------------------------------------------

    def _unmap_run(self, vcpu: VCpu, va: int, maddr: int, count: int) -> int:  # noqa: C901 - hot, flat on purpose
        """Do up to `count` operations whose arguments lie at `va`, machine address `maddr` (8-aligned), in one page.

        Returns how many were done: it stops early when the mapping of the arguments themselves may be gone, which the
        TLB tells, and leaves finding them again to the caller.
        """
        hv, hosts = self._hv, self._hosts
        memory, frames = hv.memory, hv.frames
        halves, words, written = memory.h, memory.q, memory.written
        references, type_counts = frames.count, frames.type_count
        mapper = vcpu.domain
        maptrack = mapper.grant_table.maptrack
        track_flags, track_ref, track_table = maptrack.flags, maptrack.ref, maptrack.table
        limit, owner, free = len(track_flags), maptrack.vcpu, maptrack.free
        arguments_page, translated = va >> 12, vcpu.tlb_w
        l1_tables: dict[int, tuple[int, bool]] = {}
        nowhere = (-1, False)
        current = None
        done = unmapped = 0
        written[maddr >> 12] = 1
        out = maddr + STATUS >> 1
        arguments = bytes(memory.b[maddr : maddr + count * SIZE])
        for host_addr, bus, handle in CODEC.iter_unpack(arguments):
            done += 1
            flags = track_flags[handle] if handle < limit else 0
            part = flags & PARTS
            if part == DEVICE:
                given = bus
            elif part == HOST and not flags & CONTAINS_PTE:
                given = host_addr
            else:
                given = 0
            if given:
                table = track_table[handle]
                if table is not current:
                    current = table
                    pins, mfns, status_at = table.pin, table.mfn, table.status_at
                    alive = not table.dead
                ref = track_ref[handle]
                mfn = mfns[ref] if alive else 0
                index = 0
                usable = alive and references[mfn] > 1
                if part == HOST:
                    key = host_addr >> 21
                    found = l1_tables.get(key)
                    if found is None:
                        found = l1_tables[key] = hosts.l1_table(vcpu, host_addr) or nowhere
                    index = found[0] + (host_addr >> 12 & 511)
                    bits = PRESENT if flags & READONLY else PRESENT | RW
                    usable = usable and found[1] and host_addr >> 12 != arguments_page
                    usable = usable and words[index] & (FRAME_MASK | PRESENT | RW) == mfn << 12 | bits
                elif bus != mfn << 12:
                    usable = False
                if usable and not flags & READONLY and type_counts[mfn] < 2:
                    usable = False
                if usable:
                    if index:
                        words[index] = 0
                        written[index >> 9] = 1
                        flush_va(mapper, host_addr)
                    pin = pins[ref] - INCREMENT[flags & MAP_KIND_MASK]
                    pins[ref] = pin
                    at = status_at[ref]
                    status = halves[at]
                    if flags & READONLY:
                        clear = 0 if pin else abi.GTF_reading
                    else:
                        clear = READING_WRITING if not pin else 0 if pin & WRITE_MASK else abi.GTF_writing
                        written[mfn] = 1
                        type_counts[mfn] -= 1
                    if status & clear:
                        halves[at] = status & ~clear
                        written[at >> 11] = 1
                    references[mfn] -= 1
                    track_flags[handle] = 0
                    track_table[handle] = None
                    free[owner[handle]].append(handle)
                    halves[out] = 0
                    out += 12
                    unmapped += 1
                    continue
            status = self.unmap_one(vcpu, host_addr, bus, handle)
            if arguments_page not in translated:
                self._put_status(vcpu, va + (done - 1) * SIZE, status)
                break
            halves[out] = status & 0xFFFF
            out += 12
        mapper.grant_table.stats.unmaps += unmapped
        return done
