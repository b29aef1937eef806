"""XEN_DOMCTL_get_cpu_policy and set_cpu_policy: what CPUID tells a domain's guest (domctl.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.cpu_policy import check, recalculate
from hypervisor.cpu_policy.lists import copy_leaves, copy_msrs
from hypervisor.cpu_policy.policy import PolicyError
from hypervisor.domctl.operation import Operation, refuse_self
from hypervisor.errors import HypercallError, Refused
from hypervisor.guest_access import copy_from_guest

if TYPE_CHECKING:
    from hypervisor.cpu_policy import CpuPolicy
    from hypervisor.domain import Domain
    from hypervisor.vcpu import VCpu

LEAF, MSR = xen.xen_cpuid_leaf, xen.xen_msr_entry


class CpuPolicyOps:
    """The policies of domains."""

    def __init__(self) -> None:
        self.operations = {
            abi.XEN_DOMCTL_get_cpu_policy: Operation(self._get, "cpu_policy"),
            abi.XEN_DOMCTL_set_cpu_policy: Operation(self._set, "cpu_policy"),
        }

    @staticmethod
    def _get(vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Copy a domain's policy out, or (null pointers) say how long its lists can be."""
        value.nr_leaves = copy_leaves(vcpu, target.cpu_policy, value.leaves, value.nr_leaves)
        value.nr_msrs = copy_msrs(vcpu, target.cpu_policy, value.msrs, value.nr_msrs)
        return value

    def _set(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Take over leaves and registers of a domain that has not run yet; which one is to blame is copied back."""
        refuse_self(vcpu, target)
        if target.creation_finished:
            raise HypercallError(errno.EEXIST)
        policy = target.cpu_policy.copy()
        try:
            self._take(vcpu, policy, value)
            policy.clear_out_of_range()
            check(policy)
        except PolicyError as error:
            value.err_leaf, value.err_subleaf, value.err_msr = error.leaf, error.subleaf, error.msr
            raise Refused(error.errno, value) from None
        recalculate(policy)
        target.cpu_policy = policy

    @staticmethod
    def _take(vcpu: VCpu, policy: CpuPolicy, value: Any) -> None:
        def leaf(index: int) -> Any:
            return _entry(vcpu, LEAF, value.leaves, index)

        def msr(index: int) -> Any:
            return _entry(vcpu, MSR, value.msrs, index)

        policy.take_leaves(value.nr_leaves, leaf)
        policy.take_msrs(value.nr_msrs, msr)


def _entry(vcpu: VCpu, layout: Any, at: int, index: int) -> tuple[int, ...]:
    """Read an entry of a list. Raises PolicyError(EFAULT): also then it is said that no entry is to blame."""
    try:
        raw = copy_from_guest(vcpu, at + index * layout.size, layout.size)
    except HypercallError as error:
        raise PolicyError(error.errno) from None
    values: tuple[int, ...] = layout.codec.unpack(raw)
    return values
