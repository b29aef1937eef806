"""Hooks that cannot be Python: the start of a block of code, the reading of the TSC, port access.

A guest executes twenty million blocks a second, and one that waits reads the TSC a million times. One that rewrites its
own code has forty thousand blocks translated in a second. And IN and OUT, which
Unicorn lets anybody execute, have to become a #GP, which must leap over whatever has called the hook. So these hooks
are machine code, put together here by hand, which needs no compiler.

The block hook is also the one place where a guest is stopped to let time pass: stopped elsewhere, by another thread or
a signal, Unicorn's CPU goes wrong. It does two things:

- It adds the block's instructions to `COUNT` (four bytes each, on average; the true number is not to be had so cheaply)
  and stops the CPU once the count has reached `DEADLINE`.
- It looks the pages of the block up in a table of the pages from which code has been executed. Each entry leads to the
  mark in `Memory.written` of the frame behind the page: 1 says that somebody wrote to the frame, behind the CPU's back.
  Then, or when the page is not in the table, it calls `MISS`.

The TSC is `COUNT + BASE`; reading it takes `TSC_COST`.

The translation hook keeps a guest from holding everybody up whose code must be translated again and again: Unicorn
takes a thousand times as long for that as for executing it. `TRANSLATIONS` of them are for nothing, each further one
adds `TRANSLATION_NS` to `COUNT`.

Linux looks for a timer at a port where nothing is, a hundred thousand times while it boots. What such a read gives has
been found out by Xen at the first one, and stays so until anything else makes it enter Xen (`ABSENT` is forgotten
then): so IN's hook answers the others itself, at the same price, unless there is an event to be delivered, a single
step to be told of, or the `DEADLINE` has come.

Two more are in use only while a guest has breakpoints on data (`watchpoints`): one at each access to memory, which
looks at its place in the page before it troubles Python, and one before each instruction, which stops the CPU when the
instruction before has hit one.

On another processor than x86-64 functions in Python do the same, slowly.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Callable, Iterable

COUNT, DEADLINE, SPACE, STOP, MISS, BASE, STATE, TSC_COST, RAISE, TRANSLATIONS, HIT, PLACE, ABSENT, INFO = range(14)
"""Words of the hooks' data. `SPACE` tells one address space from another in the tags of the table, and `PLACE` has the
same pages of two of them elsewhere in it; `STATE` is the address of the CPU's registers; `HIT` is not 0 when an
instruction has touched what a breakpoint on data is at. `ABSENT` is the `absent_port` where nothing is, for the vCPU
that runs and in its present mode; 0: none is known. `INFO` is the address of that vCPU's vcpu_info."""
UPPER = 16
"""`SPACE` and `PLACE` of the upper half of the addresses stand so many words further than those of the lower half."""
TABLE = 32
"""The table begins at this word: per entry its tag (page number xor SPACE, never 0) and the address of the mark."""
ENTRIES = 16384
SPREAD = 5167
"""How far apart in the table the same pages of two address spaces are."""
NEVER = (1 << 64) - 1
TRANSLATION_NS = 20_000
TRAP_NS = 1_000
"""What a trap takes, with what Xen does about it."""
WRITTEN = 1

Listing = tuple[tuple[str, str], ...]
"""Machine code in hexadecimal, and the same for an assembler (Intel syntax)."""

