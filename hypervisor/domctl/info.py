"""Control operations that only look: the state of a domain, and what its frames are."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.domain import DYING_DEAD, Domain
from hypervisor.domctl.operation import Operation
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.mm.frame_table import (
    PINNED,
    VALIDATED,
    XEN_HEAP,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
)
from hypervisor.vcpu import VPF_BLOCKED, VPF_DOWN

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

GPADDR_BITS = 46
"""The width of a machine address, as getdomaininfo reports it."""
MAX_FRAMES = 1024
"""How many frames getpageframeinfo3 looks at in one call."""
_INFO = abi.xen_domctl_getdomaininfo.codec.pack
_NO_SHARING = (0, 0)
"""shr_pages, paged_pages"""
_ARCH = xen.xen_arch_domainconfig.codec.unpack(bytes(xen.xen_arch_domainconfig.size))[1:]
_TABLES = {
    PGT_l1_page_table: abi.XEN_DOMCTL_PFINFO_L1TAB,
    PGT_l2_page_table: abi.XEN_DOMCTL_PFINFO_L2TAB,
    PGT_l3_page_table: abi.XEN_DOMCTL_PFINFO_L3TAB,
    PGT_l4_page_table: abi.XEN_DOMCTL_PFINFO_L4TAB,
}


class InfoOps:
    """Reports."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.operations = {
            abi.XEN_DOMCTL_getpageframeinfo3: Operation(self._getpageframeinfo3, "getpageframeinfo3"),
        }

    def record(self, domain: Domain) -> bytes:
        """Return a domain's xen_domctl_getdomaininfo: toolstacks ask for those of all domains at any domain's end."""
        vcpus = domain.online_vcpus()
        up = [vcpu for vcpu in vcpus if not vcpu.pause_flags & VPF_DOWN]
        is_on_cpu = self.hv.sched.is_on_cpu
        # The reason is above the flags, all ones as long as there is none.
        flags = domain.shutdown_code << abi.XEN_DOMINF_shutdownshift & 0xFFFFFFFF
        if domain.is_dying == DYING_DEAD:
            flags |= abi.XEN_DOMINF_dying
        if domain.shutting_down:
            flags |= abi.XEN_DOMINF_shutdown
        if domain.pause_count:
            flags |= abi.XEN_DOMINF_paused
        if domain.debugger_attached:
            flags |= abi.XEN_DOMINF_debugged
        if domain.is_xenstore:
            flags |= abi.XEN_DOMINF_xs_domain
        running, blocked = False, VPF_BLOCKED if up else 0
        for vcpu in up:
            blocked &= vcpu.pause_flags
            running = running or is_on_cpu(vcpu)
        if running:
            flags |= abi.XEN_DOMINF_running
        if blocked:
            flags |= abi.XEN_DOMINF_blocked
        outstanding = self.hv.mm.claims.outstanding.get(domain.domid, 0)
        return _INFO(
            domain.domid,
            0,
            flags,
            domain.tot_pages,
            domain.max_pages,
            outstanding,
            *_NO_SHARING,
            domain.shared_info_mfn,
            sum([vcpu.time_running for vcpu in vcpus]),
            len(up),
            len(vcpus) - 1 if vcpus else abi.XEN_INVALID_MAX_VCPU_ID,
            0,
            domain.handle,
            domain.scheduling.pool,
            GPADDR_BITS,
            b"",
            domain.emulation_flags,
            *_ARCH,
        )

    def _getpageframeinfo3(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Say of each of a list of frames whether it is a page table, and pinned; the answers replace the numbers."""
        count = value.num
        if count > MAX_FRAMES:
            raise HypercallError(errno.E2BIG)
        for at in range(value.array, value.array + 8 * count, 8):
            (mfn,) = array("Q", copy_from_guest(vcpu, at, 8))
            copy_to_guest(vcpu, at, self._use_of(target, mfn).to_bytes(8, "little"))

    def _use_of(self, target: Domain, mfn: int) -> int:
        frames = self.hv.frames
        if not frames.get_page(mfn, target):
            return abi.XEN_DOMCTL_PFINFO_XTAB
        flags, kind = frames.flags[mfn], frames.type[mfn]
        frames.put_page(mfn)
        if flags & XEN_HEAP:
            return abi.XEN_DOMCTL_PFINFO_XTAB
        if flags & PINNED:
            return _TABLES.get(kind, abi.XEN_DOMCTL_PFINFO_NOTAB) | abi.XEN_DOMCTL_PFINFO_LPINTAB
        if not flags & VALIDATED:
            return abi.XEN_DOMCTL_PFINFO_NOTAB
        return _TABLES.get(kind, abi.XEN_DOMCTL_PFINFO_NOTAB)
