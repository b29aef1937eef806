"""What a guest may not do: end this process by an instruction that the emulator's translator cannot take.

For code such as `lock bt %eax, %ecx` (an invalid opcode) Unicorn builds operations that its own checks find wrong, and
calls abort(). The guard makes that an invalid opcode of the guest's. abort() comes as a signal in the midst of the
translation, which can be left in the same way as for code that is not mapped: by taking an exception. The handler has
to be machine code, since that leaps over whatever has called it; see `native_hooks`.

The exception is at the beginning of the block of code, of which nothing has been executed.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import struct

from hypervisor.emulator.native_hooks import Listing, can_be_native, code

STATE, RAISE, BEFORE, ABORTS = range(4)
"""Words of the guard's data: the state of the CPU that runs, 0 for none; raise_exception_err; the handler that was
there before; how many aborts there have been."""
DATA = 0x80
"""Where the data is, behind the code on the same page."""
HANDLER: Listing = (
    ("488b3d79000000", "mov rdi, [rip+0x79]       # STATE"),
    ("4885ff", "test rdi, rdi"),
    ("7414", "jz other"),
    ("48ff0585000000", "inc qword ptr [rip+0x85]  # ABORTS"),
    ("be06000000", "mov esi, 6                # invalid opcode"),
    ("31d2", "xor edx, edx"),
    ("ff2568000000", "jmp [rip+0x68]            # RAISE(state, vector, error code)"),
    ("488b0569000000", "other: mov rax, [rip+0x69]       # BEFORE"),
    ("4885c0", "test rax, rax"),
    ("7402", "jz default"),
    ("ffe0", "jmp rax"),
    ("c3", "default: ret"),
)
_SIGACTION = struct.Struct("<Q128siiQ")
"""struct sigaction of glibc and musl on x86-64: handler, mask, flags, (padding,) restorer."""
_NODEFER = 0x40000000
"""SA_NODEFER: the handler is never returned from, and the next abort() must arrive as well."""


class AbortGuard:
    """The handler of SIGABRT: there is one in a process."""

    def __init__(self, raise_exception: int) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(code(HANDLER))
        self.words = memoryview(self._page)[DATA : DATA + 32].cast("Q")
        self.words[RAISE] = raise_exception
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._sigaction = ctypes.CDLL(None).sigaction

    def install(self) -> None:
        """Take the signal, if somebody else has it: there may have come another handler since the last time."""
        before = ctypes.create_string_buffer(_SIGACTION.size)
        self._sigaction(int(signal.SIGABRT), None, before)
        handler = _SIGACTION.unpack(before.raw)[0]
        if handler == self._address:
            return
        self.words[BEFORE] = handler if handler > 1 else 0
        ours = _SIGACTION.pack(self._address, bytes(128), _NODEFER, 0, 0)
        self._sigaction(int(signal.SIGABRT), ours, None)


_guards: list[AbortGuard] = []


def guard_words(raise_exception: int) -> memoryview:
    """Put the process's guard in place; returns its data, in which `STATE` is to be set while a CPU runs.

    (On a processor that the handler is not for, these are words that nobody reads.)
    """
    if not can_be_native():
        return memoryview(bytearray(32)).cast("Q")
    if not _guards:
        _guards.append(AbortGuard(raise_exception))
    _guards[0].install()
    return _guards[0].words