BLOCK: Listing = (
    # rdi = engine, rsi = address of the block, edx = its size, rcx = our data
    ("89d2", "mov edx, edx"),
    ("488d4203", "lea rax, [rdx+3]"),
    ("48c1e802", "shr rax, 2"),
    ("480301", "add rax, [rcx]            # COUNT"),
    ("488901", "mov [rcx], rax"),
    ("483b4108", "cmp rax, [rcx+8]          # DEADLINE"),
    ("735f", "jae stop"),
    ("4989f3", "mov r11, rsi"),
    ("49c1fb3f", "sar r11, 63"),
    ("4181e380000000", "and r11d, 128             # UPPER"),
    ("4901cb", "add r11, rcx"),
    ("4889f0", "mov rax, rsi"),
    ("48c1e80c", "shr rax, 12               # the first page"),
    ("4c8d4416ff", "lea r8, [rsi+rdx-1]"),
    ("49c1e80c", "shr r8, 12                # the last page"),
    ("4189c1", "next: mov r9d, eax"),
    ("45034b58", "add r9d, [r11+88]         # PLACE"),
    ("4181e1ff3f0000", "and r9d, 0x3fff"),
    ("41c1e104", "shl r9d, 4"),
    ("4989c2", "mov r10, rax"),
    ("4d335310", "xor r10, [r11+16]         # SPACE"),
    ("4e3b940900010000", "cmp r10, [rcx+r9+256]      # the entry's tag"),
    ("7518", "jne miss"),
    ("4e8b940908010000", "mov r10, [rcx+r9+264]      # the address of the mark"),
    ("41803a01", "cmp byte ptr [r10], 1     # WRITTEN"),
    ("740a", "je miss"),
    ("4c39c0", "cmp rax, r8"),
    ("488d4001", "lea rax, [rax+1]"),
    ("72c6", "jb next"),
    ("c3", "ret"),
    ("ff6120", "miss: jmp [rcx+32]"),
    ("48c74108ffffffff", "stop: mov qword ptr [rcx+8], -1"),
    ("ff6118", "jmp [rcx+24]              # uc_emu_stop(engine)"),
)
READ_TSC: Listing = (
    # rdi = engine, rsi = our data; returns 1: the instruction is done
    ("488b06", "mov rax, [rsi]            # COUNT"),
    ("48034638", "add rax, [rsi+56]         # TSC_COST"),
    ("488906", "mov [rsi], rax"),
    ("48034628", "add rax, [rsi+40]         # BASE"),
    ("488b5630", "mov rdx, [rsi+48]         # STATE, which begins with rax, rcx, rdx"),
    ("89c1", "mov ecx, eax"),
    ("48890a", "mov [rdx], rcx"),
    ("48c1e820", "shr rax, 32"),
    ("48894210", "mov [rdx+16], rax"),
    ("b801000000", "mov eax, 1"),
    ("c3", "ret"),
)
CLEAR_TSC_AUX: Listing = (
    # The beginning of RDTSCP's hook: rcx is the processor's number, which Xen does not tell.
    ("488b5630", "mov rdx, [rsi+48]"),
    ("48c7420800000000", "mov qword ptr [rdx+8], 0"),
)
ABSENT_PORT: Listing = (
    # The beginning of IN's hook: rdi = engine, esi = port, edx = width, rcx = our data. Returns the value, or goes on.
    ("c1e210", "shl edx, 16"),
    ("09f2", "or edx, esi"),
    ("48395160", "cmp [rcx+96], rdx         # ABSENT"),
    ("7534", "jne other"),
    ("488b4130", "mov rax, [rcx+48]         # STATE"),
    ("f6808900000001", "test byte ptr [rax+137], 1 # TF"),
    ("7527", "jne other"),
    ("488b5168", "mov rdx, [rcx+104]        # INFO"),
    ("803a00", "cmp byte ptr [rdx], 0     # evtchn_upcall_pending"),
    ("7406", "je quiet"),
    ("807a0100", "cmp byte ptr [rdx+1], 0   # evtchn_upcall_mask"),
    ("7418", "je other"),
    ("488b01", "quiet: mov rax, [rcx]            # COUNT"),
    ("4805e8030000", "add rax, 1000             # TRAP_NS"),
    ("483b4108", "cmp rax, [rcx+8]          # DEADLINE"),
    ("7309", "jae other"),
    ("488901", "mov [rcx], rax"),
    ("b8ffffffff", "mov eax, 0xffffffff"),
    ("c3", "ret"),
)
PORT_IO: Listing = (
    # IN and OUT: rcx = our data. Does not return: the instruction takes a #GP.
    ("488b7930", "other: mov rdi, [rcx+48]         # STATE"),
    ("be0d000000", "mov esi, 13"),
    ("31d2", "xor edx, edx"),
    ("ff6140", "jmp [rcx+64]              # RAISE(state, vector, error code)"),
)
TRANSLATION: Listing = (
    # rdi = engine, rsi = the new block, rdx = the one before it, rcx = our data
    ("48ff4948", "dec qword ptr [rcx+72]    # TRANSLATIONS"),
    ("7907", "jns done"),
    ("488101204e0000", "add qword ptr [rcx], 20000 # COUNT, TRANSLATION_NS"),
    ("c3", "done: ret"),
)
STEP: Listing = (
    # rdi = engine, rsi = address of the instruction, edx = its size, rcx = our data
    ("4883795000", "cmp qword ptr [rcx+80], 0 # HIT"),
    ("7501", "jne stop"),
    ("c3", "ret"),
    ("ff6118", "stop: jmp [rcx+24]              # uc_emu_stop(engine)"),
)
ACCESS: Listing = (
    # rdi = engine, esi = kind, rdx = physical address, ecx = size, r8 = value, r9 = the data of a `Filter`
    ("498b01", "mov rax, [r9]             # the last byte's place in its page"),
    ("4829d0", "sub rax, rdx"),
    ("25ff0f0000", "and eax, 0xfff"),
    ("41034908", "add ecx, [r9+8]           # the number of bytes, less one"),
    ("39c8", "cmp eax, ecx"),
    ("7304", "jae done"),
    ("41ff6110", "jmp [r9+16]               # the function in Python"),
    ("c3", "done: ret"),
)
OUT_PREFIX: Listing = (
    # The beginning of OUT's hook: rcx = value, r8 = our data.
    ("4c89c1", "mov rcx, r8"),
)


