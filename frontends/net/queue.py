"""A queue of a virtual Ethernet device: a tx and an rx ring (`transmit`, `receive`) and their event channels.

The other end may write anything into the rings at any time. What it says is copied out of the ring before it is looked
at, and an id counts only while its buffer is out; garbage makes the device give up (`broken`), and harms nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from frontends.net.receive import RxEnd
from frontends.net.transmit import TxEnd
from guest_kernel.net.tracing import bind_pushes

if TYPE_CHECKING:
    from frontends.net.owner import QueueOwner

BUSY_PACKETS = 64
"""After so many frames an interface is worth keeping its buffers mapped in the backend."""


class FrontQueue:
    """One pair of rings. What the backend has said about itself is the device's."""

    def __init__(self, device: QueueOwner, name: str) -> None:
        """Make the rings. Raises OutOfMemory, GrantError; all pages are the device's."""
        self._device = device
        self.name = name
        """As the trace has it: that of the device, if this is its only queue."""
        self._events = device.kernel.events
        trace = device.kernel.cpu.trace
        pushes = {} if trace is None else bind_pushes(trace, name)
        self.tx, self.rx = TxEnd(device, pushes.get("tx")), RxEnd(device, pushes.get("rx"))
        self._registered_tx = self._registered_rx = 0

    def open(self, *, split: bool) -> None:
        """Make event channels, and post the first buffers.

        `split`: each ring gets an event channel of its own; an event on either is a look at both rings. Raises
        OutOfMemory, GrantError, XenError.
        """
        backend = self._device.backend
        self.tx.port = self.rx.port = self._events.alloc_unbound(backend, self._interrupt)
        if split:
            self.rx.port = self._events.alloc_unbound(backend, self._interrupt)
        self.rx.post_first()

    def start(self) -> None:
        """Tell the backend, which is there now, of what has been posted."""
        for port in dict.fromkeys((self.tx.port, self.rx.port)):
            self._events.notify(port)

    def _interrupt(self) -> None:
        """Take what is new on both rings."""
        tx, rx = self.tx, self.rx
        while not self._device.broken:
            if not tx.take_responses() or not rx.take_responses():
                return
            if not tx.ring.final_check_for_responses() and not rx.ring.final_check_for_responses():
                break
        if self._registered_tx < len(tx.refs) or self._registered_rx < len(rx.posts):
            self._register()

    def _register(self) -> None:
        """Have the backend keep our buffers mapped: worth it once an interface is really used."""
        control, counters = self._device.control, self._device.counters
        if control is None or counters.tx_packets + counters.rx_packets < BUSY_PACKETS:
            return
        tx = [(ref, True) for ref in self.tx.refs[self._registered_tx :]]
        rx = [(post >> 32, False) for post in self.rx.posts[self._registered_rx :]]
        self._registered_tx += len(tx)
        self._registered_rx += len(rx)
        control.register(tx + rx)

    def close(self) -> None:
        """Let go of rings, ports and views of pages."""
        for port in dict.fromkeys((self.tx.port, self.rx.port)):
            if port:
                self._events.unbind(port)
        self.tx.port = self.rx.port = 0
        self.tx.close()
        self.rx.close()
