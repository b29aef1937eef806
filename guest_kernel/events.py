"""Event channels: binding ports, sending, and the handler of each port.

How Xen tells a vCPU which ports have events is one of two ABIs: event words and queues (`events_fifo`), which every Xen
since 4.4 offers, or a bitmap (`events_two_level`). The kernel asks for the former, and need not care from then on.

Handlers run in the upcall, between two steps of the threads: they must not wait; they wake threads.
"""

from __future__ import annotations

from collections.abc import Callable

from guest_kernel.errors import XenError
from guest_kernel.events_fifo import FifoPorts
from guest_kernel.events_two_level import Handler, TwoLevelPorts
from guest_kernel.hypercalls import Hypercalls
from guest_kernel.mm import Page
from hypervisor.abi.event_channel import (
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_send,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_bind_ipi,
    evtchn_bind_pirq,
    evtchn_bind_vcpu,
    evtchn_bind_virq,
    evtchn_close,
)
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_event_channel_op, shared_info

_NOTIFY_SLOT = 1023
"""The last word of the argument page belongs to `notify` alone."""


class Events:
    """The ports of this domain. `shared` is the shared_info page."""

    notify: Callable[[int], None]
    """`notify(port)`: send an event to the other end. Raises XenError for a port that cannot be sent to."""

    def __init__(
        self,
        hypercalls: Hypercalls,
        shared: memoryview,
        alloc_page: Callable[[], Page],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._hypercalls = hypercalls
        self._bytes = shared
        ports = FifoPorts.start(hypercalls, shared, alloc_page, on_failure)
        self._ports: FifoPorts | TwoLevelPorts = ports or TwoLevelPorts(hypercalls, shared, on_failure)
        self.make_upcall = self._ports.make_upcall
        """`make_upcall(vcpu_id)`: the code that Xen is to enter on a vCPU, on which this is executed."""
        self.set_handler = self._ports.set_handler
        """`set_handler(port, handler)`: put another handler on a bound port."""
        self.mask = self._ports.mask
        """`mask(port)`: hold the events of a port back; one that comes is remembered."""
        self.unmask = self._ports.unmask
        """`unmask(port)`: let the events of a port through; one that is pending comes at the next yield."""
        self.bound = self._ports.bound
        """`bound()`: the ports that have a handler."""
        self.is_pending = self._ports.is_pending
        """`is_pending(port)`: an event waits on a port (a masked one, or one whose upcall has not come yet)."""
        self.notify = self._make_notify()

    def _make_notify(self) -> Callable[[int], None]:
        call = self._hypercalls.call
        page = self._hypercalls.page
        argument = page.i
        address = page.va + 4 * _NOTIFY_SLOT

        there = -1

        def notify(port: int) -> None:
            nonlocal there
            if port != there:
                # Nobody else writes there, so the port that was sent on last is still in its place.
                argument[_NOTIFY_SLOT] = there = port
            result = call(HYPERVISOR_event_channel_op, EVTCHNOP_send, address)
            if result:
                raise XenError(-result, f"EVTCHNOP_send on port {port}")

        return notify

    def enable(self, vcpu_id: int) -> None:
        """Let Xen deliver upcalls to a vCPU: at its next yield, if some are pending."""
        self._bytes[shared_info.offset(f"vcpu_info[{vcpu_id}].evtchn_upcall_mask")] = 0

    # Binding. Each returns the local port, unmasked.

    def alloc_unbound(self, remote_domid: int, handler: Handler) -> int:
        """Make a port that domain `remote_domid` can bind to. Raises XenError (ENOSPC: no port is free)."""
        made = self._hypercalls.event_channel(
            EVTCHNOP_alloc_unbound,
            evtchn_alloc_unbound,
            "EVTCHNOP_alloc_unbound",
            dom=DOMID_SELF,
            remote_dom=remote_domid,
        )
        return self._bind(made.port, handler)

    def bind_interdomain(self, remote_domid: int, remote_port: int, handler: Handler) -> int:
        """Connect to a port that another domain has made for this one. The handler runs once at the beginning.

        Raises XenError (EINVAL: it is not there, or not for us; ESRCH: no such domain).
        """
        made = self._hypercalls.event_channel(
            EVTCHNOP_bind_interdomain,
            evtchn_bind_interdomain,
            "EVTCHNOP_bind_interdomain",
            remote_dom=remote_domid,
            remote_port=remote_port,
        )
        return self._bind(made.local_port, handler)

    def bind_virq(self, virq: int, handler: Handler, vcpu: int = 0) -> int:
        """Connect to a virtual interrupt of Xen. Raises XenError (EEXIST: it is bound already)."""
        made = self._hypercalls.event_channel(
            EVTCHNOP_bind_virq, evtchn_bind_virq, "EVTCHNOP_bind_virq", virq=virq, vcpu=vcpu
        )
        return self._bind(made.port, handler)

    def bind_pirq(self, pirq: int, handler: Handler, *, share: bool = True) -> int:
        """Connect to a physical interrupt that the domain may have. Raises XenError (EPERM, EEXIST)."""
        made = self._hypercalls.event_channel(
            EVTCHNOP_bind_pirq, evtchn_bind_pirq, "EVTCHNOP_bind_pirq", pirq=pirq, flags=int(share)
        )
        return self._bind(made.port, handler)

    def bind_ipi(self, vcpu: int, handler: Handler) -> int:
        """Make a port that this domain notifies to interrupt one of its own vCPUs. Raises XenError."""
        made = self._hypercalls.event_channel(EVTCHNOP_bind_ipi, evtchn_bind_ipi, "EVTCHNOP_bind_ipi", vcpu=vcpu)
        return self._bind(made.port, handler)

    def adopt(self, port: int, handler: Handler) -> int:
        """Take over a port that the domain builder made (console, xenstore)."""
        return self._bind(port, handler)

    def move(self, port: int, vcpu: int) -> None:
        """Let another vCPU take the events of a port. Raises XenError."""
        self._hypercalls.event_channel(EVTCHNOP_bind_vcpu, evtchn_bind_vcpu, "EVTCHNOP_bind_vcpu", port=port, vcpu=vcpu)

    def unbind(self, port: int) -> None:
        """Close a port. The other end goes back to waiting for somebody to bind. Raises XenError (EINVAL)."""
        self.mask(port)
        self._hypercalls.event_channel(EVTCHNOP_close, evtchn_close, "EVTCHNOP_close", port=port)
        self._ports.remove_handler(port)

    def _bind(self, port: int, handler: Handler) -> int:
        self.set_handler(port, handler)
        self.unmask(port)
        return port
