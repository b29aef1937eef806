"""What a paravirtualized guest has of its processor: the one door, as a type.

A guest kernel gets an object of this shape for each of its vCPUs and nothing else. `hypercall` enters Xen,
`view` is what loads and stores go through (a translation by the guest's own page tables), `text` is where the
processor finds the code of a Python guest, port access is the `in`/`out` instruction. None of it is an object
of the hypervisor.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

Run = Generator[int | deque[Any], None, None]
"""Code on a vCPU. It yields where a real processor could take an interrupt: the value is how many nanoseconds of
computing it asks for (0: none, just look whether the hypervisor wants the processor).

The idle loop of a kernel is one instruction: it yields the deque of what is ready, and goes on once there is something
in it. As long as there is nothing, the processor makes the hypercall SCHEDOP_block after each upcall, so
`yield ready` is `while not ready: hypercall(HYPERVISOR_sched_op, SCHEDOP_block); yield 0` and looks like that from
outside, without entering the guest's code to find that there is nothing to do."""


class PageFault(Exception):
    """A load or store by the guest that its page tables do not allow. `address` is the linear address (cr2)."""

    def __init__(self, address: int, write: bool) -> None:
        super().__init__(f"page fault: {'write to' if write else 'read of'} {address:#x}")
        self.address = address
        self.write = write


class GeneralProtectionFault(Exception):
    """A privileged instruction that the hypervisor does not let the guest execute."""


class Probe(Protocol):
    """What a guest can tell the simulator's trace: records of the kinds of `hypervisor.abi.tracepoints`."""

    def __call__(self, kind: int, /, *fields: Any) -> None:
        """Write a record."""
        ...

    def bind(self, kind: int, /, *fields: Any) -> Callable[..., None]:
        """Return a function that writes records of one shape, and is quick: it takes the values of those fields that
        are a `tracepoints.Blank` here.
        """
        ...

    def bind_each(self, kind: int, /, *fields: Any) -> Callable[[Sequence[int]], None]:
        """Return a function that writes many records of one shape with one `Blank`: it takes the value of each."""
        ...


class Cpu(Protocol):
    """One vCPU as the code on it sees it."""

    vcpu_id: int
    text: dict[int, Callable[..., Any]]
    """Code by guest virtual address; shared by the vCPUs of a domain. Upcalls and secondary vCPUs enter here."""
    trace: Probe | None
    """The simulator's probe; None when off."""
    traces_threads: bool
    """Whether the probe wants to hear of each thread that gets the vCPU (`tracepoints.THREAD`)."""

    def hypercall(self, nr: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0, /) -> int:
        """Enter Xen. Pointers are guest virtual addresses. Returns the signed 64-bit result (negative: errno)."""
        ...

    def view(self, address: int, size: int = 4096, /, write: bool = True) -> memoryview:
        """Memory at a guest virtual address, as bytes ('B'). Raises `PageFault`.

        It may go over several pages only where they are neighbours in machine memory, too: one that does not raises
        ValueError.

        As with a processor's TLB, a view outlives a change of the page tables until the guest lets go of it:
        a kernel drops its views of a page when it unmaps it.
        """
        ...

    def rdtsc(self) -> int:
        """Return the time-stamp counter (it ticks at the rate that vcpu_time_info describes)."""
        ...

    def inl(self, port: int) -> int:
        """Read 32 bits from an I/O port. Raises `GeneralProtectionFault` without permission."""
        ...

    def outl(self, port: int, value: int) -> None:
        """Write 32 bits to an I/O port. Raises `GeneralProtectionFault` without permission."""
        ...


class Image(Protocol):
    """The program that a Python guest runs: what its vCPU finds at the entry point of the kernel."""

    name: str
    virt_base: int
    """Guest virtual address of pseudo-physical frame 0 (XEN_ELFNOTE_VIRT_BASE)."""
    virt_entry: int
    """Guest virtual address of the entry point (XEN_ELFNOTE_ENTRY)."""

    def boot(self, cpu: Cpu, start_info: int) -> Run:
        """Run the boot vCPU; `start_info` is the guest virtual address that Xen leaves in rsi."""
        ...

    def unload(self) -> None:
        """Drop all suspended code: the domain is gone. Nothing of the guest may run after this returns.

        Called exactly once, before the domain's memory is taken away; hypercalls already do nothing by then.
        """
        ...
