"""The way from the engine into Python and back: SYSCALL, and exceptions.

Python needs RFLAGS when a guest enters Xen, and often wants the page tables loaded anew before the guest goes on. For
each there is a function of Unicorn's, and to call it from Python takes ten times as long as the function. So machine
code does it, around the function in Python: it has the flags read before, and CR3 loaded afterwards if somebody asks
for that.

On another processor than x86-64 Python does the same.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from hypervisor.emulator.native_hooks import Listing, can_be_native, code

ENGINE, FLAGS, NEXT_CR3, VECTOR, READ, WRITE, SYSCALL, EXCEPTION, FLAGS_ID, CR3_ID = range(10)
"""Words of the data. `FLAGS` are those with which Xen was entered; `NEXT_CR3` is what to load before the guest goes on,
0 for nothing; `VECTOR` is the exception's. The others are addresses of functions and Unicorn's numbers of registers."""

ON_EXCEPTION: Listing = (
    # rdi = engine, esi = vector, rdx = our data
    ("89f0", "mov eax, esi"),
    ("48894218", "mov [rdx+24], rax         # VECTOR"),
    ("488b4238", "mov rax, [rdx+56]         # EXCEPTION"),
    ("4889d6", "mov rsi, rdx"),
    ("eb04", "jmp enter"),
)
ON_SYSCALL: Listing = (
    # rdi = engine, rsi = our data
    ("488b4630", "mov rax, [rsi+48]         # SYSCALL"),
)
ENTER: Listing = (
    # rdi = engine, rsi = our data, rax = the function in Python
    ("53", "enter: push rbx"),
    ("4154", "push r12"),
    ("4883ec08", "sub rsp, 8"),
    ("4889f3", "mov rbx, rsi"),
    ("4989c4", "mov r12, rax"),
    ("8b7340", "mov esi, [rbx+64]         # FLAGS_ID"),
    ("488d5308", "lea rdx, [rbx+8]          # FLAGS"),
    ("ff5320", "call [rbx+32]             # uc_reg_read(engine, register, value)"),
    ("41ffd4", "call r12"),
    ("48837b1000", "cmp qword ptr [rbx+16], 0 # NEXT_CR3"),
    ("7415", "je done"),
    ("488b3b", "mov rdi, [rbx]            # ENGINE"),
    ("8b7348", "mov esi, [rbx+72]         # CR3_ID"),
    ("488d5310", "lea rdx, [rbx+16]         # NEXT_CR3"),
    ("ff5328", "call [rbx+40]             # uc_reg_write(engine, register, value)"),
    ("48c7431000000000", "mov qword ptr [rbx+16], 0"),
    ("4883c408", "done: add rsp, 8"),
    ("415c", "pop r12"),
    ("5b", "pop rbx"),
    ("c3", "ret"),
)
SYSCALL_AT = len(code(ON_EXCEPTION))

_Function = ctypes.CFUNCTYPE(None)
_Syscall = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_Exception = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_Register = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Entries:
    """The hooks of SYSCALL and of exceptions: their addresses, and their data at `address`, seen as `words`."""

    def __init__(self, engine: int, read: int, write: int, flags: int, cr3: int) -> None:
        """`read` and `write` are the addresses of uc_reg_read and uc_reg_write, the others Unicorn's numbers."""
        self._storage = (ctypes.c_uint64 * 10)()
        self.address = ctypes.addressof(self._storage)
        self.words = words = memoryview(self._storage).cast("B").cast("Q")
        words[ENGINE], words[READ], words[WRITE], words[FLAGS_ID], words[CR3_ID] = engine, read, write, flags, cr3
        self._functions: list[object] = []
        if can_be_native():
            self._executable = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self._executable.write(code(ON_EXCEPTION) + code(ON_SYSCALL) + code(ENTER))
            self.exception = ctypes.addressof(ctypes.c_char.from_buffer(self._executable))
            self.syscall = self.exception + SYSCALL_AT
        else:
            self._read, self._write = _Register(read), _Register(write)
            self._in_python = (
                _Syscall(lambda _engine, _data: self.enter(SYSCALL)),
                _Exception(lambda _engine, vector, _data: self.enter(EXCEPTION, vector)),
            )
            self.syscall, self.exception = (_address(function) for function in self._in_python)

    def enter(self, which: int, vector: int = 0) -> None:
        """Do what the machine code does: `which` is SYSCALL or EXCEPTION."""
        words = self.words
        words[VECTOR] = vector
        self._read(words[ENGINE], words[FLAGS_ID], self.address + 8 * FLAGS)
        _Function(words[which])()
        if words[NEXT_CR3]:
            self._write(words[ENGINE], words[CR3_ID], self.address + 8 * NEXT_CR3)
            words[NEXT_CR3] = 0

    def on_syscall(self, function: Callable[[], None]) -> None:
        """Call a function at each SYSCALL; it must not raise. RIP is moved behind the instruction afterwards."""
        self.words[SYSCALL] = self._keep(function)

    def on_exception(self, function: Callable[[], None]) -> None:
        """Call a function at each exception and software interrupt (`VECTOR`); RIP is where the CPU goes on."""
        self.words[EXCEPTION] = self._keep(function)

    def _keep(self, function: Callable[[], None]) -> int:
        called = _Function(function)
        self._functions.append(called)
        return _address(called)


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
