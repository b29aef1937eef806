"""Hypercalls as the kernel makes them: arguments packed into one page, errors raised.

The fast paths (event notification, grant batches, the run loop) do not pass here; they fill views of their own pages
and call `Cpu.hypercall` themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guest_kernel.errors import XenError
from guest_kernel.mm import Page
from hypervisor.abi.layout import Layout, Value
from hypervisor.abi.xen import HYPERVISOR_event_channel_op, HYPERVISOR_sched_op, HYPERVISOR_vcpu_op


class Hypercalls:
    """Typed calls through one page of arguments, whose address is `address`.

    Nothing may wait between packing and the call. That cannot happen inside of these methods; whoever fills `page`
    himself keeps to it.
    """

    def __init__(self, call: Callable[..., int], page: Page) -> None:
        self.call = call
        """`Cpu.hypercall`: returns the raw result, negative on errors."""
        self.page = page
        self.address = page.va
        self._view = page.view

    def check(self, result: int, operation: str) -> int:
        """Return a result that is not negative; raise XenError for one that is."""
        if result < 0:
            raise XenError(-result, operation)
        return result

    def operate(
        self, nr: int, command: int, layout: Layout, operation: str, count: int = 0, /, **members: Any
    ) -> Value:
        """Call `nr` with a command, a structure and (for some) a count; return the structure as Xen left it.

        Raises XenError.
        """
        layout.pack_into(self._view, 0, **members)
        result = self.call(nr, command, self.address, count)
        if result < 0:
            raise XenError(-result, operation)
        return layout.unpack_from(self._view, 0)

    def event_channel(self, command: int, layout: Layout, operation: str, /, **members: Any) -> Value:
        """HYPERVISOR_event_channel_op. Raises XenError."""
        return self.operate(HYPERVISOR_event_channel_op, command, layout, operation, **members)

    def sched(self, command: int, layout: Layout, operation: str, /, **members: Any) -> int:
        """HYPERVISOR_sched_op; the result. Raises XenError."""
        layout.pack_into(self._view, 0, **members)
        return self.check(self.call(HYPERVISOR_sched_op, command, self.address), operation)

    def vcpu(self, command: int, vcpu_id: int, argument: int, operation: str) -> int:
        """HYPERVISOR_vcpu_op with the address of its argument (0: none); the result. Raises XenError."""
        return self.check(self.call(HYPERVISOR_vcpu_op, command, vcpu_id, argument), operation)
