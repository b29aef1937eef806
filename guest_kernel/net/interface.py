"""An interface: a device with an IPv4 address; ARP, ICMP echo, the way of a datagram in and out."""

from __future__ import annotations

import ipaddress
from collections import deque
from typing import TYPE_CHECKING

import dpkt

from guest_kernel.net import checksum
from guest_kernel.net.addresses import BROADCAST_MAC, NO_MAC, ip_to_text, parse_interface
from guest_kernel.net.device import NetDevice
from guest_kernel.net.errors import NetError

if TYPE_CHECKING:
    from guest_kernel.net.stack import NetStack

ETH_IP, ETH_ARP = dpkt.ethernet.ETH_TYPE_IP, dpkt.ethernet.ETH_TYPE_ARP
ARP_RETRY_NS = 1_000_000_000
ARP_TRIES = 3
ARP_QUEUE = 64
"""Datagrams that wait for the answer of one neighbour; older ones make room for newer."""
DEFAULT_TTL = 64
MALFORMED = (dpkt.UnpackError, IndexError, ValueError)
"""What dpkt raises for bytes that are not the packet they claim to be."""


class Interface:
    """`eth0`: its device, its address, its neighbours."""

    def __init__(self, stack: NetStack, device: NetDevice) -> None:
        self.stack = stack
        self.device = device
        self.address: ipaddress.IPv4Interface | None = None
        self.ip = bytes(4)
        self.neighbours: dict[bytes, bytes] = {}
        self._unresolved: dict[bytes, deque[bytes]] = {}
        self._ident = 0
        device.received = self.input

    @property
    def name(self) -> str:
        """Name of the device."""
        return self.device.name

    def configure(self, address: str) -> None:
        """Give the interface its address, as `10.0.0.1/24`. Raises NetError."""
        self.address = parse_interface(address)
        self.ip = self.address.ip.packed

    def reaches(self, ip: bytes) -> bool:
        """Whether an address is on this interface's own network."""
        return self.address is not None and ipaddress.IPv4Address(ip) in self.address.network

    # -- in -------------------------------------------------------------------------------------------------------

    def input(self, frame: bytes, validated: bool) -> None:
        """Take a frame from the device. What is malformed or not for us is dropped."""
        kind = frame[12:14]
        if frame[:6] != self.device.mac and frame[:6] != BROADCAST_MAC:
            return
        try:
            if kind == b"\x08\x06":
                self._arp_input(dpkt.arp.ARP(frame[14:]))
            elif kind == b"\x08\x00":
                self._ip_input(frame, validated)
        except MALFORMED:
            self.device.counters.rx_dropped += 1

    def _arp_input(self, packet: dpkt.arp.ARP) -> None:
        if packet.tpa != self.ip or not self.address:
            return
        self._learn(packet.spa, packet.sha)
        if packet.op == dpkt.arp.ARP_OP_REQUEST:
            reply = dpkt.arp.ARP(
                op=dpkt.arp.ARP_OP_REPLY, sha=self.device.mac, spa=self.ip, tha=packet.sha, tpa=packet.spa
            )
            self._send_frame(packet.sha, ETH_ARP, bytes(reply))

    def _learn(self, ip: bytes, mac: bytes) -> None:
        self.neighbours[ip] = mac
        for datagram in self._unresolved.pop(ip, ()):
            self._send_frame(mac, ETH_IP, datagram)

    def _ip_input(self, frame: bytes, validated: bool) -> None:
        packet = dpkt.ip.IP(frame[14:])
        if packet.dst != self.ip or packet.off & (dpkt.ip.IP_OFFMASK | dpkt.ip.IP_MF):
            return
        if not validated and not checksum.verify(frame):
            self.device.counters.rx_dropped += 1
            return
        # The payload is cut out by the header's own lengths; dpkt's parsed copy may be None for what it does not know.
        start = 14 + packet.hl * 4
        payload = frame[start : 14 + packet.len]
        if packet.p == dpkt.ip.IP_PROTO_ICMP:
            self._icmp_input(packet.src, payload)
        elif packet.p == dpkt.ip.IP_PROTO_UDP:
            header = dpkt.udp.UDP(payload)
            self.stack.udp_input(packet.src, header.sport, header.dport, payload[8 : header.ulen])

    def _icmp_input(self, source: bytes, payload: bytes) -> None:
        if checksum.checksum(payload):
            self.device.counters.rx_dropped += 1
            return
        message = dpkt.icmp.ICMP(payload)
        if message.type == dpkt.icmp.ICMP_ECHO:
            reply = bytearray(payload)
            reply[0] = dpkt.icmp.ICMP_ECHOREPLY
            reply[2:4] = b"\0\0"
            reply[2:4] = checksum.checksum(reply).to_bytes(2, "big")
            self.send(source, dpkt.ip.IP_PROTO_ICMP, bytes(reply))
        elif message.type == dpkt.icmp.ICMP_ECHOREPLY:
            echo = dpkt.icmp.ICMP.Echo(payload[4:])
            self.stack.echo_reply(source, echo.id, echo.seq)

    # -- out ------------------------------------------------------------------------------------------------------

    def send(self, destination: bytes, protocol: int, payload: bytes) -> None:
        """Send an IPv4 datagram; it waits for ARP if the neighbour's address is not known yet. Raises NetError."""
        if not self.address:
            raise NetError(f"{self.name} has no address yet")
        if len(payload) + 20 > self.device.mtu:
            raise NetError(f"{len(payload)} bytes do not fit into one datagram on {self.name} (mtu {self.device.mtu})")
        self._ident = self._ident + 1 & 0xFFFF
        packet = dpkt.ip.IP(
            src=self.ip, dst=destination, p=protocol, id=self._ident, ttl=DEFAULT_TTL, len=20 + len(payload)
        )
        header = bytearray(packet.pack_hdr())
        header[10:12] = checksum.checksum(header).to_bytes(2, "big")
        datagram = bytes(header) + payload
        mac = self.neighbours.get(destination)
        if mac is not None:
            self._send_frame(mac, ETH_IP, datagram)
            return
        queue = self._unresolved.get(destination)
        if queue is None:
            queue = self._unresolved[destination] = deque(maxlen=ARP_QUEUE)
            self.stack.kernel.spawn(self._resolve(destination), f"arp {ip_to_text(destination)}")
        queue.append(datagram)

    def send_udp(self, destination: bytes, header_and_data: bytearray) -> None:
        """Send a UDP datagram whose checksum field is zero; the checksum is left to the device if it can."""
        total = checksum.pseudo_header(self.ip, destination, dpkt.ip.IP_PROTO_UDP, len(header_and_data))
        if self.device.checksum_offload:
            header_and_data[6:8] = total.to_bytes(2, "big")
        else:
            value = ~checksum.fold(total + checksum.partial(header_and_data)) & 0xFFFF or 0xFFFF
            header_and_data[6:8] = value.to_bytes(2, "big")
        self.send(destination, dpkt.ip.IP_PROTO_UDP, bytes(header_and_data))

    def _send_frame(self, mac: bytes, kind: int, payload: bytes) -> None:
        frame = mac + self.device.mac + kind.to_bytes(2, "big") + payload
        blank = self.device.checksum_offload and kind == ETH_IP and payload[9] == dpkt.ip.IP_PROTO_UDP
        self.device.transmit(frame, blank)

    async def _resolve(self, ip: bytes) -> None:
        """Ask for a neighbour's address a few times; give the waiting datagrams up if nobody answers."""
        request = dpkt.arp.ARP(op=dpkt.arp.ARP_OP_REQUEST, sha=self.device.mac, spa=self.ip, tha=NO_MAC, tpa=ip)
        for _ in range(ARP_TRIES):
            self._send_frame(BROADCAST_MAC, ETH_ARP, bytes(request))
            await self.stack.kernel.sleep(ARP_RETRY_NS)
            if ip in self.neighbours:
                return
        lost = self._unresolved.pop(ip, ())
        self.device.counters.tx_dropped += len(lost)
