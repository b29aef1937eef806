"""The frame table: for every machine frame its owner, its type, and how often both are in use.

This is Xen's `page_info` array (PGC_* and PGT_* in its mm.h) as flat arrays, one element per frame, over anonymous
memory that costs nothing until it is written. Two counts rule everything:

`count` (references) keeps a frame from being freed. The domain's own right to the frame is one of them and is shown by
the ALLOCATED flag; each mapping in a page table, each grant mapping and each operation in flight holds another. A frame
whose count falls to zero goes back to the heap, whoever drops the last one.

`type_count` keeps a frame from changing its role. A frame is a page table of one level, or writable, or a descriptor
table, never two of them at once: that is what makes it safe for a guest to hold real machine addresses in its own page
tables. The type may change only while the count is zero, and becoming a page table or a descriptor table means that the
contents are validated first (`mm.page_types`).

`owner_tag` holds domid + 1, zero meaning "nobody": so a fresh array needs no filling.
"""

import mmap
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from hypervisor.errors import InvariantError
from hypervisor.machine.firmware import IO_FRAMES
from hypervisor.machine.memory import Memory
from hypervisor.mm.boot_memory import BootMemory, tables_only
from hypervisor.mm.heap import Extent, Heap

PGT_none = 0
PGT_l1_page_table = 1
PGT_l2_page_table = 2
PGT_l3_page_table = 3
PGT_l4_page_table = 4
PGT_seg_desc_page = 5
PGT_shared_page = 6
PGT_writable_page = 7

ALLOCATED = 0x01
"""The owner itself holds a reference (PGC_allocated); cleared by whoever takes the frame away from it."""
XEN_HEAP = 0x02
"""Xen's own page, lent to the owner (shared_info, grant frames): not in the owner's page list nor in tot_pages."""
VALIDATED = 0x04
"""The contents were checked for the current type (PGT_validated)."""
PINNED = 0x08
"""A guest pinned the type: one type reference and one reference (PGT_pinned)."""
PARTIAL = 0x10
"""Validation or release stopped at `progress` and can go on from there (PGT_partial)."""
OWN_PARTIAL = 0x20
"""A PARTIAL frame holds one reference and one type reference of its own: it stays when nobody else does."""
GIVEN_UP = 0x80
"""A frame of a dying domain to which the domain's own right is taken."""
KEPT = 0x40
"""A lent frame of a dying domain: the domain has no right to it any more, but whoever lent it still needs it."""

DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2

EINVAL = 22
ERESTART = 85

INVALID_M2P_ENTRY = 0xFFFFFFFFFFFFFFFF
"""What the M2P holds for a frame that lost its owner."""

MAX_COUNT = 0x7FFFFFFF
"""Counts that would pass this refuse the new reference instead of wrapping."""

_ZERO_PAGE = bytes(4096)
_RUN = 1024
_ONES = memoryview(array("I", [1]) * _RUN)
_ZEROS = memoryview(array("I", bytes(4 * _RUN)))
_ALL_ALLOCATED = memoryview(bytes([ALLOCATED]) * _RUN)
_SINGLES_IN_A_STEP = 64
_M2P_PIECE = 1 << 20
_DISCARD = 8  # from so many frames on, giving memory back beats writing zeros


class Owner(Protocol):
    """What the frame table touches of a domain."""

    domid: int
    tot_pages: int
    max_pages: int


class PageList:
    """A domain's frames, doubly linked through `next` and `prev`; 0 ends the list (no domain ever owns frame 0)."""

    __slots__ = ("head", "length", "owner", "tail")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.head = self.tail = self.length = 0


