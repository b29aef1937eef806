"""GNTTABOP_transfer: give a whole frame to another domain, which has asked for one with a GTF_accept_transfer entry."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.tracepoints import GNTTAB_TRANSFER
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_table.table import GrantTable
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_grant_table_op
SIZE = abi.gnttab_transfer.size
STATUS = abi.gnttab_transfer.offset("status")
CODEC = Struct("<QH2xI8x")
"""The fields that go in: mfn, domid, ref."""

ACCEPTED = abi.GTF_accept_transfer
COMMITTED = abi.GTF_transfer_committed


class TransferOps:
    """Transfers, for all domains."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv

    def transfer(self, vcpu: VCpu, va: int, count: int) -> int:
        """Run `count` transfers at guest address `va`; each gets its status. Raises HypercallError(EFAULT)."""
        for done in range(count):
            if done and self._hv.preempt.check():
                raise Continuation(HYPERCALL, abi.GNTTABOP_transfer, va, count - done)
            mfn, domid, ref = CODEC.unpack(copy_from_guest(vcpu, va, SIZE))
            status = self._transfer(vcpu.domain, mfn, domid, ref)
            trace = self._hv.trace
            if trace is not None:
                trace(vcpu.domain.domid, vcpu.vcpu_id, GNTTAB_TRANSFER, domid, ref, status)
            copy_to_guest(vcpu, va + STATUS, status.to_bytes(2, "little", signed=True))
            va += SIZE
        return 0

    def _transfer(self, giver: Domain, mfn: int, domid: int, ref: int) -> int:
        """Move one frame. Once it is taken from the giver it is gone, whatever comes after: the header says so."""
        frames = self._hv.frames
        if not frames.get_page(mfn, giver):
            return abi.GNTST_bad_page
        if not frames.steal_page(mfn, giver):
            frames.put_page(mfn)
            return abi.GNTST_bad_page
        status = self._hand_over(giver, mfn, domid, ref)
        if status:
            frames.free_stolen(mfn)
        else:
            giver.grant_table.stats.transfers += 1
        return status

    def _hand_over(self, giver: Domain, mfn: int, domid: int, ref: int) -> int:
        """Give a stolen frame to its receiver; returns a status, with the frame still nobody's on failure."""
        receiver = self._hv.domains.get(domid)
        if receiver is None:
            return abi.GNTST_bad_domain
        if receiver.is_dying or receiver.tot_pages >= receiver.max_pages:
            return abi.GNTST_general_error
        table = receiver.grant_table
        if not commit(table, ref, giver.domid):
            return abi.GNTST_general_error
        frames = self._hv.frames
        frames.assign_page(mfn, receiver)
        frames.set_gpfn(mfn, table.format.frame(table, ref))
        table.format.complete_transfer(table, ref, mfn)
        return abi.GNTST_okay


def commit(table: GrantTable, ref: int, domid: int) -> bool:
    """Mark an entry as committed to a transfer from `domid`; False when it does not offer exactly that."""
    if ref >= table.nr_entries:
        return False
    at = table.slot[ref] << 1
    if table.memory.i[at] != domid << 16 | ACCEPTED:
        return False
    table.memory.i[at] = domid << 16 | ACCEPTED | COMMITTED
    table.memory.written[at >> 10] = 1
    return True
