"""How domains get memory and give it back: increase, decrease, populate, exchange (memory.h).

The three reservation operations answer with the number of extents done, whatever stopped them: bad pointers, missing
domains and permissions included. XENMEM_exchange answers 0 or an errno and counts in its argument. All of them can be
preempted between two extents: the former note in the command how many are done, exchange in its argument.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, memory, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest, read_u64, translate, write_u64
from hypervisor.mm.frame_table import XEN_HEAP, FrameTable, Owner
from hypervisor.mm.heap import MAX_ORDER
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

DOMU_MAX_ORDER = 9
"""Largest extent that an unprivileged domain may ask for (memop-max-order): 2 MiB."""
HARDWARE_MAX_ORDER = 12
"""The same for a domain that has hardware of its own."""
CONTROL_MAX_ORDER = 18
EXTENT_SHIFT = 6
"""MEMOP_EXTENT_SHIFT: the operation is in the low bits of the command, above it where a preempted call goes on."""
MAX_EXTENTS = 0xFFFFFFFF >> EXTENT_SHIFT
"""More extents than this could not be counted in a continued call."""
_MAX_NODES = 64
_NO_NODE = 0xFF
_PAGE_SHIFT = 12
_NR = xen.HYPERVISOR_memory_op
_U64 = 0xFFFFFFFFFFFFFFFF
_RESERVATION = memory.xen_memory_reservation
_EXCHANGE = memory.xen_memory_exchange
_NR_EXCHANGED = _EXCHANGE.offset("nr_exchanged")


@dataclass(frozen=True, slots=True)
class Place:
    """Where memory may come from, as XENMEMF_* say."""

    limit: int = sys.maxsize
    """Frames below this one only: a power of two, or no limit."""
    possible: bool = True
    """False when it must come from a NUMA node that this machine does not have: it has node 0 only."""


class Claims:
    """Memory that is promised to domains which are being built (XENMEM_claim_pages)."""

    __slots__ = ("_frames", "outstanding")

    def __init__(self, frames: FrameTable) -> None:
        self._frames = frames
        self.outstanding: dict[int, int] = {}

    def allow(self, domain: Owner | None, count: int) -> bool:
        """Whether `count` frames can be had: beside all that is promised or, for a domain, out of its own promise."""
        if not self.outstanding:
            return count <= self._frames.free_frames
        if sum(self.outstanding.values()) + count <= self._frames.free_frames:
            return True
        return domain is not None and self.outstanding.get(domain.domid, 0) >= count

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
        if request.nr_extents > MAX_EXTENTS or start >= request.nr_extents:
            return start
        domain = self._named(vcpu, request.domid)
        if domain is None or not self._hv.may_control(vcpu.domain, domain):
            return start
        place = place_of(vcpu.domain, domain, request.mem_flags, self._frames.frames)
        if place is None:
            return start
        if op == memory.XENMEM_populate_physmap:
            done, preempted = self._populate(vcpu, domain, request, start, place)
        elif op == memory.XENMEM_increase_reservation:
            done, preempted = self._increase(vcpu, domain, request, start, place)
        else:
            done, preempted = self._decrease(vcpu, domain, request, start)
        if preempted:
            raise Continuation(_NR, op | done << EXTENT_SHIFT, arg)
        return done

    def _named(self, vcpu: VCpu, domid: int) -> Domain | None:
        return vcpu.domain if domid == xen.DOMID_SELF else self._hv.domains.get(domid)

    def _alloc(self, domain: Domain, order: int, place: Place) -> int:
        """Give a domain one extent within its limits; returns the first mfn or -1."""
        count = 1 << order
        if domain.is_dying or count > domain.max_pages - domain.tot_pages:
            return -1
        if not place.possible or not self._mm.claims.allow(domain, count):
            return -1
        mfn = self._frames.alloc(domain, order, place.limit)
        if mfn >= 0:
            self._mm.claims.used(domain, count)
        return mfn

    def _increase(self, vcpu: VCpu, domain: Domain, request: Any, start: int, place: Place) -> tuple[int, bool]:
        """Returns (extents done, whether it was preempted), as the other two."""
        extents = request.extent_start
        if request.extent_order > max_order(vcpu.domain) or (extents and not access_ok(extents + start * 8)):
            return start, False
        check = self._hv.preempt.check
        for index in range(start, request.nr_extents):
            if index != start and check():
                return index, True
            mfn = self._alloc(domain, request.extent_order, place)
            if mfn < 0:
                return index, False
            if extents:
                try:
                    write_u64(vcpu, extents + index * 8, mfn)
                except HypercallError:
                    return index, False
        return int(request.nr_extents), False

    def _populate(self, vcpu: VCpu, domain: Domain, request: Any, start: int, place: Place) -> tuple[int, bool]:
        extents, order, count = request.extent_start, request.extent_order, request.nr_extents
        on_demand = bool(request.mem_flags & memory.XENMEMF_populate_on_demand)
        if order > (MAX_ORDER if on_demand else max_order(vcpu.domain)) or not access_ok(extents + start * 8):
            return start, False
        check = self._hv.preempt.check
        index = start
        try:
            while index < count:
                if index != start and check():
                    return index, True
                va = extents + index * 8
                batch = 0 if order or on_demand else self._batch(vcpu, va, count - index, domain, place)
                if batch:
                    self._populate_batch(vcpu, domain, va, batch)
                    index += batch
                    continue
                pfn = read_u64(vcpu, va)
                if on_demand:
                    # Memory that appears when touched is for translated guests only; here it is quietly not there.
                    if domain is vcpu.domain:
                        return index, False
                else:
                    mfn = self._alloc(domain, order, place)
                    if mfn < 0:
                        return index, False
                    self.set_m2p(mfn, pfn, 1 << order)
                    write_u64(vcpu, va, mfn)
                index += 1
        except HypercallError:
            return index, False
        return index, False

    def _batch(self, vcpu: VCpu, va: int, wanted: int, domain: Domain, place: Place) -> int:
        """Return how many single frames can be populated at once: as many as surely succeed, within one page."""
        count = min(wanted, (4096 - (va & 0xFFF)) // 8, domain.max_pages - domain.tot_pages)
        if count < 2 or domain.is_dying or va & 7 or place.limit < self._frames.frames or not place.possible:
            return 0
        try:
            translate(vcpu, va, write=True)
        except HypercallError:
            return 0
        return count if self._mm.claims.allow(domain, count) else 0

    def _populate_batch(self, vcpu: VCpu, domain: Domain, va: int, count: int) -> None:
        pfns = array("Q", copy_from_guest(vcpu, va, count * 8))
        mfns = array("Q")
        m2p = self._frames.m2p
        words = memoryview(pfns)
        done = 0
        if self._frames.boot.is_booted:
            for mfn, length in self._frames.alloc_singles(domain, count):
                mfns.extend(range(mfn + length - 1, mfn - 1, -1))
            for mfn, pfn in zip(mfns, pfns, strict=True):
                m2p[mfn] = pfn
        else:
            # (In one piece, which real memory is not: what moves it is the faster for it, and nobody has to know.)
            for mfn, length in self._frames.alloc_frames(domain, count):
                m2p[mfn : mfn + length] = words[done : done + length]
                mfns.extend(range(mfn, mfn + length))
                done += length
        self._mm.claims.used(domain, count)
        copy_to_guest(vcpu, va, mfns.tobytes())

    def set_m2p(self, mfn: int, pfn: int, count: int) -> None:
        """Note in the M2P that `count` frames are a domain's pages from `pfn` on."""
        m2p = self._frames.m2p
        if count == 1:
            m2p[mfn] = pfn
        else:
            m2p[mfn : mfn + count] = memoryview(array("Q", [pfn + i & _U64 for i in range(count)]))

    def _decrease(self, vcpu: VCpu, domain: Domain, request: Any, start: int) -> tuple[int, bool]:
        extents, order = request.extent_start, request.extent_order
        if order > max_order(vcpu.domain) or not access_ok(extents + start * 8):
            return start, False
        check = self._hv.preempt.check
        for index in range(start, request.nr_extents):
            if index != start and check():
                return index, True
            try:
                first = read_u64(vcpu, extents + index * 8)
            except HypercallError:
                return index, False
            if not all(self._remove(domain, mfn & _U64) for mfn in range(first, first + (1 << order))):
                return index, False
        return int(request.nr_extents), False

    def _remove(self, domain: Domain, mfn: int) -> bool:
        """Take a frame away from its domain. While it is mapped it is still there, but no longer the domain's right.

        One that is only lent to it is not freed, and the domain cannot map it any more.
        """
        frames = self._frames
        if not frames.get_page(mfn, domain):
            return False
        if frames.flags[mfn] & XEN_HEAP:
            frames.withdraw(mfn)
        else:
            frames.take_allocated(mfn)
        frames.put_page(mfn)
        return True

    # -- exchange ---------------------------------------------------------------------------------------------------

    def exchange(self, vcpu: VCpu, arg: int) -> int:
        """XENMEM_exchange: give extents of one size for as much memory in extents of another; 0 or -errno."""
        request = _EXCHANGE.unpack_from(copy_from_guest(vcpu, arg, _EXCHANGE.size))
        done, error = request.nr_exchanged, self._check_exchange(vcpu, request)
        if error is None:
            return 0
        preempted = False
        if not error:
            domain = self._named(vcpu, request.in_.domid)
            place = self._exchange_place(request.out.mem_flags)
            if domain is None:
                error = errno.ESRCH
            elif not self._hv.may_control(vcpu.domain, domain):
                error = errno.EPERM
            else:
                done, error, preempted = _Exchange(self._mm, vcpu, domain, request, place).run()
        try:
            write_u64(vcpu, arg + _NR_EXCHANGED, done)
        except HypercallError:
            return -errno.EFAULT
        if preempted:
            raise Continuation(_NR, memory.XENMEM_exchange, arg)
        return -error

    @staticmethod
    def _check_exchange(vcpu: VCpu, request: Any) -> int | None:
        """Check an exchange before it starts: 0, a positive errno, or None when there is nothing to do."""
        given, wanted, done = request.in_, request.out, request.nr_exchanged
        if max(given.extent_order, wanted.extent_order) > max_order(vcpu.domain):
            return errno.EPERM
        if (
            done > given.nr_extents
            or given.domid != wanted.domid
            or _U64 >> given.extent_order < given.nr_extents
            or _U64 >> wanted.extent_order < wanted.nr_extents
            or given.nr_extents << given.extent_order != wanted.nr_extents << wanted.extent_order
        ):
            return errno.EINVAL
        if done == given.nr_extents:
            return None
        first_out = done << given.extent_order >> wanted.extent_order
        if not (_array_ok(given, done) and _array_ok(wanted, first_out)):
            return errno.EFAULT
        return 0 if node_of(vcpu.domain, wanted.mem_flags) is not None else errno.EINVAL

    def _exchange_place(self, flags: int) -> Place:
        bits = flags & 0xFF
        limit = 1 << max(1, bits - _PAGE_SHIFT) if bits else sys.maxsize
        return Place(limit, _can_have_node(flags))


