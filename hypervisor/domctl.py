"""HYPERVISOR_domctl (domctl.h): what a toolstack does to domains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.domain import DYING_DEAD, NO_SHUTDOWN, Domain
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.machine.interrupts import NR_IRQS
from hypervisor.vcpu import VPF_BLOCKED, VPF_DOWN, VPF_POLLING
from hypervisor.vcpu_context import load_context, save_context

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_domctl
DOMCTL = abi.xen_domctl
KIB_PER_PAGE = 4
MAX_VCPUS_PV = 8192
MAX_PAUSES = 255
"""What a toolstack may pause a domain, counted."""
INT_MAX = 0x7FFFFFFF

Handler = Callable[["VCpu", Domain, Any], Any]
"""`handler(caller, target, u member) -> the u member to copy back (its members, or bytes), or None`.

Raises HypercallError.
"""

GPADDR_BITS = 46
"""The width of a machine address, as getdomaininfo reports it."""
_INFO = abi.xen_domctl_getdomaininfo.codec.pack
_NO_SPECIAL_PAGES = (0, 0, 0)
"""outstanding_pages, shr_pages, paged_pages"""
_NO_ARCH = xen.xen_arch_domainconfig.codec.unpack(bytes(xen.xen_arch_domainconfig.size))


class DomctlOps:
    """The control operations, each under the name that its member of the `u` union has."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._handlers: dict[int, tuple[str, Handler]] = {
            abi.XEN_DOMCTL_destroydomain: ("", self._destroydomain),
            abi.XEN_DOMCTL_pausedomain: ("", self._pausedomain),
            abi.XEN_DOMCTL_unpausedomain: ("", self._unpausedomain),
            abi.XEN_DOMCTL_resumedomain: ("", self._resumedomain),
            abi.XEN_DOMCTL_getdomaininfo: ("getdomaininfo", self._getdomaininfo),
            abi.XEN_DOMCTL_max_mem: ("max_mem", self._max_mem),
            abi.XEN_DOMCTL_max_vcpus: ("max_vcpus", self._max_vcpus),
            abi.XEN_DOMCTL_setvcpucontext: ("vcpucontext", self._setvcpucontext),
            abi.XEN_DOMCTL_getvcpucontext: ("vcpucontext", self._getvcpucontext),
            abi.XEN_DOMCTL_getvcpuinfo: ("getvcpuinfo", self._getvcpuinfo),
            abi.XEN_DOMCTL_setdomainhandle: ("setdomainhandle", self._setdomainhandle),
            abi.XEN_DOMCTL_irq_permission: ("irq_permission", self._irq_permission),
            abi.XEN_DOMCTL_ioport_permission: ("ioport_permission", self._ioport_permission),
            abi.XEN_DOMCTL_settimeoffset: ("settimeoffset", self._settimeoffset),
            abi.XEN_DOMCTL_set_address_size: ("address_size", self._set_address_size),
            abi.XEN_DOMCTL_get_address_size: ("address_size", self._get_address_size),
            abi.XEN_DOMCTL_hypercall_init: ("hypercall_init", self._hypercall_init),
            abi.XEN_DOMCTL_set_target: ("set_target", self._set_target),
        }
        self.hypercalls = {HYPERCALL: self._domctl}

    def _domctl(self, vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Check in Xen's order: the pointer, the interface version, the domain, the caller's privilege."""
        op = DOMCTL.unpack_from(copy_from_guest(vcpu, arg, DOMCTL.size))
        if op.interface_version != abi.XEN_DOMCTL_INTERFACE_VERSION:
            return -errno.EACCES
        if op.cmd == abi.XEN_DOMCTL_createdomain:
            self._check_privilege(vcpu, op.cmd)
            return self._createdomain(vcpu, arg, op)
        # DOMID_SELF is no domain's number here: toolstacks name domains.
        target = self.hv.domain(op.domain)
        self._check_privilege(vcpu, op.cmd)
        member, handler = self._handlers.get(op.cmd, ("", None))
        if handler is None:
            return -errno.ENOSYS
        result = handler(vcpu, target, getattr(op.u, member) if member else None)
        if result is not None:
            op.u = result if isinstance(result, bytes) else {member: result}
            copy_to_guest(vcpu, arg, DOMCTL.pack(op))
        return 0

    @staticmethod
    def _check_privilege(vcpu: VCpu, cmd: int) -> None:
        """A domain that serves xenstore may look at the others; all the rest is for the control domain."""
        domain = vcpu.domain
        if not domain.is_privileged and not (domain.is_xenstore and cmd == abi.XEN_DOMCTL_getdomaininfo):
            raise HypercallError(errno.EPERM)

    @staticmethod
    def _refuse_self(vcpu: VCpu, target: Domain) -> None:
        """EINVAL for what would have to pause the caller."""
        if target is vcpu.domain:
            raise HypercallError(errno.EINVAL)

    def _createdomain(self, vcpu: VCpu, arg: int, op: Any) -> int:
        """Make a PV domain; `domain` 0 or out of range asks for a free number, which is copied back."""
        config = op.u.createdomain
        if config.flags & ~(abi.XEN_DOMCTL_CDF_xs_domain | abi.XEN_DOMCTL_CDF_s3_integrity):
            # HVM, shadow and IOMMU options need hardware that this machine does not have.
            return -errno.EINVAL
        if not 1 <= config.max_vcpus <= MAX_VCPUS_PV or config.arch.emulation_flags:
            return -errno.EINVAL
        if config.grant_opts & ~abi.XEN_DOMCTL_GRANT_version_mask:
            return -errno.EINVAL
        wanted = 0 < op.domain < xen.DOMID_FIRST_RESERVED
        if wanted and op.domain in self.hv.domains:
            return -errno.EEXIST
        domid = op.domain if wanted else self.hv.domain_ops.free_domid()
        domain = self.hv.domain_ops.create(
            domid,
            max_vcpus=config.max_vcpus,
            max_evtchn_port=min(config.max_evtchn_port, INT_MAX),
            max_grant_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames,
            max_grant_version=config.grant_opts & abi.XEN_DOMCTL_GRANT_version_mask,
            handle=config.handle,
        )
        domain.is_xenstore = bool(config.flags & abi.XEN_DOMCTL_CDF_xs_domain)
        copy_to_guest(vcpu, arg, DOMCTL.pack(op, domain=domid))
        return 0

    def _destroydomain(self, vcpu: VCpu, target: Domain, _: None) -> None:
        self._refuse_self(vcpu, target)
        self.hv.domain_ops.kill(target)

    def _pausedomain(self, vcpu: VCpu, target: Domain, _: None) -> None:
        self._refuse_self(vcpu, target)
        if target.pause_count >= MAX_PAUSES:
            raise HypercallError(errno.EOVERFLOW)
        self.hv.domain_ops.pause(target)

    def _unpausedomain(self, _vcpu: VCpu, target: Domain, _: None) -> None:
        if not target.pause_count:
            raise HypercallError(errno.EINVAL)
        self.hv.domain_ops.unpause(target)

    def _resumedomain(self, vcpu: VCpu, target: Domain, _: None) -> None:
        """Let a domain that suspended go on."""
        self._refuse_self(vcpu, target)
        if target.shutting_down:
            target.shutting_down = False
            target.shutdown_code = NO_SHUTDOWN
            self.hv.domain_ops.refresh_pause(target)

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
        return _INFO(
            domain.domid,
            0,
            flags,
            domain.tot_pages,
            domain.max_pages,
            *_NO_SPECIAL_PAGES,
            domain.shared_info_mfn,
            sum([vcpu.time_running for vcpu in vcpus]),
            len(up),
            len(vcpus) - 1 if vcpus else abi.XEN_INVALID_MAX_VCPU_ID,
            0,
            domain.handle,
            0,
            GPADDR_BITS,
            b"",
            *_NO_ARCH,
        )

    def _getdomaininfo(self, _vcpu: VCpu, target: Domain, _value: Any) -> bytes:
        return self.record(target)

    def _max_mem(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        # Below what the domain has is fine: it only cannot grow any more.
        target.max_pages = min(value.max_memkb // KIB_PER_PAGE, 0xFFFFFFFF)

    def _max_vcpus(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Make the vCPUs, all at once: the number was fixed when the domain was created."""
        self._refuse_self(vcpu, target)
        if value.max != target.max_vcpus:
            raise HypercallError(errno.EINVAL)
        for vcpu_id in range(value.max):
            if target.vcpus[vcpu_id] is None:
                self.hv.domain_ops.add_vcpu(target, vcpu_id)

    @staticmethod
    def _vcpu_of(target: Domain, vcpu_id: int, missing: int = errno.EINVAL) -> VCpu:
        """Return a vCPU. EINVAL for a number that the domain cannot have, `missing` for one not made yet."""
        if vcpu_id >= target.max_vcpus:
            raise HypercallError(errno.EINVAL)
        vcpu = target.vcpu(vcpu_id)
        if vcpu is None:
            raise HypercallError(missing)
        return vcpu

    def _setvcpucontext(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Set a vCPU's registers; a null context takes the vCPU down and forgets what it was."""
        self._refuse_self(vcpu, target)
        which = self._vcpu_of(target, value.vcpu)
        if self.hv.domain_ops.has_dummy_info(which):
            raise HypercallError(errno.EINVAL)
        if not value.ctxt:
            self._reset_vcpu(which)
            return
        raw = copy_from_guest(vcpu, value.ctxt, xen.vcpu_guest_context.size)
        was_running = which.initialised
        load_context(which, raw)
        if was_running:
            # The new instruction pointer counts: what the vCPU was in the middle of is over.
            which.halt()
        self.hv.domain_ops.refresh_pause(target)

    def _reset_vcpu(self, which: VCpu) -> None:
        which.initialised = False
        self.hv.sched.forget(which)
        which.pause_flags = which.pause_flags & ~(VPF_BLOCKED | VPF_POLLING) | VPF_DOWN
        which.halt()
        self.hv.mm.drop_vcpu(which)

    def _getvcpucontext(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        self._refuse_self(vcpu, target)
        which = self._vcpu_of(target, value.vcpu)
        if not which.initialised:
            raise HypercallError(errno.ENODATA)
        copy_to_guest(vcpu, value.ctxt, save_context(which))

    def _getvcpuinfo(self, _vcpu: VCpu, target: Domain, value: Any) -> dict[str, Any]:
        which = self._vcpu_of(target, value.vcpu, errno.ESRCH)
        return {
            "vcpu": which.vcpu_id,
            "online": not which.pause_flags & VPF_DOWN,
            "blocked": bool(which.pause_flags & VPF_BLOCKED),
            "running": self.hv.sched.is_on_cpu(which),
            "cpu_time": which.time_running,
            "cpu": which.processor,
        }

    def _setdomainhandle(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        target.handle = value.handle

    def _irq_permission(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        if value.pirq >= NR_IRQS:
            raise HypercallError(errno.EINVAL)
        if value.allow_access:
            target.irqs.add(value.pirq)
            if not target.is_privileged:
                self.hv.iommu.assign(value.pirq, target)
        else:
            target.irqs.discard(value.pirq)
            self.hv.iommu.release(value.pirq, target)

    def _ioport_permission(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        first, count = value.first_port, value.nr_ports
        if not count or first + count > 1 << 16:
            raise HypercallError(errno.EINVAL)
        wanted = range(first, first + count)
        if value.allow_access:
            target.ioports.append(wanted)
        else:
            target.ioports = [piece for ports in target.ioports for piece in _without(ports, wanted)]

    def _settimeoffset(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        target.time_offset = value.time_offset_seconds
        self.hv.time.update_wallclock(target)

    @staticmethod
    def _set_address_size(_vcpu: VCpu, target: Domain, value: Any) -> None:
        """Choose the guest's width. Only 64 bit is built."""
        if value.size == 64:
            return
        raise HypercallError(errno.EINVAL if value.size != 32 else errno.EOPNOTSUPP)

    @staticmethod
    def _get_address_size(_vcpu: VCpu, _target: Domain, _value: Any) -> dict[str, int]:
        return {"size": 64}

    def _hypercall_init(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        """Fill a page of the target with the hypercall stubs."""
        self.hv.mm.write_hypercall_page(target, value.gmfn)

    def _set_target(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Let `target` (a device model's domain) act on another domain's behalf."""
        other = self.hv.domain(value.target)
        if other is target or other is vcpu.domain:
            raise HypercallError(errno.EINVAL)
        target.target = other


def _without(ports: range, taken: range) -> list[range]:
    """Return what is left of a range of ports when another is taken out."""
    pieces = (range(ports.start, min(ports.stop, taken.start)), range(max(ports.start, taken.stop), ports.stop))
    return [piece for piece in pieces if piece]
