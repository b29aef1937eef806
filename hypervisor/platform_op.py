"""HYPERVISOR_platform_op (platform.h): the hardware domain's door to the firmware. This machine has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi import platform as abi
from hypervisor.guest_access import copy_from_guest

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_platform_op
PLATFORM_OP = abi.xen_platform_op


class PlatformOps:
    """Judges a call in Xen's order; there is no operation that it carries out."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hypercalls: dict[int, Callable[[VCpu, int, int, int, int, int], int]] = {HYPERCALL: self._platform_op}

    @staticmethod
    def _platform_op(vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        op = PLATFORM_OP.unpack_from(copy_from_guest(vcpu, arg, PLATFORM_OP.size))
        if op.interface_version != abi.XENPF_INTERFACE_VERSION:
            return -errno.EACCES
        return -errno.ENOSYS if vcpu.domain.is_privileged else -errno.EPERM
