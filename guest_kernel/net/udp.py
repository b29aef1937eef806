"""UDP sockets of a guest."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import dpkt

from guest_kernel.net.addresses import ip_from_text, ip_to_text
from guest_kernel.net.errors import NetError
from guest_kernel.threads import WaitQueue

if TYPE_CHECKING:
    from guest_kernel.net.stack import NetStack

Address = tuple[str, int]
RECEIVE_QUEUE = 256
"""Datagrams that wait to be received; what comes on top of them is dropped."""


class UdpSocket:
    """A bound UDP port. `dropped` counts datagrams that came while the receive queue was full."""

    def __init__(self, stack: NetStack, port: int) -> None:
        self._stack = stack
        self.port = port
        self.dropped = 0
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._readable = WaitQueue()
        self._closed = False

    async def recvfrom(self) -> tuple[bytes, Address]:
        """Wait for a datagram; returns its data and where it came from. Raises NetError once the socket is closed."""
        while not self._queue:
            if self._closed:
                raise NetError(f"the socket on port {self.port} is closed")
            await self._readable.wait()
        return self._queue.popleft()

    async def sendto(self, data: bytes, address: Address) -> None:
        """Send a datagram, waiting while there is no room for it. Raises NetError (no route, too long, no address).

        It may be lost on its way, as datagrams are: when nobody answers ARP, when the receiver is slow.
        """
        host, port = address
        if not 0 < port <= 0xFFFF:
            raise NetError(f"there is no UDP port {port}")
        destination = ip_from_text(host)
        interface = self._stack.route(destination)
        await interface.wait_for_room(destination)
        if self._closed:
            raise NetError(f"the socket on port {self.port} is closed")
        header = dpkt.udp.UDP(sport=self.port, dport=port, ulen=8 + len(data), sum=0)
        interface.send_udp(destination, bytearray(header.pack_hdr() + data))

    def close(self) -> None:
        """Give the port back; whoever waits in `recvfrom` gets a NetError."""
        self._closed = True
        self._stack.forget(self)
        self._readable.wake_all()

    def input(self, data: bytes, source: bytes, port: int) -> None:
        """Take a datagram from the stack."""
        if len(self._queue) >= RECEIVE_QUEUE:
            self.dropped += 1
            return
        self._queue.append((data, (ip_to_text(source), port)))
        self._readable.wake()
