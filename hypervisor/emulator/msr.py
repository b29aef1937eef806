"""Model-specific registers as a PV guest sees them: a table. What is not in it is a #GP.

The segment bases and the TSC, which change, are answered by `privileged`. Sources: the processor's manual, volume 4;
what Xen answers for each is a matter of its PV policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.cpu_policy.features import D
from hypervisor.cpu_policy.policy import ARCH_CAPABILITIES, PLATFORM_INFO

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu

TSC = 0x10
APIC_BASE = 0x1B
UCODE_REV = 0x8B
MISC_ENABLE = 0x1A0
MTRR_CAP = 0xFE
PAT = 0x277
PERF_CAPABILITIES = 0x345
EFER = 0xC0000080
STAR, LSTAR, CSTAR, SYSCALL_MASK = range(0xC0000081, 0xC0000085)
FS_BASE, GS_BASE, SHADOW_GS_BASE, TSC_AUX = range(0xC0000100, 0xC0000104)
HWCR = 0xC0010015
NB_CFG = 0xC001001F

APIC_DEFAULT, APIC_ENABLED, APIC_BOOT_PROCESSOR = 0xFEE00000, 1 << 11, 1 << 8
EFER_VALUE = 0xD01
"""SYSCALL, long mode (enabled and active), no-execute."""
XEN_PAT = 0x050100070406
"""The memory types that Xen has in the processor's page attribute table."""
MISC_ENABLE_VALUE = 1 | 1 << 11 | 1 << 12 | 1 << 23
"""Fast strings; no branch traces, no precise sampling, no xTPR messages."""

HAS_ARCH_CAPABILITIES = 1 << 29
"""CPUID 7, edx."""

VALUES = {
    UCODE_REV: 0,
    MISC_ENABLE: MISC_ENABLE_VALUE,
    PAT: XEN_PAT,
    PERF_CAPABILITIES: 0,
    EFER: EFER_VALUE,
    NB_CFG: 0,
}
"""What reads the same on every vCPU."""

WRITABLE_WITH_SAME_VALUE = frozenset({EFER})
"""Writing back what was read is fine; anything else is a #GP."""
IGNORED = frozenset({UCODE_REV, MISC_ENABLE, NB_CFG, HWCR})
"""Writes are swallowed."""
EXIST = frozenset({*VALUES, APIC_BASE, MTRR_CAP, STAR, LSTAR, CSTAR, SYSCALL_MASK, TSC_AUX, HWCR})


def read(number: int, vcpu: VCpu) -> int | None:
    """Return the value of a register, None for a #GP."""
    if number == APIC_BASE:
        return APIC_DEFAULT | APIC_ENABLED | (0 if vcpu.vcpu_id else APIC_BOOT_PROCESSOR)
    policy = vcpu.domain.cpu_policy
    if number == PLATFORM_INFO or (number == ARCH_CAPABILITIES and policy.get(7, 0)[D] & HAS_ARCH_CAPABILITIES):
        return policy.msrs[number]
    return VALUES.get(number)


def write(number: int, value: int, vcpu: VCpu) -> bool:
    """Take a write to a register; False for a #GP."""
    if number in WRITABLE_WITH_SAME_VALUE:
        return value == read(number, vcpu)
    return number in IGNORED


def exists(number: int) -> bool:
    """Whether the processor has such a register, whatever guests may see of it."""
    return number in EXIST
