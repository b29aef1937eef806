"""Brings the faults of a run to their host: arms them, puts their hooks in, keeps the account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

import attrs

from hypervisor.abi import tracepoints as tp
from hypervisor.abi.xen import HYPERVISOR_grant_table_op
from hypervisor.event_channel.channel import INTERDOMAIN
from toolstack.errors import UsageError, did_you_mean
from toolstack.faults.fault import Fault
from toolstack.faults.menu import MENU
from toolstack.faults.spec import FaultSpec

if TYPE_CHECKING:
    from backends.net import Bridge
    from hypervisor.domain import Domain
    from hypervisor.event_channel.channel import Channel
    from hypervisor.hypervisor import Handler, Hypervisor
    from hypervisor.machine.backing import Backing
    from hypervisor.machine.timers import Timer
    from hypervisor.trace import Emit
    from hypervisor.vcpu import VCpu

Raise = Callable[["Channel"], None]


@attrs.define
class FaultReport:
    """What came of one fault."""

    text: str
    """As it was ordered."""
    struck: int = 0
    first_ns: int = -1
    """When it struck first; negative if it never did."""
    last: str = ""
    """What it did last, in a sentence."""

    @property
    def sentence(self) -> str:
        """What came of it, for a person."""
        if not self.struck:
            return f"{self.text} has not struck"
        times = "once" if self.struck == 1 else f"{self.struck} times, first"
        return f"{self.text} struck {times} at {self.first_ns / 1e6:.3f} ms"


@final
class Injector:
    """All faults of one run. It is the `World` of each of them.

    `name_of` tells the name of a domain (empty if unknown), `order` types a line on the serial console, `bridge_of`
    finds a bridge of dom0.
    """

    def __init__(
        self,
        specs: Sequence[FaultSpec],
        seed: int,
        guests: Sequence[str],
        name_of: Callable[[int], str],
        order: Callable[[str], None],
        bridge_of: Callable[[str], Bridge | None],
    ) -> None:
        self._hv: Hypervisor | None = None
        self.names = name_of
        self.bridge = bridge_of
        self._type = order
        self._ready = False
        self._orders: list[str] = []
        self.faults: list[Fault] = []
        self.reports: list[FaultReport] = []
        for number, spec in enumerate(specs):
            named = attrs.evolve(spec, domain=spec.domain or guests[0])
            if named.domain not in guests:
                raise UsageError(f"--fault {spec.text!r}: there is no guest {spec.domain!r}"
                                 f"{did_you_mean(spec.domain, guests)}")  # fmt: skip
            self.faults.append(MENU[spec.name].make(named, self, f"{seed}/{number}/{spec.text}"))
            self.reports.append(FaultReport(spec.text))
        self._counted = {fault: 0 for fault in self.faults if not fault.spec.at.is_time}
        self._timers: list[Timer] = []
        self._early: list[Fault] = []
        """Those whose moment came before their victim."""
        self._watchers = [fault for fault in self.faults if fault.needs_records]

    # -- putting the hooks in -------------------------------------------------------------------------------------

    @property
    def needs_records(self) -> bool:
        """Whether somebody must be told of the records of the trace."""
        return bool(self._counted or self._watchers)

    def observed(self, emit: Emit | None) -> Emit:
        """Return an emitter that has the faults look at each record, too."""

        def observe(domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
            if emit is not None:
                emit(domid, vcpu_id, kind, *fields)
            if self._counted:
                self._count(domid, kind, fields)
            for fault in self._watchers:
                fault.look(domid, kind, fields)

        return observe

    def disk(self, owner: str, vdev: str, backing: Backing) -> Backing:
        """Return what stands before a disk that is plugged in."""
        for fault in self.faults:
            backing = fault.disk(owner, vdev, backing)
        return backing

    def attach(self, hv: Hypervisor) -> None:
        """Put the hooks into a host that has no domains yet, and arm what a clock begins."""
        self._hv = hv
        if any(type(fault).takes_event is not Fault.takes_event for fault in self.faults):
            hv.events.wire = self._wire
        if any(type(fault).before_operations is not Fault.before_operations for fault in self.faults):
            hv.table[HYPERVISOR_grant_table_op] = self._spoiling(hv.table[HYPERVISOR_grant_table_op])
        for fault in self.faults:
            if fault.spec.at.is_time:
                self.later(fault.spec.at.time, partial(self._begin, fault))

    def dom0_is_up(self) -> None:
        """Give dom0 the orders that came before it could read them."""
        self._ready = True
        for order in self._orders:
            self._type(order)
        self._orders.clear()

    def _wire(self, raise_event: Raise) -> Raise:
        faults = [fault for fault in self.faults if type(fault).takes_event is not Fault.takes_event]

        def send(channel: Channel) -> None:
            if channel.state == INTERDOMAIN:
                for fault in faults:
                    if fault.takes_event(channel):
                        return
            raise_event(channel)

        return send

    def _spoiling(self, handler: Handler) -> Handler:
        faults = [fault for fault in self.faults if type(fault).before_operations is not Fault.before_operations]

        def spoiled(vcpu: VCpu, cmd: int, address: int, count: int, a4: int, a5: int) -> int:
            afterwards = [after for fault in faults if (after := fault.before_operations(vcpu, cmd, address, count))]
            try:
                return handler(vcpu, cmd, address, count, a4, a5)
            finally:
                for after in reversed(afterwards):
                    after()

        return spoiled

    # -- moments --------------------------------------------------------------------------------------------------

    def _count(self, domid: int, kind: int, fields: tuple[object, ...]) -> None:
        """Count a record for those who wait for it; what begins does so as soon as the guest's stretch is over."""
        for fault, counted in list(self._counted.items()):
            moment = fault.spec.at
            victim = fault.victim_domid
            if victim and moment.is_this(victim, domid, kind, fields):
                if counted + 1 < moment.number:
                    self._counted[fault] = counted + 1
                else:
                    del self._counted[fault]
                    self.later(0, partial(self._begin, fault))

    def appeared(self, name: str) -> None:
        """Take note that a guest is there: what has waited for it begins."""
        due = [fault for fault in self._early if fault.spec.domain == name]
        self._early = [fault for fault in self._early if fault.spec.domain != name]
        for fault in due:
            self.later(0, partial(self._begin, fault))

    def _begin(self, fault: Fault) -> None:
        if fault.needs_victim and self.domain(fault.spec.domain) is None:
            self._early.append(fault)
            return
        fault.begin()
        if fault.spec.lasting is not None:
            self.later(fault.spec.lasting, fault.end)

    # -- the world of faults --------------------------------------------------------------------------------------

    @property
    def hv(self) -> Hypervisor:
        """The hypervisor; there is one as soon as something can happen."""
        assert self._hv is not None
        return self._hv

    def domain(self, name: str) -> Domain | None:
        """Return the domain that has this name at the moment."""
        return next((domain for domid, domain in self.hv.domains.items() if self.names(domid) == name), None)

    def domid(self, name: str) -> int:
        """Return its number, 0 if there is none."""
        victim = None if self._hv is None else self.domain(name)
        return 0 if victim is None else victim.domid

    def later(self, ns: int, function: Callable[[], None]) -> None:
        """Have something happen after a while."""
        self._timers = [timer for timer in self._timers if timer.armed]
        self._timers.append(self.hv.timers.add(self.hv.now() + ns, function))

    def finish(self) -> None:
        """Nothing is to happen any more."""
        for timer in self._timers:
            timer.cancel()

    def order(self, text: str) -> None:
        """Give dom0 an order, as soon as it can read."""
        if self._ready:
            self._type(text)
        else:
            self._orders.append(text)

    def note(self, fault: Fault, domid: int, what: str) -> None:
        """Account for a strike."""
        report = self.reports[self.faults.index(fault)]
        report.struck += 1
        report.last = what
        hv = self._hv
        if report.first_ns < 0:
            report.first_ns = 0 if hv is None else hv.now()
        if hv is not None and hv.trace is not None:
            hv.trace(domid, 0, tp.FAULT, fault.spec.name, what)
