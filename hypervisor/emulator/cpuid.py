"""What CPUID tells a PV guest: the emulated processor's own answer, less what a guest cannot use, and Xen's leaves.

Features that the emulator does not carry out (AVX and XSAVE), that belong to ring 0 (paging, MTRRs, APIC, machine
checks) or that would make a run unrepeatable (RDRAND) are hidden. Sources: the processor's manual, volume 2, CPUID;
arch-x86/cpuid.h for the leaves from 0x40000000 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import cpuid as abi
from hypervisor.time import TSC_HZ, TSC_SHIFT, TSC_TO_SYSTEM_MUL
from hypervisor.version import MAJOR, MINOR

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

Leaf = tuple[int, int, int, int]
"""eax, ebx, ecx, edx."""
U32 = 0xFFFF_FFFF
XEN = abi.XEN_CPUID_FIRST_LEAF
LAST_BASIC, LAST_EXTENDED = 0xD, 0x80000008
HAS_SUBLEAVES = frozenset({4, 7, 0xB, 0xD})
QUESTIONS = [
    (leaf, subleaf)
    for leaf in (*range(LAST_BASIC + 1), *range(0x80000000, LAST_EXTENDED + 1))
    for subleaf in (range(8) if leaf in HAS_SUBLEAVES else (0,))
]
"""The leaves and sub-leaves that are answered from a table."""


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


VME, DE, PSE, MCE, APIC, SEP, MTRR, PGE, MCA, PSE36, ACPI, HTT, TM = 1, 2, 3, 7, 9, 11, 12, 13, 14, 17, 22, 28, 29
HIDDEN_1D = _bits(VME, PSE, MCE, SEP, MTRR, PGE, MCA, PSE36, ACPI, HTT, TM)
"""Leaf 1, edx. (APIC stays: PV kernels look for it.)"""
HIDDEN_1C = _bits(2, 3, 5, 6, 7, 8, 10, 12, 14, 15, 17, 18, 21, 24, 26, 27, 28, 29, 30)
"""Leaf 1, ecx: DTES64, MONITOR, VMX, SMX, EIST, TM2, CID, FMA, xTPR, PDCM, PCID, DCA, x2APIC, TSC deadline, XSAVE,
OSXSAVE, AVX, F16C, RDRAND."""
HYPERVISOR_PRESENT = 1 << 31
KEPT_7B = _bits(3, 8, 9, 19, 23, 24)
"""Leaf 7, ebx: BMI1, BMI2, fast strings, ADX, cache flushes."""
HIDDEN_81D = _bits(VME, PSE, MCE, MTRR, PGE, MCA, PSE36, 26, 27)
"""Leaf 0x80000001, edx: the same, and 1 GiB pages. RDTSCP too: its processor number says nothing under Xen."""
HIDDEN_81C = _bits(1, 2, 3, 9, 10, 12, 13, 15, 22, 23, 24)
"""Leaf 0x80000001, ecx: cores, SVM, extended APIC, ..., performance counters."""
CR4_GUEST, CR4_VISIBLE = _bits(2, 3, 16, 18), 0x660
"""Bits of CR4 that a guest chooses (TSD, DE, FSGSBASE, OSXSAVE), and those of Xen's choice that it sees."""


class CpuidPolicy:
    """Answers CPUID for the vCPUs of a host."""

    def __init__(self, native: dict[tuple[int, int], Leaf], hv: Hypervisor) -> None:
        """`native` holds the emulated processor's own answers to `QUESTIONS`."""
        self._hv = hv
        self._table = {(leaf, subleaf): _policy(leaf, answer) for (leaf, subleaf), answer in native.items()}
        self._features = self._table[1, 0][3]

    def guest_cr4(self, value: int) -> int:
        """Return what CR4 reads as after a guest has written a value: bits without a feature behind them are lost."""
        chosen = value & CR4_GUEST & ~_bits(16, 18)
        return chosen & (~0 if self._features & 1 << DE else ~(1 << 3)) | CR4_VISIBLE

    def leaf(self, vcpu: VCpu, leaf: int, subleaf: int) -> Leaf:
        """Return what CPUID answers; a leaf that there is not is all zeros."""
        if XEN <= leaf < XEN + 0x100:
            return self._xen_leaf(vcpu, leaf - XEN, subleaf)
        return self._table.get((leaf, subleaf if leaf in HAS_SUBLEAVES else 0), (0, 0, 0, 0))

    def _xen_leaf(self, vcpu: VCpu, index: int, subleaf: int) -> Leaf:
        if index == 0:
            last = XEN + abi.XEN_CPUID_MAX_NUM_LEAVES
            return last, abi.XEN_CPUID_SIGNATURE_EBX, abi.XEN_CPUID_SIGNATURE_ECX, abi.XEN_CPUID_SIGNATURE_EDX
        if index == 1:
            return MAJOR << 16 | MINOR, 0, 0, 0
        if index == 2:
            return 1, XEN, abi.XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0
        if index == 3:
            return self._time_leaf(vcpu, subleaf)
        if index == 5 and subleaf == 0:
            return 0, (self._hv.memory.frames - 1).bit_length() + 12, 0, 0
        return 0, 0, 0, 0

    @staticmethod
    def _time_leaf(vcpu: VCpu, subleaf: int) -> Leaf:
        """How the TSC counts. For the hardware domain, whose TSC is the machine's own, Xen keeps no scale."""
        own = vcpu.domain.domid == 0
        if subleaf == 0:
            return 0, 0, 0 if own else TSC_HZ // 1000, 0
        if subleaf == 1:
            return (0, 0, 0, 0) if own else (0, 0, TSC_TO_SYSTEM_MUL, TSC_SHIFT)
        return (TSC_HZ // 1000, 0, 0, 0) if subleaf == 2 else (0, 0, 0, 0)


def _policy(leaf: int, native: Leaf) -> Leaf:
    """Return what a guest is told of a leaf that the processor has."""
    a, b, c, d = native
    if leaf == 0:
        a = min(a, LAST_BASIC)
    elif leaf == 1:
        # One logical processor, with number 0.
        b = b & 0xFF00 | b & 0xFF | 1 << 16
        c = c & ~HIDDEN_1C | HYPERVISOR_PRESENT
        d &= ~HIDDEN_1D
    elif leaf == 7:
        a, b, c, d = 0, b & KEPT_7B, 0, 0
    elif leaf in (0xA, 0xB, 0xD):
        a = b = c = d = 0
    elif leaf == 0x80000000:
        a = min(a, LAST_EXTENDED)
    elif leaf == 0x80000001:
        c &= ~HIDDEN_81C
        d &= ~HIDDEN_81D
    elif leaf == 0x80000008:
        c = 0
    return a & U32, b & U32, c & U32, d & U32
