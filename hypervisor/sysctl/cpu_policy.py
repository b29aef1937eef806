"""XEN_SYSCTL_get_cpu_policy and get_cpu_featureset: the policies that Xen has for all (sysctl.h)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno
from hypervisor.abi import sysctl as abi
from hypervisor.cpu_policy import HOST, NONE, PV_DEFAULT, PV_MAX, RAW, CpuPolicy
from hypervisor.cpu_policy.features import NR_WORDS
from hypervisor.cpu_policy.lists import copy_leaves, copy_msrs
from hypervisor.errors import HypercallError, Refused
from hypervisor.guest_access import copy_to_guest

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu

POLICIES: dict[int, CpuPolicy] = {
    abi.XEN_SYSCTL_cpu_policy_raw: RAW,
    abi.XEN_SYSCTL_cpu_policy_host: HOST,
    abi.XEN_SYSCTL_cpu_policy_pv_max: PV_MAX,
    abi.XEN_SYSCTL_cpu_policy_hvm_max: NONE,
    abi.XEN_SYSCTL_cpu_policy_pv_default: PV_DEFAULT,
    abi.XEN_SYSCTL_cpu_policy_hvm_default: NONE,
}
FEATURE_SETS: dict[int, CpuPolicy] = {
    abi.XEN_SYSCTL_cpu_featureset_raw: RAW,
    abi.XEN_SYSCTL_cpu_featureset_host: HOST,
    abi.XEN_SYSCTL_cpu_featureset_pv: PV_DEFAULT,
    abi.XEN_SYSCTL_cpu_featureset_hvm: NONE,
    abi.XEN_SYSCTL_cpu_featureset_pv_max: PV_MAX,
    abi.XEN_SYSCTL_cpu_featureset_hvm_max: NONE,
}


class CpuPolicyOps:
    """The policies of the host."""

    def __init__(self) -> None:
        self.handlers = {
            abi.XEN_SYSCTL_get_cpu_policy: ("cpu_policy", self._policy),
            abi.XEN_SYSCTL_get_cpu_featureset: ("cpu_featureset", self._featureset),
        }

    @staticmethod
    def _policy(vcpu: VCpu, value: Any) -> Any:
        """Copy one of the policies out; the number of leaves is told even if the registers do not fit."""
        policy = POLICIES.get(value.index)
        if value._rsvd or policy is None:
            raise HypercallError(errno.EINVAL)
        value.nr_leaves = copy_leaves(vcpu, policy, value.leaves, value.nr_leaves)
        try:
            value.nr_msrs = copy_msrs(vcpu, policy, value.msrs, value.nr_msrs)
        except HypercallError as error:
            raise Refused(error.errno, value) from None
        return value

    @staticmethod
    def _featureset(vcpu: VCpu, value: Any) -> Any:
        """Copy as many words of a feature set as there is room for; ENOBUFS, with those, if there are more."""
        if not value.features:
            value.nr_features = NR_WORDS
            return value
        policy = FEATURE_SETS.get(value.index)
        if policy is None:
            raise HypercallError(errno.EINVAL)
        count = value.nr_features = min(value.nr_features, NR_WORDS)
        if count:
            copy_to_guest(vcpu, value.features, struct.pack(f"<{count}I", *policy.features()[:count]))
        if count < NR_WORDS:
            raise Refused(errno.ENOBUFS, value)
        return value
