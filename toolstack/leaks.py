"""What a host has forgotten to give back, once all its guests are gone. Empty, or there is a bug.

Every test that runs a whole host ends with this.
"""

from __future__ import annotations

from backends.xenstored.daemon import XenStored
from hypervisor.errors import InvariantError
from hypervisor.event_channel.channel import FREE
from hypervisor.grant_table.check import check_grants
from hypervisor.grant_table.check import leaks as grant_leaks
from hypervisor.hypervisor import Hypervisor
from hypervisor.mm.check import check as check_frames
from toolstack.nodes import DOM0


def ports_in_use(hv: Hypervisor) -> int:
    """Return how many event channel ports dom0 has bound."""
    return sum(channel.state != FREE for channel in hv.domains[DOM0].ports)


def find_leaks(hv: Hypervisor, xenstored: XenStored, ports_before: int) -> list[str]:
    """Return a sentence for each thing that is left over of guests that are gone; dom0 itself is allowed what it had.

    `ports_before` is the number of dom0's ports before the first guest was made.
    """
    found = [f"domain {domid} still exists" for domid in hv.domains if domid != DOM0]
    found += [] if found else grant_leaks(hv.domains[DOM0])
    ports = ports_in_use(hv)
    if ports > ports_before:
        found.append(f"dom0 has {ports} ports bound, {ports_before} before its first guest")
    for check in (check_grants, check_frames):
        try:
            check(hv)
        except InvariantError as error:
            found.append(str(error))
    return found + _store_leaks(xenstored)


def _store_leaks(xenstored: XenStored) -> list[str]:
    server = xenstored.server
    found = [
        f"xenstored still serves domain {client.connection.id}"
        for client in xenstored.clients.values()
        if client.connection.id != DOM0
    ]
    for path in (b"/local/domain", b"/libxl", b"/vm"):
        node = server.store.tree.get(path)
        names = [] if node is None else [name for name in node.names if name != b"0"]
        # dom0 has a /vm node of its own.
        if len(names) > (path == b"/vm"):
            found.append(f"xenstore still has {path.decode()}/{names[-1].decode()}")
    return found
