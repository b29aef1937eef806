"""Where things lie in machine memory before there is a heap: Xen, what the boot loader brought, Xen's own tables.

    | ... free ... | M2P | frame table | free | modules | Xen | free | early |  end of memory
                    2 MiB aligned              upwards   2 MiB aligned, less than 2 MiB to the end

As Xen's __start_xen arranges a PC: Xen moves itself to the end of memory, in whole superpages of which it leaves the
first one free; the boot modules, the kernel of dom0 first, move to right below it; the frame table and the M2P take
the highest superpages that are left. All the rest is for the heap, and dom0 comes from the highest free part of it.
The highest four frames go to page tables that are needed before there is a heap.

Within Xen itself there is memory that it only needs to start: what EFI's loader would allocate from is free from the
first, code and data that only booting needs (`.init`) when dom0 has been built.

A host whose dom0 is written in Python is started by nobody and has no modules, and its hypervisor is not in its memory,
nor is the frame table: only the M2P is, which guests see.
"""

from collections.abc import Iterator, Sequence

import attrs

from hypervisor.machine.firmware import IO_FRAMES

SUPERPAGE = 512
"""Frames in a superpage of 2 MiB. The M2P is whole ones, as machphys_mfn_list tells its place in such pieces."""
TEXT_FRAMES, RODATA_FRAMES, INIT_FRAMES, DATA_FRAMES, EFI_FRAMES, BSS_FRAMES = 0x161, 0x56, 0xA4, 0x17, 0xFF, 0x36
"""Sizes of Xen's parts, in their order: a release build of Xen 4.17. EFI's part is whole frames of ebmalloc_mem."""
IMAGE_FRAMES = TEXT_FRAMES + RODATA_FRAMES + INIT_FRAMES + DATA_FRAMES + EFI_FRAMES + BSS_FRAMES
EARLY_FRAMES = 4
"""Page tables from the boot allocator (alloc_boot_pages): of the highest memory that there is."""
PAGE_INFO_SIZE = 32
"""Size in bytes of an entry of Xen's frame table (struct page_info)."""
_M2P_ENTRY = 8


@attrs.frozen(kw_only=True)
class BootMemory:
    """What is taken when the heap is set up, as ranges of frames."""

    frames: int
    """How many frames the machine has."""
    m2p: range
    frame_table: range = range(0)
    modules: tuple[range, ...] = ()
    image: range = range(0)
    early: range = range(0)

    @property
    def is_booted(self) -> bool:
        """Whether somebody has booted this host, so that Xen itself is in its memory."""
        return bool(self.image)

    @property
    def init(self) -> range:
        """What Xen does not need any more when dom0 has been built."""
        start = self.image.start + TEXT_FRAMES + RODATA_FRAMES
        return range(start, start + INIT_FRAMES) if self.image else range(0)

    @property
    def taken(self) -> list[range]:
        """What is not for the heap when that is set up, upwards."""
        parts = [self.m2p, self.frame_table, *self.modules, self.early]
        if self.image:
            spare = self.init.stop + DATA_FRAMES
            parts += [range(self.image.start, spare), range(spare + EFI_FRAMES, self.image.stop)]
        return sorted(filter(None, parts), key=lambda frames: frames.start)

    def free(self) -> Iterator[range]:
        """Iterate over what is left for the heap, in the order in which it gets it: the lowest first, then downwards.

        (end_boot_allocator.) The first superpage is a piece of its own, and so is what lies behind Xen's superpages.
        """
        pieces = []
        start = IO_FRAMES
        ends = (SUPERPAGE, _round_up(self.image.stop), self.frames) if self.image else (SUPERPAGE, self.frames)
        marks = [range(end, end) for end in ends]
        for taken in sorted((*self.taken, *marks), key=lambda frames: (frames.start, len(frames))):
            if start < taken.start:
                pieces.append(range(start, taken.start))
            start = max(start, taken.stop)
        yield from pieces[:1]
        yield from reversed(pieces[1:])


def tables_only(frames: int) -> BootMemory:
    """Lay out the memory of a host that nobody boots. Raises ValueError if it is too small."""
    size = _superpages(frames * _M2P_ENTRY)
    return BootMemory(frames=frames, m2p=_below(frames, size, frames))


def booted(frames: int, modules: Sequence[int]) -> BootMemory:
    """Lay out a PC's memory; `modules` are the sizes in bytes of what was loaded. Raises ValueError if it is too small.

    The modules lie in their order, the first one lowest.
    """
    start = (frames & -SUPERPAGE) - _round_up(SUPERPAGE + IMAGE_FRAMES)
    image = range(start + SUPERPAGE, start + SUPERPAGE + IMAGE_FRAMES)
    end = image.start
    places: list[range] = []
    for size in reversed(modules):
        places.insert(0, range(end + (-size >> 12), end))
        end = places[0].start
    frame_table = _below(end, _superpages(frames * PAGE_INFO_SIZE), frames)
    m2p = _below(frame_table.start, _superpages(frames * _M2P_ENTRY), frames)
    early = range(frames - EARLY_FRAMES, frames)
    return BootMemory(frames=frames, m2p=m2p, frame_table=frame_table, modules=tuple(places), image=image, early=early)


def _below(end: int, size: int, frames: int) -> range:
    """Return the highest `size` frames of whole superpages that end at or below frame `end`."""
    last = end & -SUPERPAGE
    if last - size < IO_FRAMES:
        raise ValueError(f"a host needs more than {frames * 4} KiB of memory for what is in it before anything runs")
    return range(last - size, last)


def _superpages(size: int) -> int:
    """Return the number of frames in the superpages that `size` bytes need."""
    return _round_up(-(-size >> 12))


def _round_up(count: int) -> int:
    return -(-count // SUPERPAGE) * SUPERPAGE