Space = tuple[int, int, int, int]
"""`SPACE` and `PLACE` of the lower half of an address space, and of the upper half."""


def space_of(lower: int, upper: int) -> Space:
    """Return the address space whose halves have these numbers."""
    return lower << 52, lower * SPREAD % ENTRIES, upper << 52, upper * SPREAD % ENTRIES


def absent_port(port: int, width: int) -> int:
    """Return what `ABSENT` is when reads of so many bytes from a port give ones."""
    return width << 16 | port


def code(listing: Listing) -> bytes:
    """Return the machine code of a listing."""
    return bytes.fromhex("".join(bytes_ for bytes_, _ in listing))


RDTSCP_AT = 0x80
RDTSC_AT = RDTSCP_AT + len(code(CLEAR_TSC_AUX))
OUT_AT = 0xC0
TRANSLATION_AT = 0x100
STEP_AT, ACCESS_AT = 0x120, 0x140
IN_AT = 0x180
_Block = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_Translation = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_Instruction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_Step = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_Access = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
Miss = Callable[[int, int], None]
"""Called with the address and the size of a block whose page is unknown, or whose frame was written to."""


Access = Callable[[int, int, int], None]
"""Called with the kind (unicorn.h), the physical address and the size of an access to memory; it must not raise."""


class Filter:
    """A hook of accesses to some bytes of a page: the address of the function, and that of its data."""

    def __init__(self, native: int, place: int, size: int, function: Access) -> None:
        """`native` is the address of the machine code, 0 for none."""
        self._last, self._more = place + size - 1, size - 1
        self._callback = _Access(lambda _engine, kind, address, size, _value, _data: function(kind, address, size))
        self._words = (ctypes.c_uint64 * 3)(self._last, self._more, _address(self._callback))
        if native:
            self.function = native
        else:
            self._in_python = _Access(
                lambda _engine, kind, address, size, _value, _data: (
                    function(kind, address, size) if self.overlaps(address, size) else None
                )
            )
            self.function = _address(self._in_python)
        self.data = ctypes.addressof(self._words)

    def overlaps(self, address: int, size: int) -> bool:
        """Do what the machine code does: is any of the bytes touched, or the place in the next page where they are?"""
        return self._last - address & 0xFFF < self._more + size


