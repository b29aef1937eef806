"""How domains get memory and give it back: increase, decrease, populate, exchange (memory.h).

The three reservation operations answer with the number of extents done, whatever stopped them: bad pointers, missing
domains and permissions included. XENMEM_exchange answers 0 or an errno and counts in its argument.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, memory, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest, read_u64, translate, write_u64
from hypervisor.mm.frame_table import XEN_HEAP, FrameTable, Owner
from hypervisor.mm.heap import MAX_ORDER

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

DOMU_MAX_ORDER = 9
"""Largest extent that an unprivileged domain may ask for (memop-max-order): 2 MiB."""
CONTROL_MAX_ORDER = 18
_MAX_NODES = 64
_MAX_EXTENTS = 0xFFFFFFFF >> 6
"""More extents than this could not be counted in a continued call (MEMOP_EXTENT_SHIFT)."""
_U64 = 0xFFFFFFFFFFFFFFFF
_RESERVATION = memory.xen_memory_reservation
_EXCHANGE = memory.xen_memory_exchange
_NR_EXCHANGED = _EXCHANGE.offset("nr_exchanged")


class Claims:
    """Memory that is promised to domains which are being built (XENMEM_claim_pages)."""

    __slots__ = ("_frames", "outstanding")

    def __init__(self, frames: FrameTable) -> None:
        self._frames = frames
        self.outstanding: dict[int, int] = {}

    def available(self, domain: Owner) -> int:
        """Return how many frames the domain could get: what is free and not promised to others."""
        promised = sum(self.outstanding.values()) - self.outstanding.get(domain.domid, 0)
        return max(0, self._frames.free_frames - promised)

    def used(self, domain: Owner, count: int) -> None:
        """Take note that a domain got `count` frames."""
        left = self.outstanding.get(domain.domid)
        if left is not None:
            if left > count:
                self.outstanding[domain.domid] = left - count
            else:
                del self.outstanding[domain.domid]

    def drop(self, domain: Owner) -> None:
        """Forget a domain's claim."""
        self.outstanding.pop(domain.domid, None)

    def stake(self, domain: Owner, pages: int) -> int:
        """Promise a domain memory up to `pages` in all, 0 to forget; returns 0 or a positive errno."""
        if not pages:
            self.drop(domain)
            return 0
        if domain.domid in self.outstanding or pages <= domain.tot_pages or pages > domain.max_pages:
            return errno.EINVAL
        wanted = pages - domain.tot_pages
        if wanted > self._frames.free_frames - sum(self.outstanding.values()):
            return errno.ENOMEM
        self.outstanding[domain.domid] = wanted
        return 0


