"""HYPERVISOR_multicall (xen.h): a batch of hypercalls for the price of one entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, write_u64

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_multicall
ENTRY = xen.multicall_entry
RESULT = ENTRY.offset("result")
U64 = 0xFFFF_FFFF_FFFF_FFFF


class MulticallOps:
    """Runs the entries in order and writes each result back; only the guest's memory limits their number."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.hypercalls = {HYPERCALL: self._multicall}

    def _multicall(self, vcpu: VCpu, call_list: int, count: int, _a3: int, _a4: int, _a5: int) -> int:
        for index in range(count & 0xFFFFFFFF):
            address = call_list + index * ENTRY.size
            op, _, *args = ENTRY.codec.unpack(copy_from_guest(vcpu, address, ENTRY.size))
            write_u64(vcpu, address + RESULT, self._call(vcpu, op, args) & U64)
        return 0

    def _call(self, vcpu: VCpu, op: int, args: list[int]) -> int:
        table = self.hv.table
        if op == HYPERCALL:
            return -errno.EINVAL
        if op >= len(table):
            return -errno.ENOSYS
        try:
            return table[op](vcpu, *args[:5])
        except HypercallError as error:
            return -error.errno
