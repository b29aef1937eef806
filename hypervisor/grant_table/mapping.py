"""GNTTABOP_map_grant_ref: give the caller's processors or devices access to a granted frame.

`map_one` is the operation, whole. `_map_run` is the loop for what drivers do all day (version 1 entries that are not in
use yet, several in a row in one page of arguments); it does the common case in place and hands everything else to
`map_one`. tests/grants runs both over the same operations and compares.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.tracepoints import GNTTAB_MAP
from hypervisor.errors import HypercallError
from hypervisor.grant_table.host_mapping import ENTRY_BITS, KIND_MASK, HostMappings, avail_bits
from hypervisor.grant_table.pins import INCREMENT, MAP_KIND_MASK
from hypervisor.grant_table.v1 import MAPPABLE_MASK
from hypervisor.guest_access import copy_from_guest, copy_to_guest, translate
from hypervisor.mm.frame_table import MAX_COUNT, PGT_writable_page
from hypervisor.mm.pte import PRESENT
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_grant_table_op
SIZE = abi.gnttab_map_grant_ref.size
STATUS = abi.gnttab_map_grant_ref.offset("status")
CODEC = Struct("<QIIH14x")
"""The fields that go in: host_addr, flags, ref, dom."""
OUT = Struct("<hIQ")
"""The fields that come out, from `status` on: status, handle, dev_bus_addr."""

PARTS = abi.GNTMAP_device_map | abi.GNTMAP_host_map
HOST, DEVICE = abi.GNTMAP_host_map, abi.GNTMAP_device_map
READONLY, CONTAINS_PTE = abi.GNTMAP_readonly, abi.GNTMAP_contains_pte
AVAIL = abi.GNTMAP_guest_avail_mask
STORED_FLAGS = 0xFFFF
"""What maptrack keeps of the flags: not the bits for the page table entry."""

Outcome = tuple[int, int, int]
"""Status, handle, machine address."""


class MapOps:
    """Mapping, for all domains."""

    def __init__(self, hv: Hypervisor, hosts: HostMappings) -> None:
        self._hv = hv
        self._hosts = hosts
        self.plain = False
        """Take the general way for everything (tests compare the two)."""

    def map_grant_ref(self, vcpu: VCpu, va: int, count: int) -> int:
        """Run `count` operations at guest address `va`; each gets its status. Raises HypercallError(EFAULT)."""
        preempt = self._hv.preempt
        alone = self.plain or preempt.imminent()
        while count:
            here = min(1 if alone else count, (4096 - (va & 0xFFF)) // SIZE)
            done = 0
            if here and not va & 7 and not self.plain:
                done = self._try_run(vcpu, va, here)
            if not done:
                self._map_apart(vcpu, va)
                done = 1
            va += done * SIZE
            count -= done
            if count and preempt.check():
                raise Continuation(HYPERCALL, abi.GNTTABOP_map_grant_ref, va, count)
        return 0

    def _try_run(self, vcpu: VCpu, va: int, count: int) -> int:
        """Do `count` operations within one page, or fewer; 0 when the page cannot be written (the slow way tells)."""
        try:
            maddr = translate(vcpu, va, write=True)
        except HypercallError:
            return 0
        return self._map_run(vcpu, va, maddr, count)

    def _map_apart(self, vcpu: VCpu, va: int) -> None:
        """Do a single operation wherever its arguments lie."""
        host_addr, flags, ref, domid = CODEC.unpack(copy_from_guest(vcpu, va, SIZE))
        self._put_outcome(vcpu, va, self.map_one(vcpu, host_addr, flags, ref, domid))

    def _put_outcome(self, vcpu: VCpu, va: int, outcome: Outcome) -> None:
        status, handle, bus = outcome
        if status:
            copy_to_guest(vcpu, va + STATUS, status.to_bytes(2, "little", signed=True))
        else:
            copy_to_guest(vcpu, va + STATUS, OUT.pack(status, handle, bus))

    # -- one operation ------------------------------------------------------------------------------------------------

    def map_one(self, vcpu: VCpu, host_addr: int, flags: int, ref: int, domid: int) -> Outcome:
        """Map one grant. A handle is taken before the entry is looked at, so a failure uses one up too."""
        outcome = self._map(vcpu, host_addr, flags, ref, domid)
        trace = self._hv.trace
        if trace is not None:
            trace(vcpu.domain.domid, vcpu.vcpu_id, GNTTAB_MAP, domid, ref, flags, outcome[1], outcome[0])
        return outcome

    def _map(self, vcpu: VCpu, host_addr: int, flags: int, ref: int, domid: int) -> Outcome:
        if not flags & PARTS:
            return abi.GNTST_bad_gntref, 0, 0
        granter = self._hv.domains.get(domid)
        if granter is None:
            return abi.GNTST_bad_domain, 0, 0
        mine = vcpu.domain.grant_table
        handle = mine.maptrack.get(vcpu.vcpu_id)
        if handle < 0:
            return abi.GNTST_no_space, 0, 0
        table = granter.grant_table
        status = self._map_entry(vcpu, host_addr, flags, table, ref)
        if status:
            mine.maptrack.put(handle)
            return status, 0, 0
        mine.maptrack.record(handle, table, ref, flags & STORED_FLAGS)
        mine.stats.maps += 1
        return abi.GNTST_okay, handle, table.mfn[ref] << 12

    def _map_entry(self, vcpu: VCpu, host_addr: int, flags: int, table: GrantTable, ref: int) -> int:
        """Pin the entry and take what the mapping's parts hold; on failure everything is as before."""
        if ref >= table.nr_entries:
            return abi.GNTST_bad_gntref
        readonly = bool(flags & READONLY)
        increment = INCREMENT[flags & MAP_KIND_MASK]
        status = table.acquire(ref, vcpu.domain.domid, increment, readonly=readonly, mapping=True)
        if status:
            return status
        mfn = table.mfn[ref]
        frames = table.frames
        if not readonly and not frames.get_page_type(mfn, PGT_writable_page):
            table.release(ref, increment, readonly=readonly)
            frames.put_page(mfn)
            return abi.GNTST_general_error
        if flags & HOST:
            if not self._hosts.create(vcpu, host_addr, mfn, flags):
                table.release(ref, increment, readonly=readonly)
                drop(table, mfn, readonly)
                return abi.GNTST_general_error
            if flags & DEVICE:
                # The first reference is the page table entry's now; the device part needs its own (XSA-224).
                frames.get_page(mfn, table.domain)
                if not readonly:
                    frames.get_page_type(mfn, PGT_writable_page)
        return abi.GNTST_okay

    # -- many operations ----------------------------------------------------------------------------------------------

    def _map_run(self, vcpu: VCpu, va: int, maddr: int, count: int) -> int:  # noqa: C901 - hot, flat on purpose
        """Do up to `count` operations whose arguments lie at `va`, machine address `maddr` (8-aligned), in one page.

        Returns how many were done: it stops early when a mapping may have gone over the arguments themselves, which the
        TLB tells, and leaves finding them again to the caller.
        """
        hv, hosts = self._hv, self._hosts
        memory, frames, domains = hv.memory, hv.frames, hv.domains
        bytes_, halves, words, written = memory.b, memory.h, memory.q, memory.written
        owner_tag, references = frames.owner_tag, frames.count
        types, type_counts, nr_frames = frames.type, frames.type_count, frames.frames
        mapper = vcpu.domain
        domid, vcpu_id = mapper.domid, vcpu.vcpu_id
        wanted = domid << 16 | abi.GTF_permit_access
        maptrack = mapper.grant_table.maptrack
        track_flags, track_ref, track_table = maptrack.flags, maptrack.ref, maptrack.table
        free = maptrack.queue(vcpu_id)
        trace = hv.trace
        l1_tables: dict[int, int] = {}
        granter = -1
        tag = nr_entries = 0
        table: GrantTable
        arguments_page, translated = va >> 12, vcpu.tlb_w
        done = mapped = 0
        written[maddr >> 12] = 1
        out = (maddr >> 3) + 2
        arguments = bytes(bytes_[maddr : maddr + count * SIZE])
        for host_addr, flags, ref, dom in CODEC.iter_unpack(arguments):
            done += 1
            if dom != granter:
                domain = domains.get(dom)
                if domain is not None:
                    granter = dom
                    table = domain.grant_table
                    tag = dom + 1
                    nr_entries = table.nr_entries if table.format.version == 1 and trace is None else 0
                    slots, pins, mfns, grantees = table.slot, table.pin, table.mfn, table.grantee
            if dom == granter and flags & PARTS and ref < nr_entries and not pins[ref]:
                slot = slots[ref]
                entry = words[slot]
                mfn = entry >> 32
                if entry & MAPPABLE_MASK == wanted and mfn < nr_frames and owner_tag[mfn] == tag:
                    index = 0
                    if flags & HOST:
                        key = host_addr >> 21
                        base = l1_tables.get(key)
                        if base is None:
                            found = None if flags & CONTAINS_PTE else hosts.l1_table(vcpu, host_addr)
                            base = l1_tables[key] = found[0] if found is not None else -1
                        index = base + (host_addr >> 12 & 511)
                        usable = base > 0 and not flags & CONTAINS_PTE and not words[index] & PRESENT
                    else:
                        usable = True
                    parts = 2 if flags & PARTS == PARTS else 1
                    held = references[mfn]
                    if flags & READONLY:
                        status = 8
                    else:
                        status = 24
                        usable = usable and not entry & 4 and types[mfn] == PGT_writable_page
                    if usable and 0 < held < MAX_COUNT - 2 and (len(free) > 1 or maptrack.refill(vcpu_id)):
                        if status == 24:
                            type_counts[mfn] += parts
                        references[mfn] = held + parts
                        if entry & status != status:
                            halves[slot << 2] = entry & 0xFFFF | status
                            written[slot >> 9] = 1
                        if index:
                            bits = ENTRY_BITS[flags & KIND_MASK]
                            if flags & AVAIL:
                                bits |= avail_bits(flags)
                            words[index] = mfn << 12 | bits
                            written[index >> 9] = 1
                        pins[ref] = INCREMENT[flags & MAP_KIND_MASK]
                        mfns[ref] = mfn
                        grantees[ref] = domid
                        handle = free.popleft()
                        track_flags[handle] = flags & STORED_FLAGS
                        track_ref[handle] = ref
                        track_table[handle] = table
                        words[out] = dom | handle << 32
                        words[out + 1] = mfn << 12
                        out += 4
                        mapped += 1
                        continue
            outcome = self.map_one(vcpu, host_addr, flags, ref, dom)
            if arguments_page not in translated:
                self._put_outcome(vcpu, va + (done - 1) * SIZE, outcome)
                break
            if outcome[0]:
                halves[(out << 2) + 1] = outcome[0] & 0xFFFF
            else:
                words[out] = dom | outcome[1] << 32
                words[out + 1] = outcome[2]
            out += 4
        mapper.grant_table.stats.maps += mapped
        return done


def drop(table: GrantTable, mfn: int, readonly: bool) -> None:
    """Drop the references of one part of a mapping."""
    if readonly:
        table.frames.put_page(mfn)
    else:
        table.frames.put_page_and_type(mfn)
