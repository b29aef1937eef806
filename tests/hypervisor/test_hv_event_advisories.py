"""Xen Security Advisories about event channels: what a fixed hypervisor does, one test each.

XSA-107, 188, 317, 342, 343, 344 and 505 are in test_hv_fifo.py, next to what they are about.
"""

import pytest
from core_world import EVTCHN_OP, World
from preemption import Points, everywhere

from hypervisor.abi import domctl, errno, xen
from hypervisor.abi import event_channel as ev
from hypervisor.abi import vcpu as vcpu_abi

EPERM, EINVAL, ENXIO, ENOSPC = -errno.EPERM, -errno.EINVAL, -errno.ENXIO, -errno.ENOSPC
QUEUED = 1 << 31 | 1 << 29


def test_xsa_47_a_denied_allocation_leaves_nothing(pair):
    """A domain that may not have a port of another one does not spoil the table of ports for later."""
    for _ in range(200):
        assert pair.domu.alloc(1, dom=0) == EPERM
    assert len(pair.dom0.domain.ports) == 64
    assert pair.dom0.domain.active_ports == 0
    assert [pair.dom0.alloc(1) for _ in range(70)] == list(range(1, 71))
    assert pair.domu.alloc(1, dom=0) == EPERM
    assert pair.dom0.alloc(1) == 71


def test_xsa_107_events_of_a_vcpu_without_control_block(pair):
    """A pending two-level port that is moved to a vCPU without control block, and raised again: the host lives."""
    domu = pair.domu
    port = domu.alloc(0)
    far = pair.dom0.bind(1, port)
    pair.dom0.send(far)
    assert domu.init_control(0) == 0
    assert domu.bind_vcpu(port, 1) == 0
    assert pair.dom0.send(far) == 0
    assert domu.expand_array() == 0
    assert domu.word(port) == 0
    assert domu.init_control(1) == 0
    assert pair.dom0.send(far) == 0
    assert (domu.word(port), domu.head(7, vcpu=1)) == (QUEUED, port)


def test_xsa_221_polls_of_all_ports(pair):
    """Polling a port that does not exist touches nothing that is not there."""
    bound = pair.domu.alloc()
    answers = {port: pair.domu.poll([port], 1) for port in (*range(4200), 131071, 131072, 0xFFFFFFFF)}
    assert answers.pop(bound) == 0
    assert set(answers.values()) == {EINVAL}


def test_xsa_327_places_of_a_vcpu_info(pair):
    """Only an aligned place within one page is one."""
    size = xen.vcpu_info.size

    def register(offset):
        layout = vcpu_abi.vcpu_register_vcpu_info
        return pair.domu.vcpu_op(vcpu_abi.VCPUOP_register_vcpu_info, 1, layout, mfn=pair.domu.pages[0], offset=offset)

    for offset in (1, 2, 4, 7, 12, 4096 - size + 8, 4095, 4096, 0xFFFFFFF8, 0xFFFFFFFF):
        assert register(offset) == ENXIO
    assert register(4096 - size) == 0


def test_xsa_338_a_valid_port_stays_valid(pair):
    """Neither the change of the event ABI nor a reset makes a port that has been valid invalid."""
    domu = pair.domu
    domu.use_fifo()
    domu.domain.max_evtchn_port = 1 << 20
    assert domu.expand_array(domu.pages[9]) == 0
    while domu.ipi() < 1500:
        pass
    valid = len(domu.domain.ports)
    assert domu.reset() == 0
    for port in (1, 1024, 1500, valid - 1):
        assert domu.status(port).status == ev.EVTCHNSTAT_closed
        assert domu.unmask(port) == 0
        assert domu.send(port) == EINVAL
    assert domu.status(valid) == EINVAL
    assert domu.ipi() == 1


def test_xsa_340_ports_exist_before_they_are_valid(pair):
    """At any number of ports, each that is within the table can be used, and none beyond."""
    domu = pair.domu
    for number in range(1, 200):
        beyond = len(domu.domain.ports)
        assert domu.send(beyond) == EINVAL
        assert domu.unmask(beyond) == EINVAL
        assert domu.ipi() == number
        assert domu.send(number) == 0
        assert domu.status(len(domu.domain.ports) - 1).status in (ev.EVTCHNSTAT_closed, ev.EVTCHNSTAT_ipi)


