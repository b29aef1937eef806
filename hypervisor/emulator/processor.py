"""The emulated processor of a host: one Unicorn engine, which turns to one vCPU at a time.

Machine memory is mapped into it without a copy, so a frame number is a physical frame of the engine, and the page
tables of guests are walked by the engine itself. Kernel and user code of guests both run in ring 3, as on a real x86-64
Xen, so privileged instructions arrive as #GP.

Whatever a guest does that concerns Xen (a hypercall, an exception, a privileged instruction) arrives in a hook, in the
midst of the engine's run, and is answered there: stopping and starting again would cost twenty times as much. A hook
changes registers, and the engine goes on with those. The engine is stopped when the vCPU gives up the processor, when a
timer or the end of its time slice has come (`native_hooks`), or when translated code has to be dropped.

Time: the TSC ticks once a nanosecond, and an instruction takes one tick (more exactly: four bytes of code do).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, NoReturn

from hypervisor.abi import errno, xen
from hypervisor.abi.tracepoints import HYPERCALL
from hypervisor.emulator.binding import (
    BASE_AT,
    CR2,
    DS,
    EFLAGS,
    ES,
    FS,
    GDT,
    GS,
    HF_CPL_MASK,
    HFLAGS,
    R8,
    R10,
    RAX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
    RSP,
    SELECTOR_AT,
    SS,
    TR,
    Binding,
)
from hypervisor.emulator.binding import CS as CS_REGISTER
from hypervisor.emulator.breakpoints import Breakpoints
from hypervisor.emulator.entries import FLAGS, NEXT_CR3, SYSCALL_SIZE, VECTOR
from hypervisor.emulator.instruction import LONGEST
from hypervisor.emulator.native_hooks import (
    ABSENT,
    BASE,
    COUNT,
    DEADLINE,
    TRANSLATION_NS,
    TRANSLATIONS,
    TRAP_NS,
    NativeHooks,
)
from hypervisor.emulator.privileged import Privileged
from hypervisor.emulator.segments import LDT_PAGE, TSS_SELECTOR, Segments
from hypervisor.emulator.spaces import Spaces
from hypervisor.emulator.table_stores import TableStores
from hypervisor.emulator.traps import BP, DB, ERROR_IDT, GP, NM, OF, PF, TF, UD, Traps, swap_gs
from hypervisor.emulator.vcpu import EmulatedVCpu
from hypervisor.errors import HypercallError, InvariantError
from hypervisor.guest_access import copy_from_guest, walk_from
from hypervisor.mm.pte import ACCESSED, DIRTY, PRESENT, RW, USER
from hypervisor.mm.xen_slots import PAGES_PER_VCPU
from hypervisor.preempt import Continuation
from hypervisor.tape import TIME
from hypervisor.vcpu import CR0_START, GENERAL_REGISTERS

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor

general_registers = attrgetter(*GENERAL_REGISTERS)
U32 = 0xFFFF_FFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF
EFER = 0xD01
"""SYSCALL, long mode (enabled and active), no-execute."""
CR4 = 0x6A0
"""PAE, global pages, SSE; what a guest reads is another matter."""
FIRST_COUNT = 1 << 40
TURN_NS = 50_000
"""How far a pCPU gets ahead of the others at a time."""
REAL_TURN_NS = 1_000_000
"""How long a stretch is in real time, by the guest's clock, and so how far a guest gets ahead of the wall clock."""
INTERRUPT_NS = 2_000
"""How long the guest goes on, at least, until a timer that has come due interrupts it."""
FREE_TRANSLATIONS = 20_000
"""How many blocks of a vCPU may be translated at once without further cost: those of code that is new."""
FLUSH_NS = 200_000
"""What it takes to have all code translated again, for who brings that about."""
RDTSC_NS = 500
"""What reading the TSC takes: far more than the real thing, or loops that wait for time to pass would cost minutes."""
STORE_TO_READ_ONLY = 3
"""The error code of a page fault by a write to a page that is there, but for the bit that says ring 3."""
NOT_USER = 0x1B
RDPMC = b"\x0f\x33"
IRETQ = b"\x48\xcf"


