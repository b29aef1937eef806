"""Two domains do anything at all with event channels; a plain model says what must come of it."""

from __future__ import annotations

import attrs
from core_world import World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.abi import errno, xen

EINVAL, ENOENT, EEXIST, ESRCH, EPERM = -errno.EINVAL, -errno.ENOENT, -errno.EEXIST, -errno.ESRCH, -errno.EPERM
WHO = st.integers(0, 1)
PORTS = st.integers(0, 8)
VCPUS = st.integers(0, 2)
GLOBAL, PER_VCPU = xen.VIRQ_CONSOLE, xen.VIRQ_DEBUG
CLOSED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI = range(6)


@attrs.define
class Port:
    """What the model knows of a port."""

    kind: int = CLOSED
    remote: int = 0
    peer: int = 0
    number: int = 0
    vcpu: int = 0
    pending: bool = False
    masked: bool = False


@attrs.define
class Domain:
    """What the model knows of a domain: its ports, and of each vCPU the selector (one word) and the upcall flag."""

    ports: list[Port] = attrs.field(factory=lambda: [Port() for _ in range(64)])
    selector: list[bool] = attrs.field(factory=lambda: [False, False])
    upcall: list[bool] = attrs.field(factory=lambda: [False, False])

    def lowest_free(self) -> int:
        return next(number for number, port in enumerate(self.ports) if number and port.kind == CLOSED)

    def tell(self, port: Port) -> None:
        if not self.selector[port.vcpu]:
            self.selector[port.vcpu] = self.upcall[port.vcpu] = True

    def raise_(self, number: int) -> None:
        port = self.ports[number]
        if not port.pending:
            port.pending = True
            if not port.masked:
                self.tell(port)