class _DyingError(Exception):
    """A domain that dies amid an exchange has lost what it gave."""


class _Exchange:
    """One call of XENMEM_exchange: chunk by chunk, a chunk being one extent of the larger size."""

    def __init__(self, mm: MemoryManager, vcpu: VCpu, domain: Domain, request: Any, place: Place) -> None:
        self._mm = mm
        self._frames = mm.frames
        self._vcpu = vcpu
        self._domain = domain
        self._given, self._wanted = request.in_, request.out
        self._in_order = max(0, self._wanted.extent_order - self._given.extent_order)
        self._out_order = max(0, self._given.extent_order - self._wanted.extent_order)
        self._start = request.nr_exchanged >> self._in_order
        self._place = place

    def run(self) -> tuple[int, int, bool]:
        """Exchange as long as all is well: (extents given up, errno or 0, whether it was preempted)."""
        check = self._mm.hv.preempt.check
        for chunk in range(self._start, self._given.nr_extents >> self._in_order):
            if chunk != self._start and check():
                return chunk << self._in_order, 0, True
            try:
                error = self._chunk(chunk)
            except _DyingError:
                return chunk << self._in_order, 0, False
            if error:
                return chunk << self._in_order, error, False
        return int(self._given.nr_extents), 0, False

    def _chunk(self, chunk: int) -> int:
        """Exchange one chunk; returns 0 or an errno. Raises _DyingError when the domain gets nothing any more."""
        frames, order = self._frames, self._wanted.extent_order
        stolen: list[int] = []
        new: list[int] = []
        error = self._steal(chunk << self._in_order, stolen) or self._allocate(new)
        if error:
            for mfn in new:
                frames.heap.add(mfn, 1 << order)
            for mfn in stolen:
                frames.assign_page(mfn, self._domain)
            return error
        for mfn in stolen:
            frames.free_stolen(mfn)
        if self._domain.is_dying:
            for mfn in new:
                frames.heap.add(mfn, 1 << order)
            raise _DyingError
        return self._hand_out(new, chunk << self._out_order)

    def _steal(self, first: int, stolen: list[int]) -> int:
        """Take the frames of a chunk from the domain; returns 0 or an errno, with those that were taken in `stolen`."""
        frames, given = self._frames, self._given
        for index in range(first, first + (1 << self._in_order)):
            try:
                mfn = read_u64(self._vcpu, given.extent_start + index * 8)
            except HypercallError:
                return errno.EFAULT
            for frame in range(mfn, mfn + (1 << given.extent_order)):
                if not frames.is_ram(frame) or not frames.get_page(frame, self._domain):
                    return errno.EINVAL
                if not frames.steal_page(frame, self._domain):
                    frames.put_page(frame)
                    return errno.EINVAL
                stolen.append(frame)
        return 0

    def _allocate(self, new: list[int]) -> int:
        order, place = self._wanted.extent_order, self._place
        for _ in range(1 << self._out_order):
            mfn = -1
            if place.possible and self._mm.claims.allow(None, 1 << order):
                mfn = self._frames.heap.alloc(order, place.limit)
            if mfn < 0:
                return errno.ENOMEM
            new.append(mfn)
        return 0

    def _hand_out(self, new: list[int], first: int) -> int:
        """Give the new extents to the domain and tell it where they are. Too late to fail: errors are told only."""
        error = 0
        order = self._wanted.extent_order
        for position, mfn in enumerate(new):
            self._frames.adopt(mfn, 1 << order, self._domain)
            address = self._wanted.extent_start + (first + position) * 8
            try:
                self._mm.reservations.set_m2p(mfn, read_u64(self._vcpu, address), 1 << order)
                write_u64(self._vcpu, address, mfn)
            except HypercallError:
                error = errno.EFAULT
        return error


