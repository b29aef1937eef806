"""A short cut through Unicorn: which of its regions is at a physical address.

Unicorn asks that, twice, at each store for which it has to look whether code is overwritten, and that is nearly each
store of a guest. Its own function goes through a tree. Here almost all addresses are in one region, machine memory, so
a comparison answers it. The function is called through a pointer in the engine's structure (`memory_mapping`), which is
made to lead here. Where the pointer is not to be found, on another version or processor, Unicorn's own is used on.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from hypervisor.emulator.native_hooks import Listing, can_be_native, code

LOOKUP: Listing = (
    # rdi = engine, rsi = physical address; returns the region. The three words of data stand behind the code.
    ("483b3519000000", "cmp rsi, [rip+25]           # SIZE"),
    ("7308", "jae other"),
    ("488b0518000000", "mov rax, [rip+24]           # REGION"),
    ("c3", "ret"),
    ("ff2519000000", "other: jmp [rip+25]         # Unicorn's own function"),
)
DATA_AT = 0x20
OWN = "find_memory_mapping_x86_64"
"""Unicorn's function, by its name in the library."""
_STRUCTURE = 4096
"""The pointer is in the first so many bytes of the engine's structure (`struct uc_struct`, uc_priv.h)."""


def shorten(library: Any, engine: int, size: int) -> mmap.mmap | None:
    """Let Unicorn find machine memory (`size` bytes, at physical address 0) at once.

    Returns what must live as long as the engine, None if nothing has been done.
    """
    if not can_be_native() or not hasattr(library, OWN):
        return None
    own = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)((OWN, library))
    address = ctypes.cast(own, ctypes.c_void_p).value or 0
    words = memoryview((ctypes.c_uint64 * (_STRUCTURE // 8)).from_address(engine)).cast("B").cast("Q")
    places = [index for index, word in enumerate(words) if word == address]
    region = own(engine, 0)
    if len(places) != 1 or not region or own(engine, size - 1) != region:
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code(LOOKUP).ljust(DATA_AT))
    page.write(b"".join(word.to_bytes(8, "little") for word in (size, region, address)))
    words[places[0]] = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return page
