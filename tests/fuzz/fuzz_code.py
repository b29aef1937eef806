"""One host whose only domain executes random machine code, in kernel and in user mode, and what must hold at its end.

The kernel sends every exception and every event to one place, `recover`, which goes on with the next of many snippets:
some bytes of code, the values of all registers, and the frame of the iret that enters it. Registers point at what is
worth a guest's trouble: page tables, its stack, its own code, what it shares with Xen.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from random import Random

from fuzz_grammar import BOUNDARIES, PTE_FLAGS
from leak_check import find_leaks
from machine_code import BASE, assemble

from hypervisor.abi import xen
from hypervisor.dom0_build import construct_dom0
from hypervisor.guest_access import translate_load, walk_from
from hypervisor.hypervisor import Hypervisor
from hypervisor.kernel_image.pv_kernel import LoadSegment, PvKernel
from hypervisor.machine.machine import Machine
from hypervisor.trap_ops import CR4_DE, set_debugreg

SNIPPETS = 128
SLOT = 64
"""Bytes of code in a snippet; an undefined instruction ends it."""
REGISTERS = 14
FRAME = 9
ARENA_PAGES = 4
NR_PAGES = 1024
MAX_STRETCHES = 3000
MAX_IDLE = 3
LONGEST_S = 4
BREAKPOINTS = 0.3
"""How many rounds have breakpoints on instructions, data and ports."""
USER_MODE = 0.3
"""How many snippets are user code."""
KERNEL = (
    r"""
