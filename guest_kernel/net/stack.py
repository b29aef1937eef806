"""The network stack of one guest: its interfaces, routes, sockets and pings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dpkt

from guest_kernel.hotplug import Changes, noted
from guest_kernel.net.addresses import ip_from_text, ip_to_text
from guest_kernel.net.device import NetDevice
from guest_kernel.net.errors import NetError, PingTimeout
from guest_kernel.net.interface import Interface
from guest_kernel.net.udp import UdpSocket
from guest_kernel.threads import Event, WaitQueue

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

FIRST_EPHEMERAL, LAST_PORT = 49152, 65535
PING_ID = 1
PING_DATA = bytes(range(0x10, 0x48))
"""56 bytes, as `ping` sends."""


class NetStack:
    """`kernel.net`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.interfaces: dict[str, Interface] = {}
        self._addresses: dict[str, str] = {}
        """What interfaces that have gone were configured with."""
        self._sockets: dict[int, UdpSocket] = {}
        self._echoes: dict[tuple[bytes, int, int], Event] = {}
        self._sequence = 0
        self._ephemeral = FIRST_EPHEMERAL
        self._changed = WaitQueue()
        self.wanted: dict[str, int] = {}
        """How many threads wait for each interface that is not there."""
        self.changes = Changes()
        """Tells of interfaces that come and go."""

    # -- devices --------------------------------------------------------------------------------------------------

    def attach(self, device: NetDevice) -> Interface:
        """Make a device usable as an interface of its name; a device that comes back keeps its address."""
        interface = Interface(self, device)
        address = self._addresses.pop(device.name, None)
        if address is not None:
            interface.configure(address)
            interface.announce()
        self.interfaces[device.name] = interface
        self.changes.tell(device.name, present=True)
        self._changed.wake_all()
        return interface

    def detach(self, device: NetDevice) -> None:
        """Take an interface away: its device is gone."""
        interface = self.interfaces.get(device.name)
        if interface is not None and interface.device is device:
            del self.interfaces[device.name]
            self.changes.tell(device.name, present=False)
            self._changed.wake_all()
            if interface.address is not None:
                self._addresses[device.name] = str(interface.address)

    async def interface(self, name: str = "eth0") -> Interface:
        """Return an interface, waiting until its device is there."""
        while name not in self.interfaces:
            with noted(self.wanted, name):
                await self._changed.wait()
        return self.interfaces[name]

    async def gone(self, name: str) -> None:
        """Wait until there is no interface of this name."""
        while name in self.interfaces:
            await self._changed.wait()

    def route(self, destination: bytes) -> Interface:
        """Return the interface on whose network an address is. Raises NetError."""
        for interface in self.interfaces.values():
            if interface.reaches(destination):
                return interface
        raise NetError(f"no route to {ip_to_text(destination)}")

    # -- UDP ------------------------------------------------------------------------------------------------------

    def udp_socket(self, port: int = 0) -> UdpSocket:
        """Return a socket bound to a port on every interface; 0 picks a free one. Raises NetError if it is taken."""
        if not port:
            port = self._free_port()
        if not 0 < port <= LAST_PORT:
            raise NetError(f"there is no UDP port {port}")
        if port in self._sockets:
            raise NetError(f"UDP port {port} is in use")
        socket = self._sockets[port] = UdpSocket(self, port)
        return socket

    def _free_port(self) -> int:
        for _ in range(FIRST_EPHEMERAL, LAST_PORT + 1):
            port = self._ephemeral
            self._ephemeral = port + 1 if port < LAST_PORT else FIRST_EPHEMERAL
            if port not in self._sockets:
                return port
        raise NetError("all ephemeral UDP ports are in use")

    def forget(self, socket: UdpSocket) -> None:
        """Unbind a closed socket."""
        if self._sockets.get(socket.port) is socket:
            del self._sockets[socket.port]

    def udp_input(self, source: bytes, sport: int, dport: int, data: bytes) -> None:
        """Hand a datagram to its socket; without one it is dropped."""
        socket = self._sockets.get(dport)
        if socket is not None:
            socket.input(data, source, sport)

    # -- ICMP echo ------------------------------------------------------------------------------------------------

    async def ping(self, ip: str, timeout_ns: int = 5_000_000_000) -> int:
        """Send one echo request; returns the round-trip time in ns. Raises PingTimeout, NetError."""
        destination = ip_from_text(ip)
        interface = self.route(destination)
        self._sequence = self._sequence + 1 & 0xFFFF
        key = (destination, PING_ID, self._sequence)
        answered = self._echoes[key] = Event()
        echo = dpkt.icmp.ICMP(
            type=dpkt.icmp.ICMP_ECHO, data=dpkt.icmp.ICMP.Echo(id=PING_ID, seq=self._sequence, data=PING_DATA)
        )
        start = self.kernel.monotonic_ns()
        try:
            interface.send(destination, dpkt.ip.IP_PROTO_ICMP, bytes(echo))
            await self.kernel.wait_for(answered.wait(), timeout_ns)
        except TimeoutError:
            raise PingTimeout(f"no answer from {ip} within {timeout_ns / 1e9:g} s") from None
        finally:
            del self._echoes[key]
        return self.kernel.monotonic_ns() - start

    def echo_reply(self, source: bytes, ident: int, sequence: int) -> None:
        """Tell whoever sent the request."""
        answered = self._echoes.get((source, ident, sequence))
        if answered is not None:
            answered.set()
