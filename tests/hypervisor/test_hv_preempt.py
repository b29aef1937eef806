"""Continuations: a long hypercall that is given up and goes on, from the door and in a multicall."""

from __future__ import annotations

from typing import Any

import pytest
from core_world import World
from preemption import ALWAYS, Points, everywhere

from hypervisor.abi import errno, xen
from hypervisor.abi import version as ver
from hypervisor.errors import HypercallError
from hypervisor.preempt import Continuation

LONG = 50
"""The number of a hypercall made for these tests: (left, sum so far, last), returns the sum of left..1."""
MULTICALL, VERSION = xen.HYPERVISOR_multicall, xen.HYPERVISOR_xen_version
U64 = 0xFFFFFFFFFFFFFFFF


def long_op(vcpu: Any, left: int, total: int, last: int, _a4: int, _a5: int) -> int:
    start = left
    while left:
        if left != start and vcpu.hv.preempt.check():
            raise Continuation(LONG, left, total)
        total += left
        left -= 1
    if last == 1:
        raise HypercallError(errno.ENOENT)
    return total if not last else -last


class LongWorld(World):
    """Its guests' doors know the long hypercall."""

    def __init__(self) -> None:
        super().__init__()
        self.hv.table[LONG] = long_op


def multicall(guest: Any, *calls: tuple[int, ...]) -> tuple[int, list[int]]:
    size = xen.multicall_entry.size
    for index, (op, *args) in enumerate(calls):
        entry = xen.multicall_entry.pack(op=op, result=0x77, args=(*args, *(0,) * (6 - len(args))))
        guest.poke(guest.args + index * size, entry)
    rc = guest.hypercall(MULTICALL, guest.args, len(calls))
    data = guest.peek(guest.args, size * len(calls))
    return rc, [xen.multicall_entry.unpack_from(data, index * size).result for index in range(len(calls))]


@pytest.mark.parametrize(("last", "result"), [(0, 15), (1, -errno.ENOENT), (5, -5)])
def test_the_result_is_that_of_an_undisturbed_call(last, result):
    def work(points):
        guest = LongWorld().guest()
        points.on(guest.hv)
        return guest.hypercall(LONG, 5, 0, last)

    assert everywhere(work, least=4) == result


def test_others_run_in_between():
    world = LongWorld()
    first, second = world.guest(), world.guest()
    points = Points(ALWAYS)
    answers = []
    points.others = lambda vcpu: answers.append((vcpu.domain.domid, second.hypercall(VERSION, 0)))
    points.on(world.hv)
    assert first.hypercall(LONG, 3) == 6
    assert answers == [(0, 4 << 16 | 17)] * 2


def test_nobody_hears_of_it_when_the_domain_is_killed_meanwhile():
    world = LongWorld()
    _, second = world.guest(), world.guest()
    points = Points(ALWAYS)
    points.others = lambda _: world.hv.domain_ops.kill(second.domain)
    points.on(world.hv)
    assert second.hypercall(LONG, 3) == 0
    points.off()
    assert list(world.hv.domains) == [0]


def test_nothing_is_preempted_while_python_guests_run_undisturbed():
    guest = LongWorld().guest()
    assert not guest.hv.preempt.check()
    assert guest.hypercall(LONG, 100) == 5050


def test_multicall_goes_on_inside_the_interrupted_entry():
    def work(points):
        guest = LongWorld().guest()
        points.on(guest.hv)
        return multicall(guest, (VERSION, 0), (LONG, 4, 0, 0), (63,), (LONG, 3, 10, 0), (VERSION, ver.XENVER_pagesize))

    assert everywhere(work, least=9) == (0, [4 << 16 | 17, 10, -errno.ENOSYS & U64, 16, 4096])


def test_the_entry_in_guest_memory_holds_what_is_left():
    guest = LongWorld().guest()
    points = Points(1)
    seen = []
    points.others = lambda _: seen.append(xen.multicall_entry.unpack_from(guest.peek(guest.args, 64)))
    points.on(guest.hv)
    assert multicall(guest, (LONG, 4, 0, 0, 7, 8, 9)) == (0, [10])
    assert [(entry.op, entry.args) for entry in seen] == [(LONG, (3, 4, 0, 7, 8, 9))]


def test_an_entry_that_cannot_be_replaced_ends_the_multicall():
    guest = LongWorld().guest()
    guest.poke(guest.va(3), xen.multicall_entry.pack(op=LONG, result=0x77, args=(4,) + (0,) * 5))
    assert guest.set_pte(guest.va(3), guest.pages[3] << 12 | 0x65) == 0
    Points(ALWAYS).on(guest.hv)
    assert guest.hypercall(MULTICALL, guest.va(3), 1) == -errno.EFAULT
    assert xen.multicall_entry.unpack_from(guest.peek(guest.va(3), 64)).result == 0x77
