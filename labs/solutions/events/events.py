"""Lab 5, solved."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator

from hypervisor.abi import callback, sched, xen
from hypervisor.abi import event_channel as evtchn
from hypervisor.abi.cpu import Cpu

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
    """The event channels of a domain with one vCPU."""

    def __init__(self, cpu: Cpu, page: int, shared: memoryview) -> None:
        self.cpu = cpu
        self.page = page
        self.shared = shared
        self.words = shared.cast("Q")
        self.handlers: dict[int, Handler] = {}

    def operate(self, command: int, form: str, *members: int) -> tuple[int, ...]:
        """Make an event channel operation; return the structure as Xen left it."""
        view = self.cpu.view(self.page)
        struct.pack_into(form, view, 0, *members)
        result = self.cpu.hypercall(xen.HYPERVISOR_event_channel_op, command, self.page)
        if result < 0:
            raise XenError(-result)
        return struct.unpack_from(form, view)

    def alloc_unbound(self, remote: int) -> int:
        """Make a port to which domain `remote` may bind; return it."""
        return self.operate(evtchn.EVTCHNOP_alloc_unbound, "<HHI", xen.DOMID_SELF, remote, 0)[2]

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Bind a new port to a port of domain `remote`; return it."""
        return self.operate(evtchn.EVTCHNOP_bind_interdomain, "<H2xII", remote, remote_port, 0)[2]

    def bind_virq(self, virq: int) -> int:
        """Bind a new port to a virtual interrupt of vCPU 0; return it."""
        return self.operate(evtchn.EVTCHNOP_bind_virq, "<III", virq, 0, 0)[2]

    def close(self, port: int) -> None:
        """Close a port."""
        self.mask(port)
        self.operate(evtchn.EVTCHNOP_close, "<I", port)
        self.handlers.pop(port, None)

    def send(self, port: int) -> None:
        """Notify the other end of a port."""
        self.operate(evtchn.EVTCHNOP_send, "<I", port)

    def install(self, address: int) -> None:
        """Register `self.upcall` as the event callback, and let upcalls through."""
        self.cpu.text[address] = self.upcall
        struct.pack_into("<HH4xQ", self.cpu.view(self.page), 0, callback.CALLBACKTYPE_event, 0, address)
        result = self.cpu.hypercall(xen.HYPERVISOR_callback_op, callback.CALLBACKOP_register, self.page)
        if result < 0:
            raise XenError(-result)
        self.shared[UPCALL_MASK] = 0

    def on(self, port: int, handler: Handler) -> None:
        """Call `handler` for each event on a port, from now on."""
        self.handlers[port] = handler
        self.unmask(port)

    def mask(self, port: int) -> None:
        """Hold the events of a port back."""
        self.words[MASK // 8 + port // 64] |= 1 << port % 64

    def unmask(self, port: int) -> None:
        """Let the events of a port through."""
        self.operate(evtchn.EVTCHNOP_unmask, "<I", port)

    def upcall(self) -> None:
        """Handle what is pending."""
        self.shared[UPCALL_PENDING] = 0
        selector = self.words[PENDING_SEL // 8]
        self.words[PENDING_SEL // 8] = 0
        for word in range(WORDS):
            if selector >> word & 1:
                self.handle(word)

    def handle(self, word: int) -> None:
        """Handle what is pending of one word."""
        at = PENDING // 8 + word
        ready = self.words[at] & ~self.words[MASK // 8 + word]
        self.words[at] &= ~ready
        for bit in range(64):
            if ready >> bit & 1:
                handler = self.handlers.get(64 * word + bit)
                if handler is not None:
                    handler()

    def wait(self, condition: Callable[[], bool]) -> Generator[int, None, None]:
        """Sleep until `condition()` holds."""
        while not condition():
            self.cpu.hypercall(xen.HYPERVISOR_sched_op, sched.SCHEDOP_block)
            yield 0

    def sleep_until(self, deadline: int) -> Generator[int, None, None]:
        """Sleep until system time `deadline` (ns)."""
        rung: list[bool] = []
        port = self.bind_virq(xen.VIRQ_TIMER)
        self.on(port, lambda: rung.append(True))
        self.cpu.hypercall(xen.HYPERVISOR_set_timer_op, deadline)
        yield from self.wait(lambda: bool(rung))
        self.close(port)
