"""How a control operation is written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from hypervisor.abi import errno
from hypervisor.errors import HypercallError

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu import VCpu

Handler = Callable[["VCpu", "Domain", Any], Any]
"""`handler(caller, target, u member) -> the u member to copy back (its members, or bytes), or None`.

Raises HypercallError.
"""


@attrs.frozen
class Operation:
    """One control operation, under the name that its member of the `u` union has."""

    handler: Handler
    member: str = ""
    checks_itself: bool = False
    """Whether it looks at its arguments before the caller's privilege, as some of Xen's do."""


def check_privilege(vcpu: VCpu) -> None:
    """EPERM unless the caller is a control domain (XSM_PRIV)."""
    if not vcpu.domain.is_privileged:
        raise HypercallError(errno.EPERM)


def refuse_self(vcpu: VCpu, target: Domain) -> None:
    """EINVAL for what would have to pause the caller."""
    if target is vcpu.domain:
        raise HypercallError(errno.EINVAL)


def vcpu_of(target: Domain, vcpu_id: int, *, beyond: int, missing: int) -> VCpu:
    """Return a vCPU, or raise `beyond` for a number that the domain cannot have, `missing` for one not made yet."""
    if vcpu_id >= target.max_vcpus:
        raise HypercallError(beyond)
    vcpu = target.vcpu(vcpu_id)
    if vcpu is None:
        raise HypercallError(missing)
    return vcpu


def always(number: int, *, checks_itself: bool = False) -> Operation:
    """Return an operation that has one answer for every domain of this machine, whatever its arguments."""

    def refuse(_vcpu: VCpu, _target: Domain, _value: Any) -> None:
        raise HypercallError(number)

    return Operation(refuse, "", checks_itself)
