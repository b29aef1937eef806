"""Why a guest waits for ever, for a person: a host in virtual time on which nothing can happen any more has to end."""

from __future__ import annotations

from collections.abc import Iterable

from guest_kernel.kernel import Kernel
from hypervisor.hypervisor import Hypervisor


def why_idle(hv: Hypervisor, domid: int, kernel: Kernel | None) -> str:
    """Say what a guest waits for in vain: a processor, or a device that it does not have, if that is known."""
    if gets_no_processor(hv, domid):
        return f"its scheduler, {hv.sched.algorithm_of(hv.domains[domid]).name}, gives it no processor"
    if kernel is not None and kernel.block.wanted:
        return _waits_for("disk", kernel.block.wanted, kernel.block.devices)
    net = None if kernel is None else kernel.__dict__.get("net")
    if net is not None and net.wanted:
        return _waits_for("interface", net.wanted, net.interfaces)
    if kernel is not None and kernel.console.readers:
        return "it waits for a line of input on its console, and nobody types one"
    return "everything in this guest waits for something that cannot happen any more"


def gets_no_processor(hv: Hypervisor, domid: int) -> bool:
    """Whether a domain wants to run and its scheduler will not let it."""
    domain = hv.domains.get(domid)
    return domain is not None and any(vcpu.parked for vcpu in domain.online_vcpus())


def _waits_for(what: str, wanted: Iterable[str], there: Iterable[str]) -> str:
    """Return `it waits for the disk 'xvdb', which it does not have (it has xvda)`."""
    names = ", ".join(repr(name) for name in sorted(wanted))
    has = ", ".join(sorted(there)) or "none"
    return f"it waits for the {what} {names}, which it does not have (it has {has})"
