"""Physical interrupts of a domain: mapped as a PIRQ, bound to an event channel (physdev.h, event_channel.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import physdev
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_physdev_op

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel


def request_irq(kernel: Kernel, line: int, handler: Callable[[], None]) -> int:
    """Route an interrupt line of the machine to `handler`; returns the event channel port. Raises XenError."""
    mapped = kernel.hypercalls.operate(
        HYPERVISOR_physdev_op,
        physdev.PHYSDEVOP_map_pirq,
        physdev.physdev_map_pirq,
        "PHYSDEVOP_map_pirq",
        domid=DOMID_SELF,
        type=physdev.MAP_PIRQ_TYPE_GSI,
        index=line,
        pirq=line,
    )
    return kernel.events.bind_pirq(mapped.pirq, handler)


def free_irq(kernel: Kernel, port: int, line: int) -> None:
    """Undo `request_irq`."""
    kernel.events.unbind(port)
    kernel.hypercalls.operate(
        HYPERVISOR_physdev_op,
        physdev.PHYSDEVOP_unmap_pirq,
        physdev.physdev_unmap_pirq,
        "PHYSDEVOP_unmap_pirq",
        domid=DOMID_SELF,
        pirq=line,
    )