class Processor:
    """Runs the machine-code vCPUs of a host. Made when the first of them runs."""

    def __init__(self, hv: Hypervisor) -> None:
        """Raises DeviceError, with a sentence, when there is no Unicorn that can be used."""
        self.hv = hv
        memory, self._marks = hv.memory.address()
        self._memory_at = memory
        self._code = bytearray(hv.memory.frames)
        """1 for each frame from which code has been translated."""
        self.cpu = cpu = Binding(memory, hv.memory.frames << 12, self._code)
        self.native = NativeHooks(cpu.state, cpu.stop_function, cpu.raise_function, self._make_miss(), RDTSC_NS)
        self._words = self.native.words
        self._entries = cpu.entries.words
        cpu.entries.connect(cpu.state, self.native.address, hv.sched.costs.hypercall)
        self._words[COUNT] = FIRST_COUNT
        self.segments = Segments(hv, cpu)
        self.traps = Traps(self)
        self.vcpu: EmulatedVCpu | None = None
        """The vCPU whose registers the CPU holds, while it runs."""
        self._loaded: EmulatedVCpu | None = None
        """The vCPU whose FPU state and descriptor tables the CPU holds."""
        self._root = 0
        self._spaces = Spaces(hv.memory, self.native)
        self._limit = self._stops_at = 0
        self._began = self._last_tsc = 0
        self._stale: set[int] = set()
        self._single_step = False
        self._failure: BaseException | None = None
        self._returned = False
        """The hypercall under way has been an iret: the registers are those of where the guest is now."""
        self._cost = hv.sched.costs.hypercall
        self._timers = hv.machine.timers
        self._power_on()
        self.privileged = Privileged(self)
        self.stores = TableStores(self)
        self.breakpoints = Breakpoints(self, cpu)
        self._fresh_fpu = cpu.save_fpu()
        cpu.hook_syscall(self._make_syscall())
        cpu.hook_exceptions(self._exception)
        cpu.hook_invalid(self._guard(self._invalid))
        cpu.map_nothing()
        cpu.hook_tsc(self.native.rdtsc, self.native.rdtscp, self.native.address)
        cpu.hook_ports(self.native.port_in, self.native.port_out, self.native.address)
        cpu.hook_cpuid(self._guard(self.privileged.cpuid))
        cpu.hook_blocks(self.native.block, self.native.address)
        cpu.hook_translations(self.native.translation, self.native.address)

    # -- making it ----------------------------------------------------------------------------------------------------

    def _power_on(self) -> None:
        """Leave ring 0 for good, by an iretq on a page of Xen's own."""
        hv, cpu = self.hv, self.cpu
        frames = [hv.frames.alloc_aside() for _ in range(5)]
        if min(frames) < 0:
            raise InvariantError("no memory for the emulated processor")
        q = hv.memory.q
        *tables, page = frames
        for table, entry in zip(tables, frames[1:], strict=True):
            q[table << 9] = entry << 12 | PRESENT | RW | USER | ACCESSED | DIRTY
        gdt = self.segments.reserved_page
        # The page is mapped at 0, and at 0x1000 the GDT, whose reserved entries begin with number 7168.
        q[(tables[3] << 9) + 1] = gdt << 12 | PRESENT | RW | ACCESSED | DIRTY
        base = page << 12
        hv.memory.b[base + 16 : base + 18] = IRETQ
        struct.pack_into("<5Q", hv.memory.b, base + 0x800, 0x20, 0xE033, 0x2, 0x700, 0xE02B)
        cpu.set_cr3(tables[0] << 12)
        cpu.set_efer(EFER)
        cpu.set_control(CR0_START, CR4)
        cpu.q[BASE_AT[GDT]] = 0x1000 - 7168 * 8 & U64
        cpu.i[SELECTOR_AT[GDT] + 4] = 0xFFFF
        cpu.q[RSP] = 0x800
        cpu.q[RIP] = 16
        cpu.run(0x20)
        if cpu.i[HFLAGS] & HF_CPL_MASK != 3:
            raise InvariantError("the emulated processor did not reach ring 3")
        # A task segment too small for a bitmap of I/O ports: every IN and OUT becomes a #GP.
        cpu.i[SELECTOR_AT[TR]] = TSS_SELECTOR
        cpu.i[SELECTOR_AT[TR] + 4] = 0
        for frame in frames:
            hv.frames.free_xen(frame)

    def read(self, vcpu: EmulatedVCpu, va: int, size: int) -> bytes:
        """Read memory as the running code sees it, in kernel or in user mode. Raises HypercallError(EFAULT)."""
        if vcpu.context.in_kernel:
            return copy_from_guest(vcpu, va, size)
        data = b""
        while size:
            base = walk_from(self.hv.memory, vcpu.user_cr3, va)
            if base < 0:
                raise HypercallError(errno.EFAULT)
            length = min(size, 4096 - (va & 0xFFF))
            start = base + (va & 0xFFF)
            data += self.hv.memory.b[start : start + length].tobytes()
            va, size = va + length, size - length
        return data

    def fetch(self, vcpu: EmulatedVCpu) -> bytes:
        """Return the bytes at the instruction pointer, as many of the longest instruction as are mapped."""
        rip = self.cpu.q[RIP]
        left = 4096 - (rip & 0xFFF)
        for size in (LONGEST, left) if left < LONGEST else (LONGEST,):
            try:
                return self.read(vcpu, rip, size)
            except HypercallError:
                continue
        return b""

    def _guard(self, function: Callable[[], None]) -> Callable[[], None]:
        """Keep an error of ours from getting lost in the engine: stop, and raise it when the engine has stopped."""

        def guarded() -> None:
            try:
                function()
            except BaseException as error:
                self.fail(error)

        return guarded

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, vcpu: EmulatedVCpu) -> int:
        """Run a vCPU until it stops or is stopped; returns the nanoseconds that its code took, at least 1."""
        vcpu.spent = 0
        words, cpu, hv = self._words, self.cpu, self.hv
        self._began = words[COUNT]
        now = hv.now()
        if hv.clock.real:
            # A guest's work may be ahead of the wall clock; its TSC does not go back for that.
            now = max(now, self._last_tsc)
        words[BASE] = now - self._began & U64
        words[ABSENT] = 0
        self._load(vcpu)
        self._allow_translations(vcpu, now)
        self.vcpu = vcpu
        self._limit = self._end_of_stretch(vcpu)
        while True:
            self.breakpoints.apply()
            b, info = hv.memory.b, vcpu.info
            if vcpu.nmi_pending and not vcpu.nmi_masked:
                self.traps.deliver_nmi(vcpu, cpu.q[RIP], cpu.flags())
            if b[info] and not b[info + 1]:
                self.traps.deliver_event(vcpu, cpu.q[RIP], cpu.flags())
            if self._must_leave(vcpu):
                break
            self._sync(vcpu)
            cpu.load_next_cr3()
            self._set_deadline()
            status = cpu.run(self.segments.area(vcpu) + 14 * 4096 + 0xFF8)
            vcpu.spent = words[COUNT] - self._began
            if self._failure is not None:
                self._raise()
            if status:
                self.crash(vcpu, f"the CPU emulator gave up: {cpu.error(status)}")
            if self._stale:
                self._drop_stale_code()
            if self.breakpoints.hit:
                self._break(vcpu)
            if self._single_step:
                self._single_step = False
                cpu.set_flags(cpu.flags() | TF)
        vcpu.spent = max(1, words[COUNT] - self._began)
        left = words[TRANSLATIONS]
        vcpu.translations = left - (left >> 63 << 64)
        self._last_tsc = words[COUNT] + words[BASE] & U64
        if hv.clock.real:
            # The pCPU is busy until the wall clock has come to where the guest's work is.
            vcpu.spent = max(1, self._last_tsc - hv.now())
        self._store(vcpu)
        self.vcpu = None
        return vcpu.spent

    def fail(self, error: BaseException) -> None:
        """Keep an error of a hook's until the engine has stopped, and stop it."""
        self._failure = error
        self.cpu.stop()

    @property
    def root(self) -> int:
        """Return the frame of the root of the page tables in use."""
        return self._root

    def _allow_translations(self, vcpu: EmulatedVCpu, now: int) -> None:
        """Let a vCPU have as many blocks translated for nothing as it has not used yet, and one more as time passes."""
        since, vcpu.translations_at = now - vcpu.translations_at, now
        left = max(vcpu.translations, 0) + since // TRANSLATION_NS
        self._words[TRANSLATIONS] = min(left, FREE_TRANSLATIONS)

    def all_is_translated_anew(self, culprit: EmulatedVCpu | None) -> None:
        """Take note that all translations have been dropped: new ones are free, but for the vCPU to blame."""
        if self.vcpu is culprit:
            self._words[COUNT] += FLUSH_NS
        else:
            self._words[TRANSLATIONS] = FREE_TRANSLATIONS
        for domain in self.hv.domains.values():
            for vcpu in domain.online_vcpus():
                if isinstance(vcpu, EmulatedVCpu) and vcpu is not culprit:
                    vcpu.translations = FREE_TRANSLATIONS

    def _break(self, vcpu: EmulatedVCpu) -> None:
        """Let the guest take the #DB of a breakpoint that the CPU was stopped for."""
        status = self.breakpoints.take()
        if not vcpu.domain.shutting_down:
            self._words[COUNT] += TRAP_NS
            self.traps.debug(vcpu, status)

    def _end_of_stretch(self, vcpu: EmulatedVCpu) -> int:
        """Return until when the vCPU may run at most: the end of its time slice, or sooner if others run beside it.

        pCPUs take turns. Code that waits for code on another pCPU would spin for a whole time slice. In real time
        guest and wall clock are brought together between two stretches, which are short for that.
        """
        sched, now = self.hv.sched, self.hv.now()
        end = sched.turn_ends(vcpu)
        if self.hv.clock.real:
            end = min(end, now + REAL_TURN_NS)
        if len(sched.pcpus) > 1 and (sched.run_queue or sum(pcpu.current is not None for pcpu in sched.pcpus) > 1):
            end = min(end, now + TURN_NS)
        return max(end, now + 1)

    @property
    def guest_time(self) -> int:
        """Return the time that the guest which ran last has got to: what its TSC read."""
        return self._last_tsc

    def _now(self) -> int:
        """Return the time as the running vCPU has it: in real time its work may be ahead of the wall clock."""
        now = self.hv.now()
        if self.hv.clock.real:
            words = self._words
            return max(now, words[COUNT] + words[BASE] & U64)
        return now

    def _must_leave(self, vcpu: EmulatedVCpu) -> bool:
        now = self._now()
        return bool(
            vcpu.pause_flags
            or vcpu.yielding
            or self.hv.stopped
            or now >= self._limit
            or now >= self._timers.next_deadline
        )

    def _raise(self) -> NoReturn:
        failure, self._failure = self._failure, None
        self.vcpu = None
        assert failure is not None
        raise failure

    def _set_deadline(self) -> None:
        """Let the CPU be stopped at the next timer or at the end of the time slice."""
        self._stops_at = min(self._limit, self._timers.next_deadline)
        left = self._stops_at - self._now()
        self._words[DEADLINE] = self._words[COUNT] + max(left, INTERRUPT_NS)

    def _load(self, vcpu: EmulatedVCpu) -> None:
        """Put a vCPU's registers into the CPU."""
        cpu, context = self.cpu, vcpu.context
        q, i = cpu.q, cpu.i
        if self._loaded is not vcpu:
            if self._loaded is not None:
                self._loaded.fpu = cpu.save_fpu()
            cpu.load_fpu(vcpu.fpu or self._fresh_fpu)
            if context.fpu_image:
                cpu.fxrstor(context.fpu_image)
                context.fpu_image = b""
            self._loaded = vcpu
            self._root = 0
            self.segments.load_tables(vcpu)
        q[: len(GENERAL_REGISTERS)] = memoryview(array("Q", general_registers(context)))
        cpu.set_flags(context.rflags & 0xFFFFFFFF | 0x202)
        segments = self.segments
        good = True
        for segment, selector in ((ES, context.es), (DS, context.ds), (FS, context.fs), (GS, context.gs)):
            if i[SELECTOR_AT[segment]] != selector or selector & ~3:
                good = segments.load(vcpu, segment, selector) and good
        if i[SELECTOR_AT[CS_REGISTER]] != context.cs:
            segments.load_code(vcpu, context.cs)
        if i[SELECTOR_AT[SS]] != context.ss:
            segments.load_stack(vcpu, context.ss)
        q[BASE_AT[FS]] = context.fs_base
        q[BASE_AT[GS]] = context.gs_base_kernel if context.in_kernel else context.gs_base_user
        if not good:
            wanted = {name: getattr(context, name) for name in ("ds", "es", "fs", "gs")}
            self.traps.failsafe(vcpu, wanted)

    def _store(self, vcpu: EmulatedVCpu) -> None:
        """Take a vCPU's registers out of the CPU."""
        cpu, context = self.cpu, vcpu.context
        q, i = cpu.q, cpu.i
        (
            context.rax, context.rcx, context.rdx, context.rbx, context.rsp, context.rbp, context.rsi, context.rdi,
            context.r8, context.r9, context.r10, context.r11, context.r12, context.r13, context.r14, context.r15,
            context.rip,
        ) = q[: len(GENERAL_REGISTERS)].tolist()  # fmt: skip
        context.rflags = cpu.flags()
        context.es, context.ds = i[SELECTOR_AT[ES]], i[SELECTOR_AT[DS]]
        context.fs, context.gs = i[SELECTOR_AT[FS]], i[SELECTOR_AT[GS]]
        context.cs, context.ss = i[SELECTOR_AT[CS_REGISTER]], i[SELECTOR_AT[SS]]
        context.fs_base = q[BASE_AT[FS]]
        if context.in_kernel:
            context.gs_base_kernel = q[BASE_AT[GS]]
        else:
            context.gs_base_user = q[BASE_AT[GS]]

    def save(self, vcpu: EmulatedVCpu) -> None:
        """Bring the registers of a vCPU up to date, in the midst of its run."""
        if self.vcpu is vcpu:
            self._store(vcpu)

    def fpu_image(self, vcpu: EmulatedVCpu) -> bytes:
        """Return the FPU state of a vCPU that does not run, as FXSAVE stores it; empty if it has none yet."""
        cpu = self.cpu
        if self._loaded is vcpu:
            return cpu.fxsave()
        if not vcpu.fpu:
            return b""
        present = cpu.save_fpu()
        cpu.load_fpu(vcpu.fpu)
        image = cpu.fxsave()
        cpu.load_fpu(present)
        return image

    def unload(self, vcpu: EmulatedVCpu) -> None:
        """Forget a vCPU that is set up afresh or goes away."""
        if self._loaded is vcpu:
            self._loaded = None

    def _sync(self, vcpu: EmulatedVCpu) -> None:
        """Let the CPU use the page tables (before it goes on) and the descriptor tables that the vCPU has now."""
        context = vcpu.context
        if context.gdt_frames is not vcpu.gdt_loaded or context.ldt is not vcpu.ldt_loaded:
            self.segments.sync(vcpu)
            self.segments.load_tables(vcpu)
        root = vcpu.kernel_cr3 if context.in_kernel else vcpu.user_cr3
        if root != self._root:
            self._root = root
            self._spaces.use(root)
        elif not vcpu.tlb_is_stale:
            return
        vcpu.tlb_is_stale = False
        self._entries[NEXT_CR3] = root << 12

    def forget_root(self, root: int) -> None:
        """Take note that a frame is the root of another address space from now on, or of none."""
        self._spaces.forget_root(root)
        if root == self._root:
            self._root = 0

    # -- code ---------------------------------------------------------------------------------------------------------

    def forget_page(self, va: int | None) -> None:
        """Take note that a page of some address space, or of all, may have another frame behind it now."""
        self._spaces.forget_page(va)

    def forget_frame(self, mfn: int) -> None:
        """Take note that a frame is no longer where it was, in some address space; mostly there is no code in it."""
        if mfn >= len(self._code) or self._code[mfn]:
            self.native.drop_all()

    def _make_miss(self) -> Callable[[int, int], None]:
        """Make the function that looks at a block of code in a page that the table does not know, or that was written.

        (On local names: each page that is executed comes here, below each root.)
        """
        memory, code, marks = self.hv.memory, self._code, self._marks
        written = memory.written

        def missed(address: int, size: int) -> None:
            try:
                last = address + size - 1 if size else address
                for page in range(address >> 12, (last >> 12) + 1):
                    base = walk_from(memory, self._root, page << 12)
                    if base < 0:
                        continue
                    mfn = base >> 12
                    if not code[mfn]:
                        code[mfn] = 1
                        self.cpu.forget_addresses()
                    elif written[mfn] == 1:
                        self._stale.add(page)
                        self.cpu.stop()
                        continue
                    if written[mfn] == 1:
                        written[mfn] = 2
                    self.native.enter(page, marks + mfn)
            except BaseException as error:
                self.fail(error)

        return missed

    def _drop_stale_code(self) -> None:
        """Drop the translations of code that was overwritten behind the CPU's back; the CPU makes new ones."""
        for page in sorted(self._stale):
            base = walk_from(self.hv.memory, self._root, page << 12)
            if base >= 0:
                self.cpu.forget_code(page)
                self.hv.memory.written[base >> 12] = 2
        self._stale.clear()

    def port_is_absent(self, vcpu: EmulatedVCpu, port: int, width: int) -> None:
        """Take note that the guest, as it is now, reads ones from a port and may do so without Xen."""
        self.native.port_is_absent(port, width, self._memory_at + vcpu.info)

    # -- modes --------------------------------------------------------------------------------------------------------

    def enter_kernel(self, vcpu: EmulatedVCpu) -> None:
        """Switch to the guest kernel's page tables and GS base (toggle_guest_mode)."""
        swap_gs(vcpu, self.cpu.q, to_kernel=True)
        vcpu.context.in_kernel = True

    def enter_user(self, vcpu: EmulatedVCpu) -> None:
        """Switch to the page tables and the GS base of user mode."""
        if vcpu.context.in_kernel:
            swap_gs(vcpu, self.cpu.q, to_kernel=False)
            vcpu.context.in_kernel = False

    def return_with(self, flags: int) -> None:
        """Give RFLAGS back to the guest at the end of a hypercall.

        With TF the emulated SYSCALL would trap at once, but one instruction is to be executed before: so the CPU is
        stopped, and TF set when it starts again.
        """
        self.cpu.set_flags(flags & ~TF)
        if flags & TF:
            self._single_step = True
            self.cpu.stop()

    def iret(self, vcpu: EmulatedVCpu) -> int:
        """Carry out HYPERVISOR_iret for the running vCPU; returns the new rax."""
        if vcpu is not self.vcpu:
            raise HypercallError(errno.ENOSYS)
        self.traps.iret(vcpu)
        self._returned = True
        rax = self.cpu.q[RAX]
        return rax - (rax >> 63 << 64)

    def set_segment_base(self, vcpu: EmulatedVCpu, which: int, base: int) -> None:
        """Let the CPU know a new base of FS, or of GS in kernel mode."""
        if vcpu is self.vcpu:
            self.cpu.q[BASE_AT[FS if which == xen.SEGBASE_FS else GS]] = base

    def load_user_gs(self, vcpu: EmulatedVCpu, selector: int) -> None:
        """Load GS with a selector of the guest's, its base becoming that of user mode."""
        if vcpu is not self.vcpu:
            return
        cpu, at = self.cpu, BASE_AT[GS]
        kernel_base = cpu.q[at]
        cpu.q[at] = 0
        self.segments.load(vcpu, GS, selector | 3 if selector > 3 else selector)
        vcpu.context.gs_base_user, cpu.q[at] = cpu.q[at], kernel_base

    def set_cr0(self, vcpu: EmulatedVCpu) -> None:
        """Let the CPU know whether CR0.TS is set."""
        if vcpu is self.vcpu:
            self.cpu.set_control(vcpu.context.cr0, CR4)

    def crash(self, vcpu: EmulatedVCpu, why: str) -> bool:
        """End the vCPU's domain: it did what the processor can do nothing with. Returns False."""
        self._store(vcpu)
        if not vcpu.domain.shutting_down:
            self.hv.domain_ops.crash(vcpu.domain, f"vCPU {vcpu.vcpu_id}: {why}")
        self.cpu.stop()
        return False

    # -- hooks --------------------------------------------------------------------------------------------------------

    def _entered(self) -> EmulatedVCpu:
        """Note the time at an entry to Xen by a trap, which takes some; returns the vCPU."""
        vcpu = self.vcpu
        assert vcpu is not None
        self._words[COUNT] += TRAP_NS
        self._words[ABSENT] = 0
        vcpu.spent = self._words[COUNT] - self._began
        tape = self.hv.tape
        if tape is not None:
            tape.words.extend((TIME, self.hv.now()))
        return vcpu

    def _make_syscall(self) -> Callable[[], None]:
        """Make the hook of SYSCALL, on local names: a kernel makes a hundred thousand hypercalls a second.

        What `_leave` does is written out, for nearly always there is nothing to be done. (See `entries`, too.)
        """
        hv, cpu, q, b, words, entries = self.hv, self.cpu, self.cpu.q, self.hv.memory.b, self._words, self._entries
        table, trace, timers = hv.table, hv.trace, self._timers
        tape = hv.tape
        size, use = len(table), self._spaces.use

        def syscall() -> None:
            """Carry out a hypercall of the guest kernel, or pass a system call of user code on to it."""
            try:
                vcpu = self.vcpu
                assert vcpu is not None
                vcpu.spent = words[COUNT] - self._began
                context = vcpu.context
                if not context.in_kernel:
                    self._system_call(vcpu)
                    return
                nr, a1, a2, a3, a4, a5 = q[RAX], q[RDI], q[RSI], q[RDX], q[R10], q[R8]
                vcpu.hypercalls += 1
                if tape is not None:
                    tape.words.extend((TIME, hv.now()))
                try:
                    result = table[nr](vcpu, a1, a2, a3, a4, a5) if nr < size else -errno.ENOSYS
                except HypercallError as error:
                    result = -error.errno
                except Continuation as rest:
                    self._continue(vcpu, nr, (a1, a2, a3, a4, a5), rest)
                    return
                if trace is not None:
                    trace(vcpu.domain.domid, vcpu.vcpu_id, HYPERCALL, nr, a1, a2, a3, a4, a5, result)
                if self._returned:
                    # All registers have been replaced, by an iret or a multicall of one; the hook adds the size.
                    self._returned = False
                    q[RIP] = q[RIP] - SYSCALL_SIZE & U64
                else:
                    q[RAX] = result & U64
                info = vcpu.info
                if (
                    vcpu.pause_flags
                    or vcpu.yielding
                    or hv.stopped
                    or vcpu.nmi_pending
                    or (b[info] and not b[info + 1])
                    or timers.next_deadline < self._stops_at
                    or words[COUNT] >= words[DEADLINE]
                    or context.gdt_frames is not vcpu.gdt_loaded
                    or context.ldt is not vcpu.ldt_loaded
                ):
                    self._leave(vcpu, SYSCALL_SIZE)
                    return
                root = vcpu.kernel_cr3 if context.in_kernel else vcpu.user_cr3
                if root != self._root:
                    self._root = root
                    use(root)
                elif not vcpu.tlb_is_stale:
                    return
                vcpu.tlb_is_stale = False
                entries[NEXT_CR3] = root << 12
            except BaseException as error:
                self._failure = error
                cpu.stop()

        return syscall

    def _system_call(self, vcpu: EmulatedVCpu) -> None:
        """Pass a system call of user code on to the guest kernel. It is no hypercall: it takes the guest's own time."""
        words, q, cost = self._words, self.cpu.q, self._cost
        words[DEADLINE] = words[DEADLINE] + cost & U64
        words[BASE] = words[BASE] - cost & U64
        words[COUNT] += cost
        if self.traps.system_call(vcpu, q[RCX], self._entries[FLAGS]):
            q[RIP] = q[RIP] - SYSCALL_SIZE & U64
        self._leave(vcpu, SYSCALL_SIZE)

    def _continue(self, vcpu: EmulatedVCpu, nr: int, registers: tuple[int, ...], rest: Continuation) -> None:
        """Let the guest make what is left of a hypercall as another one. RAX says which: mostly the same."""
        q = self.cpu.q
        q[RAX] = nr if rest.nr < 0 else rest.nr
        q[RDI], q[RSI], q[RDX], q[R10], q[R8] = (value & U64 for value in rest.replace(registers))
        q[RIP] = q[RCX] - 2 * SYSCALL_SIZE & U64
        self._leave(vcpu, SYSCALL_SIZE)

    def _leave(self, vcpu: EmulatedVCpu, size: int = 0) -> None:
        """End an entry to Xen: deliver an event, load what has changed, or stop. RIP is `size` short of its value."""
        if vcpu.pause_flags or vcpu.yielding or self.hv.stopped:
            self.cpu.stop()
            return
        b, info = self.hv.memory.b, vcpu.info
        if vcpu.nmi_pending and not vcpu.nmi_masked:
            # (By way of `run`: nothing is gained by being quick about it.)
            self.cpu.stop()
            return
        if b[info] and not b[info + 1]:
            q = self.cpu.q
            if self.traps.deliver_event(vcpu, q[RIP] + size & U64, self.cpu.flags()):
                q[RIP] = q[RIP] - size & U64
            else:
                return
        self._sync(vcpu)
        if self._timers.next_deadline < self._stops_at:
            # The guest has armed a timer that comes before whatever the CPU was to be stopped for.
            self._set_deadline()
        if self._words[COUNT] >= self._words[DEADLINE]:
            # A guest whose every instruction traps may never begin a block.
            self.cpu.stop()

    def _exception(self) -> None:
        try:
            vector = self._entries[VECTOR]
            vcpu, cpu = self._entered(), self.cpu
            i = cpu.i
            i[cpu.old_exception] = 0xFFFFFFFF
            if vector != DB and self._trap_of_the_one_before(vcpu):
                pass
            elif i[cpu.is_software_interrupt]:
                i[cpu.is_software_interrupt] = 0
                self._software_interrupt(vcpu, vector)
            elif vector == PF:
                self._page_fault(vcpu, i[cpu.error_code] & 0x1F, cpu.q[CR2])
            elif vector == GP:
                error = i[cpu.error_code] & 0xFFFF
                if error or not self.privileged.emulate(vcpu):
                    self.traps.inject(vcpu, GP, error)
            elif vector == DB:
                self.traps.debug(vcpu, cpu.take_debug_status() | self.breakpoints.take())
            else:
                self.traps.inject(vcpu, vector, i[cpu.error_code] & 0xFFFF)
                if vector == NM:
                    # Xen has switched the FPU on for the handler.
                    vcpu.set_task_switched(False)
            self._leave(vcpu)
        except BaseException as error:
            self.fail(error)

    def _trap_of_the_one_before(self, vcpu: EmulatedVCpu) -> bool:
        """Let the guest take the #DB of the instruction before the one that cannot be executed; False if it has none.

        (An instruction that itself faults has not been executed, so the data that it has touched does not count.)
        """
        if not self.breakpoints.data.hit:
            return False
        bits, at = self.breakpoints.data.take()
        if at == self.cpu.q[RIP]:
            return False
        self.traps.debug(vcpu, bits)
        return True

    def _software_interrupt(self, vcpu: EmulatedVCpu, vector: int) -> None:
        """`int n`: what the guest's trap table permits its present mode."""
        entry = vcpu.context.trap_table.get(vector)
        needed = 1 if vcpu.context.in_kernel else 3
        if vector == BP:
            self.traps.breakpoint(vcpu)
            return
        if vector == OF or (entry is not None and entry[2] and entry[0] & 3 >= needed):
            self.traps.inject(vcpu, vector)
            return
        self.cpu.q[RIP] -= 2
        error = vector * (8 if vector == 0x80 else 16) + ERROR_IDT
        self.traps.inject(vcpu, GP, error)

    def _page_fault(self, vcpu: EmulatedVCpu, error: int, address: int) -> None:
        offset = address - self.segments.area(vcpu) - LDT_PAGE * 4096
        if 0 <= offset < (PAGES_PER_VCPU - LDT_PAGE) * 4096:
            if self.segments.map_ldt(vcpu, offset):
                return
            address = vcpu.context.ldt_base + offset
        if vcpu.context.in_kernel and error & NOT_USER == STORE_TO_READ_ONLY and self.stores.emulate(vcpu, address):
            if self.cpu.i[EFLAGS] & TF:
                # Xen does not say in DR6 why.
                self.traps.inject(vcpu, DB)
            return
        self.traps.inject_page_fault(vcpu, error, address)

    def _invalid(self) -> None:
        vcpu, cpu = self._entered(), self.cpu
        cpu.i[cpu.old_exception] = 0xFFFFFFFF
        if not self._trap_of_the_one_before(vcpu) and not self.privileged.forced_emulation(vcpu):
            # The emulator has no performance counters to read; a processor does not let a guest read them.
            vector = GP if self.fetch(vcpu)[:2] == RDPMC else UD
            self.traps.inject(vcpu, vector)
        self._leave(vcpu)
        cpu.load_next_cr3()
