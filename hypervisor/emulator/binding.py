"""The only module that touches Unicorn: its functions, called without the binding's wrappers, and its CPU's registers.

The binding's `reg_read` takes 4 us; a hypercall needs eight of them. So the registers are read and written where the
emulator keeps them, in QEMU's `CPUX86State`. Its beginning (general registers, rip, flags, segments, control registers)
has been the same for all of Unicorn 2; how it is found, and that it is as expected, is checked whenever a processor is
made. A version that is laid out in another way is refused with one sentence.

All else goes through Unicorn's public interface (unicorn.h).
"""

from __future__ import annotations

import ctypes
import itertools
import re
import struct
from collections.abc import Callable
from typing import Any

from hypervisor.emulator.abort_guard import STATE, guard_words
from hypervisor.emulator.entries import NEXT_CR3, Entries
from hypervisor.emulator.memory_lookup import MemoryLookup
from hypervisor.errors import DeviceError

HOW_TO_INSTALL = "machine-code guests need the CPU emulator: pip install 'paravirt[emulator]'"

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, RIP = range(17)
"""Indices of `Binding.q`, in the order in which instructions number the registers."""
_NAMES = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)))
ES, CS, SS, DS, FS, GS, LDT, TR, GDT = range(9)
"""Segment registers, in the processor's numbering, and the tables'."""
_SEGMENTS = 184
_SEGMENT = 24
SELECTOR_AT = tuple((_SEGMENTS + _SEGMENT * segment) // 4 for segment in range(9))
"""Indices of `Binding.i`: the segment registers' selectors; their limits and flags are 4 and 5 further."""
BASE_AT = tuple((_SEGMENTS + _SEGMENT * segment + 8) // 8 for segment in range(9))
"""Indices of `Binding.q`: the segment registers' base addresses."""
EFLAGS = 136 // 4
"""Index of `Binding.i`: RFLAGS, without the arithmetic flags."""
HFLAGS = 176 // 4
"""Index of `Binding.i`: what of the processor's mode is compiled into translated code."""
CR0 = 424 // 8
CR2, CR3, CR4 = CR0 + 2, CR0 + 3, CR0 + 4
_FPU_AT = 424 + 5 * 8
"""What lies between the control registers and the fields of a pending exception: FPU, SSE, model-specific registers."""
_WINDOW = 0x4000
_FXSAVE_SIZE = 512
_FXSAVE = struct.Struct("<HHBx18xI")
"""At the head of FXSAVE's image: control and status word, which registers are in use, and (at 24) MXCSR."""
_TRAP = 1 << 8
_REAL = struct.Struct("<QH")
_EMPTY = 3
_MXCSR_MASK = 0xFFFF

HF_CPL_MASK = 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_CS64 = 1 << 15

OLDEST = (2, 1, 4)
_NUMBERS = re.compile(r"\d+")
_RAISE = "raise_exception_err_x86_64"
NO_EXCEPTION = 0xFFFFFFFF
_Invalid = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
_Unmapped = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
_Code = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_Instruction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


_LAST = (1 << 64) - 1
_serial = itertools.count(1)


def is_installed() -> bool:
    """Whether Unicorn can be imported."""
    try:
        import unicorn  # noqa: F401
    except ImportError:
        return False
    return True


def _read_ones(_engine: object, _offset: int, size: int, _data: object) -> int:
    return (1 << 8 * size) - 1


def _lose(_engine: object, _offset: int, _size: int, _value: int, _data: object) -> None:
    """Take what is written to where nothing is."""


class Binding:
    """One Unicorn engine in 64-bit mode, with machine memory at physical address 0.

    `q` and `i` are views of the CPU's state as 64-bit and 32-bit words; the names above are their indices. Raises
    DeviceError, with a sentence, if Unicorn is missing or is not as expected.
    """

    def __init__(self, memory: int, size: int, has_code: bytearray) -> None:
        """`memory` is the address of machine memory in this process, `size` its length.

        `has_code` has a byte for each frame, 1 if code in it was executed; `forget_addresses` follows a change.
        """
        try:
            import unicorn
            from unicorn import x86_const
            from unicorn.unicorn_py3.unicorn import uclib
        except ImportError:
            raise DeviceError(HOW_TO_INSTALL) from None
        self._const = x86_const
        self._unicorn = unicorn
        if tuple(map(int, _NUMBERS.findall(unicorn.__version__)[:3])) < OLDEST:
            # Before, IN and OUT in a block of code did not say where they stand.
            raise DeviceError(f"Unicorn {unicorn.__version__} is too old: {'.'.join(map(str, OLDEST))} is needed")
        self._uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.engine: int = self._uc._uch.value
        self._lib = uclib
        self._hooks: dict[int, object] = {}
        self._word = ctypes.c_uint64()
        self._word_at = ctypes.addressof(self._word)
        self._words = memoryview(self._word).cast("B").cast("Q")
        self._eflags: int = x86_const.UC_X86_REG_EFLAGS
        # PYFUNCTYPE keeps the interpreter's lock: these return at once. `run` lets go of it.
        self._reg_read = self._function("uc_reg_read", ctypes.c_int, ctypes.c_void_p, keep_lock=True)
        self._reg_write = self._function("uc_reg_write", ctypes.c_int, ctypes.c_void_p, keep_lock=True)
        self._stop = self._function("uc_emu_stop", keep_lock=True)
        u64 = ctypes.c_uint64
        self._start = self._function("uc_emu_start", u64, u64, u64, ctypes.c_size_t, keep_lock=False)
        self._uc.mem_map_ptr(0, size, unicorn.UC_PROT_ALL, memory)
        self._find_state()
        self._self_test()
        self._guard = guard_words(self.raise_function)
        read, write = self._address_of("uc_reg_read"), self._address_of("uc_reg_write")
        self.entries = Entries(self.engine, read, write, self._eflags, x86_const.UC_X86_REG_CR3)
        self._memory_lookup = MemoryLookup(uclib, self.engine, size, has_code)
        self._size = size

    def _function(self, name: str, *arguments: Any, keep_lock: bool) -> Callable[..., int]:
        make = ctypes.PYFUNCTYPE if keep_lock else ctypes.CFUNCTYPE
        return make(ctypes.c_int, ctypes.c_void_p, *arguments)(self._address_of(name))

    def _address_of(self, name: str) -> int:
        return ctypes.cast(getattr(self._lib, name), ctypes.c_void_p).value or 0

    # -- finding the registers --------------------------------------------------------------------------------------

    def _unknown(self, what: str) -> DeviceError:
        return DeviceError(
            f"this version of Unicorn ({self._unicorn.__version__}) is not one that paravirt knows: {what}; "
            "2.1.4 is known to work"
        )

    def _find_state(self) -> None:
        """Find CPUX86State: its first field is the general registers, and a pointer in the engine leads near it."""
        const = self._const
        # No two engines get the same: what is left in memory of one before must not be taken for this one's.
        serial = next(_serial)
        values = [0x5EED000000000000 ^ serial << 32 | index * 0x1234567 for index in range(16)]
        for name, value in zip(_NAMES, values, strict=True):
            self._uc.reg_write(getattr(const, f"UC_X86_REG_{name}"), value)
        self.state = self._search(struct.pack("<16Q", *values))
        if not self.state:
            raise self._unknown("the registers of its CPU are not to be found")
        window = (ctypes.c_char * _WINDOW).from_address(self.state)
        self.q = memoryview(window).cast("B").cast("Q")
        self.i = memoryview(window).cast("B").cast("I")
        # The fields of a pending exception stand around the debug registers.
        marks = [0x7E57000 + index for index in range(4)]
        for index, mark in enumerate(marks):
            self._uc.reg_write(const.UC_X86_REG_DR0 + index, mark)
        dr0 = memoryview(window).tobytes().find(struct.pack("<4Q", *marks))
        if dr0 < 0:
            raise self._unknown("the debug registers of its CPU are not to be found")
        self.error_code = (dr0 - 16) // 4
        self.is_software_interrupt = (dr0 - 12) // 4
        self.old_exception = (dr0 + 8 * 8 + 4 * 8) // 4
        self._dr6 = dr0 // 8 + 6
        self._fpu_size = dr0 - 16 - _FPU_AT
        for index in range(4):
            self._uc.reg_write(const.UC_X86_REG_DR0 + index, 0)

    def _search(self, pattern: bytes) -> int:
        """Return the address of the pattern in an object that the engine's structure points to; 0 if nowhere."""
        try:
            memory = open("/proc/self/mem", "rb", buffering=0)  # noqa: SIM115 - closed below
        except OSError:
            raise DeviceError("machine-code guests run on Linux only: there is no /proc/self/mem here") from None
        with memory:

            def read(address: int, size: int) -> bytes:
                # What is not mapped cannot be read; a pointer need not be one.
                try:
                    memory.seek(address)
                    return memory.read(size)
                except (OSError, OverflowError, ValueError):
                    return b""

            for pointer in dict.fromkeys(memoryview(read(self.engine, 4096)).cast("Q")):
                if 0x10000 <= pointer < 1 << 47:
                    at = read(pointer, 1 << 17).find(pattern)
                    if at >= 0:
                        return pointer + at
        return 0

    def _self_test(self) -> None:
        """Check the layout through the public interface, one field of each kind."""
        const, q, i = self._const, self.q, self.i
        checks = (
            ("RIP", RIP, 0x1234567, q),
            ("CR2", CR2, 0x7654321, q),
            ("GS_BASE", BASE_AT[GS], 0x99999, q),
            ("R15", R15, 0xABCDEF0123, q),
        )
        for name, index, value, view in checks:
            self._uc.reg_write(getattr(const, f"UC_X86_REG_{name}"), value)
            if view[index] != value:
                raise self._unknown(f"{name} is not where it was")
            view[index] = 0
        for index in range(16):
            q[index] = 0
        self.set_flags(_TRAP | 2)
        if not i[EFLAGS] & _TRAP:
            raise self._unknown("RFLAGS is not where it was")
        self.set_flags(2)
        if i[self.old_exception] != NO_EXCEPTION:
            raise self._unknown("the last exception is not where it was")
        if not i[HFLAGS] & HF_CS64:
            raise self._unknown("the mode of its CPU is not where it was")

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self, until: int) -> int:
        """Run from `rip` until a hook stops the CPU; returns uc_err. `until` must be mapped, and never executed."""
        self.i[self.old_exception] = NO_EXCEPTION
        guard = self._guard
        guard[STATE] = self.state
        status = self._start(self.engine, self.q[RIP], until, 0, 0)
        guard[STATE] = 0
        return status

    def stop(self) -> None:
        """Stop the CPU at the end of the instruction whose hook this is called from."""
        self._stop(self.engine)

    @property
    def stop_function(self) -> int:
        """The address of uc_emu_stop."""
        return self._address_of("uc_emu_stop")

    @property
    def raise_function(self) -> int:
        """The address of QEMU's raise_exception_err(state, vector, error code), which does not return."""
        if not hasattr(self._lib, _RAISE):
            raise self._unknown("its CPU cannot be made to take an exception")
        return self._address_of(_RAISE)

    def error(self, code: int) -> str:
        """Return Unicorn's words for an error code."""
        return str(self._unicorn.UcError(code))

    def forget_code(self, page: int) -> None:
        """Drop the translations of the code in the frame behind a page of the present address space."""
        self._uc.ctl_remove_cache(page << 12, (page + 1) << 12)

    def forget_all_code(self) -> None:
        """Drop all translations; to be called while the CPU does not run."""
        self._uc.ctl_flush_tb()

    # -- registers that are more than a word ------------------------------------------------------------------------

    def flags(self) -> int:
        """Return RFLAGS: the CPU computes the arithmetic flags when somebody asks."""
        self._reg_read(self.engine, self._eflags, self._word_at)
        return self._words[0] & 0xFFFFFFFF

    def set_flags(self, value: int) -> None:
        """Set RFLAGS."""
        self._word.value = value
        self._reg_write(self.engine, self._const.UC_X86_REG_EFLAGS, self._word_at)

    def set_cr3(self, value: int) -> None:
        """Load the root of the page tables, and forget all translations of addresses."""
        self._word.value = value
        self._reg_write(self.engine, self._const.UC_X86_REG_CR3, self._word_at)

    def load_next_cr3(self) -> None:
        """Load what `entries` would load at the end of a hook."""
        words = self.entries.words
        if words[NEXT_CR3]:
            self.set_cr3(words[NEXT_CR3])
            words[NEXT_CR3] = 0

    def forget_addresses(self) -> None:
        """Forget all translations of addresses."""
        self.set_cr3(self.q[CR3])

    def set_control(self, cr0: int, cr4: int) -> None:
        """Load the control registers that say how the CPU behaves."""
        self._uc.reg_write(self._const.UC_X86_REG_CR4, cr4)
        self._uc.reg_write(self._const.UC_X86_REG_CR0, cr0)

    def set_efer(self, value: int) -> None:
        """Load the extended features: SYSCALL, long mode, no-execute."""
        self._uc.reg_write(self._const.UC_X86_REG_MSR, (0xC0000080, value))

    def take_debug_status(self) -> int:
        """Return why there is a #DB (as DR6 says it), and forget it."""
        status, self.q[self._dr6] = self.q[self._dr6], 0xFFFF0FF0
        return status

    def save_fpu(self) -> bytes:
        """Return the state of FPU and SSE, in the emulator's own form."""
        return ctypes.string_at(self.state + _FPU_AT, self._fpu_size)

    def load_fpu(self, state: bytes) -> None:
        """Put a state of `save_fpu` back."""
        ctypes.memmove(self.state + _FPU_AT, state, self._fpu_size)

    def fxsave(self) -> bytes:
        """Return the state of FPU and SSE as FXSAVE stores it (512 bytes; the processor's manual, volume 1)."""
        read, const = self._uc.reg_read, self._const
        status, tags = read(const.UC_X86_REG_FPSW), read(const.UC_X86_REG_FPTAG)
        valid = sum(1 << number for number in range(8) if tags >> 2 * number & 3 != _EMPTY)
        image = bytearray(_FXSAVE_SIZE)
        _FXSAVE.pack_into(image, 0, read(const.UC_X86_REG_FPCW), status, valid, read(const.UC_X86_REG_MXCSR))
        top = status >> 11 & 7
        for number in range(8):
            mantissa, exponent = read(const.UC_X86_REG_FP0 + (top + number & 7))
            image[32 + 16 * number : 42 + 16 * number] = _REAL.pack(mantissa, exponent)
        for number in range(16):
            value = read(const.UC_X86_REG_XMM0 + number)
            image[160 + 16 * number : 176 + 16 * number] = value.to_bytes(16, "little")
        return bytes(image)

    def fxrstor(self, image: bytes) -> None:
        """Take over a state that FXSAVE has stored."""
        write, const = self._uc.reg_write, self._const
        control, status, valid, mxcsr = _FXSAVE.unpack_from(image)
        write(const.UC_X86_REG_FPCW, control)
        write(const.UC_X86_REG_FPSW, status)
        top = status >> 11 & 7
        for number in range(8):
            write(const.UC_X86_REG_FP0 + (top + number & 7), _REAL.unpack_from(image, 32 + 16 * number))
        write(const.UC_X86_REG_FPTAG, sum(_EMPTY << 2 * n for n in range(8) if not valid >> n & 1))
        write(const.UC_X86_REG_MXCSR, mxcsr & _MXCSR_MASK)
        for number in range(16):
            at = 160 + 16 * number
            write(const.UC_X86_REG_XMM0 + number, int.from_bytes(image[at : at + 16], "little"))

    # -- hooks ------------------------------------------------------------------------------------------------------

    def _hook(self, kind: int, function: Any, data: int | None, *instruction: int, begin: int = 1, end: int = 0) -> int:
        """Set a hook, on all addresses or from `begin` to `end`; returns its handle."""
        handle = ctypes.c_size_t()
        status = self._lib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            kind,
            ctypes.cast(function, ctypes.c_void_p),
            data,
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            *map(ctypes.c_int, instruction),
        )
        if status:
            raise self._unknown(f"a hook is refused ({self.error(status)})")
        # What is called must live as long as the hook.
        self._hooks[handle.value or 0] = function
        return handle.value or 0

    def hook_syscall(self, function: Callable[[], None]) -> None:
        """Call a function at each SYSCALL (see `entries`); it must not raise.

        RIP is moved behind the instruction (2 bytes) when the function returns.
        """
        self.entries.on_syscall(function)
        hook = ctypes.c_void_p(self.entries.syscall)
        self._hook(self._unicorn.UC_HOOK_INSN, hook, self.entries.address, self._const.UC_X86_INS_SYSCALL)

    def hook_exceptions(self, function: Callable[[], None]) -> None:
        """Call a function at each exception or software interrupt (see `entries`); RIP is where the CPU goes on."""
        self.entries.on_exception(function)
        hook = ctypes.c_void_p(self.entries.exception)
        self._hook(self._unicorn.UC_HOOK_INTR, hook, self.entries.address)

    def hook_invalid(self, function: Callable[[], None]) -> None:
        """Call at each instruction that there is not; RIP is where the CPU goes on."""

        def called(_engine: int, _data: int) -> bool:
            function()
            return True

        self._hook(self._unicorn.UC_HOOK_INSN_INVALID, _Invalid(called), None)

    def map_nothing(self) -> None:
        """Let physical addresses behind the end of memory read as ones, and lose what is written to them.

        That is what a PC does where no device answers. Code is not fetched from there.
        """

        def called(_engine: int, kind: int, address: int, _size: int, _value: int, _data: int) -> bool:
            if kind == self._unicorn.UC_MEM_FETCH_UNMAPPED:
                return False
            # Mapped as it is touched, a page at a time: all of what is not there cannot be mapped at once.
            self._uc.mmio_map(address & ~0xFFF, 0x1000, _read_ones, None, _lose, None)
            return True

        # Where there are hooks of memory, Unicorn looks at each store. Elsewhere it looks at each that may overwrite
        # code, if it can be told which those are.
        bounds = {"begin": self._size, "end": _LAST} if self._memory_lookup.is_in_use else {}
        self._hook(self._unicorn.UC_HOOK_MEM_UNMAPPED, _Unmapped(called), None, **bounds)

    def hook_cpuid(self, function: Callable[[], None]) -> None:
        """Carry CPUID out by a function."""

        def called(_engine: int, _data: int) -> int:
            function()
            return 1

        self._hook(self._unicorn.UC_HOOK_INSN, _Instruction(called), None, self._const.UC_X86_INS_CPUID)

    def hook_ports(self, port_in: int, port_out: int, data: int) -> None:
        """Carry out IN by `port_in(engine, port, width, data)`, OUT by `port_out(engine, port, width, value, data)`.

        They are addresses of machine code (0: none), which does not return.
        """
        for function, instruction in ((port_in, self._const.UC_X86_INS_IN), (port_out, self._const.UC_X86_INS_OUT)):
            if function:
                self._hook(self._unicorn.UC_HOOK_INSN, ctypes.c_void_p(function), data, instruction)

    def hook_tsc(self, rdtsc: int, rdtscp: int, data: int) -> None:
        """Carry RDTSC and RDTSCP out by machine code: `function(engine, data)`, which returns 1."""
        for function, instruction in (
            (rdtsc, self._const.UC_X86_INS_RDTSC),
            (rdtscp, self._const.UC_X86_INS_RDTSCP),
        ):
            self._hook(self._unicorn.UC_HOOK_INSN, ctypes.c_void_p(function), data, instruction)

    def hook_blocks(self, function: int, data: int) -> None:
        """Call machine code before each block: `function(engine, address, size, data)`."""
        self._hook(self._unicorn.UC_HOOK_BLOCK, ctypes.c_void_p(function), data)

    def hook_translations(self, function: int, data: int) -> None:
        """Call machine code whenever a block has been translated: `function(engine, block, block before, data)`."""
        self._hook(self._unicorn.UC_HOOK_EDGE_GENERATED, ctypes.c_void_p(function), data)

    def hook_instruction(self, address: int, function: Callable[[int], None]) -> int:
        """Call `function(address)` before the instruction there; returns a handle for `unhook`. It must not raise.

        If it stops the CPU, the instruction is not executed. What is translated already is not hooked.
        """
        hook = _Code(lambda _engine, address, _size, _data: function(address))
        return self._hook(self._unicorn.UC_HOOK_CODE, hook, None, begin=address, end=address)

    def hook_instructions(self, function: int, data: int) -> int:
        """Call machine code before each instruction, `function(engine, address, size, data)`; returns a handle."""
        return self._hook(self._unicorn.UC_HOOK_CODE, ctypes.c_void_p(function), data)

    def hook_accesses(self, function: int, data: int, *, reads: bool) -> int:
        """Call machine code at each store, or (`reads`) each access to memory; returns a handle.

        It is `function(engine, kind, physical address, size, value, data)`, called before what is done, but only if
        that is permitted. What is translated already is not hooked.
        """
        kinds = self._unicorn.UC_HOOK_MEM_WRITE | (self._unicorn.UC_HOOK_MEM_READ if reads else 0)
        return self._hook(kinds, ctypes.c_void_p(function), data)

    def unhook(self, handle: int) -> None:
        """Take a hook away."""
        self._lib.uc_hook_del(self._uc._uch, ctypes.c_size_t(handle))
        self._hooks.pop(handle, None)
