"""HYPERVISOR_xen_version and HYPERVISOR_vm_assist (version.h, features.h, xen.h): what kind of Xen this is."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from typing import TYPE_CHECKING

from hypervisor.abi import errno, features, xen
from hypervisor.abi import version as abi
from hypervisor.guest_access import XEN_VIRT_START, copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

XEN_VERSION = xen.__HYPERVISOR_xen_version
VM_ASSIST = xen.__HYPERVISOR_vm_assist

MAJOR, MINOR, EXTRAVERSION = 4, 17, b".7"
CAPABILITIES = b"xen-3.0-x86_64 "
HVM_CAPABILITIES = b"hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
"""What comes after it where the processor has SVM or VMX (arch_get_xen_caps). Nothing here runs such a guest."""
COMPILE_INFO = {
    "compiler": b"x86_64-linux-gnu-gcc (Debian 12.2.0-14+deb12u1) 12.2.0",
    "compile_by": b"pkg-xen-devel",
    "compile_domain": b"(removed)",
    "compile_date": b"Wed Nov  4 16:52:28 UTC 2026",
}
"""What Debian's build of 4.17 says of itself: guests print it, and a few compare it."""
CHANGESET = b""
BUILD_ID = sha1(b"paravirt").digest()
"""20 bytes, as an ELF build id is; ours names this program."""

MAX_COMMANDLINE = 1023
DENIED = b"<denied>\0"

PV_FEATURES = (
    1 << features.XENFEAT_mmu_pt_update_preserve_ad
    | 1 << features.XENFEAT_highmem_assist
    | 1 << features.XENFEAT_gnttab_map_avail_bits
    | 1 << features.XENFEAT_memory_op_vnode_supported
    | 1 << features.XENFEAT_direct_mapped
)

VMASST_VALID = (
    1 << xen.VMASST_TYPE_4gb_segments
    | 1 << xen.VMASST_TYPE_4gb_segments_notify
    | 1 << xen.VMASST_TYPE_writable_pagetables
    | 1 << xen.VMASST_TYPE_pae_extended_cr3
    | 1 << xen.VMASST_TYPE_architectural_iopl
    | 1 << xen.VMASST_TYPE_runstate_update_flag
    | 1 << xen.VMASST_TYPE_m2p_strict
)


class VersionOps:
    """Answers questions about the hypervisor; a domU is not told everything."""

    def __init__(self, hv: Hypervisor, commandline: bytes = b"") -> None:
        self.hv = hv
        self.commandline = commandline
        self._handlers: dict[int, Callable[[VCpu, int], int]] = {
            abi.XENVER_version: self._version,
            abi.XENVER_extraversion: self._extraversion,
            abi.XENVER_compile_info: self._compile_info,
            abi.XENVER_capabilities: self._capabilities,
            abi.XENVER_changeset: self._changeset,
            abi.XENVER_platform_parameters: self._platform_parameters,
            abi.XENVER_get_features: self._get_features,
            abi.XENVER_pagesize: self._pagesize,
            abi.XENVER_guest_handle: self._guest_handle,
            abi.XENVER_commandline: self._commandline,
            abi.XENVER_build_id: self._build_id,
        }
        self.hypercalls = {XEN_VERSION: self._xen_version, VM_ASSIST: self._vm_assist}

    def _xen_version(self, vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        handler = self._handlers.get(cmd & 0xFFFFFFFF)
        return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

    def _version(self, _vcpu: VCpu, _arg: int) -> int:
        return MAJOR << 16 | MINOR

    def _extraversion(self, vcpu: VCpu, arg: int) -> int:
        # The whole array is written: what follows the string is zero, never left-over stack (XSA-122).
        copy_to_guest(vcpu, arg, EXTRAVERSION.ljust(abi.XEN_EXTRAVERSION_LEN, b"\0"))
        return 0

    def _compile_info(self, vcpu: VCpu, arg: int) -> int:
        copy_to_guest(vcpu, arg, abi.xen_compile_info.pack(COMPILE_INFO))
        return 0

    def _capabilities(self, vcpu: VCpu, arg: int) -> int:
        names = CAPABILITIES + HVM_CAPABILITIES * self.hv.machine.has_svm
        copy_to_guest(vcpu, arg, names.ljust(abi.XEN_CAPABILITIES_INFO_LEN, b"\0"))
        return 0

    def _changeset(self, vcpu: VCpu, arg: int) -> int:
        copy_to_guest(vcpu, arg, CHANGESET.ljust(abi.XEN_CHANGESET_INFO_LEN, b"\0"))
        return 0

    def _platform_parameters(self, vcpu: VCpu, arg: int) -> int:
        copy_to_guest(vcpu, arg, abi.xen_platform_parameters.pack(virt_start=XEN_VIRT_START))
        return 0

    def features_of(self, domain: Domain) -> int:
        """Return submap 0 of the feature bits that a domain is shown."""
        bits = PV_FEATURES
        if domain.vm_assist & 1 << xen.VMASST_TYPE_pae_extended_cr3:
            bits |= 1 << features.XENFEAT_pae_pgdir_above_4gb
        if domain.domid == 0:
            bits |= 1 << features.XENFEAT_dom0
        return bits

    def _get_features(self, vcpu: VCpu, arg: int) -> int:
        info = abi.xen_feature_info.unpack_from(copy_from_guest(vcpu, arg, abi.xen_feature_info.size))
        if info.submap_idx >= features.XENFEAT_NR_SUBMAPS:
            return -errno.EINVAL
        copy_to_guest(vcpu, arg, abi.xen_feature_info.pack(info, submap=self.features_of(vcpu.domain)))
        return 0

    def _pagesize(self, vcpu: VCpu, arg: int) -> int:
        return -errno.EINVAL if arg else 4096

    def _guest_handle(self, vcpu: VCpu, arg: int) -> int:
        copy_to_guest(vcpu, arg, vcpu.domain.handle)
        return 0

    def _commandline(self, vcpu: VCpu, arg: int) -> int:
        if vcpu.domain.is_privileged:
            copy_to_guest(vcpu, arg, self.commandline[:MAX_COMMANDLINE].ljust(MAX_COMMANDLINE + 1, b"\0"))
        else:
            # No more of the buffer is written than this.
            copy_to_guest(vcpu, arg, DENIED)
        return 0

    def _build_id(self, vcpu: VCpu, arg: int) -> int:
        """Return the length of the build id; copy it if `arg` is not null and its buffer is long enough."""
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        if not arg:
            return len(BUILD_ID)
        head = abi.xen_build_id.unpack_from(copy_from_guest(vcpu, arg, abi.xen_build_id.size))
        if not head.len:
            return -errno.EINVAL
        if head.len < len(BUILD_ID):
            return -errno.ENOBUFS
        copy_to_guest(vcpu, arg + abi.xen_build_id.size, BUILD_ID)
        return len(BUILD_ID)

    def _vm_assist(self, vcpu: VCpu, cmd: int, kind: int, _a3: int, _a4: int, _a5: int) -> int:
        """Switch an assist of the calling domain on or off; unknown ones are refused."""
        kind &= 0xFFFFFFFF
        if kind > 63 or not VMASST_VALID >> kind & 1:
            return -errno.EINVAL
        cmd &= 0xFFFFFFFF
        if cmd == xen.VMASST_CMD_enable:
            vcpu.domain.vm_assist |= 1 << kind
        elif cmd == xen.VMASST_CMD_disable:
            vcpu.domain.vm_assist &= ~(1 << kind)
        else:
            return -errno.ENOSYS
        return 0
