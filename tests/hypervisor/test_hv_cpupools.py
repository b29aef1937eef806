"""Pools of pCPUs: who is in which, under which scheduler, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from core_world import MS, World
from sched_world import check_times, make, shares

from hypervisor.abi import domctl, errno, xen
from hypervisor.abi import sysctl as abi
from hypervisor.errors import HypercallError

CREATE, DESTROY, INFO, ADD, REMOVE, MOVE, FREE = range(1, 8)
ANY = abi.XEN_SYSCTL_CPUPOOL_PAR_ANY
CREDIT, CREDIT2, ARINC653, RTDS, NULL = 5, 6, 7, 8, 9


def pool(control, op, **fields):
    """XEN_SYSCTL_cpupool_op: returns an errno, or (pool, scheduler, domains, mask)."""
    control.poke(control.va(0), b"\xff" * 8)
    wanted = {"op": op, "cpumap": {"bitmap": control.va(0), "nr_bits": 64}, **fields}
    call = {"cmd": abi.XEN_SYSCTL_cpupool_op, "interface_version": abi.XEN_SYSCTL_INTERFACE_VERSION}
    rc, told = control.call(xen.HYPERVISOR_sysctl, layout=abi.xen_sysctl, **call, u={"cpupool_op": wanted})
    if rc:
        return rc
    told = told.u.cpupool_op
    return SimpleNamespace(
        id=told.cpupool_id,
        sched=told.sched_id,
        domains=told.n_dom,
        mask=int.from_bytes(control.peek(control.va(0), 8), "little"),
    )


def split(world, control, scheduler, cpus):
    """Make pool 1 of some pCPUs."""
    made = pool(control, CREATE, cpupool_id=ANY, sched_id=scheduler)
    for cpu in cpus:
        assert pool(control, REMOVE, cpupool_id=0, cpu=cpu).id == 0
        assert pool(control, ADD, cpupool_id=made.id, cpu=cpu).id == made.id
    return made.id


def test_a_pool_is_made_filled_emptied_and_given_up():
    world = World(pcpus=4)
    control = world.guest()
    assert pool(control, INFO, cpupool_id=0).mask == 0b1111
    one = split(world, control, RTDS, (1, 3))
    assert one == 1
    info = pool(control, INFO, cpupool_id=1)
    assert (info.id, info.sched, info.domains, info.mask) == (1, RTDS, 0, 0b1010)
    assert pool(control, INFO, cpupool_id=0).mask == 0b101
    assert pool(control, FREE).mask == 0
    assert pool(control, DESTROY, cpupool_id=1) == -errno.EBUSY
    assert pool(control, REMOVE, cpupool_id=1, cpu=2) == -errno.EADDRNOTAVAIL
    assert pool(control, REMOVE, cpupool_id=1, cpu=ANY).id == 1
    assert pool(control, INFO, cpupool_id=1).mask == 0b10
    assert pool(control, FREE).mask == 0b1000
    assert pool(control, REMOVE, cpupool_id=1, cpu=1).id == 1
    assert pool(control, REMOVE, cpupool_id=1, cpu=ANY) == -errno.EINVAL
    assert pool(control, DESTROY, cpupool_id=1).id == 1
    assert pool(control, INFO, cpupool_id=1) == -errno.ENOENT
    assert [pool(control, ADD, cpupool_id=0, cpu=ANY).id for _ in range(2)] == [0, 0]
    assert pool(control, INFO, cpupool_id=0).mask == 0b1111


def test_numbers():
    world = World(pcpus=3)
    control = world.guest()
    assert pool(control, CREATE, cpupool_id=7, sched_id=CREDIT).id == 7
    assert pool(control, CREATE, cpupool_id=7, sched_id=CREDIT) == -errno.EEXIST
    assert pool(control, CREATE, cpupool_id=ANY, sched_id=NULL).id == 8
    assert pool(control, CREATE, cpupool_id=ANY, sched_id=4) == -errno.ENOENT
    assert pool(control, CREATE, cpupool_id=3, sched_id=ARINC653).id == 3
    assert [pool(control, INFO, cpupool_id=number).id for number in (1, 3, 4, 8)] == [3, 3, 7, 8]
    assert pool(control, CREATE, cpupool_id=0xFFFFFFFE, sched_id=CREDIT).id == 0xFFFFFFFE
    assert pool(control, CREATE, cpupool_id=ANY, sched_id=CREDIT).id == 1
    assert pool(control, CREATE, cpupool_id=ANY, sched_id=CREDIT) == -errno.ENOSPC


@pytest.mark.parametrize("scheduler", [CREDIT, CREDIT2, RTDS, NULL])
def test_a_domain_moves_while_it_runs(scheduler):
    world = World(pcpus=2)
    control, a, b, c = world.guest(), *make(world, 3)
    one = split(world, control, scheduler, (1,))
    assert pool(control, MOVE, domid=0, cpupool_id=one) == -errno.EPERM
    world.run(until=33 * MS + 7)
    assert pool(control, MOVE, domid=a.domid, cpupool_id=one).id == one
    assert pool(control, MOVE, domid=a.domid, cpupool_id=one).id == one
    assert pool(control, MOVE, domid=a.domid, cpupool_id=9) == -errno.ENOENT
    assert (pool(control, INFO, cpupool_id=one).domains, pool(control, INFO, cpupool_id=0).domains) == (1, 3)
    got = shares(world, [a, b, c], 50 * MS, 1050 * MS)
    assert got == [pytest.approx(1, abs=0.01), pytest.approx(0.5, rel=0.02), pytest.approx(0.5, rel=0.02)]
    assert a.vcpus[0].processor == 1
    assert pool(control, MOVE, domid=a.domid, cpupool_id=0).id == 0
    got = shares(world, [a, b, c], 1100 * MS, 2100 * MS)
    assert got == [pytest.approx(1 / 3, rel=0.03)] * 3
    check_times(world)


def test_a_pool_without_pcpus_takes_nobody():
    world = World(pcpus=2)
    control, _a = world.guest(), world.guest()
    pool(control, CREATE, cpupool_id=5, sched_id=CREDIT2)
    assert pool(control, MOVE, domid=1, cpupool_id=5) == -errno.ENOENT
    create = {"max_vcpus": 1, "max_evtchn_port": 1023, "max_grant_frames": 4, "max_maptrack_frames": 4, "grant_opts": 1}

    def made(cpupool):
        call = {"cmd": domctl.XEN_DOMCTL_createdomain, "interface_version": domctl.XEN_DOMCTL_INTERFACE_VERSION}
        member = {"createdomain": {**create, "cpupool_id": cpupool}}
        rc, op = control.call(xen.HYPERVISOR_domctl, layout=domctl.xen_domctl, **call, u=member)
        return rc or op.domain

    assert made(5) == -errno.ENODEV
    assert made(6) == -errno.ESRCH
    pool(control, REMOVE, cpupool_id=0, cpu=1)
    pool(control, ADD, cpupool_id=5, cpu=1)
    domid = made(5)
    assert domid > 0
    assert pool(control, INFO, cpupool_id=5).domains == 1
    assert pool(control, REMOVE, cpupool_id=5, cpu=1) == -errno.EBUSY
    world.hv.domain_ops.kill(world.hv.domains[domid])


def test_a_pcpu_leaves_a_pool_while_it_computes():
    """What ran there goes on elsewhere at once; an affinity that allows nothing else is broken."""
    world = World(pcpus=2)
    control, a, b = world.guest(), *make(world, 2)
    world.hv.sched.set_affinity(b.vcpus[0], 0b10)
    world.run(until=5 * MS + 12)
    assert pool(control, REMOVE, cpupool_id=0, cpu=1).id == 0
    assert any(b"Breaking affinity for d2v0" in line for line in world.log)
    got = shares(world, [a, b], 20 * MS, 1020 * MS)
    assert got == [pytest.approx(0.5, rel=0.03)] * 2
    assert pool(control, ADD, cpupool_id=0, cpu=1).id == 0
    assert shares(world, [a, b], 1050 * MS, 1150 * MS) == [pytest.approx(1, rel=0.01)] * 2
    check_times(world)


def test_the_schedulers_of_pools_are_adjusted_apart():
    world = World(pcpus=2)
    control = world.guest()
    one = split(world, control, CREDIT2, (1,))

    def limit(cpupool, cmd=abi.XEN_SYSCTL_SCHEDOP_getinfo, us=0):
        wanted = {"cmd": cmd, "sched_id": CREDIT2, "cpupool_id": cpupool, "u": {"sched_credit2": {"ratelimit_us": us}}}
        call = {"cmd": abi.XEN_SYSCTL_scheduler_op, "interface_version": abi.XEN_SYSCTL_INTERFACE_VERSION}
        rc, told = control.call(xen.HYPERVISOR_sysctl, layout=abi.xen_sysctl, **call, u={"scheduler_op": wanted})
        return rc or told.u.scheduler_op.u.sched_credit2.ratelimit_us

    assert limit(one, abi.XEN_SYSCTL_SCHEDOP_putinfo, 5000) == 5000
    assert (limit(0), limit(one), limit(2)) == (1000, 5000, -errno.ESRCH)


def test_null_serves_who_waits_when_a_pcpu_comes():
    world = World(pcpus=3, scheduler="null")
    control = world.guest()
    pool(control, REMOVE, cpupool_id=0, cpu=2)
    a, b, c = make(world, 3)
    assert shares(world, [a, b, c], 10 * MS, 20 * MS) == [pytest.approx(1, rel=0.01)] * 2 + [0]
    pool(control, ADD, cpupool_id=0, cpu=2)
    assert shares(world, [a, b, c], 30 * MS, 40 * MS) == [pytest.approx(1, rel=0.01)] * 3


def test_a_pcpu_is_switched_off_and_on():
    world = World(pcpus=3)
    control, a, b = world.guest(), *make(world, 2)
    port = control.virq(xen.VIRQ_PCPU_STATE)

    def hotplug(op, cpu):
        call = {"cmd": abi.XEN_SYSCTL_cpu_hotplug, "interface_version": abi.XEN_SYSCTL_INTERFACE_VERSION}
        return control.call(
            xen.HYPERVISOR_sysctl, layout=abi.xen_sysctl, **call, u={"cpu_hotplug": {"cpu": cpu, "op": op}}
        )[0]

    on, off = abi.XEN_SYSCTL_CPU_HOTPLUG_ONLINE, abi.XEN_SYSCTL_CPU_HOTPLUG_OFFLINE
    assert [hotplug(off, cpu) for cpu in (0, 3)] == [-errno.EINVAL] * 2
    assert [hotplug(on, cpu) for cpu in (0, 3)] == [-errno.EEXIST, -errno.EINVAL]
    world.run(until=3 * MS + 5)
    assert (hotplug(off, 1), hotplug(off, 1)) == (0, -errno.EEXIST)
    assert control.pending(port)
    assert hotplug(off, 2) == 0
    assert pool(control, INFO, cpupool_id=0).mask == 1
    assert pool(control, FREE).mask == 0
    assert pool(control, ADD, cpupool_id=0, cpu=1) == -errno.ENODEV
    assert pool(control, REMOVE, cpupool_id=0, cpu=1) == -errno.EINVAL
    assert shares(world, [a, b], 20 * MS, 1020 * MS) == [pytest.approx(0.5, rel=0.03)] * 2
    assert hotplug(on, 2) == 0
    assert pool(control, INFO, cpupool_id=0).mask == 0b101
    assert shares(world, [a, b], 1050 * MS, 2050 * MS) == [pytest.approx(1, rel=0.01)] * 2
    check_times(world)


def test_the_last_pcpu_of_a_pool_with_domains_stays_on():
    world = World(pcpus=2)
    control = world.guest()
    made = split(world, control, CREDIT, (1,))
    world.guest()
    pool(control, MOVE, domid=1, cpupool_id=made)
    with pytest.raises(HypercallError) as refused:
        world.hv.sched.pools.take_offline(1)
    assert refused.value.errno == errno.EBUSY
