"""What happens at the start of each block of translated code: guest time passes, and the code is seen to be fresh.

Unicorn calls a hook before each basic block. It may not be Python: a guest executes twenty million blocks a second. And
a guest must be stopped here and nowhere else: stopped at another place, by another thread or a signal, Unicorn's CPU
goes wrong. So the hook is machine code, put together here by hand, and needs no compiler. It does two things:

- It adds the block's instructions to `COUNT` (four bytes each, on average; the true number is not to be had so cheaply)
  and stops the CPU once the count has reached `DEADLINE`.
- It looks the pages of the block up in a table of the pages from which code has been executed. Each entry leads to the
  mark in `Memory.written` of the frame behind the page: 1 says that somebody wrote to the frame, behind the CPU's back.
  Then, or when the page is not in the table, it calls `MISS`.

On another processor than x86-64 a function in Python does the same, slowly.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Callable

COUNT, DEADLINE, SPACE, STOP, MISS = range(5)
"""Words of the hook's data: `SPACE` tells one address space from another in the tags of the table."""
TABLE = 8
"""The table begins at this word: per entry its tag (page number xor SPACE, never 0) and the address of the mark."""
ENTRIES = 4096
NEVER = (1 << 64) - 1
WRITTEN = 1

_CODE: tuple[tuple[str, str], ...] = (
    # rdi = engine, rsi = address of the block, edx = its size, rcx = our data
    ("89d2", "mov edx, edx"),
    ("488d4203", "lea rax, [rdx+3]"),
    ("48c1e802", "shr rax, 2"),
    ("480301", "add rax, [rcx]            # COUNT"),
    ("488901", "mov [rcx], rax"),
    ("483b4108", "cmp rax, [rcx+8]          # DEADLINE"),
    ("7344", "jae stop"),
    ("4889f0", "mov rax, rsi"),
    ("48c1e80c", "shr rax, 12               # the first page"),
    ("4c8d4416ff", "lea r8, [rsi+rdx-1]"),
    ("49c1e80c", "shr r8, 12                # the last page"),
    ("4189c1", "next: mov r9d, eax"),
    ("4181e1ff0f0000", "and r9d, 0xfff"),
    ("41c1e104", "shl r9d, 4"),
    ("4989c2", "mov r10, rax"),
    ("4c335110", "xor r10, [rcx+16]         # SPACE"),
    ("4e3b540940", "cmp r10, [rcx+r9+64]      # the entry's tag"),
    ("7515", "jne miss"),
    ("4e8b540948", "mov r10, [rcx+r9+72]      # the address of the mark"),
    ("41803a01", "cmp byte ptr [r10], 1     # WRITTEN"),
    ("740a", "je miss"),
    ("4c39c0", "cmp rax, r8"),
    ("488d4001", "lea rax, [rax+1]"),
    ("72d0", "jb next"),
    ("c3", "ret"),
    ("ff6120", "miss: jmp [rcx+32]"),
    ("48c74108ffffffff", "stop: mov qword ptr [rcx+8], -1"),
    ("ff6118", "jmp [rcx+24]              # uc_emu_stop(engine)"),
)
CODE = bytes.fromhex("".join(code for code, _ in _CODE))
LISTING = "\n".join(text.split("#")[0].strip() for _, text in _CODE)
"""The same for an assembler (Intel syntax): a test compares the two."""

_Block = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
Miss = Callable[[int, int], None]
"""Called with the address and the size of a block whose page is unknown, or whose frame was written to."""


class BlockHook:
    """The hook's code (`function`) and data (`address`, seen through `words`)."""

    def __init__(self, stop: int, miss: Miss) -> None:
        """`stop` is the address of uc_emu_stop; `miss` must not raise."""
        self._storage = (ctypes.c_uint64 * (TABLE + 2 * ENTRIES))()
        self.address = ctypes.addressof(self._storage)
        self.words = memoryview(self._storage).cast("B").cast("Q")
        self._miss = _Block(lambda _engine, address, size, _data: miss(address, size))
        self._stop = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(stop)
        self.words[DEADLINE] = NEVER
        self.words[STOP] = stop
        self.words[MISS] = ctypes.cast(self._miss, ctypes.c_void_p).value or 0
        self._executable: mmap.mmap | None = None
        if platform.machine() in ("x86_64", "AMD64") and ctypes.sizeof(ctypes.c_void_p) == 8:
            self._executable = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self._executable.write(CODE)
            self.function = ctypes.addressof(ctypes.c_char.from_buffer(self._executable))
        else:
            self._python = _Block(lambda engine, address, size, _data: self.run(engine, address, size))
            self.function = ctypes.cast(self._python, ctypes.c_void_p).value or 0

    def run(self, engine: int, address: int, size: int) -> None:
        """Do what the machine code does."""
        words = self.words
        words[COUNT] = count = words[COUNT] + (size + 3 >> 2)
        if count >= words[DEADLINE]:
            words[DEADLINE] = NEVER
            self._stop(engine)
            return
        for page in range(address >> 12, (address + size - 1 >> 12) + 1):
            entry = TABLE + 2 * (page % ENTRIES)
            if words[entry] != page ^ words[SPACE] or ctypes.c_uint8.from_address(words[entry + 1]).value == WRITTEN:
                self._miss(engine, address, size, None)
                return

    def enter(self, page: int, mark: int) -> None:
        """Put a page of the present address space into the table, with the address of its frame's mark."""
        entry = TABLE + 2 * (page % ENTRIES)
        self.words[entry] = page ^ self.words[SPACE]
        self.words[entry + 1] = mark

    def drop(self, page: int) -> None:
        """Take a page out of the table, of whichever address space."""
        self.words[TABLE + 2 * (page % ENTRIES)] = 0

    def drop_all(self) -> None:
        """Empty the table."""
        ctypes.memset(self.address + 8 * TABLE, 0, 16 * ENTRIES)
