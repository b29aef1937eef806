"""The way from the engine into Python and back: SYSCALL, and exceptions.

Python needs RFLAGS when a guest enters Xen by SYSCALL, and often wants the page tables loaded anew before the guest
goes on. For each there is a function of Unicorn's, and to call it from Python takes ten times as long as the function.
So machine code does it, around the function in Python. It also does for SYSCALL what is the same each time: rcx and r11
get their values, and the clock goes on by the `COST` of a hypercall (for a system call of user code, that is undone).

On another processor than x86-64 Python does the same.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from hypervisor.emulator.native_hooks import ABSENT, BASE, DEADLINE, Listing, can_be_native, code

ENGINE, FLAGS, NEXT_CR3, VECTOR, READ, WRITE, SYSCALL, EXCEPTION, FLAGS_ID, CR3_ID, STATE, HOOKS, COST = range(13)
"""Words of the data. `FLAGS` are those with which Xen was entered; `NEXT_CR3` is what to load before the guest goes on,
0 for nothing; `VECTOR` is the exception's; `COST` is what a hypercall costs, in ns. The others are addresses (of
functions, of the CPU's registers, of the data of `native_hooks`) and Unicorn's numbers of registers."""
SYSCALL_SIZE = 2

ON_EXCEPTION: Listing = (
    # rdi = engine, esi = vector, rdx = our data
    ("53", "push rbx"),
    ("4889d3", "mov rbx, rdx"),
    ("89f0", "mov eax, esi"),
    ("48894318", "mov [rbx+24], rax         # VECTOR"),
    ("ff5338", "call [rbx+56]             # EXCEPTION"),
    ("eb47", "jmp leave"),
)
ON_SYSCALL: Listing = (
    # rdi = engine, rsi = our data
    ("53", "push rbx"),
    ("4889f3", "mov rbx, rsi"),
    ("8b7340", "mov esi, [rbx+64]         # FLAGS_ID"),
    ("488d5308", "lea rdx, [rbx+8]          # FLAGS"),
    ("ff5320", "call [rbx+32]             # uc_reg_read(engine, register, value)"),
    ("488b5350", "mov rdx, [rbx+80]         # STATE"),
    ("8b4308", "mov eax, [rbx+8]          # FLAGS"),
    ("48894308", "mov [rbx+8], rax"),
    ("48894258", "mov [rdx+88], rax         # r11"),
    ("488b8280000000", "mov rax, [rdx+128]        # rip"),
    ("4883c002", "add rax, 2"),
    ("48894208", "mov [rdx+8], rax          # rcx"),
    ("488b4358", "mov rax, [rbx+88]         # HOOKS"),
    ("488b5360", "mov rdx, [rbx+96]         # COST"),
    ("48295008", "sub [rax+8], rdx          # DEADLINE"),
    ("48015028", "add [rax+40], rdx         # BASE"),
    ("48c7406000000000", "mov qword ptr [rax+96], 0 # ABSENT"),
    ("ff5330", "call [rbx+48]             # SYSCALL"),
)
LEAVE: Listing = (
    ("48837b1000", "leave: cmp qword ptr [rbx+16], 0 # NEXT_CR3"),
    ("7415", "je done"),
    ("488b3b", "mov rdi, [rbx]            # ENGINE"),
    ("8b7348", "mov esi, [rbx+72]         # CR3_ID"),
    ("488d5310", "lea rdx, [rbx+16]         # NEXT_CR3"),
    ("ff5328", "call [rbx+40]             # uc_reg_write(engine, register, value)"),
    ("48c7431000000000", "mov qword ptr [rbx+16], 0"),
    ("5b", "done: pop rbx"),
    ("c3", "ret"),
)
RCX, R11, RIP = 1, 11, 16
"""As the CPU's registers are numbered (`binding`)."""
SYSCALL_AT = len(code(ON_EXCEPTION))

_Function = ctypes.CFUNCTYPE(None)
_Syscall = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_Exception = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_Register = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Entries:
    """The hooks of SYSCALL and of exceptions: their addresses, and their data at `address`, seen as `words`."""

    def __init__(self, engine: int, read: int, write: int, flags: int, cr3: int) -> None:
        """`read` and `write` are the addresses of uc_reg_read and uc_reg_write, the others Unicorn's numbers."""
        self._storage = (ctypes.c_uint64 * 13)()
        self.address = ctypes.addressof(self._storage)
        self.words = words = memoryview(self._storage).cast("B").cast("Q")
        words[ENGINE], words[READ], words[WRITE], words[FLAGS_ID], words[CR3_ID] = engine, read, write, flags, cr3
        self._functions: list[object] = []
        if can_be_native():
            self._executable = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            self._executable.write(code(ON_EXCEPTION) + code(ON_SYSCALL) + code(LEAVE))
            self.exception = ctypes.addressof(ctypes.c_char.from_buffer(self._executable))
            self.syscall = self.exception + SYSCALL_AT
        else:
            self._read, self._write = _Register(read), _Register(write)
            self._in_python = (
                _Syscall(lambda _engine, _data: self.enter()),
                _Exception(lambda _engine, vector, _data: self.enter_exception(vector)),
            )
            self.syscall, self.exception = (_address(function) for function in self._in_python)

    def connect(self, state: int, hooks: int, cost: int) -> None:
        """Say where the CPU's registers and the data of `native_hooks` are, and what a hypercall costs."""
        self.words[STATE], self.words[HOOKS], self.words[COST] = state, hooks, cost

    def enter_exception(self, vector: int) -> None:
        """Do what the machine code of exceptions does."""
        self.words[VECTOR] = vector
        _Function(self.words[EXCEPTION])()
        self._leave()

    def enter(self) -> None:
        """Do what the machine code of SYSCALL does."""
        words = self.words
        self._read(words[ENGINE], words[FLAGS_ID], self.address + 8 * FLAGS)
        registers = (ctypes.c_uint64 * 17).from_address(words[STATE])
        hooks = (ctypes.c_uint64 * (ABSENT + 1)).from_address(words[HOOKS])
        words[FLAGS] &= 0xFFFFFFFF
        registers[R11], registers[RCX] = words[FLAGS], registers[RIP] + SYSCALL_SIZE
        hooks[DEADLINE] -= words[COST]
        hooks[BASE] += words[COST]
        hooks[ABSENT] = 0
        _Function(words[SYSCALL])()
        self._leave()

    def _leave(self) -> None:
        words = self.words
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
