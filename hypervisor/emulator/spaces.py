"""Which address spaces there are, as the block hook's table of pages of code tells them apart (`native_hooks`).

Each root of page tables has a number for its lower half. The upper half, where kernels are, is mostly the same below
many roots: those whose entries for it are the same lead to the same tables, and have one number for it. That holds as
long as one of these roots is validated: the tables below cannot go away, and whoever changes an entry in them has the
pages forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.emulator.native_hooks import Space, space_of
from hypervisor.mm.pte import ENTRIES, LAST_XEN_SLOT

if TYPE_CHECKING:
    from hypervisor.emulator.native_hooks import NativeHooks
    from hypervisor.machine.memory import Memory

MAX_SPACES = 4095
FEW_SPACES = 64
"""Up to so many address spaces a page is looked for in each; beyond, all pages are forgotten at once."""
_UPPER = LAST_XEN_SLOT + 1
"""The first entry of a root for the upper half that is not Xen's own."""


class Spaces:
    """The numbers of address spaces, and what the table knows of each."""

    def __init__(self, memory: Memory, native: NativeHooks) -> None:
        self._q = memory.q
        self._native = native
        self._words: dict[int, Space] = {}
        """By root: what the table is told."""
        self._by_root: dict[int, tuple[int, bytes]] = {}
        """The number of the lower half, and the entries for the upper one."""
        self._upper: dict[bytes, list[int]] = {}
        """By these entries: the number of the upper half, and how many roots have it."""
        self._next = 1

    def use(self, root: int) -> None:
        """Take the address space below a root for the present one."""
        space = self._words.get(root)
        if space is None:
            space = self._add(root)
        self._native.use(space)

    def _add(self, root: int) -> Space:
        if self._next > MAX_SPACES - 1:
            self._words.clear()
            self._by_root.clear()
            self._upper.clear()
            self._native.drop_all()
            self._next = 1
        lower, self._next = self._next, self._next + 1
        base = root * ENTRIES
        entries = self._q[base + _UPPER : base + ENTRIES].tobytes()
        shared = self._upper.get(entries)
        if shared is None:
            shared = self._upper[entries] = [self._next, 0]
            self._next += 1
        shared[1] += 1
        self._by_root[root] = lower, entries
        space = self._words[root] = space_of(lower, shared[0])
        return space

    def forget_root(self, root: int) -> None:
        """Take note that a frame leads to other pages from now on, or is no root any more."""
        known = self._by_root.pop(root, None)
        if known is not None:
            del self._words[root]
            shared = self._upper[known[1]]
            shared[1] -= 1
            if not shared[1]:
                del self._upper[known[1]]

    def forget_page(self, va: int | None) -> None:
        """Take note that a page of some address space, or of all, may have another frame behind it now."""
        if va is None or len(self._by_root) > FEW_SPACES:
            self._native.drop_all()
        elif va >> 63:
            self._native.drop(va >> 12, [number for number, _ in self._upper.values()])
        else:
            self._native.drop(va >> 12, [lower for lower, _ in self._by_root.values()])
