"""What CPUID tells a PV guest: its domain's policy, and Xen's own leaves (arch-x86/cpuid.h, from 0x40000000 on)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import cpuid as abi
from hypervisor.cpu_policy.features import D
from hypervisor.cpu_policy.policy import EMPTY, EXTENDED, XEN, Leaf
from hypervisor.time import TSC_HZ, TSC_SHIFT, TSC_TO_SYSTEM_MUL
from hypervisor.version import MAJOR, MINOR

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

LAST_OF_XEN = XEN + 0x1FF
LEAST_LEAVES = 2
"""A toolstack cannot hide the first of Xen's leaves."""


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


DE = 2
CR4_GUEST, CR4_VISIBLE = _bits(2, 3, 16, 18), 0x660
"""Bits of CR4 that a guest chooses (TSD, DE, FSGSBASE, OSXSAVE), and those of Xen's choice that it sees."""


def guest_cr4(domain: Domain, value: int) -> int:
    """Return what CR4 reads as after a guest has written a value: bits without a feature behind them are lost."""
    chosen = value & CR4_GUEST & ~_bits(16, 18)
    return chosen & (~0 if domain.cpu_policy.get(1)[D] & 1 << DE else ~(1 << 3)) | CR4_VISIBLE


class Cpuid:
    """Answers CPUID for the vCPUs of a host."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv

    def leaf(self, vcpu: VCpu, leaf: int, subleaf: int) -> Leaf:
        """Return what CPUID answers; a leaf that there is not is all zeros."""
        if XEN <= leaf <= LAST_OF_XEN:
            return self._xen_leaf(vcpu, leaf - XEN, subleaf)
        if XEN < leaf < EXTENDED:
            return EMPTY
        return vcpu.domain.cpu_policy.answer(leaf, subleaf)

    def _xen_leaf(self, vcpu: VCpu, index: int, subleaf: int) -> Leaf:
        # (A toolstack that says 0 leaves it to Xen.)
        wanted = vcpu.domain.cpu_policy.hv_limits[XEN] or abi.XEN_CPUID_MAX_NUM_LEAVES
        last = min(max(wanted, LEAST_LEAVES), abi.XEN_CPUID_MAX_NUM_LEAVES)
        if index > last:
            return EMPTY
        if index == 0:
            return XEN + last, abi.XEN_CPUID_SIGNATURE_EBX, abi.XEN_CPUID_SIGNATURE_ECX, abi.XEN_CPUID_SIGNATURE_EDX
        if index == 1:
            return MAJOR << 16 | MINOR, 0, 0, 0
        if index == 2:
            return 1, XEN, abi.XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0
        if index == 3:
            return self._time_leaf(vcpu, subleaf)
        if index == 5 and subleaf == 0:
            return 0, (self._hv.memory.frames - 1).bit_length() + 12, 0, 0
        return EMPTY

    @staticmethod
    def _time_leaf(vcpu: VCpu, subleaf: int) -> Leaf:
        """How the TSC counts. For the hardware domain, whose TSC is the machine's own, Xen keeps no scale."""
        own = vcpu.domain.domid == 0
        if subleaf == 0:
            return 0, 0, 0 if own else TSC_HZ // 1000, 0
        if subleaf == 1:
            return (0, 0, 0, 0) if own else (0, 0, TSC_TO_SYSTEM_MUL, TSC_SHIFT)
        return (TSC_HZ // 1000, 0, 0, 0) if subleaf == 2 else EMPTY
