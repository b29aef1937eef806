"""HYPERVISOR_multicall (xen.h): a batch of hypercalls for the price of one entry."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi.tracepoints import HYPERCALL as TRACE_HYPERCALL
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest, write_u64
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL, IRET = xen.__HYPERVISOR_multicall, xen.__HYPERVISOR_iret
ENTRY = xen.multicall_entry
RESULT = ENTRY.offset("result")
U64 = 0xFFFF_FFFF_FFFF_FFFF


class MulticallOps:
    """Runs the entries in order and writes each result back; only the guest's memory limits their number."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.hypercalls = {HYPERCALL: self._multicall}

    def _multicall(self, vcpu: VCpu, call_list: int, count: int, _a3: int, _a4: int, _a5: int) -> int:
        if not access_ok(call_list):
            return -errno.EFAULT
        trace = self.hv.trace
        count &= 0xFFFFFFFF
        for index in range(count):
            address = call_list + index * ENTRY.size
            if index and self.hv.preempt.check():
                raise Continuation(HYPERCALL, address, count - index)
            op, _, *args = ENTRY.codec.unpack(copy_from_guest(vcpu, address, ENTRY.size))
            try:
                result = self._call(vcpu, op, args[:5])
            except Continuation as rest:
                # The rest of the call takes the place of the entry.
                left = rest.replace(tuple(args))
                copy_to_guest(vcpu, address, ENTRY.codec.pack(op, op, *left))
                raise Continuation(HYPERCALL, address, count - index) from None
            if trace is not None:
                trace(vcpu.domain.domid, vcpu.vcpu_id, TRACE_HYPERCALL, op, *args[:5], result)
            if op == IRET:
                # The guest is elsewhere now: nothing of the list is left, and where its result goes matters to nobody.
                with suppress(HypercallError):
                    write_u64(vcpu, address + RESULT, result & U64)
                return result
            write_u64(vcpu, address + RESULT, result & U64)
        return 0

    def _call(self, vcpu: VCpu, op: int, args: list[int]) -> int:
        table = self.hv.table
        if op == HYPERCALL:
            return -errno.EINVAL
        if op >= len(table):
            return -errno.ENOSYS
        try:
            return table[op](vcpu, *args)
        except HypercallError as error:
            return -error.errno
