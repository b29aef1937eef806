"""Where things lie in machine memory before there is a heap: Xen, what the boot loader brought, Xen's own tables.

    | ... free ... | M2P | frame table | free | modules | Xen | free |  end of memory
                    2 MiB aligned              upwards   2 MiB aligned, less than 2 MiB to the end

As Xen's __start_xen arranges a PC: Xen moves itself to the end of memory, in whole superpages of which it leaves the
first one free; the boot modules, the kernel of dom0 first, move to right below it; the frame table and the M2P take
the highest superpages that are left. All the rest is for the heap, and dom0 comes from the highest free part of it.

A host whose dom0 is written in Python is started by nobody and has no modules, and its hypervisor is not in its memory,
nor is the frame table: only the M2P is, which guests see.
"""

from collections.abc import Iterator, Sequence

import attrs

from hypervisor.machine.firmware import IO_FRAMES

SUPERPAGE = 512
"""Frames in a superpage of 2 MiB. The M2P is whole ones, as machphys_mfn_list tells its place in such pieces."""
IMAGE_FRAMES = 0x161 + 0x58 + 0xA3 + 0x14C
"""Xen's own size: text, read-only data, what only booting needs, data with bss; a release build of Xen 4.17."""
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

    def free(self) -> Iterator[range]:
        """Iterate over what is left for the heap, upwards."""
        start = IO_FRAMES
        for taken in sorted((self.m2p, self.frame_table, *self.modules, self.image), key=lambda frames: frames.start):
            if taken:
                if start < taken.start:
                    yield range(start, taken.start)
                start = taken.stop
        if start < self.frames:
            yield range(start, self.frames)


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
    return BootMemory(frames=frames, m2p=m2p, frame_table=frame_table, modules=tuple(places), image=image)


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
