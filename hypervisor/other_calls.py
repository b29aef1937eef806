"""The hypercalls that a PV guest can make and behind which there is nothing here: for other hardware, other guests.

Each judges a call as far as Xen would before it gets to what is missing, and in Xen's order: privilege first where it
is the hypercall's, arguments first where it is the operation's. Debian's build of Xen 4.17 decides which hypercalls
there are: xsm_op, tmem_op and argo_op are not (-ENOSYS to everybody).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, hypfs, kexec, xen, xen_mca, xenoprof
from hypervisor.abi.layout import Layout
from hypervisor.guest_access import copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF

# HYPERVISOR_hvm_op (hvm/hvm_op.h, hvm/params.h): for HVM guests, but not hidden from PV ones.
HVMOP_set_param, HVMOP_get_param, HVMOP_flush_tlbs = 0, 1, 5
HVMOP_pagetable_dying, HVMOP_get_time, HVMOP_xentrace, HVMOP_get_mem_type = 9, 10, 11, 15
HVMOP_set_evtchn_upcall_vector, HVMOP_guest_request_vm_event, HVMOP_altp2m = 23, 24, 25
HVM_NR_PARAMS = 39
TRC_SUBCLS_MASK = 0xFFF
xen_hvm_param = Layout(
    "xen_hvm_param", ("domid_t", "domid"), ("uint16_t", "pad"), ("uint32_t", "index"), ("uint64_t", "value")
)
xen_hvm_get_mem_type = Layout(
    "xen_hvm_get_mem_type",
    ("domid_t", "domid"),
    ("uint16_t", "mem_type"),
    ("uint16_t", "pad", 2),
    ("uint64_t", "pfn"),
)
xen_hvm_pagetable_dying = Layout(
    "xen_hvm_pagetable_dying", ("domid_t", "domid"), ("uint16_t", "pad", 3), ("uint64_t", "gpa")
)
xen_hvm_xentrace = Layout(
    "xen_hvm_xentrace", ("uint16_t", "event"), ("uint16_t", "extra_bytes"), ("uint8_t", "extra", 28)
)

KEXEC_TYPES = (kexec.KEXEC_TYPE_DEFAULT, kexec.KEXEC_TYPE_CRASH)
KEXEC_RANGES = range(kexec.KEXEC_RANGE_MA_VMCOREINFO + 1)
KEXEC_ARGUMENTS = {
    kexec.KEXEC_CMD_kexec: kexec.xen_kexec_exec,
    kexec.KEXEC_CMD_kexec_load_v1: kexec.xen_kexec_load_v1,
    kexec.KEXEC_CMD_kexec_unload_v1: kexec.xen_kexec_load_v1,
    kexec.KEXEC_CMD_kexec_load: kexec.xen_kexec_load,
    kexec.KEXEC_CMD_kexec_unload: kexec.xen_kexec_unload,
    kexec.KEXEC_CMD_kexec_status: kexec.xen_kexec_status,
}
"""What operations about an image read; each names the image by its type."""

# HYPERVISOR_dm_op (hvm/dm_op.h).
DM_OP_BUFFERS = 2
DM_OP_BUF_SIZE = 16

XENOPROF_UNPRIVILEGED = frozenset(
    {
        xenoprof.XENOPROF_init,
        xenoprof.XENOPROF_enable_virq,
        xenoprof.XENOPROF_disable_virq,
        xenoprof.XENOPROF_get_buffer,
    }
)


class OtherCalls:
    """hvm_op, dm_op, hypfs_op, kexec_op, mca, xenpmu_op, xenoprof_op and the continuation of paging operations."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.hypercalls = {
            xen.HYPERVISOR_xenoprof_op: self._xenoprof_op,
            xen.HYPERVISOR_hvm_op: self._hvm_op,
            xen.HYPERVISOR_kexec_op: self._kexec_op,
            xen.HYPERVISOR_xenpmu_op: self._xenpmu_op,
            xen.HYPERVISOR_dm_op: self._dm_op,
            xen.HYPERVISOR_hypfs_op: self._hypfs_op,
            xen.HYPERVISOR_arch_0: self._mca,
        }
        self._hvm_ops: dict[int, Callable[[VCpu, int], int]] = {
            HVMOP_set_evtchn_upcall_vector: lambda _vcpu, _arg: -errno.EINVAL,
            HVMOP_set_param: self._hvm_param,
            HVMOP_get_param: self._hvm_param,
            HVMOP_flush_tlbs: lambda _vcpu, _arg: -errno.EINVAL,
            HVMOP_get_mem_type: self._hvm_mem_type,
            HVMOP_pagetable_dying: self._hvm_pagetable_dying,
            HVMOP_get_time: self._hvm_time,
            HVMOP_xentrace: self._hvm_xentrace,
            HVMOP_guest_request_vm_event: lambda _vcpu, arg: -errno.EINVAL if arg else 0,
            HVMOP_altp2m: lambda _vcpu, _arg: -errno.EOPNOTSUPP,
        }

    # -- hvm_op -----------------------------------------------------------------------------------------------------

    def _hvm_op(self, vcpu: VCpu, op: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        handler = self._hvm_ops.get(op & U64)
        return handler(vcpu, arg & U64) if handler is not None else -errno.ENOSYS

    def _find(self, vcpu: VCpu, domid: int) -> Domain:
        return self.hv.resolve(vcpu, domid)

    def _hvm_param(self, vcpu: VCpu, arg: int) -> int:
        """Parameters are HVM domains': there is none to be found."""
        op = xen_hvm_param.unpack(copy_from_guest(vcpu, arg, xen_hvm_param.size))
        if op.index < HVM_NR_PARAMS:
            self._find(vcpu, op.domid)
        return -errno.EINVAL

    def _hvm_mem_type(self, vcpu: VCpu, arg: int) -> int:
        op = xen_hvm_get_mem_type.unpack(copy_from_guest(vcpu, arg, xen_hvm_get_mem_type.size))
        domain = self._find(vcpu, op.domid)
        return -errno.EINVAL if self.hv.may_control(vcpu.domain, domain) else -errno.EPERM

    def _hvm_pagetable_dying(self, vcpu: VCpu, arg: int) -> int:
        op = xen_hvm_pagetable_dying.unpack(copy_from_guest(vcpu, arg, xen_hvm_pagetable_dying.size))
        return -errno.EINVAL if self._find(vcpu, op.domid) is vcpu.domain else -errno.EOPNOTSUPP

    def _hvm_time(self, vcpu: VCpu, arg: int) -> int:
        """Tell the system time: this one serves everybody."""
        copy_to_guest(vcpu, arg, self.hv.now().to_bytes(8, "little"))
        return 0

    @staticmethod
    def _hvm_xentrace(vcpu: VCpu, arg: int) -> int:
        """Take a record for Xen's own trace buffers, which are switched off."""
        op = xen_hvm_xentrace.unpack(copy_from_guest(vcpu, arg, xen_hvm_xentrace.size))
        return -errno.EINVAL if op.extra_bytes > len(op.extra) or op.event & ~TRC_SUBCLS_MASK else 0

    # -- kexec_op ---------------------------------------------------------------------------------------------------

    def _kexec_op(self, vcpu: VCpu, op: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        """No image can be loaded, so that there is none to start or unload. An unknown operation is 0, as in Xen."""
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        op &= U64
        if op == kexec.KEXEC_CMD_kexec_get_range:
            return self._kexec_range(vcpu, arg)
        layout = KEXEC_ARGUMENTS.get(op)
        if layout is None:
            return 0
        named = layout.unpack(copy_from_guest(vcpu, arg, layout.size)).type
        if op in (kexec.KEXEC_CMD_kexec_load, kexec.KEXEC_CMD_kexec_load_v1):
            return -errno.ENOSYS
        if named not in KEXEC_TYPES:
            return -errno.EINVAL
        return -errno.ENOENT if op == kexec.KEXEC_CMD_kexec else 0

    @staticmethod
    def _kexec_range(vcpu: VCpu, arg: int) -> int:
        """No memory was set aside for a crash kernel; where Xen itself is and its notes is not told."""
        op = kexec.xen_kexec_range.unpack(copy_from_guest(vcpu, arg, kexec.xen_kexec_range.size))
        if op.range != kexec.KEXEC_RANGE_MA_CRASH:
            return -errno.ENOSYS if op.range in KEXEC_RANGES else -errno.EINVAL
        op.start = op.size = 0
        copy_to_guest(vcpu, arg, kexec.xen_kexec_range.pack(op))
        return 0

    # -- the rest ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _xenpmu_op(_vcpu: VCpu, _op: int, _arg: int, _a3: int, _a4: int, _a5: int) -> int:
        """Performance counters for guests are off unless Xen's command line says otherwise."""
        return -errno.EOPNOTSUPP

    @staticmethod
    def _xenoprof_op(vcpu: VCpu, op: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        """Nobody is the primary profiler: the processor has no counters to profile with."""
        op &= U32
        if op > xenoprof.XENOPROF_last_op:
            return -errno.EINVAL
        if op not in XENOPROF_UNPRIVILEGED:
            return -errno.EPERM
        if op == xenoprof.XENOPROF_init:
            copy_from_guest(vcpu, arg, xenoprof.xenoprof_init.size)
            return -errno.ENODEV
        return -errno.ENOSYS

    def _dm_op(self, vcpu: VCpu, domid: int, nr_bufs: int, bufs: int, _a4: int, _a5: int) -> int:
        """Device models serve HVM domains, and there is none."""
        nr_bufs &= U32
        if not nr_bufs:
            return -errno.ENODATA
        if nr_bufs > DM_OP_BUFFERS:
            return -errno.E2BIG
        copy_from_guest(vcpu, bufs, DM_OP_BUF_SIZE * nr_bufs)
        return -errno.EPERM if self.hv.domain(domid & 0xFFFF) is vcpu.domain else -errno.EINVAL

    @staticmethod
    def _hypfs_op(vcpu: VCpu, cmd: int, arg1: int, arg2: int, arg3: int, arg4: int) -> int:
        """Tell the version of the interface; the tree itself is not built."""
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        if cmd & U32 == hypfs.XEN_HYPFS_OP_get_version:
            return -errno.EINVAL if arg1 or arg2 or arg3 or arg4 else hypfs.XEN_HYPFS_VERSION
        length = arg2 & U64
        if not 0 < length <= hypfs.XEN_HYPFS_MAX_PATHLEN:
            return -errno.EINVAL
        path = copy_from_guest(vcpu, arg1, length)
        if path.find(b"\0") != length - 1 or not path.startswith(b"/"):
            return -errno.EINVAL
        return -errno.ENOSYS

    @staticmethod
    def _mca(vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Machine checks: this machine has none."""
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        raw = copy_from_guest(vcpu, arg, xen_mca.xen_mc.size)
        return (
            -errno.ENOSYS if int.from_bytes(raw[4:8], "little") == xen_mca.XEN_MCA_INTERFACE_VERSION else -errno.EACCES
        )