class NativeHooks:
    """The hooks: addresses of functions, 0 for none; and their data at `address`, seen as `words`."""

    def __init__(self, state: int, stop: int, raise_exception: int, miss: Miss, tsc_cost: int) -> None:
        """`state` is the address of the CPU's registers, `stop` that of uc_emu_stop; `miss` must not raise.

        `raise_exception` is the address of the function that lets the CPU take an exception in place of an instruction.
        """
        self._storage = (ctypes.c_uint64 * (TABLE + 2 * ENTRIES))()
        self.address = ctypes.addressof(self._storage)
        self.words = memoryview(self._storage).cast("B").cast("Q")
        self._miss = _Block(lambda _engine, address, size, _data: miss(address, size))
        self._stop = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(stop)
        self.words[DEADLINE] = NEVER
        self.words[STOP] = stop
        self.words[MISS] = _address(self._miss)
        self.words[STATE] = state
        self.words[TSC_COST] = tsc_cost
        self.words[RAISE] = raise_exception
        self._registers = memoryview((ctypes.c_uint64 * 3).from_address(state)).cast("B").cast("Q")
        if can_be_native():
            self._executable = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            before_out = code(BLOCK).ljust(RDTSCP_AT) + code(CLEAR_TSC_AUX) + code(READ_TSC)
            before_translation = before_out.ljust(OUT_AT) + code(OUT_PREFIX) + code(PORT_IO)
            before_step = before_translation.ljust(TRANSLATION_AT) + code(TRANSLATION)
            before_access = before_step.ljust(STEP_AT) + code(STEP)
            before_in = before_access.ljust(ACCESS_AT) + code(ACCESS)
            self._executable.write(before_in.ljust(IN_AT) + code(ABSENT_PORT) + code(PORT_IO))
            self.block = ctypes.addressof(ctypes.c_char.from_buffer(self._executable))
            self.rdtsc, self.rdtscp = self.block + RDTSC_AT, self.block + RDTSCP_AT
            self.port_in, self.port_out = self.block + IN_AT, self.block + OUT_AT
            self.translation, self.step = self.block + TRANSLATION_AT, self.block + STEP_AT
            self._access = self.block + ACCESS_AT
        else:
            self._in_python = (
                _Block(lambda engine, address, size, _data: self.run_block(engine, address, size)),
                _Instruction(lambda _engine, _data: self.read_tsc(clear_aux=False)),
                _Instruction(lambda _engine, _data: self.read_tsc(clear_aux=True)),
                _Translation(lambda _engine, _block, _before, _data: self.count_translation()),
                _Step(lambda engine, _address, _size, _data: self.stop_if_hit(engine)),
            )
            self.block, self.rdtsc, self.rdtscp, self.translation, self.step = map(_address, self._in_python)
            self._access = 0
            # A function in Python cannot raise the exception: there, ports read as ones for everybody.
            self.port_in = self.port_out = 0

    def read_tsc(self, *, clear_aux: bool) -> int:
        """Do what the machine code of RDTSC does, or (`clear_aux`) that of RDTSCP."""
        words, registers = self.words, self._registers
        words[COUNT] += words[TSC_COST]
        now = words[COUNT] + words[BASE] & NEVER
        registers[0], registers[2] = now & 0xFFFFFFFF, now >> 32
        if clear_aux:
            registers[1] = 0
        return 1

    def run_block(self, engine: int, address: int, size: int) -> None:
        """Do what the machine code of the block hook does."""
        words = self.words
        words[COUNT] = count = words[COUNT] + (size + 3 >> 2)
        if count >= words[DEADLINE]:
            words[DEADLINE] = NEVER
            self._stop(engine)
            return
        half = UPPER * (address >> 63)
        for page in range(address >> 12, (address + size - 1 >> 12) + 1):
            entry = self._entry(page, words[PLACE + half])
            if (
                words[entry] != page ^ words[SPACE + half]
                or ctypes.c_uint8.from_address(words[entry + 1]).value == WRITTEN
            ):
                self._miss(engine, address, size, None)
                return

    def count_translation(self) -> None:
        """Do what the machine code of the translation hook does."""
        words = self.words
        words[TRANSLATIONS] = left = words[TRANSLATIONS] - 1 & NEVER
        if left >> 63:
            words[COUNT] += TRANSLATION_NS

    def stop_if_hit(self, engine: int) -> None:
        """Do what the machine code does that is called before each instruction."""
        if self.words[HIT]:
            self._stop(engine)

    def filter(self, place: int, size: int, function: Access) -> Filter:
        """Make a hook of accesses to memory that overlap `size` bytes at a place in their page, in whichever page."""
        return Filter(self._access, place, size, function)

    def port_is_absent(self, port: int, width: int, info: int) -> None:
        """Let IN's hook answer reads of a port, with ones; `info` is the address of the vCPU's vcpu_info."""
        self.words[INFO] = info
        self.words[ABSENT] = absent_port(port, width)

    def enter(self, page: int, mark: int) -> None:
        """Put a page of the present address space into the table, with the address of its frame's mark."""
        half = UPPER * (page >> 51)
        entry = self._entry(page, self.words[PLACE + half])
        self.words[entry] = page ^ self.words[SPACE + half]
        self.words[entry + 1] = mark

    def use(self, space: Space) -> None:
        """Take an address space for the present one."""
        words = self.words
        words[SPACE], words[PLACE], words[SPACE + UPPER], words[PLACE + UPPER] = space

    def drop(self, page: int, spaces: Iterable[int]) -> None:
        """Take a page of these address spaces out of the table."""
        for space in spaces:
            entry = self._entry(page, space * SPREAD)
            if self.words[entry] == page ^ space << 52:
                self.words[entry] = 0

    @staticmethod
    def _entry(page: int, place: int) -> int:
        return TABLE + 2 * ((page + place) % ENTRIES)

    def drop_all(self) -> None:
        """Empty the table."""
        ctypes.memset(self.address + 8 * TABLE, 0, 16 * ENTRIES)


def can_be_native() -> bool:
    """Whether this machine executes the code above."""
    return platform.machine() in ("x86_64", "AMD64") and ctypes.sizeof(ctypes.c_void_p) == 8


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
