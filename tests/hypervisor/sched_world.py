"""Guests that want the processor, and how much of it they got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core_world import Guest, Program, World

from hypervisor.abi import domctl, xen
from hypervisor.abi.vcpu import vcpu_runstate_info

FOREVER = 1 << 50


def spin(step: int = FOREVER) -> Program:
    """A guest that computes and does nothing else."""

    def program(cpu):
        while True:
            yield step

    return program


def work(guest: Guest, busy: int, idle: int) -> Program:
    """A guest that computes for `busy` ns, sleeps for `idle` ns, and so on."""

    def program(cpu):
        while True:
            yield busy
            guest.poll([], timeout=guest.hv.now() + idle)
            yield 0

    return program


def make(world: World, count: int, *, vcpus: int = 1, program: Callable[[], Program] = spin) -> list[Guest]:
    """Make some guests whose vCPUs all run such a program."""
    guests = [world.guest(vcpus=vcpus) for _ in range(count)]
    for guest in guests:
        guest.runs(*(program() for _ in range(vcpus)))
    return guests


def adjust(control: Guest, target: Guest, scheduler: str, **params: Any) -> Any:
    """XEN_DOMCTL_scheduler_op: put parameters, or get them if none are given. Returns an errno, or the structure."""
    op = {
        "sched_id": getattr(domctl, f"XEN_SCHEDULER_{scheduler.upper()}"),
        "cmd": domctl.XEN_DOMCTL_SCHEDOP_putinfo if params else domctl.XEN_DOMCTL_SCHEDOP_getinfo,
        "u": {scheduler: params},
    }
    fields = {
        "cmd": domctl.XEN_DOMCTL_scheduler_op,
        "interface_version": domctl.XEN_DOMCTL_INTERFACE_VERSION,
        "domain": target.domid,
        "u": {"scheduler_op": op},
    }
    rc, told = control.call(xen.HYPERVISOR_domctl, layout=domctl.xen_domctl, **fields)
    return rc or getattr(told.u.scheduler_op.u, scheduler)


def used(guest: Guest, now: int) -> int:
    """Return how many ns the vCPUs of a guest have run until `now`."""
    return sum(vcpu.unit.running_time(now) for vcpu in guest.vcpus)


def shares(world: World, guests: list[Guest], start: int, end: int, steps: int = 2_000_000) -> list[float]:
    """Run the host, and return which part of a pCPU each guest had between two times."""
    world.run(until=start, steps=steps)
    before = [used(guest, start) for guest in guests]
    world.run(until=end, steps=steps)
    return [(used(guest, end) - was) / (end - start) for guest, was in zip(guests, before, strict=True)]


def check_times(world: World) -> None:
    """The four runstate times of every vCPU add up to its age."""
    now = world.hv.now()
    for guest in world.guests:
        for vcpu in guest.vcpus:
            info = vcpu_runstate_info.unpack(world.hv.time.runstate(vcpu))
            assert sum(info.time) == max(now, vcpu.since) - vcpu.created, vcpu


def set_rtds(control: Guest, target: Guest, period: int, budget: int, *, extra: bool, vcpu: int = 0) -> int:
    """XEN_DOMCTL_SCHEDOP_putvcpuinfo of one vCPU, in us. Returns 0 or an errno."""
    rtds = {"period": period, "budget": budget, "flags": int(extra)}
    params = domctl.xen_domctl_schedparam_vcpu.pack(vcpuid=vcpu, u={"rtds": rtds})
    control.poke(control.va(0), params)
    op = {
        "sched_id": domctl.XEN_SCHEDULER_RTDS,
        "cmd": domctl.XEN_DOMCTL_SCHEDOP_putvcpuinfo,
        "u": {"v": {"vcpus": control.va(0), "nr_vcpus": 1}},
    }
    fields = {
        "cmd": domctl.XEN_DOMCTL_scheduler_op,
        "interface_version": domctl.XEN_DOMCTL_INTERFACE_VERSION,
        "domain": target.domid,
        "u": {"scheduler_op": op},
    }
    return control.call(xen.HYPERVISOR_domctl, layout=domctl.xen_domctl, **fields)[0]