@pytest.mark.parametrize("before", range(4))
def test_xsa_358_359_events_while_the_fifo_abi_is_set_up(pair, before):
    """Whenever an event comes, it is on a proper queue in the end, and nothing is written outside of the pages."""
    domu = pair.domu
    ports = [domu.ipi(vcpu) for vcpu in (0, 1)]
    steps = [lambda: domu.init_control(0), lambda: domu.init_control(1), domu.expand_array]
    elsewhere = [bytes(pair.hv.memory.b[mfn << 12 : (mfn + 1) << 12]) for mfn in domu.pages[3:]]
    for number, step in enumerate([*steps, lambda: 0]):
        if number == before:
            for port in ports:
                assert domu.send(port) == 0
        assert step() == 0
        pair.world.check()
    for vcpu, port in enumerate(ports):
        assert domu.word(port) == QUEUED
        assert (domu.head(7, vcpu=vcpu), domu.ready(vcpu)) == (port, 0x80)
    assert [bytes(pair.hv.memory.b[mfn << 12 : (mfn + 1) << 12]) for mfn in domu.pages[3:]] == elsewhere


def test_xsa_496_virqs_when_ports_are_exhausted(pair):
    """A VIRQ that finds no port is not bound, and does not disturb those of anybody."""
    dom0, domu = pair.dom0, pair.domu
    console = dom0.virq(xen.VIRQ_CONSOLE)
    debug = dom0.virq(xen.VIRQ_DEBUG)
    domu.domain.max_evtchn_port = 100
    while domu.ipi() > 0:
        pass
    for virq in (xen.VIRQ_DEBUG, xen.VIRQ_TIMER, xen.VIRQ_DOM_EXC):
        assert domu.virq(virq) == ENOSPC
    assert domu.close(50) == 0
    assert domu.virq(xen.VIRQ_DEBUG) == 50, "it is not taken for bound"
    pair.hv.events.send_global_virq(xen.VIRQ_CONSOLE)
    pair.hv.events.send_virq(dom0.vcpus[0], xen.VIRQ_DEBUG)
    assert dom0.acknowledge() == [console, debug]


def test_xsa_344_destruction_of_a_domain_with_many_ports():
    """It makes room for others, and each end that they hold becomes unbound."""
    command, version = domctl.XEN_DOMCTL_destroydomain, domctl.XEN_DOMCTL_INTERFACE_VERSION
    destroy = domctl.xen_domctl.pack(cmd=command, interface_version=version, domain=1)

    def work(points):
        world = World()
        dom0, domu = world.guest(), world.guest()
        domu.use_fifo()
        far = [dom0.bind(1, domu.alloc(0)) for _ in range(200)]
        dom0.poke(dom0.va(20), destroy)
        points.others = lambda _: [dom0.send(port) for port in far]
        points.on(world.hv)
        assert dom0.hypercall(xen.HYPERVISOR_domctl, dom0.va(20)) == 0
        points.off()
        world.check()
        return list(world.hv.domains), {dom0.status(port).status for port in far}

    assert everywhere(work, least=3, step=3) == ([0], {ev.EVTCHNSTAT_unbound})


def test_a_reset_does_not_hold_others_up():
    """XSA-344: events of ports that are not closed yet go through meanwhile."""
    points = Points(1)
    world = World()
    dom0, domu = world.guest(), world.guest()
    far = [dom0.bind(1, domu.alloc(0)) for _ in range(150)]
    seen = []
    points.others = lambda _: seen.append((dom0.send(far[149]), domu.pending(150), domu.pending(1)))
    points.on(world.hv)
    assert domu.hypercall(EVTCHN_OP, ev.EVTCHNOP_reset, _argument(domu)) == 0
    assert seen == [(0, True, False)]
    assert not domu.pending(150)


def _argument(guest):
    """An evtchn_reset of oneself, where nothing else is put."""
    guest.poke(guest.va(20), ev.evtchn_reset.pack(dom=xen.DOMID_SELF))
    return guest.va(20)
