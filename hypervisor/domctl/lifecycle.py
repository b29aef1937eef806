"""Control operations about domains as wholes: creation, pausing, limits, the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.domain import NO_SHUTDOWN, Domain
from hypervisor.domctl.operation import Operation, always, refuse_self
from hypervisor.errors import HypercallError
from hypervisor.mm.frame_table import PGT_writable_page

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

KIB_PER_PAGE = 4
MAX_VCPUS_PV = 8192
MAX_PAUSES = 255
"""What a toolstack may pause a domain, counted."""
INT_MAX = 0x7FFFFFFF
U32 = 0xFFFFFFFF
PV_FLAGS = abi.XEN_DOMCTL_CDF_xs_domain | abi.XEN_DOMCTL_CDF_oos_off
"""What a PV domain can be asked for on this machine: it has neither hardware virtualization nor an IOMMU of Xen's."""


class LifecycleOps:
    """Domains as wholes."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.operations = {
            abi.XEN_DOMCTL_destroydomain: Operation(self._destroydomain),
            abi.XEN_DOMCTL_pausedomain: Operation(self._pausedomain),
            abi.XEN_DOMCTL_unpausedomain: Operation(self._unpausedomain),
            abi.XEN_DOMCTL_resumedomain: Operation(self._resumedomain),
            abi.XEN_DOMCTL_soft_reset: Operation(self._soft_reset),
            abi.XEN_DOMCTL_max_mem: Operation(self._max_mem, "max_mem"),
            abi.XEN_DOMCTL_setdomainhandle: Operation(self._setdomainhandle, "setdomainhandle"),
            abi.XEN_DOMCTL_settimeoffset: Operation(self._settimeoffset, "settimeoffset"),
            abi.XEN_DOMCTL_subscribe: Operation(self._subscribe, "subscribe"),
            abi.XEN_DOMCTL_set_virq_handler: Operation(self._set_virq_handler, "set_virq_handler"),
            abi.XEN_DOMCTL_set_address_size: Operation(self._set_address_size, "address_size"),
            abi.XEN_DOMCTL_get_address_size: Operation(self._get_address_size, "address_size"),
            abi.XEN_DOMCTL_hypercall_init: Operation(self._hypercall_init, "hypercall_init"),
            # Of HVM domains, and of processors with features that this one has not.
            abi.XEN_DOMCTL_sethvmcontext: always(errno.EINVAL),
            abi.XEN_DOMCTL_gethvmcontext: always(errno.EINVAL),
            abi.XEN_DOMCTL_gethvmcontext_partial: always(errno.EINVAL),
            abi.XEN_DOMCTL_set_broken_page_p2m: always(errno.EINVAL),
            abi.XEN_DOMCTL_vmtrace_op: always(errno.EINVAL),
            abi.XEN_DOMCTL_psr_cmt_op: always(errno.ENODEV),
            abi.XEN_DOMCTL_psr_alloc: Operation(self._psr_alloc, "psr_alloc"),
            abi.XEN_DOMCTL_get_paging_mempool_size: always(errno.EOPNOTSUPP),
            abi.XEN_DOMCTL_set_paging_mempool_size: always(errno.EOPNOTSUPP),
        }

    # -- the beginning ----------------------------------------------------------------------------------------------

    def create(self, wanted: int, config: Any) -> Domain:
        """Make a PV domain (XEN_DOMCTL_createdomain). 0 or a number out of range asks for a free one.

        Raises HypercallError: EEXIST, EINVAL for what this machine or no PV domain can be, EOPNOTSUPP for emulated
        devices, ESRCH for a pool of pCPUs that there is not, ENODEV for one without pCPUs, ENOMEM.
        """
        named = 0 < wanted < xen.DOMID_FIRST_RESERVED
        if named and wanted in self.hv.domains:
            raise HypercallError(errno.EEXIST)
        domid = wanted if named else self.hv.domain_ops.free_domid()
        self._check(config)
        pool = self.hv.sched.pools.find(config.cpupool_id, errno.ESRCH)
        if not pool.algorithm.pcpus:
            raise HypercallError(errno.ENODEV)
        domain = self.hv.domain_ops.create(
            domid,
            max_vcpus=config.max_vcpus,
            max_evtchn_port=min(config.max_evtchn_port, INT_MAX),
            max_grant_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames,
            max_grant_version=config.grant_opts & abi.XEN_DOMCTL_GRANT_version_mask,
            handle=config.handle,
        )
        domain.scheduling.pool = pool.pool_id
        domain.is_xenstore = bool(config.flags & abi.XEN_DOMCTL_CDF_xs_domain)
        domain.emulation_flags = config.arch.emulation_flags
        return domain

    @staticmethod
    def _check(config: Any) -> None:
        """Judge a domain's configuration (sanitise_domain_config)."""
        if (
            config.flags & ~PV_FLAGS
            or config.iommu_opts
            or config.vmtrace_size
            or config.grant_opts & ~abi.XEN_DOMCTL_GRANT_version_mask
            or not 1 <= config.max_vcpus <= MAX_VCPUS_PV
            or config.arch.misc_flags & ~xen.XEN_X86_MSR_RELAXED
            or config.arch.emulation_flags & ~xen.XEN_X86_EMU_ALL
        ):
            raise HypercallError(errno.EINVAL)
        if config.arch.emulation_flags & ~xen.XEN_X86_EMU_PIT:
            raise HypercallError(errno.EOPNOTSUPP)

    # -- pausing ----------------------------------------------------------------------------------------------------

    def _pausedomain(self, vcpu: VCpu, target: Domain, _: None) -> None:
        refuse_self(vcpu, target)
        if target.pause_count >= MAX_PAUSES:
            raise HypercallError(errno.EOVERFLOW)
        self.hv.domain_ops.pause(target)

    def _unpausedomain(self, _vcpu: VCpu, target: Domain, _: None) -> None:
        if not target.pause_count:
            raise HypercallError(errno.EINVAL)
        self.hv.domain_ops.unpause(target)

    # -- the end, and going on after it -----------------------------------------------------------------------------

    def _destroydomain(self, vcpu: VCpu, target: Domain, _: None) -> None:
        refuse_self(vcpu, target)
        self.hv.domain_ops.kill(target)

    def _resumedomain(self, vcpu: VCpu, target: Domain, _: None) -> None:
        """Let a domain that suspended go on."""
        refuse_self(vcpu, target)
        target.shutting_down = False
        target.shutdown_code = NO_SHUTDOWN
        self.hv.domain_ops.refresh_pause(target)

    def _soft_reset(self, vcpu: VCpu, target: Domain, _: None) -> None:
        """Begin anew what has shut down. No PV domain survives that: its memory cannot be set back."""
        refuse_self(vcpu, target)
        if target.shutting_down:
            self.hv.domain_ops.crash(target, "soft reset of a PV domain")
        raise HypercallError(errno.EINVAL)

    # -- what a domain is and has -----------------------------------------------------------------------------------

    def _max_mem(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        # Below what the domain has is fine: it only cannot grow any more.
        target.max_pages = min(value.max_memkb // KIB_PER_PAGE, U32)

    def _setdomainhandle(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        target.handle = value.handle

    def _settimeoffset(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        target.time_offset = value.time_offset_seconds
        self.hv.time.update_wallclock(target)

    def _subscribe(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        """Have a port of the domain signalled when it suspends, instead of VIRQ_DOM_EXC."""
        target.suspend_evtchn = value.port

    def _set_virq_handler(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        self.hv.events.set_global_virq_handler(target, value.virq)

    @staticmethod
    def _set_address_size(_vcpu: VCpu, _target: Domain, value: Any) -> None:
        """Choose the guest's width. Only 64 bit is built."""
        if value.size != 64:
            raise HypercallError(errno.EINVAL if value.size != 32 else errno.EOPNOTSUPP)

    @staticmethod
    def _get_address_size(_vcpu: VCpu, _target: Domain, _value: Any) -> dict[str, int]:
        return {"size": 64}

    def _hypercall_init(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        """Fill a page of the target with the hypercall stubs."""
        frames, gmfn = self.hv.frames, value.gmfn
        if not frames.get_page(gmfn, target):
            raise HypercallError(errno.EINVAL)
        usable = frames.get_page_type(gmfn, PGT_writable_page)
        if usable:
            self.hv.mm.write_hypercall_page(target, gmfn)
            frames.put_page_type(gmfn)
        frames.put_page(gmfn)
        if not usable:
            raise HypercallError(errno.EPERM)

    @staticmethod
    def _psr_alloc(_vcpu: VCpu, _target: Domain, value: Any) -> None:
        """Cache allocation: the processor has none."""
        raise HypercallError(errno.ENODEV if value.cmd <= abi.XEN_DOMCTL_PSR_GET_MBA_THRTL else errno.EOPNOTSUPP)