main:
    mov 40(%rsi), %rax            # shared_info: map it at `shared`
    or $0x63, %rax
    mov %rax, %rsi
    lea shared(%rip), %rdi
    mov $2, %edx                  # UVMF_INVLPG, local
    hcall __HYPERVISOR_update_va_mapping
    lea traps(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    lea recover(%rip), %rdi
    mov %rdi, %rsi
    mov %rdi, %rdx
    hcall __HYPERVISOR_set_callbacks
    mov $FLAT_KERNEL_SS, %edi
    lea stack_top(%rip), %rsi
    hcall __HYPERVISOR_stack_switch
    mov $1, %edi                  # EVTCHNOP_bind_virq: the timer's
    lea virq(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
    xor %edi, %edi                # VMASST_CMD_enable
    mov assist(%rip), %esi
    hcall __HYPERVISOR_vm_assist
    lea user(%rip), %rdi          # MMUEXT_NEW_USER_BASEPTR
    mov $1, %esi
    xor %edx, %edx
    mov $DOMID_SELF, %r10d
    hcall __HYPERVISOR_mmuext_op

recover:
    lea stack_top(%rip), %rsp
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    movb $0, shared(%rip)
    movq $0, shared + 8(%rip)
    movq $0, shared + 0x800(%rip)
    rdtsc
    shl $32, %rdx
    lea 100000(%rdx, %rax), %rdi
    hcall __HYPERVISOR_set_timer_op
    mov index(%rip), %rbx
    cmp $@snippets@, %rbx
    jae 1f
    incq index(%rip)
    imul $@registers@ * 8, %rbx, %rcx
    lea registers(%rip), %rsp
    add %rcx, %rsp
    imul $@frame@ * 8, %rbx, %rcx
    lea frames(%rip), %rbx
    add %rcx, %rbx
    mov %rbx, frame(%rip)
    pop %rax; pop %rbx; pop %rcx; pop %rdx; pop %rsi; pop %rdi; pop %rbp
    pop %r8; pop %r9; pop %r10; pop %r12; pop %r13; pop %r14; pop %r15
    movb $0, shared + 1(%rip)     # upcalls may come
    mov frame(%rip), %rsp
    hcall __HYPERVISOR_iret
1:  poweroff

.data
.balign 64
index: .quad 0
frame: .quad 0
virq: .long 0, 0, 0
.balign 8
assist: .quad 0
user: .quad 0, 0, 0
places: .quad shared, traps, registers, frames, snippets, stack_top, arena, index, assist, user, table_end
traps:
.rept 20
    trap trap_vector, recover, 3
    .set trap_vector, trap_vector + 1
.endr
    trap 0x80, recover, 3
    trap 0, 0
table_end:
.balign 64
registers: .skip @snippets@ * @registers@ * 8
frames: .skip @snippets@ * @frame@ * 8
.balign 4096
stack: .skip 4096
stack_top: .skip 4096
shared: .skip 4096
arena: .skip 4096 * @arena@
snippets: .skip @snippets@ * @slot@
.balign 4096
""".replace("@snippets@", str(SNIPPETS))
    .replace("@registers@", str(REGISTERS))
    .replace("@frame@", str(FRAME))
    .replace("@arena@", str(ARENA_PAGES))
    .replace("@slot@", str(SLOT))
)
PLACES = ("shared", "traps", "registers", "frames", "snippets", "stack_top", "arena", "index", "assist", "user", "end")
SOURCE = ".set trap_vector, 0\n" + KERNEL
UD2 = b"\x0f\x0b"

PREFIXES = (b"\x66", b"\x67", b"\xf0", b"\xf2", b"\xf3", b"\x2e", b"\x36", b"\x64", b"\x65")
_STRANGE = """
0f05 0f07 0f34 0f35 0f06 0f08 0f09 0f30 0f31 0f32 0f33 0fa2 0faa 0f0b 0f0b78656e0fa2 0f0b78656e 0fa0 0fa1 0fa8
0fa9 0f37 0f77 f4 f1 cc cd03 cd80 cd0e cd21 ce cf 48cf cb ca0800 c3 c20800 9c 9d fa fb fc fd f8 f9 f5 9b c9
c8080002 d7 e400 e5cf e680 e7cf ec ed ee ef 66ed 66ef 6c 6d 6e 6f f36c f36d f36e f36f a4 48a5 f348a5 f3a4 aa
f348ab 48ab f3aa a6 f3a6 f2ae 0f01c1 0f01c8 0f01c9 0f01ca 0f01cb 0f01d0 0f01d1 0f01d5 0f01ee 0f01ef 0f01f8
0f01f9 0f01d9 0f01dd 0faee8 0faef0 0faef8 dbe3 d9e8 d9d0 0f28c1 660fefc0 c5f877 c5fc77 c4e27d18c0 62f17c4858c0
9adeadbeef eade 0fff 0fb9c0 ebfe 0fc7f0 0fc7f8 f30fc7f8 f30faec0 f30faed0 f30faed8 f30faec8 f390 f30f1efa
"""
STRANGE = tuple(map(bytes.fromhex, _STRANGE.split()))
"""Whole instructions on which Xen or the processor has views."""
GROUPS = (0x0F00, 0x0F01, 0x0FAE, 0x0FC7, 0x0F18, 0x0F20, 0x0F21, 0x0F22, 0x0F23, 0x0FB2, 0x0FB4, 0x0FB5, 0x8C, 0x8E)
"""Opcodes that are told apart by what follows."""
STORES = (0x88, 0x89, 0x87, 0x86, 0x01, 0x09, 0x21, 0x31, 0x29, 0x11, 0x19, 0x00, 0xFE, 0xFF, 0xF7, 0xD1, 0xC1, 0x80)
STORES += (0x81, 0x83, 0xC6, 0xC7, 0x8F, 0x0FB0, 0x0FB1, 0x0FC0, 0x0FC1, 0x0FAB, 0x0FB3, 0x0FBB, 0x0FBA, 0x0FC3, 0x0F11)
STORES += (0x0F7F, 0x0F29, 0x0FA4, 0x0FAD, 0x0F94, 0xDD, 0xDB, 0xD9, 0x63, 0x8B, 0x0FB6)
SELECTORS = (xen.FLAT_KERNEL_CS, xen.FLAT_KERNEL_SS, xen.FLAT_KERNEL_DS, 0xE023, 0xE02B, 0, 3, 7, 0xF, 0x10, 0xFFFF)
SELECTORS += (0xE008, 0xE010, 0xE040, 0x33, 0x2B, 0xE03B)
NUMBERS = (0x10, 0x1B, 0xFE, 0x174, 0x277, 0xC0000080, 0xC0000082, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103)
NUMBERS += (0x60, 0x61, 0x64, 0x70, 0x71, 0xCF8, 0xCFC, 0x3F8, 0x40, 0x43, 0x8000_0000, 0x4000_0000, 0x4000_0003, 7, 13)


class CodeRound:
    """One kernel of random snippets, to its end."""

    def __init__(self, seed: str) -> None:
        self.random = Random(seed)
        self.log = bytearray()
        self.hv = Hypervisor(Machine(memory_mib=16, pcpus=1), console=self.log.extend)
        self.free_at_first = self.hv.frames.free_frames
        self.domain = self.hv.domain_ops.create(0, max_vcpus=1, is_privileged=True)
        self.vcpu = self.hv.domain_ops.add_vcpu(self.domain, 0)
        image = assemble(SOURCE)
        kernel = PvKernel(virt_base=BASE, virt_entry=BASE, segments=(LoadSegment(BASE, image, len(image)),))
        layout = construct_dom0(self.hv, self.domain, kernel, "", None, NR_PAGES)
        marker = self._find_places(image)
        self.at = dict(zip(PLACES, struct.unpack_from(f"<{len(PLACES)}Q", image, marker), strict=True))
        self.tables = BASE + (layout.tables.pfn << 12)
        self.table_pages = layout.tables.pages
        self._write_everything()
        if self.random.random() < BREAKPOINTS:
            self._set_breakpoints()
        self.hv.domain_ops.unpause(self.domain)

    @staticmethod
    def _find_places(image: bytes) -> int:
        """Return where the kernel lists its own addresses: the only row of numbers that are all in its image."""
        inside = range(BASE, BASE + len(image) + 1)
        for at in range(0, len(image) - 8 * len(PLACES), 8):
            if all(address in inside for address in struct.unpack_from(f"<{len(PLACES)}Q", image, at)):
                return at
        raise AssertionError("the kernel has lost its list")

    def run(self) -> None:
        """Run until the kernel ends, or long enough (a loop with upcalls masked has no end). Raises what escapes."""
        idle = stretches = 0
        end = time.monotonic() + LONGEST_S
        while not self.hv.stopped and stretches < MAX_STRETCHES and idle < MAX_IDLE and time.monotonic() < end:
            left = self.hv.sched.drain(20)
            stretches += 20
            idle = idle + 1 if left else 0

    def close(self) -> None:
        """Recount everything, take the domain apart and recount again. Raises AssertionError."""
        found = find_leaks(self.hv, self.free_at_first, exempt=True)
        assert not found, "; ".join(found)

    @property
    def entered(self) -> int:
        """How many snippets were entered, as the kernel counts (if it has not written over that)."""
        return int(self.hv.memory.q[self._index >> 3])

    def snippet(self, index: int) -> bytes:
        """Return the code of a snippet, as it is in memory."""
        va = self.at["snippets"] + index * SLOT
        maddr = walk_from(self.hv.memory, self.vcpu.kernel_cr3, va)
        return self.hv.memory.b[maddr + (va & 0xFFF) :][:SLOT].tobytes() if maddr >= 0 else b""

    # -- what there is to execute -----------------------------------------------------------------------------------

    def _write_everything(self) -> None:
        random, at = self.random, self.at
        root = self.vcpu.kernel_cr3
        self._index = translate_load(self.vcpu, at["index"], False) + (at["index"] & 0xFFF)
        self._poke(at["assist"], random.choice((2, 2, 4, 5, 1, 0, 6)))
        self._poke(at["user"], xen.MMUEXT_NEW_USER_BASEPTR, root)
        for index in range(ARENA_PAGES * 512):
            self._poke(at["arena"] + index * 8, self._word())
        for index in range(SNIPPETS):
            code = self._snippet()
            self._poke_bytes(at["snippets"] + index * SLOT, code)
            registers = at["registers"] + index * REGISTERS * 8
            self._poke(registers, *(self._word() for _ in range(REGISTERS)))
            self._poke(at["frames"] + index * FRAME * 8, *self._frame(at["snippets"] + index * SLOT))

    def _set_breakpoints(self) -> None:
        """Put breakpoints where snippets are and where they load and store; the kernel itself is left alone."""
        random, at = self.random, self.at
        self.vcpu.context.cr4 |= CR4_DE
        for number in range(4):
            where = random.choice(
                (
                    at["arena"] + random.randrange(ARENA_PAGES * 4096),
                    at["snippets"] + random.randrange(SNIPPETS) * SLOT,
                    self.tables + random.randrange(self.table_pages * 512) * 8,
                    random.choice((0x60, 0x64, 0x70, 0x80, 0xCF8)),
                )
            )
            assert set_debugreg(self.vcpu, number, where) == 0
        assert set_debugreg(self.vcpu, 7, random.getrandbits(16) << 16 | random.getrandbits(8)) == 0
        self.vcpu.debugreg_changed()

    def _frame(self, rip: int) -> tuple[int, ...]:
        """Return the iret_context that enters a snippet."""
        random = self.random
        flags = xen.VGCF_in_syscall if random.random() < 0.3 else 0
        rflags = 0x202
        if random.random() < 0.2:
            rflags = random.choice((0x302, 0x3202, 0x40202, 0x602, 0x4202, 0x10202, 0x200202, 0x2, 0x20202))
        # The selector says whether this is kernel code: its privilege level is 0 then, or 3.
        cs, ss = xen.FLAT_KERNEL_CS & ~3, xen.FLAT_KERNEL_SS
        if random.random() < USER_MODE:
            cs = xen.FLAT_USER_CS
        if random.random() < 0.1:
            cs, ss = random.choice(((0xE023, 0xE02B), (0xE030, 0), (0xE033, 0xE023), (0xE020, 0)))
        rsp = self.at["arena"] + random.randrange(ARENA_PAGES * 512) * 8
        if random.random() < 0.01:
            rsp = self._word()
        return self._word(), self._word(), self._word(), flags, rip, cs, rflags, rsp, ss

    def _snippet(self) -> bytes:
        makers = (self._strange, self._group, self._store, self._hypercall, self._bytes)
        chosen = self.random.choices(makers, (4, 3, 6, 3, 2), k=self.random.randrange(1, 6))
        code = b"".join(maker() for maker in chosen)[: SLOT - len(UD2)]
        return code + UD2 * ((SLOT - len(code)) // len(UD2))

    def _prefix(self) -> bytes:
        random = self.random
        found = b"".join(random.choice(PREFIXES) for _ in range(random.choice((0, 0, 0, 0, 1, 1, 2))))
        return found + (bytes((random.randrange(0x40, 0x50),)) if random.random() < 0.4 else b"")

    def _strange(self) -> bytes:
        code = self.random.choice(STRANGE)
        return self._prefix() + code if self.random.random() < 0.3 else code

    def _operands(self, opcode: int) -> bytes:
        """Return an opcode and a ModRM byte, with what that asks for."""
        random = self.random
        code = bytes((opcode >> 8, opcode & 0xFF)) if opcode > 0xFF else bytes((opcode,))
        # (Number 4 would often be the stack pointer, whose loss is the end.)
        numbers = range(8) if random.random() < 0.05 else (0, 1, 2, 3, 5, 6, 7)
        mod, register, base = random.choice((0, 0, 0, 1, 2, 3)), random.choice(numbers), random.choice(numbers)
        code += bytes((mod << 6 | register << 3 | base,))
        if base == 4 and mod != 3:
            code += random.randbytes(1)
        if mod == 1:
            code += bytes((random.choice((0, 1, 4, 8, 0x7F, 0xF8)),))
        elif mod == 2 or (mod == 0 and base == 5):
            code += struct.pack("<i", random.choice((0, 8, -8, 4096, -4096)))
        if opcode in (0x80, 0x83, 0xC6, 0xC1, 0x0FBA, 0x0FA4):
            code += random.randbytes(1)
        elif opcode in (0x81, 0xC7):
            code += struct.pack("<I", random.choice((0, 0x67, 1, 0xFFFFFFFF)))
        return code

    def _group(self) -> bytes:
        return self._prefix() + self._operands(self.random.choice(GROUPS))

    def _store(self) -> bytes:
        return self._prefix() + self._operands(self.random.choice(STORES))

    def _hypercall(self) -> bytes:
        random = self.random
        number = random.choice((xen.HYPERVISOR_set_gdt, random.randrange(50), random.randrange(64)))
        code = b"\xb8" + struct.pack("<I", number)
        if random.random() < 0.6:
            code += b"\xbf" + struct.pack("<I", random.randrange(12))
        return code + b"\x0f\x05"

    def _bytes(self) -> bytes:
        return self.random.randbytes(self.random.randrange(1, 12))

    # -- what registers and memory hold -----------------------------------------------------------------------------

    def _word(self) -> int:
        random, at = self.random, self.at
        choices: tuple[tuple[int, Callable[[], int]], ...] = (
            (8, lambda: self.tables + random.randrange(self.table_pages * 512) * 8 + random.choice((0, 0, 0, 0, 4, 1))),
            (6, lambda: at["arena"] + random.randrange(ARENA_PAGES * 4096)),
            (3, lambda: at["arena"] + random.randrange(ARENA_PAGES * 512) * 8),
            (2, lambda: (at["arena"] & ~0xFFF) + random.randrange(1, ARENA_PAGES) * 4096 - random.randrange(16)),
            (4, lambda: at["snippets"] + random.randrange(SNIPPETS * SLOT)),
            (1, lambda: at["shared"] + random.randrange(4096)),
            (1, lambda: at["traps"] + random.randrange(320)),
            (4, lambda: random.choice(BOUNDARIES)),
            (4, lambda: random.choice(NUMBERS)),
            (2, lambda: random.choice(SELECTORS)),
            (4, lambda: random.randrange(64)),
            (4, self._entry),
            (2, self._frame_number),
            (1, lambda: xen.MACH2PHYS_VIRT_START + random.randrange(1 << 12)),
            (1, lambda: xen.HYPERVISOR_VIRT_START + random.getrandbits(43)),
            (1, lambda: random.getrandbits(64)),
            (1, lambda: BASE + random.randrange(NR_PAGES << 12)),
        )
        weights, makers = zip(*choices, strict=True)
        return random.choices(makers, weights)[0]() & (1 << 64) - 1

    def _frame_number(self) -> int:
        va = BASE + self.random.randrange(NR_PAGES) * 4096
        if self.random.random() < 0.5:
            va = self.tables + self.random.randrange(self.table_pages) * 4096
        found = walk_from(self.hv.memory, self.vcpu.kernel_cr3, va)
        return found >> 12 if found >= 0 else 0

    def _entry(self) -> int:
        return self._frame_number() << 12 | self.random.choice(PTE_FLAGS)

    def _poke(self, va: int, *words: int) -> None:
        self._poke_bytes(va, struct.pack(f"<{len(words)}Q", *words))

    def _poke_bytes(self, va: int, data: bytes) -> None:
        for at, byte in enumerate(data):
            maddr = walk_from(self.hv.memory, self.vcpu.kernel_cr3, va + at)
            self.hv.memory.b[maddr + (va + at & 0xFFF)] = byte