class EventChannels(RuleBasedStateMachine):
    """Domain 0 is privileged, domain 1 is not; both have two vCPUs, which never run."""

    @initialize()
    def boot(self) -> None:
        self.world = World()
        self.guests = [self.world.guest(vcpus=2) for _ in range(2)]
        self.model = [Domain(), Domain()]

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for guest in reversed(self.guests):
                self.world.hv.domain_ops.kill(guest.domain)
            self.world.check()
            assert self.world.hv.domains == {}

    def new(self, who: int, kind: int, **fields: int) -> int:
        domain = self.model[who]
        number = domain.lowest_free()
        domain.ports[number] = attrs.evolve(domain.ports[number], kind=kind, **fields)
        return number

    def drop(self, who: int, number: int) -> None:
        port = self.model[who].ports[number]
        if port.kind == INTERDOMAIN:
            peer = self.model[port.remote].ports[port.peer]
            peer.kind, peer.remote, peer.peer = UNBOUND, who, 0
        self.model[who].ports[number] = Port(masked=port.masked)

    # -- operations ---------------------------------------------------------------------------------------------------

    @rule(who=WHO, dom=WHO, remote=st.integers(0, 2))
    def alloc(self, who: int, dom: int, remote: int) -> None:
        result = self.guests[who].alloc(remote, dom=dom)
        if who == 1 and dom == 0:
            assert result == EPERM
        else:
            assert result == self.new(dom, UNBOUND, remote=remote)

    @rule(who=WHO, remote=st.integers(0, 2), port=PORTS)
    def bind(self, who: int, remote: int, port: int) -> None:
        result = self.guests[who].bind(remote, port)
        if remote == 2:
            assert result == ESRCH
            return
        local = self.model[who].lowest_free()
        peer = self.model[remote].ports[port]
        if peer.kind != UNBOUND or peer.remote != who:
            assert result == EINVAL
            return
        assert result == self.new(who, INTERDOMAIN, remote=remote, peer=port) == local
        peer.kind, peer.remote, peer.peer = INTERDOMAIN, who, local
        self.model[who].raise_(local)

    @rule(who=WHO, virq=st.sampled_from([GLOBAL, PER_VCPU, 24]), vcpu=VCPUS)
    def bind_virq(self, who: int, virq: int, vcpu: int) -> None:
        result = self.guests[who].virq(virq, vcpu)
        ports = self.model[who].ports
        if virq == 24 or (virq == GLOBAL and vcpu):
            assert result == EINVAL
        elif vcpu == 2:
            assert result == ENOENT
        elif any(p.kind == VIRQ and p.number == virq and (virq == GLOBAL or p.vcpu == vcpu) for p in ports):
            assert result == EEXIST
        else:
            assert result == self.new(who, VIRQ, number=virq, vcpu=vcpu)

    @rule(who=WHO, vcpu=VCPUS)
    def bind_ipi(self, who: int, vcpu: int) -> None:
        result = self.guests[who].ipi(vcpu)
        assert result == (ENOENT if vcpu == 2 else self.new(who, IPI, vcpu=vcpu))

    @rule(who=WHO, port=PORTS)
    def close(self, who: int, port: int) -> None:
        result = self.guests[who].close(port)
        if self.model[who].ports[port].kind == CLOSED:
            assert result == EINVAL
        else:
            assert result == 0
            self.drop(who, port)

    @rule(who=WHO, dom=WHO)
    def reset(self, who: int, dom: int) -> None:
        result = self.guests[who].reset(dom)
        if who == 1 and dom == 0:
            assert result == EPERM
            return
        assert result == 0
        for number, port in enumerate(self.model[dom].ports):
            if port.kind != CLOSED:
                self.drop(dom, number)

    @rule(who=WHO, port=PORTS)
    def send(self, who: int, port: int) -> None:
        result = self.guests[who].send(port)
        model = self.model[who].ports[port]
        assert result == (0 if model.kind in (UNBOUND, INTERDOMAIN, IPI) else EINVAL)
        if model.kind == INTERDOMAIN:
            self.model[model.remote].raise_(model.peer)
        elif model.kind == IPI:
            self.model[who].raise_(port)

    @rule(who=WHO, virq=st.sampled_from([GLOBAL, PER_VCPU]), vcpu=WHO)
    def xen_sends(self, who: int, virq: int, vcpu: int) -> None:
        vcpu = 0 if virq == GLOBAL else vcpu
        self.world.hv.events.send_virq(self.guests[who].vcpus[vcpu], virq)
        for number, port in enumerate(self.model[who].ports):
            if port.kind == VIRQ and port.number == virq and (virq == GLOBAL or port.vcpu == vcpu):
                self.model[who].raise_(number)

    @rule(who=WHO, port=PORTS, vcpu=VCPUS)
    def bind_vcpu(self, who: int, port: int, vcpu: int) -> None:
        result = self.guests[who].bind_vcpu(port, vcpu)
        model = self.model[who].ports[port]
        if vcpu == 2:
            assert result == ENOENT
        elif model.kind in (UNBOUND, INTERDOMAIN) or (model.kind == VIRQ and model.number == GLOBAL):
            assert result == 0
            model.vcpu = vcpu
        else:
            assert result == EINVAL

    @rule(who=WHO, port=PORTS)
    def unmask(self, who: int, port: int) -> None:
        assert self.guests[who].unmask(port) == 0
        model = self.model[who].ports[port]
        if model.kind != CLOSED and model.masked:
            model.masked = False
            if model.pending:
                self.model[who].tell(model)

    # -- what guests do by themselves ---------------------------------------------------------------------------------

    @rule(who=WHO, port=PORTS)
    def mask(self, who: int, port: int) -> None:
        self.guests[who].mask(port)
        self.model[who].ports[port].masked = True

    @rule(who=WHO, port=PORTS)
    def clear(self, who: int, port: int) -> None:
        self.guests[who].clear(port)
        self.model[who].ports[port].pending = False

    @rule(who=WHO, vcpu=WHO)
    def acknowledge(self, who: int, vcpu: int) -> None:
        found = self.guests[who].acknowledge(vcpu)
        domain = self.model[who]
        expected = []
        if domain.selector[vcpu]:
            expected = [number for number, port in enumerate(domain.ports) if port.pending and not port.masked]
        assert found == expected
        for number in found:
            domain.ports[number].pending = False
        domain.selector[vcpu] = domain.upcall[vcpu] = False

    @rule(who=WHO, vcpu=WHO)
    def forget_the_selector(self, who: int, vcpu: int) -> None:
        self.guests[who].set_selector(0, vcpu)
        self.model[who].selector[vcpu] = False

    @precondition(lambda self: hasattr(self, "world"))
    @rule()
    def domain_1_is_replaced(self) -> None:
        self.world.hv.domain_ops.kill(self.guests[1].domain)
        for number, port in enumerate(self.model[1].ports):
            if port.kind != CLOSED:
                self.drop(1, number)
        self.model[1] = Domain()
        del self.world.guests[1:]
        self.guests[1] = self.world.guest(vcpus=2)

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.check()
        for guest, domain in zip(self.guests, self.model, strict=True):
            for number, port in enumerate(domain.ports[:16]):
                assert guest.pending(number) == port.pending, number
                assert guest.masked(number) == port.masked, number
                status = guest.status(number)
                assert (status.status, status.vcpu) == (port.kind, port.vcpu), number
                if port.kind == UNBOUND:
                    assert status.u.unbound.dom == port.remote
                elif port.kind == INTERDOMAIN:
                    assert (status.u.interdomain.dom, status.u.interdomain.port) == (port.remote, port.peer)
            for vcpu in (0, 1):
                assert guest.selector(vcpu) == domain.selector[vcpu]
                assert guest.upcall_pending(vcpu) == domain.upcall[vcpu]


EventChannels.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestEventChannels = EventChannels.TestCase
