"""A virtual CPU: plain state, and the interface through which a physical CPU runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, xen
from hypervisor.mm.pte import FRAME_MASK
from hypervisor.tape import VCpuCodes

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel.fifo import Queue
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.machine.timers import Timer

VPF_BLOCKED = 1
"""Waits for an event: SCHEDOP_block, or SCHEDOP_poll (then `poll_ports` is set)."""
VPF_DOWN = 2
"""Not brought up yet, or taken down."""
VPF_PAUSED = 4
"""`pause_count` of the vCPU or of its domain is not zero, or the domain has shut down."""

VPF_POLLING = 8
"""Together with `VPF_BLOCKED`: it sits in SCHEDOP_poll."""

NR_VIRQS = 24
FEW_PAGES = 32
"""So many translations are looked through for one that is to be forgotten."""
CR0_TS = 8

SELECTOR = xen.vcpu_info.offset("evtchn_pending_sel")


GENERAL_REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"
)  # fmt: skip
"""The general registers in the order in which instructions number them, and the instruction pointer."""

SELECTORS = ("es", "cs", "ss", "ds", "fs", "gs")
"""The segment registers in the processor's numbering."""

DR6_DEFAULT, DR7_DEFAULT = 0xFFFF0FF0, 0x400
CR0_START, CR4_START = 0x80050033, 0x660
"""Control registers 0 and 4 as a PV guest reads them."""
NO_LDT = (0, 0)


class Context:
    """The processor state that a hypercall can read or replace (vcpu_guest_context), as plain integers.

    For a vCPU that executes machine code it is the state at the last time the vCPU stopped; a Python guest has of the
    general registers only those with which it starts.
    """

    __slots__ = (
        *GENERAL_REGISTERS,
        *SELECTORS,
        "compat_masks",
        "cr0",
        "cr2",
        "cr4",
        "debugreg",
        "dr7_emulated",
        "event_callback",
        "failsafe_callback",
        "flags",
        "fpu_image",
        "fs_base",
        "gdt_ents",
        "gdt_frames",
        "gs_base_kernel",
        "gs_base_user",
        "in_kernel",
        "iobitmap",
        "iobitmap_ports",
        "iopl",
        "kernel_sp",
        "kernel_ss",
        "ldt",
        "rflags",
        "syscall32_callback",
        "syscall_callback",
        "sysenter_callback",
        "trap_table",
    )

    def __init__(self) -> None:
        self.rax = self.rcx = self.rdx = self.rbx = self.rbp = 0
        self.r8 = self.r9 = self.r10 = self.r11 = self.r12 = self.r13 = self.r14 = self.r15 = 0
        self.rip = self.rsp = self.rsi = self.rdi = 0
        self.es = self.ds = self.fs = self.gs = 0
        self.cs, self.ss = xen.FLAT_KERNEL_CS, xen.FLAT_KERNEL_SS
        self.rflags = 0x202
        self.flags = 0
        self.fpu_image = b""
        """State of FPU and SSE with which the vCPU is to go on (as FXSAVE stores it); empty: with what it has."""
        self.in_kernel = True
        """Whether the guest is in kernel mode: both modes run in ring 3, on page tables of their own."""
        self.iopl = 0
        self.iobitmap = self.iobitmap_ports = 0
        """Address of the bitmap of I/O ports that the kernel permits to its user code (0: permitted), and its size."""
        self.cr0, self.cr2, self.cr4 = CR0_START, 0, CR4_START
        self.kernel_ss = self.kernel_sp = 0
        self.event_callback = self.failsafe_callback = self.syscall_callback = 0
        self.syscall32_callback = self.sysenter_callback = 0
        self.compat_masks: frozenset[int] = frozenset()
        """Which of the last two (CALLBACKTYPE_*) mask upcalls on entry."""
        self.fs_base = self.gs_base_kernel = self.gs_base_user = 0
        self.gdt_ents = 0
        self.gdt_frames: list[int] = []
        """Another list whenever it is another table; so is `ldt`."""
        self.ldt = NO_LDT
        """Address and number of entries of the LDT."""
        self.debugreg = [0, 0, 0, 0, 0, 0, DR6_DEFAULT, DR7_DEFAULT]
        self.dr7_emulated = 0
        """Bits of DR7 that the processor is not told: they enable breakpoints on I/O ports."""
        self.trap_table: dict[int, tuple[int, int, int]] = {}
        """By vector: (flags, cs, address), as in struct trap_info."""

    def set_ldt(self, base: int, entries: int) -> None:
        """Take another LDT, or none."""
        self.ldt = (base, entries) if entries else NO_LDT

    @property
    def ldt_base(self) -> int:
        """Return the address of the LDT, 0 if there is none."""
        return self.ldt[0]

    @property
    def ldt_ents(self) -> int:
        """Return how many entries the LDT has."""
        return self.ldt[1]


