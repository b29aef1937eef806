"""Who looks when: the emitter of a trace that looks at the host after each record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from hypervisor.abi import event_channel, xen
from hypervisor.abi import tracepoints as tp
from hypervisor.state_trace.events import EventWatch
from hypervisor.state_trace.grants import GrantWatch
from hypervisor.state_trace.pages import PageWatch
from hypervisor.state_trace.rings import RingWatch

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.trace import Emit

PORT_CALLS = frozenset({xen.HYPERVISOR_event_channel_op, xen.HYPERVISOR_multicall, xen.HYPERVISOR_domctl})
"""Hypercalls after which ports may be bound to something else."""
PORT_USES = frozenset({event_channel.EVTCHNOP_send, event_channel.EVTCHNOP_unmask, event_channel.EVTCHNOP_status})
"""... but for these operations."""
GRANT_CALLS = frozenset({xen.HYPERVISOR_grant_table_op, xen.HYPERVISOR_multicall, xen.HYPERVISOR_update_va_mapping})
PAGE_CALLS = frozenset(
    {
        xen.HYPERVISOR_domctl,
        xen.HYPERVISOR_event_channel_op,
        xen.HYPERVISOR_grant_table_op,
        xen.HYPERVISOR_memory_op,
        xen.HYPERVISOR_mmu_update,
        xen.HYPERVISOR_mmuext_op,
        xen.HYPERVISOR_multicall,
        xen.HYPERVISOR_set_gdt,
        xen.HYPERVISOR_update_descriptor,
        xen.HYPERVISOR_update_va_mapping,
        xen.HYPERVISOR_update_va_mapping_otherdomain,
        xen.HYPERVISOR_vcpu_op,
    }
)
LIVES = frozenset({tp.DOMAIN_CREATE, tp.DOMAIN_SHUTDOWN, tp.DOMAIN_CRASH, tp.DOMAIN_DESTROY, tp.VCPU_UP, tp.VCPU_DOWN})
"""Records about domains as such: anything may have changed."""


class Watch(Protocol):
    """One kind of place that is looked at."""

    def look(self) -> None:
        """Emit what has changed since the last look."""
        ...


class StateTrace:
    """Passes records on to a trace and adds those that say how the state of the host has changed.

    `emit` is to be used from the first record on; nothing is looked at before `attach`.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._watches: list[Watch] = []
        self._rings: RingWatch | None = None
        self._always: list[Callable[[], None]] = []
        self._ports: Callable[[], None] = lambda: None
        self._grants: Callable[[], None] = lambda: None
        self._pages: Callable[[], None] = lambda: None

    def attach(self, hv: Hypervisor) -> None:
        """Look at this host from now on."""
        events, grants, pages = EventWatch(hv, self._emit), GrantWatch(hv, self._emit), PageWatch(hv, self._emit)
        self._rings = RingWatch(hv, self._emit)
        self._ports, self._grants, self._pages = events.look_at_ports, grants.look_at_uses, pages.look
        self._always = [events.look, grants.look, self._rings.look]
        self._watches = [events, grants, self._rings, pages]

    def add(self, watch: Watch) -> None:
        """Look at one place more: something above the hypervisor."""
        self._watches.append(watch)
        self._always.append(watch.look)

    def emit(self, domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
        """Append a record, and what has changed."""
        self._emit(domid, vcpu_id, kind, *fields)
        if kind == tp.HYPERCALL:
            nr = fields[0]
            if nr in PORT_CALLS and (nr != xen.HYPERVISOR_event_channel_op or fields[1] not in PORT_USES):
                self._ports()
            if nr in GRANT_CALLS:
                self._grants()
            if nr in PAGE_CALLS:
                self._pages()
        elif kind in LIVES:
            self._ports()
            self._grants()
            self._pages()
        elif kind == tp.RING_CONNECT and self._rings is not None:
            self._rings.connect(domid, *fields)
        for look in self._always:
            look()

    def finish(self) -> None:
        """Look at everything once more."""
        self._ports()
        self._grants()
        for watch in self._watches:
            watch.look()
