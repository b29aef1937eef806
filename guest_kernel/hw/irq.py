"""Physical interrupts of a domain: mapped as a PIRQ, bound to an event channel (physdev.h, event_channel.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import physdev
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_physdev_op

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel


def request_irq(kernel: Kernel, line: int, handler: Callable[[], None]) -> int:
    """Route an interrupt line of the machine to `handler`; returns the event channel port. Raises XenError.

    The hardware domain maps the line to a PIRQ of the same number. For a driver domain the toolstack has done that.
    """
    if kernel.is_initial_domain:
        kernel.hypercalls.operate(
            HYPERVISOR_physdev_op,
            physdev.PHYSDEVOP_map_pirq,
            physdev.physdev_map_pirq,
            "PHYSDEVOP_map_pirq",
            domid=DOMID_SELF,
            type=physdev.MAP_PIRQ_TYPE_GSI,
            index=line,
            pirq=line,
        )
    return kernel.events.bind_pirq(line, handler)


def free_irq(kernel: Kernel, port: int) -> None:
    """Undo `request_irq`. The line stays mapped: Xen takes the right to use it with the mapping, for good."""
    kernel.events.unbind(port)