def max_order(domain: Domain) -> int:
    """Return the largest extent order that a caller may use."""
    if domain.is_privileged:
        return min(CONTROL_MAX_ORDER, MAX_ORDER)
    return HARDWARE_MAX_ORDER if domain.has_hardware else DOMU_MAX_ORDER


def place_of(caller: Domain, domain: Domain, flags: int, frames: int) -> Place | None:
    """Return where a domain's reservation may come from on a host of so many frames; None for flags that cannot be."""
    limit = sys.maxsize
    bits = flags & 0xFF
    if bits and bits < (frames - 1).bit_length() + _PAGE_SHIFT:
        if bits <= _PAGE_SHIFT:
            return None
        limit = 1 << (bits - _PAGE_SHIFT)
    if flags & memory.XENMEMF_vnode:
        # The number is that of a virtual node: without a virtual topology it means nothing.
        topology, vnode = domain.virtual_topology, _node(flags)
        if topology is None:
            return Place(limit)
        if vnode >= topology.nodes:
            return None
        return Place(limit, not flags & memory.XENMEMF_exact_node_request or topology.host_nodes[vnode] == 0)
    node = node_of(caller, flags)
    if node is None:
        return None
    return Place(limit, node == _NO_NODE or _can_have_node(flags))


def node_of(caller: Domain, flags: int) -> int | None:
    """Return the NUMA node that a caller asks for, 0xff for any; None if it may not (XSA-231).

    Whoever is not privileged gets memory from anywhere, unless it insists on a node: then it is refused.
    """
    node = _node(flags)
    if node == _NO_NODE:
        return node
    if caller.is_privileged:
        return node if node < _MAX_NODES else None
    return None if flags & memory.XENMEMF_exact_node_request else _NO_NODE


def _node(flags: int) -> int:
    """Return the node in XENMEMF_*, 0xff for none (XENMEMF_get_node)."""
    return ((flags >> 8 & 0xFF) - 1) & 0xFF


def _can_have_node(flags: int) -> bool:
    """Whether this machine, which has node 0 only, can serve a request. All others but an exact one end there too."""
    return not flags & memory.XENMEMF_exact_node_request or (flags >> 8 & 0xFF) in (0, 1)


def _array_ok(reservation: Any, first: int) -> bool:
    """Whether an array of extents can be read or written from index `first` on (guest_handle_subrange_okay; XSA-212).

    The rest of it is checked as it is used.
    """
    count = reservation.nr_extents - first
    return count < _U64 // 8 and access_ok(reservation.extent_start + first * 8)
