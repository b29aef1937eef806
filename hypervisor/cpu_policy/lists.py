"""Copying policies to guests: lists of leaves and registers (arch-x86/xen.h), with Xen's errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.cpu_policy.policy import MAX_LEAVES, MSRS, CpuPolicy
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_to_guest

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu


def copy_leaves(vcpu: VCpu, policy: CpuPolicy, at: int, room: int) -> int:
    """Copy the leaves to a list with room for so many; returns how many there are.

    Without a list, returns how many there can be. Raises HypercallError: ENOBUFS, with the list full, or EFAULT.
    """
    if not at:
        return MAX_LEAVES
    entries = (
        xen.xen_cpuid_leaf.pack(leaf=leaf, subleaf=subleaf, a=a, b=b, c=c, d=d)
        for leaf, subleaf, (a, b, c, d) in policy.serialise()
    )
    return _copy(vcpu, entries, at, room)


def copy_msrs(vcpu: VCpu, policy: CpuPolicy, at: int, room: int) -> int:
    """Copy the registers, likewise."""
    if not at:
        return len(MSRS)
    entries = (xen.xen_msr_entry.pack(idx=number, val=policy.msrs[number]) for number in MSRS)
    return _copy(vcpu, entries, at, room)


def _copy(vcpu: VCpu, entries: Iterable[bytes], at: int, room: int) -> int:
    done = 0
    for entry in entries:
        if done == room:
            raise HypercallError(errno.ENOBUFS)
        copy_to_guest(vcpu, at + done * len(entry), entry)
        done += 1
    return done
