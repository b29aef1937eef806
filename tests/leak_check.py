"""What a host has not given back, seen from the outside: the check that every test ends with (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable

from hypervisor.abi import sched
from hypervisor.errors import InvariantError
from hypervisor.event_channel.channel import INTERDOMAIN, UNBOUND
from hypervisor.event_channel.check import check_events
from hypervisor.grant_table.check import check_grants
from hypervisor.grant_table.check import leaks as grant_leaks
from hypervisor.hypervisor import Hypervisor
from hypervisor.mm.check import check as check_frames


def find_leaks(hv: Hypervisor, free_at_first: int, exempt: bool) -> list[str]:
    """Say what is wrong with a host at the end of a test, then take it apart and say what is left."""
    hv.preempt.forced = hv.preempt.between = None
    found = recount(hv, check_events, check_grants, check_frames)
    if hv.stopped and hv.shutdown_reason == sched.SHUTDOWN_poweroff and not exempt:
        found += left_for_others(hv)
    if found:
        return found
    found = recount(hv, destroy_all, check_frames)
    found += [f"domain {domid} cannot be destroyed: somebody holds a page of it" for domid in hv.domains]
    free_at_first += hv.frames.module_frames_freed
    if not found and hv.frames.free_frames != free_at_first - hv.domain_ops.frames_for_good:
        found.append(f"{free_at_first - hv.frames.free_frames} frames are not free though no domain is left")
    if len(hv.timers):
        found.append(f"{len(hv.timers)} timers are armed though no domain is left")
    if hv.sched.run_queue:
        found.append(f"the run queue holds {list(hv.sched.run_queue)} though no domain is left")
    return found


def destroy_all(hv: Hypervisor) -> None:
    for domain in reversed(list(hv.domains.values())):
        # (One that was dying already may go with another that held its last page.)
        if domain.domid in hv.domains:
            hv.domain_ops.kill(domain)


def recount(hv: Hypervisor, *checks: Callable[[Hypervisor], None]) -> list[str]:
    found = []
    for check in checks:
        try:
            check(hv)
        except InvariantError as error:
            found.append(str(error))
    return found


def left_for_others(hv: Hypervisor) -> list[str]:
    """Say what dom0 has kept that it had for other domains, on a host that it has shut down in good order."""
    found = [f"domain {domid} outlives dom0" for domid in hv.domains if domid]
    found += grant_leaks(hv.domains[0])
    for channel in hv.domains[0].ports:
        if channel.state == UNBOUND:
            remote = channel.remote_domid
        elif channel.state == INTERDOMAIN and channel.peer is not None:
            remote = channel.peer.domain.domid
        else:
            continue
        if remote:
            found.append(f"port {channel.port} of dom0 is there for domain {remote}")
    return found
