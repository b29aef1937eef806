"""Lab 5: event channels. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct  # noqa: F401
from collections.abc import Callable, Generator

from hypervisor.abi import callback, sched, xen  # noqa: F401
from hypervisor.abi import event_channel as evtchn  # noqa: F401
from hypervisor.abi.cpu import Cpu

# Offsets in shared_info. vcpu_info of vCPU 0 is at its beginning.
UPCALL_PENDING, UPCALL_MASK, PENDING_SEL = 0, 1, 8
PENDING, MASK = 2048, 2560
WORDS = 64

Handler = Callable[[], None]


class XenError(Exception):
    """Xen has refused something; `errno` says why, as a positive number."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"Xen answers -{errno}")
        self.errno = errno


class Events:
    """The event channels of a domain with one vCPU.

    `page` is a free page for arguments, `shared` is shared_info, mapped. At first all ports and upcalls are masked.
    """

    def __init__(self, cpu: Cpu, page: int, shared: memoryview) -> None:
        self.cpu = cpu
        self.page = page
        self.shared = shared
        self.handlers: dict[int, Handler] = {}

    # Ports. Each of these raises XenError if Xen refuses.

    def alloc_unbound(self, remote: int) -> int:
        """Make a port to which domain `remote` may bind; return it."""
        raise NotImplementedError("EVTCHNOP_alloc_unbound; dom is DOMID_SELF")

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Bind a new port to a port of domain `remote`; return it."""
        raise NotImplementedError("EVTCHNOP_bind_interdomain")

    def bind_virq(self, virq: int) -> int:
        """Bind a new port to a virtual interrupt of vCPU 0; return it."""
        raise NotImplementedError("EVTCHNOP_bind_virq")

    def close(self, port: int) -> None:
        """Close a port: mask it, forget its handler, tell Xen."""
        raise NotImplementedError("EVTCHNOP_close")

    def send(self, port: int) -> None:
        """Notify the other end of a port."""
        raise NotImplementedError("EVTCHNOP_send")

    # Handlers

    def install(self, address: int) -> None:
        """Register `self.upcall` as the event callback, at an address of its own, and let upcalls through.

        What became pending before must not wait for the next event.
        """
        raise NotImplementedError("cpu.text, CALLBACKOP_register, evtchn_upcall_mask")

    def on(self, port: int, handler: Handler) -> None:
        """Call `handler` for each event on a port, from now on: also for one that is pending already."""
        raise NotImplementedError("remember the handler, then unmask")

    def mask(self, port: int) -> None:
        """Hold the events of a port back."""
        raise NotImplementedError("a bit of evtchn_mask")

    def unmask(self, port: int) -> None:
        """Let the events of a port through; one that came meanwhile is delivered."""
        raise NotImplementedError("let Xen do it")

    def upcall(self) -> None:
        """Handle what is pending: called by the processor, with upcalls masked.

        Each pending port that is not masked has its handler called; a port without handler is cleared and passed over.
        """
        raise NotImplementedError("three floors; clear each before you go down")

    # Sleeping

    def wait(self, condition: Callable[[], bool]) -> Generator[int, None, None]:
        """Sleep until `condition()` holds. To be used as `yield from events.wait(...)`."""
        raise NotImplementedError("look, block, yield, look again")
        yield 0

    def sleep_until(self, deadline: int) -> Generator[int, None, None]:
        """Sleep until system time `deadline` (ns): bind VIRQ_TIMER for it, and close the port afterwards."""
        raise NotImplementedError("a handler that notes that the time has come; HYPERVISOR_set_timer_op; wait")
        yield 0
