"""A short cut through Unicorn: which of its regions is at a physical address, and may a store there overwrite code.

Unicorn looks at a store whether it overwrites code that it has translated. It asks for the region in which the address
is, twice, by a function that goes through a tree; and it asks again at the next store to the page, since it gives that
up (marks the page as dirty in its TLB) only if there are no hooks of memory. Even without them it cannot be let: it
would give it up after the first store to the page, and not see the next one, though there may be more code in it.

So its function is replaced, in the engine's structure (`memory_mapping`), by one that has a table of the frames from
which code was executed. Nearly all addresses are in one region, machine memory, and a comparison finds that. For a
frame without code the answer is the region; for one with code, a copy of it with a lower priority. Unicorn takes that
for memory which is kept for a snapshot, and goes on looking at each store. Whoever enters a frame in the table drops
all addresses from the TLB, for one of them may be marked as dirty.

Where the engine is not as expected, on another version or processor, Unicorn's own function is used on.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from hypervisor.emulator.native_hooks import Listing, can_be_native, code

LOOKUP: Listing = (
    # rdi = engine, rsi = physical address; returns the region. The words of data stand behind the code.
    ("483b3539000000", "cmp rsi, [rip+57]           # SIZE"),
    ("7321", "jae other"),
    ("488b0538000000", "mov rax, [rip+56]           # the table of frames"),
    ("48c1ee0c", "shr rsi, 12"),
    ("803c3000", "cmp byte ptr [rax+rsi], 0"),
    ("7508", "jne code"),
    ("488b052f000000", "mov rax, [rip+47]           # the region"),
    ("c3", "ret"),
    ("488b052f000000", "code: mov rax, [rip+47]     # the region of frames with code"),
    ("c3", "ret"),
    ("ff2530000000", "other: jmp [rip+48]         # Unicorn's own function"),
)
DATA_AT = 0x40
OWN = "find_memory_mapping_x86_64"
"""Unicorn's function, by its name in the library."""
_POINTER_WITHIN = 1024
"""The pointer is in the first so many bytes of the engine's structure (`struct uc_struct`, uc_priv.h)."""
_ALL = 7
"""UC_PROT_ALL."""
_SIZE, _ADDRESS, _PRIORITY, _ENGINE, _PERMS, _LENGTH = 48, 64, 92, 128, 136, 160
"""Offsets in `struct MemoryRegion` (qemu/include/exec/memory.h), and how long it is."""


class MemoryLookup:
    """The replacement, for one engine; it must live as long as that."""

    def __init__(self, library: Any, engine: int, size: int, has_code: bytearray) -> None:
        """Machine memory has `size` bytes, at physical address 0; `has_code` a byte for each of its frames."""
        self.is_in_use = False
        if not can_be_native() or not hasattr(library, OWN):
            return
        own = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)((OWN, library))
        address = ctypes.cast(own, ctypes.c_void_p).value or 0
        words = memoryview((ctypes.c_uint64 * (_POINTER_WITHIN // 8)).from_address(engine)).cast("B").cast("Q")
        places = [index for index, word in enumerate(words) if word == address]
        region = own(engine, 0)
        if len(places) != 1 or not region or own(engine, size - 1) != region or not _is_known(region, engine, size):
            return
        self._with_code = ctypes.create_string_buffer(ctypes.string_at(region, _LENGTH), _LENGTH)
        ctypes.c_int32.from_buffer(self._with_code, _PRIORITY).value = -1
        self._table = ctypes.c_char.from_buffer(has_code)
        data = (size, ctypes.addressof(self._table), region, ctypes.addressof(self._with_code), address)
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(code(LOOKUP).ljust(DATA_AT) + b"".join(word.to_bytes(8, "little") for word in data))
        words[places[0]] = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self.is_in_use = True


def _is_known(region: int, engine: int, size: int) -> bool:
    """Whether a region, which is that of machine memory, has its fields where they are expected."""
    length, address, owner = (ctypes.c_uint64.from_address(region + at).value for at in (_SIZE, _ADDRESS, _ENGINE))
    priority, perms = (ctypes.c_int32.from_address(region + at).value for at in (_PRIORITY, _PERMS))
    return (length, address, owner, priority, perms) == (size, 0, engine, 0, _ALL)
