"""Hypercalls that cost more than others: their handlers in the hypercall table are wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi.grant_table import GNTTABOP_copy, gnttab_copy
from hypervisor.abi.xen import HYPERVISOR_grant_table_op
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

Handler = Callable[["VCpu", int, int, int, int, int], int]
_LEN = gnttab_copy.offset("len")
PAGE_SIZE = 4096


def install(hv: Hypervisor) -> None:
    """Wrap the handlers of hypercalls that `Costs.hypercalls` and `grant_copy_page` are about."""
    costs = hv.sched.costs
    for number, cost in costs.hypercalls.items():
        hv.table[number] = _dearer(hv, hv.table[number], cost)
    if costs.grant_copy_page:
        number = HYPERVISOR_grant_table_op
        hv.table[number] = _copying(hv, hv.table[number], costs.grant_copy_page)


def _dearer(hv: Hypervisor, handler: Handler, cost: int) -> Handler:
    def charged(vcpu: VCpu, a1: int, a2: int, a3: int, a4: int, a5: int) -> int:
        hv.sched.charged += cost
        return handler(vcpu, a1, a2, a3, a4, a5)

    return charged


def _copying(hv: Hypervisor, handler: Handler, page: int) -> Handler:
    def charged(vcpu: VCpu, cmd: int, array: int, count: int, a4: int, a5: int) -> int:
        if cmd == GNTTABOP_copy:
            # (Charged by what is asked for, in one sum: what cannot be read is not done either.)
            try:
                ops = copy_from_guest(vcpu, array, gnttab_copy.size * min(count, 512))
            except HypercallError:
                ops = b""
            length = sum(ops[at] | ops[at + 1] << 8 for at in range(_LEN, len(ops), gnttab_copy.size))
            hv.sched.charged += length * page // PAGE_SIZE
        return handler(vcpu, cmd, array, count, a4, a5)

    return charged
