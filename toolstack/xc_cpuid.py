"""A domain's CPU policy, as a toolstack changes it: XEN_DOMCTL_get_cpu_policy and set_cpu_policy (libxc's part)."""

from __future__ import annotations

import struct

from hypervisor.abi import domctl, xen
from hypervisor.cpu_policy.features import NO_SUBLEAF, WORDS
from toolstack.cpuid_spec import CpuidSpec
from toolstack.xc import Xc

_LEAF = struct.Struct("<6I")
"""xen_cpuid_leaf: leaf, sub-leaf, eax, ebx, ecx, edx."""
XEN_LEAVES = 0x40000000
Leaves = dict[tuple[int, int], list[int]]


def read_leaves(xc: Xc, domid: int) -> Leaves:
    """Return the CPUID leaves of a domain's policy."""
    room = len(xc.scratch.view) // _LEAF.size
    xc.domctl(
        domctl.XEN_DOMCTL_get_cpu_policy,
        domid,
        domctl.xen_domctl_cpu_policy,
        nr_leaves=room,
        leaves=xc.scratch.va,
    )
    size = xc.answer().cpu_policy.nr_leaves * xen.xen_cpuid_leaf.size
    found = _LEAF.iter_unpack(bytes(xc.scratch.view[:size]))
    return {(leaf, subleaf): list(registers) for leaf, subleaf, *registers in found}


def write_leaves(xc: Xc, domid: int, leaves: Leaves) -> None:
    """Replace some leaves of a domain that has not run yet. Raises XenError."""
    packed = b"".join(_LEAF.pack(*key, *registers) for key, registers in leaves.items())
    xc.scratch.view[: len(packed)] = packed
    xc.domctl(
        domctl.XEN_DOMCTL_set_cpu_policy,
        domid,
        domctl.xen_domctl_cpu_policy,
        nr_leaves=len(leaves),
        leaves=xc.scratch.va,
    )


def apply(xc: Xc, domid: int, spec: CpuidSpec) -> None:
    """Change a new domain's policy as its configuration wants it."""
    leaves = read_leaves(xc, domid)
    changed: Leaves = {}

    def leaf(key: tuple[int, int]) -> list[int]:
        return changed.setdefault(key, list(leaves.get(key, [0] * 4)))

    for numbers, wanted in ((spec.off, False), (spec.on, True)):
        for number in numbers:
            base, subleaf, register = WORDS[number >> 5]
            registers, bit = leaf((base, subleaf)), 1 << (number & 31)
            registers[register] = registers[register] & ~bit | (bit if wanted else 0)
    if spec.max_leaf is not None:
        leaf((0, NO_SUBLEAF))[0] = spec.max_leaf
    if spec.max_xen_leaf is not None:
        # Xen counts them from their base; the guest reads the full number.
        leaf((XEN_LEAVES, NO_SUBLEAF))[0] = spec.max_xen_leaf & 0xFF
    if changed:
        write_leaves(xc, domid, changed)
