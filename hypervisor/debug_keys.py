"""Keys that have Xen print what it knows, as if typed on its console (`xl debug-keys`; keyhandler.c has many more).

The lines go to Xen's log: the console, and the ring that readconsole reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.event_channel.channel import FREE, INTERDOMAIN, IPI, PIRQ, RESERVED, UNBOUND, VIRQ
from hypervisor.grant_table.pins import counts
from hypervisor.vcpu import VPF_BLOCKED, VPF_DOWN, VPF_PAUSED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor

STATES = {RESERVED: "reserved", UNBOUND: "unbound", INTERDOMAIN: "interdomain", PIRQ: "pirq", VIRQ: "virq", IPI: "ipi"}
_REASONS = ((VPF_DOWN, "down"), (VPF_PAUSED, "paused"), (VPF_BLOCKED, "blocked"))


def handle_key(hv: Hypervisor, key: str) -> None:
    """Print what a key stands for; one that stands for nothing is ignored."""
    found = KEYS.get(key)
    if found is None:
        return
    title, report = found
    hv.log(f"'{key}' pressed -> {title}")
    for line in report(hv):
        hv.log(line)


def _help(_hv: Hypervisor) -> Iterator[str]:
    for key, (title, _) in KEYS.items():
        yield f" key '{key}' => {title}"


def _in_order(hv: Hypervisor) -> list[Domain]:
    return [hv.domains[domid] for domid in sorted(hv.domains)]


def _domains(hv: Hypervisor) -> Iterator[str]:
    for domain in _in_order(hv):
        state = "dying" if domain.is_dying else "shut down" if domain.shutting_down else "alive"
        yield (
            f"domain {domain.domid}: {state}, {domain.tot_pages} of {domain.max_pages} pages, "
            f"paused {domain.pause_count} times, handle {bytes(domain.handle).hex()}"
        )
        for vcpu in domain.online_vcpus():
            why = [word for flag, word in _REASONS if vcpu.pause_flags & flag]
            info = hv.memory.b[vcpu.info : vcpu.info + 2]
            yield (
                f"  vCPU {vcpu.vcpu_id} on pCPU {vcpu.processor}: {', '.join(why) or 'runnable'}, "
                f"upcall_pending {info[0]:02x} upcall_mask {info[1]:02x}"
            )


def _events(hv: Hypervisor) -> Iterator[str]:
    for domain in _in_order(hv):
        yield f"event channels of domain {domain.domid}:"
        for port, channel in enumerate(domain.ports):
            if port and channel.state != FREE:
                end = ""
                if channel.peer is not None:
                    end = f" with port {channel.peer.port} of domain {channel.peer.domain.domid}"
                elif channel.state in (VIRQ, PIRQ):
                    end = f" {channel.number}"
                yield f"  {port:4} {STATES[channel.state]}{end}, vCPU {channel.vcpu.vcpu_id}"


def _grants(hv: Hypervisor) -> Iterator[str]:
    for domain in _in_order(hv):
        table = domain.grant_table
        yield (
            f"grant table of domain {domain.domid}: version {table.version}, {len(table.shared)} of {table.max_frames} "
            f"frames, {table.maptrack.frames} of {table.maptrack.max_frames} frames of handles"
        )
        for ref, pin in enumerate(table.pin):
            if pin:
                uses = "/".join(map(str, counts(pin)))
                yield f"  [{ref}] frame {table.mfn[ref]:#x} in use by domain {table.grantee[ref]}: {uses}"


KEYS: dict[str, tuple[str, Callable[[Hypervisor], Iterator[str]]]] = {
    "e": ("dump event channel info", _events),
    "g": ("print grant table usage", _grants),
    "h": ("show this message", _help),
    "q": ("dump domain info", _domains),
}
"""What each key does. (Uses of a grant: by devices for reading and writing, then by processors.)"""