NO_WORK = 0
"""What nearly every yield says. (The interpreter has one object for it, so that asking is cheap.)"""
MAX_WORK = 1 << 62
AWAKE = (None,)
"""`VCpu.idle` of one that is not in its idle loop: never empty."""


def checked_work(work: object) -> int:
    """Return what a guest yielded, if it is a number of nanoseconds. Raises ValueError: it may be anything at all."""
    if type(work) is not int or not 0 <= work <= MAX_WORK:
        raise ValueError(f"a vCPU yields how many nanoseconds it computes, not something of {type(work).__name__}")
    return work


class VCpu(ABC):
    """Xen's `struct vcpu`. Subclasses say what executes: Python code or a CPU emulator."""

    __slots__ = (
        "codes",
        "compute_left",
        "context",
        "cpus",
        "created",
        "credit_end",
        "debug_event",
        "domain",
        "event_queues",
        "flags_at",
        "hv",
        "hypercalls",
        "idle",
        "info",
        "info_registered",
        "initialised",
        "kernel_cr3",
        "last_periodic",
        "next_service",
        "next_time_update",
        "nmi_masked",
        "nmi_pending",
        "old_tables",
        "parked",
        "pause_count",
        "pause_flags",
        "periodic_ns",
        "periodic_timer",
        "poll_ports",
        "poll_timer",
        "processor",
        "queued",
        "quick_until",
        "ready_at",
        "resume",
        "runstate_area",
        "selector_at",
        "sent_arg",
        "sent_at",
        "since",
        "singleshot_timer",
        "spent",
        "time_area",
        "time_offline",
        "time_runnable",
        "time_running",
        "tlb_r",
        "tlb_w",
        "unit",
        "upcall",
        "user_cr3",
        "vcpu_id",
        "virq_to_port",
        "yielding",
    )

    def __init__(self, domain: Domain, vcpu_id: int) -> None:
        hv: Hypervisor = domain.hv
        self.domain = domain
        self.hv = hv
        self.vcpu_id = vcpu_id
        self.codes: Any = None
        """`VCpuCodes`, if there is a tape."""
        if hv.tape is not None:
            hypercall_ns = hv.sched.costs.hypercall
            self.codes = VCpuCodes(hv.tape, domain.domid, vcpu_id, blocked=VPF_BLOCKED, hypercall_ns=hypercall_ns)
        self.context = Context()
        self.initialised = False
        self.info = 0
        """Machine address of the vcpu_info (in shared_info, or where VCPUOP_register_vcpu_info moved it)."""
        self.flags_at = 0
        """The same as an index of `Memory.h`: the pending flag is the low byte there, the mask the high one."""
        self.info_registered = False
        self.selector_at = 0
        """Where its evtchn_pending_sel is, as an index of `Memory.q`: set with `info` by `place_info`."""
        self.kernel_cr3 = 0
        """Frame of the page table root in kernel mode; 0 = none."""
        self.user_cr3 = 0
        self.old_tables: list[int] = []
        """Page tables whose release a hypercall of this vCPU could not finish. Kept by `hypervisor.mm`."""
        self.tlb_r: dict[int, int] = {}
        """Software TLB: virtual page number → machine address of the page, for reads. Kept by `hypervisor.mm`."""
        self.tlb_w: dict[int, int] = {}
        self.hypercalls = 0
        self.nmi_pending = self.nmi_masked = False
        """An NMI waits to be delivered; one is being handled, until the next iret."""
        self.spent = 0
        """Nanoseconds that machine code has computed in the present stretch; always 0 for a guest in Python."""

        self.pause_flags = VPF_DOWN
        self.pause_count = 0
        self.queued = False
        """It waits for a pCPU: it is on the run queue, or `parked`."""
        self.parked = False
        """Its scheduler does not let it run now."""
        self.cpus = 0
        """The pCPUs on which it may run, a bit each. Kept by its scheduler, as are the next two."""
        self.credit_end = 0
        """At this value of `time_running` it has used up what its scheduler gave it."""
        self.unit: Any = None
        """What its scheduler keeps of it (`hypervisor.sched.algorithm.Unit`)."""
        self.yielding = False
        self.processor = 0
        self.compute_left = 0
        self.ready_at = hv.clock.now
        self.since = hv.clock.now
        self.created = hv.clock.now
        self.debug_event = 0
        """The vector that has stopped it for a debugger, until that asks; 0 for none."""
        self.time_running = self.time_runnable = self.time_offline = 0
        """Nanoseconds spent running, waiting for a processor, and paused or down. Otherwise it was blocked."""
        self.poll_ports: tuple[int, ...] | None = None
        """The ports that SCHEDOP_poll waits for; None when not polling."""
        self.poll_timer: Timer | None = None
        self.periodic_ns = 10_000_000
        self.last_periodic = hv.clock.now
        self.periodic_timer: Timer | None = None
        self.singleshot_timer: Timer | None = None
        self.next_time_update = 0
        self.next_service = 0
        """From this time on `GuestTime.schedule_in` has something to do when the vCPU gets a processor."""
        self.quick_until = 0
        """Before this time, when it gets a processor, it neither wants to compute nor has used up its credit, and
        `schedule_in` has nothing to do. Kept by the pCPU loop; whoever changes one of these makes it 0.
        """
        self.runstate_area: int = 0
        self.sent_arg = self.sent_at = -1
        """The last argument of EVTCHNOP_send: its address, and its index in `Memory.i`, by the TLB; -1: not known."""
        self.time_area: int = 0
        self.event_queues: tuple[Queue, ...] = ()
        """FIFO event ABI: the queues of its control block; none as long as it has registered none."""
        self.virq_to_port: list[Any] = [0] * NR_VIRQS
        self.upcall: Callable[[], object] | None = None
        """Of a vCPU that runs Python: what enters the event callback, once that has been found; None while a trace
        without tape wants upcalls."""
        self.resume: Callable[[None], object]
        """And then: runs the guest to its next yield, and returns what it says there, which is for `yielded`."""
        self.idle: Sized = AWAKE
        """And what its idle loop waits to find something in: it is not resumed before that, but blocks."""

    def place_info(self, maddr: int) -> None:
        """Let the vCPU's vcpu_info be at a machine address."""
        self.info = maddr
        self.flags_at = maddr >> 1
        self.selector_at = maddr + SELECTOR >> 3

    def ready_bits(self) -> int:
        """What an upcall says: the words of the bitmap that have events (two-level ABI), or the queues (FIFO)."""
        memory = self.hv.memory
        queues = self.event_queues
        word: int = memory.i[queues[0].ready_at] if queues else memory.q[self.selector_at]
        return word

    @abstractmethod
    def run(self) -> int:
        """Execute until the guest gives the processor back; deliver a pending upcall first.

        Returns how many nanoseconds of computing the guest asked for. Why it stopped is in the state: `pause_flags`
        (blocked, down, paused) or `yielding`.
        """

    def failed(self, error: Exception) -> None:
        """Guest code in Python has raised this."""
        raise error

    def yielded(self, work: object) -> int:
        """Guest code in Python has yielded this: returns how many ns it wants to compute. Raises ValueError."""
        return checked_work(work)

    def block(self) -> None:  # noqa: B027 - machine code does it by itself
        """Make the hypercall SCHEDOP_block in the place of guest code that is in its idle loop."""

    @abstractmethod
    def deliver_upcall(self) -> None:
        """Enter the guest's event callback if an unmasked upcall is pending."""

    def must_interrupt(self) -> bool:
        """Whether an interrupt waits that the vCPU would take amid a hypercall if that gave the processor back.

        Not if it runs Python: it is interrupted between two stretches of guest code only.
        """
        return False

    def flush_tlb(self, va: int | None, *, code: bool = True) -> None:
        """Forget the translation of one page, or of all (None): a mapping went away or changed.

        `code` is whether it may have been one from which code can be executed.
        """
        self.sent_arg = -1
        if va is None:
            self.tlb_r.clear()
            self.tlb_w.clear()
        else:
            self.tlb_r.pop(va >> 12, None)
            self.tlb_w.pop(va >> 12, None)

    def flush_entry(self, entry: int, *, code: bool = True) -> None:
        """Forget the pages that were translated by an L1 entry, which is gone: they lead to the frame that it named.

        `code` as above. (Where much is remembered, that is forgotten sooner than looked through.)
        """
        self.sent_arg = -1
        base = entry & FRAME_MASK
        tlb = self.tlb_r
        if len(tlb) > FEW_PAGES or base in tlb.values():
            tlb.clear()
        tlb = self.tlb_w
        if len(tlb) > FEW_PAGES or base in tlb.values():
            tlb.clear()

    def remembered(self) -> dict[int, tuple[dict[int, int], dict[int, int]]]:
        """Return all that is remembered: for each root `tlb_r` and `tlb_w`."""
        return {self.kernel_cr3: (self.tlb_r, self.tlb_w)}

    def root_loaded(self) -> None:
        """Take note that `kernel_cr3` has changed."""
        self.flush_tlb(None, code=False)

    def forget_root(self, root: int) -> None:  # noqa: B027 - nothing is known of roots that are not loaded
        """Take note that a frame becomes the root of other page tables than it may have been once."""

    def iret(self) -> int:
        """HYPERVISOR_iret: go on where the frame on the guest's stack says. Returns what goes into rax."""
        return -errno.ENOSYS

    def set_segment_base(self, which: int, base: int) -> None:
        """Set the base of FS, or of GS in user or kernel mode (xen.SEGBASE_*), to a canonical address."""
        if which == xen.SEGBASE_FS:
            self.context.fs_base = base
        elif which == xen.SEGBASE_GS_USER:
            self.context.gs_base_user = base
        else:
            self.context.gs_base_kernel = base

    def load_user_gs(self, selector: int) -> None:
        """Load the GS of user mode with a selector (SEGBASE_GS_USER_SEL); one that cannot be loaded becomes null."""
        self.context.gs_base_user = 0

    def set_task_switched(self, is_set: bool) -> None:
        """Set or clear CR0.TS."""
        context = self.context
        context.cr0 = context.cr0 | CR0_TS if is_set else context.cr0 & ~CR0_TS

    def fpu_image(self) -> bytes:
        """Return the state of FPU and SSE as FXSAVE stores it, or nothing if the vCPU has none."""
        return self.context.fpu_image

    def registers_replaced(self) -> None:  # noqa: B027 - a guest in Python has no registers
        """Take note that `context` holds registers from elsewhere."""

    def ldt_dropped(self) -> None:  # noqa: B027 - a guest in Python never loads a selector
        """Take note that pages of the LDT that were in use are given up; they are checked again at their next use."""

    def debugreg_changed(self) -> None:  # noqa: B027 - there need not be a processor that wants to know
        """Take note of a new value in `context.debugreg`."""

    def registers(self) -> Context | None:
        """Return the registers as they are at this very moment; None if there are none to see (Python code)."""
        return None

    @abstractmethod
    def callbacks_changed(self) -> None:
        """Take note that the guest has registered another entry point."""

    @abstractmethod
    def halt(self) -> None:
        """Forget the code that was running: the domain goes away, or its vCPU is set up afresh."""

    def __repr__(self) -> str:
        return f"<d{self.domain.domid}v{self.vcpu_id}>"
