"""A debugger's operations (XEN_DOMCTL_gdbsx_*, setdebugging): a domain's memory, single vCPUs, where one has stopped.

With a debugger attached a domain whose kernel runs into `int3` or a #DB is paused (`DomainOps.pause_for_debugger`), and
the debugger asks which vCPU it was. It pauses the domain before it looks at memory or at registers (getvcpucontext).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno
from hypervisor.domctl.operation import Operation, refuse_self, vcpu_of
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.mm.frame_table import PGT_writable_page
from hypervisor.mm.pte import FRAME_MASK, PRESENT, PSE
from hypervisor.vcpu import VPF_PAUSED

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

MAX_PAUSES = 255
"""How often a vCPU can be paused, counted."""
NOBODY = 0xFFFFFFFF
NOT_MAPPED = -1
SHIFTS: tuple[int, ...] = (39, 30, 21, 12)


class DebuggerOps:
    """What a debugger does to a domain."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.operations = {
            abi.XEN_DOMCTL_setdebugging: Operation(self._setdebugging, "setdebugging"),
            abi.XEN_DOMCTL_gdbsx_guestmemio: Operation(self._memory, "gdbsx_guest_memio"),
            abi.XEN_DOMCTL_gdbsx_pausevcpu: Operation(self._pause, "gdbsx_pauseunp_vcpu"),
            abi.XEN_DOMCTL_gdbsx_unpausevcpu: Operation(self._unpause, "gdbsx_pauseunp_vcpu"),
            abi.XEN_DOMCTL_gdbsx_domstatus: Operation(self._domstatus, "gdbsx_domstatus"),
        }

    @staticmethod
    def _setdebugging(vcpu: VCpu, target: Domain, value: Any) -> None:
        """Attach a debugger, or detach it."""
        refuse_self(vcpu, target)
        target.debugger_attached = bool(value.enable)

    # -- memory -------------------------------------------------------------------------------------------------------

    def _memory(self, vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Copy from or to a domain's memory, as vCPU 0 has it mapped, or as an L2 table maps it (`pgd3val`).

        EFAULT when something of it is not mapped; what comes before has been copied. (Xen writes into whatever is
        mapped, page tables too, and does not look whether the debugger's own buffer is there.)
        """
        left, address, buffer = value.len, value.gva, value.uva
        while left:
            size = min(4096 - (address & 0xFFF), left)
            mfn = NOT_MAPPED if target.is_dying else self._frame(target, address, value.pgd3val)
            if mfn == NOT_MAPPED or not self._copy(vcpu, target, (mfn << 12) + (address & 0xFFF), buffer, size, value):
                raise HypercallError(errno.EFAULT)
            left, address, buffer = left - size, address + size, buffer + size
        value.remain = 0
        return value

    def _copy(self, vcpu: VCpu, target: Domain, maddr: int, buffer: int, size: int, value: Any) -> bool:
        """Copy within a page; False if it is not the domain's, or cannot be written."""
        frames, mfn = self.hv.frames, maddr >> 12
        if value.gwr:
            data = copy_from_guest(vcpu, buffer, size)
            if not frames.get_page_and_type(mfn, target, PGT_writable_page):
                return False
            self.hv.memory.write(maddr, data)
            frames.put_page_and_type(mfn)
            return True
        if not frames.get_page(mfn, target):
            return False
        data = bytes(self.hv.memory.b[maddr : maddr + size])
        frames.put_page(mfn)
        copy_to_guest(vcpu, buffer, data)
        return True

    def _frame(self, target: Domain, address: int, table: int) -> int:
        """Walk the page tables; returns the frame, or NOT_MAPPED."""
        q, shifts, entry = self.hv.memory.q, SHIFTS, table
        if table:
            # What an L3 entry of the kernel's own holds: the table of the next level.
            shifts = SHIFTS[2:]
        else:
            first = target.vcpu(0)
            if first is None:
                return NOT_MAPPED
            entry = (first.kernel_cr3 if first.context.in_kernel else first.user_cr3) << 12
        for shift in shifts:
            mfn = (entry & FRAME_MASK) >> 12
            if not mfn or mfn >= self.hv.memory.frames:
                return NOT_MAPPED
            entry = q[(mfn << 9) + (address >> shift & 511)]
            if not entry & PRESENT or (entry & PSE and shift != SHIFTS[-1]):
                return NOT_MAPPED
        return (entry & FRAME_MASK) >> 12

    # -- vCPUs --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _paused(target: Domain, vcpu_id: int) -> VCpu:
        """Return a vCPU of a domain that the debugger has paused as a whole; EBUSY if it has not."""
        if not target.pause_count:
            raise HypercallError(errno.EBUSY)
        return vcpu_of(target, vcpu_id, beyond=errno.EINVAL, missing=errno.EINVAL)

    def _pause(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        """Keep one vCPU from running, counted, so that the others can go on without it."""
        which = self._paused(target, value.vcpu)
        if which.pause_count >= MAX_PAUSES:
            raise HypercallError(errno.EOVERFLOW)
        which.pause_count += 1
        self.hv.sched.stop(which, VPF_PAUSED)

    def _unpause(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        which = self._paused(target, value.vcpu)
        if not which.pause_count:
            raise HypercallError(errno.EINVAL)
        which.pause_count -= 1
        self.hv.domain_ops.refresh_pause(target)

    @staticmethod
    def _domstatus(_vcpu: VCpu, target: Domain, _value: Any) -> dict[str, int]:
        """Tell whether the domain is paused, and, once for each stop, which vCPU has run into what (a vector)."""
        if target.pause_count:
            for which in target.online_vcpus():
                if which.debug_event:
                    event, which.debug_event = which.debug_event, 0
                    return {"paused": 1, "vcpu_id": which.vcpu_id, "vcpu_ev": event}
        return {"paused": bool(target.pause_count), "vcpu_id": NOBODY}