class Reservations:
    """The four operations; `memory_op` dispatches to them."""

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._hv = mm.hv
        self._frames = mm.frames

    # -- increase, decrease, populate -------------------------------------------------------------------------------

    def adjust(self, vcpu: VCpu, op: int, arg: int, start: int) -> int:
        """Carry out one of the three, from extent `start` on; returns the number of extents done."""
        try:
            request = _RESERVATION.unpack_from(copy_from_guest(vcpu, arg, _RESERVATION.size))
        except HypercallError:
            return start
        if request.nr_extents > _MAX_EXTENTS or start >= request.nr_extents:
            return start
        domain = self._named(vcpu, request.domid)
        if domain is None or not self._hv.may_control(vcpu.domain, domain):
            return start
        if not flags_ok(vcpu, request.mem_flags, self._frames.frames):
            return start
        if op == memory.XENMEM_populate_physmap:
            return self._populate(vcpu, domain, request, start)
        if op == memory.XENMEM_increase_reservation:
            return self._increase(vcpu, domain, request, start)
        return self._decrease(vcpu, domain, request, start)

    def _named(self, vcpu: VCpu, domid: int) -> Domain | None:
        return vcpu.domain if domid == xen.DOMID_SELF else self._hv.domains.get(domid)

    def _alloc(self, domain: Domain, order: int) -> int:
        """Give a domain one extent within its limits; returns the first mfn or -1."""
        count = 1 << order
        if domain.is_dying or count > domain.max_pages - domain.tot_pages:
            return -1
        if count > self._mm.claims.available(domain):
            return -1
        mfn = self._frames.alloc(domain, order)
        if mfn >= 0:
            self._mm.claims.used(domain, count)
        return mfn

    def _increase(self, vcpu: VCpu, domain: Domain, request: Any, start: int) -> int:
        extents = request.extent_start
        if request.extent_order > max_order(vcpu.domain) or (extents and not access_ok(extents)):
            return start
        for index in range(start, request.nr_extents):
            mfn = self._alloc(domain, request.extent_order)
            if mfn < 0:
                return index
            if extents:
                try:
                    write_u64(vcpu, extents + index * 8, mfn)
                except HypercallError:
                    return index
        return int(request.nr_extents)

    def _populate(self, vcpu: VCpu, domain: Domain, request: Any, start: int) -> int:
        extents, order = request.extent_start, request.extent_order
        if order > max_order(vcpu.domain) or not access_ok(extents):
            return start
        if request.mem_flags & memory.XENMEMF_populate_on_demand:
            # Memory that appears when touched is for translated guests only; here it is quietly not there.
            return start if domain is vcpu.domain else int(request.nr_extents)
        index = start
        try:
            while index < request.nr_extents:
                batch = self._batch(vcpu, extents + index * 8, request.nr_extents - index, domain) if not order else 0
                if batch:
                    self._populate_batch(vcpu, domain, extents + index * 8, batch)
                    index += batch
                    continue
                pfn = read_u64(vcpu, extents + index * 8)
                mfn = self._alloc(domain, order)
                if mfn < 0:
                    break
                self._set_m2p(mfn, pfn, 1 << order)
                write_u64(vcpu, extents + index * 8, mfn)
                index += 1
        except HypercallError:
            return index
        return index

    def _batch(self, vcpu: VCpu, va: int, wanted: int, domain: Domain) -> int:
        """Return how many single frames can be populated at once: as many as surely succeed, within one page."""
        room = min(domain.max_pages - domain.tot_pages, self._mm.claims.available(domain))
        count = min(wanted, (4096 - (va & 0xFFF)) // 8, room)
        if count < 2 or domain.is_dying or va & 7:
            return 0
        try:
            translate(vcpu, va, write=True)
        except HypercallError:
            return 0
        return count

    def _populate_batch(self, vcpu: VCpu, domain: Domain, va: int, count: int) -> None:
        pfns = array("Q", copy_from_guest(vcpu, va, count * 8))
        mfns = array("Q")
        m2p = self._frames.m2p
        words = memoryview(pfns)
        done = 0
        for mfn, length in self._frames.alloc_frames(domain, count):
            m2p[mfn : mfn + length] = words[done : done + length]
            mfns.extend(range(mfn, mfn + length))
            done += length
        self._mm.claims.used(domain, count)
        copy_to_guest(vcpu, va, mfns.tobytes())

    def _set_m2p(self, mfn: int, pfn: int, count: int) -> None:
        m2p = self._frames.m2p
        if count == 1:
            m2p[mfn] = pfn
        else:
            m2p[mfn : mfn + count] = memoryview(array("Q", [pfn + i & _U64 for i in range(count)]))

    def _decrease(self, vcpu: VCpu, domain: Domain, request: Any, start: int) -> int:
        extents, order = request.extent_start, request.extent_order
        if order > max_order(vcpu.domain) or not access_ok(extents):
            return start
        frames = self._frames
        for index in range(start, request.nr_extents):
            try:
                first = read_u64(vcpu, extents + index * 8)
            except HypercallError:
                return index
            for mfn in range(first, first + (1 << order)):
                if not frames.get_page(mfn, domain):
                    return index
                if not frames.flags[mfn] & XEN_HEAP:
                    frames.take_allocated(mfn)
                frames.put_page(mfn)
        return int(request.nr_extents)

    # -- exchange ---------------------------------------------------------------------------------------------------

    def exchange(self, vcpu: VCpu, arg: int) -> int:
        """XENMEM_exchange: give extents of one size for as much memory in extents of another; 0 or -errno."""
        request = _EXCHANGE.unpack_from(copy_from_guest(vcpu, arg, _EXCHANGE.size))
        given, wanted = request.in_, request.out
        error = self._check_exchange(vcpu, request)
        if error is None:
            return 0
        done = request.nr_exchanged
        if not error:
            domain = self._named(vcpu, given.domid)
            if domain is None:
                error = errno.ESRCH
            elif not self._hv.may_control(vcpu.domain, domain):
                error = errno.EPERM
            else:
                done, error = self._exchange_chunks(vcpu, domain, given, wanted, done)
        try:
            write_u64(vcpu, arg + _NR_EXCHANGED, done)
        except HypercallError:
            error = errno.EFAULT
        return -error

    @staticmethod
    def _check_exchange(vcpu: VCpu, request: Any) -> int | None:
        """Check an exchange before it starts: 0, a positive errno, or None when there is nothing to do."""
        given, wanted = request.in_, request.out
        if max(given.extent_order, wanted.extent_order) > max_order(vcpu.domain):
            return errno.EPERM
        if (
            request.nr_exchanged > given.nr_extents
            or given.domid != wanted.domid
            or _U64 >> given.extent_order < given.nr_extents
            or _U64 >> wanted.extent_order < wanted.nr_extents
            or given.nr_extents << given.extent_order != wanted.nr_extents << wanted.extent_order
        ):
            return errno.EINVAL
        if request.nr_exchanged == given.nr_extents:
            return None
        if not (_array_ok(given) and _array_ok(wanted)):
            return errno.EFAULT
        return 0 if flags_ok(vcpu, wanted.mem_flags, 0) else errno.EINVAL

    def _exchange_chunks(self, vcpu: VCpu, domain: Domain, given: Any, wanted: Any, done: int) -> tuple[int, int]:
        """Exchange chunk by chunk, a chunk being one extent of the larger size: (extents given up, errno or 0)."""
        in_order = max(0, wanted.extent_order - given.extent_order)
        out_order = max(0, given.extent_order - wanted.extent_order)
        chunk = done >> in_order
        for chunk in range(done >> in_order, given.nr_extents >> in_order):
            error = self._exchange_chunk(vcpu, domain, given, wanted, chunk << in_order, 1 << in_order, out_order)
            if error:
                return chunk << in_order, error
        return int(given.nr_extents), 0

    def _exchange_chunk(
        self, vcpu: VCpu, domain: Domain, given: Any, wanted: Any, first: int, count: int, out_order: int
    ) -> int:
        frames = self._frames
        stolen: list[int] = []
        error = self._steal(vcpu, domain, given, first, count, stolen)
        new: list[int] = []
        if not error:
            for _ in range(1 << out_order):
                mfn = -1
                if not domain.is_dying and self._mm.claims.available(domain) >= 1 << wanted.extent_order:
                    mfn = frames.heap.alloc(wanted.extent_order)
                if mfn < 0:
                    error = errno.ENOMEM
                    break
                new.append(mfn)
        if error:
            for mfn in new:
                frames.heap.add(mfn, 1 << wanted.extent_order)
            for mfn in stolen:
                frames.assign_page(mfn, domain)
            return error
        for mfn in stolen:
            frames.free_stolen(mfn)
        return self._hand_out(vcpu, domain, wanted, new, (first // count) << out_order)

    def _steal(self, vcpu: VCpu, domain: Domain, given: Any, first: int, count: int, stolen: list[int]) -> int:
        frames = self._frames
        for index in range(first, first + count):
            try:
                mfn = read_u64(vcpu, given.extent_start + index * 8)
            except HypercallError:
                return errno.EFAULT
            for frame in range(mfn, mfn + (1 << given.extent_order)):
                if not frames.is_ram(frame) or not frames.get_page(frame, domain):
                    return errno.EINVAL
                if not frames.steal_page(frame, domain):
                    frames.put_page(frame)
                    return errno.EINVAL
                stolen.append(frame)
        return 0

    def _hand_out(self, vcpu: VCpu, domain: Domain, wanted: Any, new: list[int], first: int) -> int:
        """Give the new extents to the domain and tell it where they are. Too late to fail: errors are told only."""
        error = 0
        for position, mfn in enumerate(new):
            self._frames.adopt(mfn, 1 << wanted.extent_order, domain)
            address = wanted.extent_start + (first + position) * 8
            try:
                pfn = read_u64(vcpu, address)
                self._set_m2p(mfn, pfn, 1 << wanted.extent_order)
                write_u64(vcpu, address, mfn)
            except HypercallError:
                error = errno.EFAULT
        return error


def max_order(domain: Domain) -> int:
    """Return the largest extent order that a caller may use."""
    return min(CONTROL_MAX_ORDER if domain.is_privileged else DOMU_MAX_ORDER, MAX_ORDER)


def flags_ok(vcpu: VCpu, flags: int, frames: int) -> bool:
    """Check XENMEMF_*: address bits and the NUMA node (XSA-231). This machine has node 0 only."""
    bits = flags & 0xFF
    if frames and bits and bits <= 12 and bits < (frames - 1).bit_length() + 12:
        return False
    node = ((flags >> 8 & 0xFF) - 1) & 0xFF
    if node == 0xFF:
        return True
    if vcpu.domain.is_privileged:
        return node < _MAX_NODES
    return not flags & memory.XENMEMF_exact_node_request


def _array_ok(reservation: Any) -> bool:
    """Whether an array of extents lies outside of Xen's addresses altogether, its far end included (XSA-212)."""
    start = reservation.extent_start
    end = start + reservation.nr_extents * 8 - 1
    if end > _U64:
        return False
    return (
        access_ok(start) and access_ok(end) and (start < xen.HYPERVISOR_VIRT_START) == (end < xen.HYPERVISOR_VIRT_START)
    )