def _array(count: int, width: int) -> memoryview:
    view = memoryview(mmap.mmap(-1, count * width, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    if width == 1:
        return view
    return view.cast("H") if width == 2 else view.cast("I")


class FrameTable:
    """All frames of the host: heap, owners, counts, types, page lists, M2P.

    Hot code may read the arrays directly; it writes them through the methods only.

    Hooks: `validate(mfn, type)` and `release(mfn, type)` are set by `mm.page_types`. Validation goes on from entry
    `progress` and returns 0, an errno, or ERESTART; it never undoes anything: the frame holds what its first `progress`
    entries name. Release goes down from `progress` and returns 0 or ERESTART.
    `on_empty(domain)` is called when nobody uses a frame of a domain any more (`holds_pages`).
    """

    __slots__ = (
        "_batch",
        "_lists",
        "_xen_lists",
        "boot",
        "count",
        "flags",
        "frames",
        "heap",
        "leftovers",
        "linear",
        "m2p",
        "m2p_frames",
        "m2p_mfn",
        "memory",
        "module_frames_freed",
        "next",
        "on_empty",
        "owner_tag",
        "partial",
        "prev",
        "progress",
        "release",
        "type",
        "type_count",
        "validate",
        "xen_frames",
    )

    def __init__(self, memory: Memory, boot: BootMemory | None = None) -> None:
        frames = memory.frames
        self.boot = boot or tables_only(frames)
        self.memory = memory
        self.frames = frames
        self.owner_tag = _array(frames, 2)
        self.type = _array(frames, 1)
        self.flags = _array(frames, 1)
        self.type_count = _array(frames, 4)
        self.count = _array(frames, 4)
        self.next = _array(frames, 4)
        self.prev = _array(frames, 4)
        self.progress = _array(frames, 2)
        """Entries whose references are held, for PARTIAL frames."""
        self.linear: dict[int, int] = {}
        """Frames in linear page tables: > 0 entries elsewhere that name it, < 0 entries of its own (XSA-240)."""
        self.validate: Callable[[int, int], int] = _unchecked
        self.release: Callable[[int, int], int] = _unchecked
        self.on_empty: Callable[[Owner], None] | None = None
        self.partial: dict[int, None] = {}
        """Frames that hold themselves because their validation or release was interrupted (OWN_PARTIAL)."""
        self.leftovers: list[int] = []
        """Frames among them whose release is for the hypercall that runs to finish (`finish`), here or continued."""
        self._lists: dict[int, PageList] = {}
        self._xen_lists: dict[int, PageList] = {}
        self._batch: list[Extent] | None = None
        self.heap = Heap(is_scrubbed=not self.boot.is_booted)
        self.xen_frames = 0
        self.module_frames_freed = 0
        """How many frames of boot modules are free memory by now, or dom0's: those that Xen does not keep any more."""
        self.m2p_mfn, self.m2p_frames = self.boot.m2p.start, len(self.boot.m2p)
        base = self.m2p_mfn * 512
        self.m2p = memory.q[base : base + frames]
        """Machine-to-physical table: 64-bit pfn by mfn, in machine memory; guests see it at MACH2PHYS_VIRT_START.

        A frame that nobody has used yet is no page of anybody either.
        """
        for start in range(0, frames * 8, _M2P_PIECE):
            end = min(start + _M2P_PIECE, frames * 8)
            memory.b[(self.m2p_mfn << 12) + start : (self.m2p_mfn << 12) + end] = b"\xff" * (end - start)
        self.owner_tag[:IO_FRAMES] = memoryview(array("H", [DOMID_IO + 1]) * IO_FRAMES)
        for taken in self.boot.taken:
            self._take_for_xen(taken.start, len(taken))
        for free in self.boot.free():
            self.heap.add(free.start, len(free))

    # -- what a frame is ----------------------------------------------------------------------------------------

    def is_ram(self, mfn: int) -> bool:
        """Whether this is a frame of memory that somebody may own: those of I/O and all past the end are not."""
        return IO_FRAMES <= mfn < self.frames

    def owner(self, mfn: int) -> int:
        """Return the domid that owns the frame (DOMID_XEN, DOMID_IO for theirs), or -1 for a free frame."""
        return self.owner_tag[mfn] - 1

    def owner_domain(self, mfn: int) -> Owner | None:
        """Return the domain object that owns the frame; None for free frames and those of Xen and the machine."""
        pages = self._lists.get(self.owner_tag[mfn] - 1)
        return None if pages is None else pages.owner

    def page_list(self, domain: Owner) -> PageList:
        """Return the list of a domain's ordinary frames, in the order in which it got them."""
        pages = self._lists.get(domain.domid)
        if pages is None:
            pages = self._lists[domain.domid] = PageList(domain)
            self._xen_lists[domain.domid] = PageList(domain)
        return pages

    def xen_page_list(self, domain: Owner) -> PageList:
        """Return the list of Xen's frames that are lent to a domain."""
        self.page_list(domain)
        return self._xen_lists[domain.domid]

    def holds_pages(self, domain: Owner) -> bool:
        """Whether a frame of the domain is in use: one of its own, or a lent one that is mapped."""
        if self.page_list(domain).length:
            return True
        return any(self.count[mfn] for mfn in self.pages(self._xen_lists[domain.domid]))

    @property
    def free_frames(self) -> int:
        """Number of frames in the heap."""
        return self.heap.free_frames

    def forget(self, domain: Owner) -> None:
        """Drop the (empty) lists of a domain that is gone for good."""
        if self.page_list(domain).length or self.xen_page_list(domain).length:
            raise InvariantError(f"domain {domain.domid} is forgotten while it owns frames")
        del self._lists[domain.domid]
        del self._xen_lists[domain.domid]

    def pages(self, pages: PageList) -> Iterator[int]:
        """Iterate over the mfns of a list; the current one may be removed meanwhile."""
        mfn = pages.head
        links = self.next
        while mfn:
            following = links[mfn]
            yield mfn
            mfn = following

    # -- giving frames out --------------------------------------------------------------------------------------

    def alloc(self, domain: Owner, order: int = 0, limit: int = sys.maxsize) -> int:
        """Give a domain 2**order zeroed, contiguous, aligned frames; returns the first mfn, or -1 when memory is short.

        They all lie below frame `limit`, a power of two. Neither max_pages nor the state of the domain is looked at:
        that is the caller's business.
        """
        mfn = self.heap.alloc(order, limit)
        if mfn >= 0:
            self._assign(self.page_list(domain), mfn, 1 << order)
        return mfn

    def alloc_frames(self, domain: Owner, count: int) -> list[Extent]:
        """Give a domain `count` zeroed frames in few extents; [] and nothing changed when memory is short."""
        extents = self.heap.alloc_frames(count)
        pages = self.page_list(domain)
        for mfn, length in extents:
            self._assign(pages, mfn, length)
        return extents

    def alloc_singles(self, domain: Owner, count: int) -> list[Extent]:
        """Give a domain `count` zeroed frames as single ones, in the order in which a real Xen finds them.

        Each extent is to be read backwards. [] and nothing changed when memory is short.
        """
        extents = self.heap.alloc_singles(count)
        pages = self.page_list(domain)
        for mfn, length in extents:
            for frame in range(mfn + length - 1, mfn - 1, -1):
                self._assign(pages, frame, 1)
        return extents

    def give_module(self, index: int, domain: Owner) -> Extent:
        """Give a domain the frames of a boot module, where they are; returns that extent."""
        module = self.boot.modules[index]
        self._let_go_of_module(module)
        self._assign(self.page_list(domain), module.start, len(module))
        return module.start, len(module)

    def discard_modules(self) -> None:
        """Free the boot modules that were not given away: nobody needs them any more (discard_initial_images)."""
        for module in self.boot.modules:
            if module and self.owner_tag[module.start] == DOMID_XEN + 1:
                self._let_go_of_module(module)
                self._to_heap(module.start, len(module))

    def free_init(self) -> None:
        """Free what Xen needed only to start (init_done)."""
        init = self.boot.init
        if init:
            self.heap.settle()
            self.free_xen(init.start, len(init))
            self.module_frames_freed += len(init)

    def _let_go_of_module(self, module: range) -> None:
        for mfn in module:
            if self.owner_tag[mfn] != DOMID_XEN + 1:
                raise InvariantError(f"frame {mfn:#x} of a boot module is no frame of Xen any more")
            self._clear(mfn)
        self.xen_frames -= len(module)
        self.module_frames_freed += len(module)

    def alloc_xen(self, count: int = 1) -> int:
        """Take `count` contiguous zeroed frames for Xen itself; returns the first mfn, or -1 when memory is short."""
        order = (count - 1).bit_length()
        mfn = self.heap.alloc(order)
        if mfn < 0:
            return -1
        if (1 << order) > count:
            self.heap.add(mfn + count, (1 << order) - count)
        self._take_for_xen(mfn, count)
        return mfn

    def alloc_aside(self) -> int:
        """Take a frame for what a real Xen does not have: from the lower half of memory, where it shifts nothing."""
        mfn = self.heap.alloc(0, 1 << (self.frames.bit_length() - 1))
        if mfn < 0:
            return self.alloc_xen()
        self._take_for_xen(mfn, 1)
        return mfn

    def free_xen(self, mfn: int, count: int = 1) -> None:
        """Give back frames of `alloc_xen` that are not lent to a domain."""
        for frame in range(mfn, mfn + count):
            if self.owner_tag[frame] != DOMID_XEN + 1 or self.count[frame] != 1:
                raise InvariantError(f"frame {frame:#x} is not an unshared frame of Xen")
            self._clear(frame)
        self.xen_frames -= count
        self._to_heap(mfn, count)

    def share_with(self, mfn: int, domain: Owner, *, readonly: bool = False) -> None:
        """Lend a frame of `alloc_xen` to a domain: it may map it (writable unless `readonly`), it does not own it."""
        if self.owner_tag[mfn] != DOMID_XEN + 1 or self.count[mfn] != 1:
            raise InvariantError(f"frame {mfn:#x} is not Xen's to share")
        self.xen_frames -= 1
        self.owner_tag[mfn] = domain.domid + 1
        self.m2p[mfn] = INVALID_M2P_ENTRY
        self.type[mfn] = PGT_none if readonly else PGT_writable_page
        self.type_count[mfn] = 1
        self.flags[mfn] = ALLOCATED | XEN_HEAP | VALIDATED
        self._append(self.xen_page_list(domain), mfn, 1)

    def unshare(self, mfn: int) -> None:
        """Withdraw a lent frame from its domain. It is freed now, or when the last mapping of it goes."""
        flags = self.flags[mfn]
        if flags & XEN_HEAP and flags & KEPT:
            self.flags[mfn] = flags & ~KEPT
            if not self.count[mfn]:
                self._drop(mfn, self._xen_lists[self.owner_tag[mfn] - 1])
            return
        if flags & (XEN_HEAP | ALLOCATED) != XEN_HEAP | ALLOCATED:
            raise InvariantError(f"frame {mfn:#x} is not lent to a domain")
        self.flags[mfn] = flags & ~ALLOCATED
        self.put_page_type(mfn)
        self.put_page(mfn)

    def withdraw_lent(self, domain: Owner) -> None:
        """Take a dying domain's right to the frames lent to it. The frames stay until `unshare`, mapped or not."""
        for mfn in self.pages(self.xen_page_list(domain)):
            self.withdraw(mfn)

    def withdraw(self, mfn: int) -> None:
        """Take a domain's right to a frame that is lent to it: it can keep the mappings that it has, and make none."""
        flags = self.flags[mfn]
        if flags & ALLOCATED:
            self.flags[mfn] = flags & ~ALLOCATED | KEPT
            self.put_page_type(mfn)
            self.put_page(mfn)

    def steal_page(self, mfn: int, domain: Owner) -> bool:
        """Take a frame away from its owner when nothing at all uses it; it is then nobody's, in the caller's hands.

        The caller holds one reference, which is gone with the frame on success. A stolen frame has no references and
        no type (XSA-214, XSA-287) and is not in the heap: pass it on with `assign_page`, or `free_stolen` it.
        """
        if (
            self.owner_tag[mfn] != domain.domid + 1
            or self.flags[mfn] & (ALLOCATED | XEN_HEAP) != ALLOCATED
            or self.count[mfn] != 2
            or self.type_count[mfn]
        ):
            return False
        pages = self._lists[domain.domid]
        self._unlink(pages, mfn)
        domain.tot_pages -= 1
        self._clear(mfn)
        return True

    def assign_page(self, mfn: int, domain: Owner) -> None:
        """Give a stolen frame, with its contents, to a domain."""
        if self.owner_tag[mfn] or self.count[mfn]:
            raise InvariantError(f"frame {mfn:#x} is not free to be assigned")
        self._assign(self.page_list(domain), mfn, 1)

    def adopt(self, mfn: int, count: int, domain: Owner) -> None:
        """Give a domain frames that were taken from the heap directly."""
        self._assign(self.page_list(domain), mfn, count)

    def free_stolen(self, mfn: int) -> None:
        """Give a stolen frame to the heap."""
        self.m2p[mfn] = INVALID_M2P_ENTRY
        self._to_heap(mfn, 1)

    # -- references ---------------------------------------------------------------------------------------------

    def get_page(self, mfn: int, domain: Owner) -> bool:
        """Take a reference to a frame, which must belong to the domain."""
        if mfn >= self.frames or self.owner_tag[mfn] != domain.domid + 1:
            return False
        count = self.count[mfn]
        if not 0 < count < MAX_COUNT:
            return False
        self.count[mfn] = count + 1
        return True

    def put_page(self, mfn: int) -> None:
        """Drop a reference; the last one frees the frame."""
        count = self.count[mfn]
        if count > 1:
            self.count[mfn] = count - 1
        elif count < 1:
            raise InvariantError(f"reference count of frame {mfn:#x} falls below zero")
        else:
            self._free(mfn)

    def take_allocated(self, mfn: int) -> bool:
        """Take the owner's right to the frame away (PGC_allocated); False when it had none. The reference goes too."""
        flags = self.flags[mfn]
        if not flags & ALLOCATED:
            return False
        self.flags[mfn] = flags & ~ALLOCATED
        self.put_page(mfn)
        return True

    def get_page_type(self, mfn: int, wanted: int) -> bool:
        """Take a type reference (the caller holds a reference); False when the frame cannot be of that type."""
        return self.take_type(mfn, wanted) == 0

    def take_type(self, mfn: int, wanted: int) -> int:
        """Take a type reference; returns 0 or a positive errno (EINVAL for a conflict, or what validation said).

        With ERESTART nothing was taken by the caller, the frame is PARTIAL, and a later call goes on from there.
        """
        held = self.type_count[mfn]
        if not held:
            return self._first_type(mfn, wanted)
        if self.type[mfn] != wanted or held >= MAX_COUNT:
            return EINVAL
        if wanted == PGT_writable_page or self.flags[mfn] & VALIDATED:
            self.type_count[mfn] = held + 1
            return 0
        return self._resume(mfn, wanted)

    def put_page_type(self, mfn: int) -> int:
        """Drop a type reference; the last one of a page table releases what its entries hold.

        Returns 0, or ERESTART when that was interrupted: the caller still holds its type reference, and calls again.
        """
        held = self.type_count[mfn]
        if held > 1:
            self.type_count[mfn] = held - 1
            return 0
        if held < 1:
            raise InvariantError(f"type count of frame {mfn:#x} falls below zero")
        kind = self.type[mfn]
        if PGT_l1_page_table <= kind <= PGT_l4_page_table:
            errno = self.release(mfn, kind)
            if errno:
                self.flags[mfn] = self.flags[mfn] & ~VALIDATED | PARTIAL
                return errno
            self.flags[mfn] &= ~(VALIDATED | PARTIAL)
        self.type_count[mfn] = 0
        return 0

    def get_page_and_type(self, mfn: int, domain: Owner, wanted: int) -> bool:
        """Take a reference and a type reference; False, and nothing taken, when either is refused."""
        return self.take_page_and_type(mfn, domain, wanted) == 0

    def take_page_and_type(self, mfn: int, domain: Owner, wanted: int) -> int:
        """As `get_page_and_type`, with the positive errno that says why not."""
        if mfn < self.frames and self.type[mfn] == wanted and self.owner_tag[mfn] == domain.domid + 1:
            # What it is already it can be once more.
            count, held = self.count[mfn], self.type_count[mfn]
            if 0 < held < MAX_COUNT and 0 < count < MAX_COUNT and self.flags[mfn] & VALIDATED:
                self.count[mfn], self.type_count[mfn] = count + 1, held + 1
                return 0
        if not self.get_page(mfn, domain):
            return EINVAL
        errno = self.take_type(mfn, wanted)
        if errno:
            self.put_page(mfn)
        return errno

    def put_page_and_type(self, mfn: int) -> int:
        """Drop both; returns 0, or ERESTART when releasing the type was interrupted (then neither is dropped)."""
        errno = self.put_page_type(mfn)
        if not errno:
            self.put_page(mfn)
        return errno

    def let_go(self, mfn: int) -> None:
        """Drop a reference and a type reference to a page table; if that is interrupted, it is one of `leftovers`."""
        count, held = self.count[mfn], self.type_count[mfn]
        if count > 1 and held > 1:
            self.count[mfn], self.type_count[mfn] = count - 1, held - 1
            return
        if self.put_page_and_type(mfn):
            # The reference and the type reference of the caller are the frame's own now.
            self.flags[mfn] |= OWN_PARTIAL
            self.partial[mfn] = None
            self.leftovers.append(mfn)

    def finish(self, mfn: int) -> int:
        """Go on to release one of the `leftovers`; returns 0, or ERESTART when interrupted again.

        There is nothing to do if somebody has validated the frame meanwhile, or released it.
        """
        if mfn < self.frames and self.flags[mfn] & OWN_PARTIAL:
            return self._release_partial(mfn)
        return 0

    def set_gpfn(self, mfn: int, pfn: int) -> None:
        """Set the M2P entry of a frame."""
        self.m2p[mfn] = pfn

    def set_gpfns(self, p2m: Iterable[int]) -> None:
        """Set the M2P entries of all frames of a domain, given in the order of its pseudo-physical memory."""
        m2p = self.m2p
        for pfn, mfn in enumerate(p2m):
            m2p[mfn] = pfn

    # -- freeing in bulk ----------------------------------------------------------------------------------------

    def start_batch(self) -> None:
        """Hold back freed frames until `end_batch`, so that neighbours are scrubbed and merged as one extent."""
        self._batch = []

    def end_batch(self) -> None:
        """Give the frames freed since `start_batch` to the heap."""
        batch, self._batch = self._batch or [], None
        for mfn, count in _join(sorted(batch)):
            self._to_heap(mfn, count)

    def release_allocated(self, domain: Owner) -> Iterator[bool]:
        """Take the domain's right to each of its frames away; those that nobody else uses are freed, in large pieces.

        To be called between `start_batch` and `end_batch`, when no page table of the domain is in use any more. Between
        two steps anybody may drop references, and so take frames out of the list: what is done goes to its end.
        """
        pages, flags = self.page_list(domain), self.flags
        singles = 0
        while (mfn := pages.head) and not flags[mfn] & GIVEN_UP:
            length = self._idle_run(mfn)
            if length:
                self._free_run(pages, mfn, length)
                yield False
                continue
            flags[mfn] |= GIVEN_UP
            self._unlink(pages, mfn)
            self._append(pages, mfn, 1)
            self.take_allocated(mfn)
            singles += 1
            if not singles % _SINGLES_IN_A_STEP:
                yield False

    def _idle_run(self, mfn: int) -> int:
        """Return how many frames from `mfn` on are neighbours in the list too, and used by nobody but their owner."""
        length = min(_RUN, self.frames - mfn)
        while length:
            end = mfn + length
            if (
                self.flags[mfn:end] == _ALL_ALLOCATED[:length]
                and self.count[mfn:end] == _ONES[:length]
                and self.type_count[mfn:end] == _ZEROS[:length]
                and self.next[mfn : end - 1] == memoryview(array("I", range(mfn + 1, end)))
            ):
                return length
            length >>= 2
        return 0

    def _free_run(self, pages: PageList, mfn: int, length: int) -> None:
        end = mfn + length
        following, previous = self.next[end - 1], self.prev[mfn]
        if previous:
            self.next[previous] = following
        else:
            pages.head = following
        if following:
            self.prev[following] = previous
        else:
            pages.tail = previous
        pages.length -= length
        self.owner_tag[mfn:end] = memoryview(array("H", bytes(2 * length)))
        self.count[mfn:end] = _ZEROS[:length]
        self.type[mfn:end] = self.flags[mfn:end] = bytes(length)
        self.m2p[mfn:end] = memoryview(array("Q", b"\xff" * (8 * length)))
        if self._batch is None:
            self._to_heap(mfn, length)
        else:
            self._batch.append((mfn, length))
        pages.owner.tot_pages -= length
        self._check_empty(pages.owner)

    def _check_empty(self, owner: Owner) -> None:
        if self.on_empty is not None and not self.holds_pages(owner):
            self.on_empty(owner)

    # -- inside -------------------------------------------------------------------------------------------------

    def _first_type(self, mfn: int, wanted: int) -> int:
        self.type_count[mfn] = 1
        if wanted in (PGT_writable_page, PGT_shared_page):
            self.type[mfn] = wanted
            return 0
        if wanted == PGT_seg_desc_page and self.type[mfn] == wanted and self.flags[mfn] & VALIDATED:
            return 0
        self.type[mfn] = wanted
        self.flags[mfn] &= ~(VALIDATED | PARTIAL)
        self.progress[mfn] = 0
        return self._validate(mfn, wanted)

    def _validate(self, mfn: int, wanted: int) -> int:
        errno = self.validate(mfn, wanted)
        if not errno:
            self.flags[mfn] |= VALIDATED
        elif errno == ERESTART:
            self.flags[mfn] |= PARTIAL | OWN_PARTIAL
            self.partial[mfn] = None
            self.count[mfn] += 1
        else:
            self._abandon(mfn, errno)
        return errno

    def _resume(self, mfn: int, wanted: int) -> int:
        """Go on with a PARTIAL frame. One that is neither PARTIAL nor VALIDATED is being validated by our caller."""
        flags = self.flags[mfn]
        if not flags & PARTIAL:
            return EINVAL
        own = flags & OWN_PARTIAL
        errno = self.validate(mfn, wanted)
        if errno:
            return self._abandon(mfn, errno) if own and errno != ERESTART else errno
        self.flags[mfn] = flags & ~(PARTIAL | OWN_PARTIAL) | VALIDATED
        if own:
            del self.partial[mfn]
            self.put_page(mfn)
        else:
            self.type_count[mfn] += 1
        return 0

    def _abandon(self, mfn: int, errno: int) -> int:
        """Validation of a frame that nobody holds a type reference of has failed: release what it held so far."""
        if self._release_partial(mfn):
            self.leftovers.append(mfn)
        return errno

    def _release_partial(self, mfn: int) -> int:
        """Release what a frame holds of which nobody but itself has a type reference; returns 0 or ERESTART."""
        kind = self.type[mfn]
        if PGT_l1_page_table <= kind <= PGT_l4_page_table and self.release(mfn, kind):
            flags = self.flags[mfn]
            self.flags[mfn] = flags & ~VALIDATED | PARTIAL | OWN_PARTIAL
            if not flags & OWN_PARTIAL:
                self.partial[mfn] = None
                self.count[mfn] += 1
            return ERESTART
        flags = self.flags[mfn]
        self.flags[mfn] = flags & ~(PARTIAL | OWN_PARTIAL | VALIDATED)
        self.type[mfn] = PGT_none
        self.type_count[mfn] = 0
        if flags & OWN_PARTIAL:
            del self.partial[mfn]
            self.put_page(mfn)
        return 0

    def _assign(self, pages: PageList, mfn: int, count: int) -> None:
        domain = pages.owner
        tag = domain.domid + 1
        if count == 1:
            self.owner_tag[mfn] = tag
            self.count[mfn] = 1
            self.flags[mfn] = ALLOCATED
        else:
            end = mfn + count
            self.owner_tag[mfn:end] = memoryview(array("H", [tag]) * count)
            self.count[mfn:end] = memoryview(array("I", [1]) * count)
            self.flags[mfn:end] = bytes([ALLOCATED]) * count
        self._append(pages, mfn, count)
        domain.tot_pages += count

    def _take_for_xen(self, mfn: int, count: int) -> None:
        end = mfn + count
        self.owner_tag[mfn:end] = memoryview(array("H", [DOMID_XEN + 1]) * count)
        self.count[mfn:end] = memoryview(array("I", [1]) * count)
        self.flags[mfn:end] = bytes([ALLOCATED | XEN_HEAP]) * count
        self.xen_frames += count

    def _append(self, pages: PageList, mfn: int, count: int) -> None:
        """Hang `count` neighbouring frames on the tail of a list."""
        following, previous = self.next, self.prev
        last = mfn + count - 1
        if count > 1:
            links = memoryview(array("I", range(mfn, last + 1)))
            following[mfn:last] = links[1:]
            previous[mfn + 1 : last + 1] = links[:-1]
        tail = pages.tail
        previous[mfn] = tail
        following[last] = 0
        if tail:
            following[tail] = mfn
        else:
            pages.head = mfn
        pages.tail = last
        pages.length += count

    def _unlink(self, pages: PageList, mfn: int) -> None:
        following, previous = self.next[mfn], self.prev[mfn]
        if previous:
            self.next[previous] = following
        else:
            pages.head = following
        if following:
            self.prev[following] = previous
        else:
            pages.tail = previous
        pages.length -= 1

    def _clear(self, mfn: int) -> None:
        self.owner_tag[mfn] = self.type[mfn] = self.flags[mfn] = 0
        self.type_count[mfn] = self.count[mfn] = 0

    def _free(self, mfn: int) -> None:
        flags = self.flags[mfn]
        if self.type_count[mfn] or flags & ALLOCATED:
            raise InvariantError(f"frame {mfn:#x} loses its last reference while it is typed or allocated")
        domid = self.owner_tag[mfn] - 1
        if flags & KEPT:
            self.count[mfn] = 0
            self._check_empty(self._lists[domid].owner)
            return
        lists = self._xen_lists if flags & XEN_HEAP else self._lists
        pages = lists.get(domid)
        if pages is None:
            raise InvariantError(f"frame {mfn:#x} belongs to domain {domid}, which has no page list")
        self._drop(mfn, pages)
        if not flags & XEN_HEAP:
            pages.owner.tot_pages -= 1
        self._check_empty(pages.owner)

    def _drop(self, mfn: int, pages: PageList) -> None:
        """Take a frame out of its list and free it."""
        self._unlink(pages, mfn)
        self._clear(mfn)
        self.m2p[mfn] = INVALID_M2P_ENTRY
        if self._batch is None:
            self._to_heap(mfn, 1)
        else:
            self._batch.append((mfn, 1))

    def _to_heap(self, mfn: int, count: int) -> None:
        """Scrub frames and free them. The next owner reads zeros, and memory that is given back costs nothing."""
        memory = self.memory
        if count < _DISCARD:
            memory.b[mfn << 12 : (mfn + count) << 12] = _ZERO_PAGE * count
        else:
            memory.discard(mfn, count)
        memory.written[mfn : mfn + count] = b"\1" * count
        self.heap.add(mfn, count)


def _unchecked(mfn: int, kind: int) -> int:
    """Stand in for validation until `mm.page_types` sets its hooks: a frame table alone has no page tables."""
    raise InvariantError(f"frame {mfn:#x} is to become a page of type {kind} before page types are set up")


def _join(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours in an ascending sequence of extents."""
    start = end = -1
    for mfn, count in extents:
        if mfn != end:
            if end > start:
                yield start, end - start
            start = mfn
        end = mfn + count
    if end > start:
        yield start, end - start
