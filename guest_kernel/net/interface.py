"""An interface: a device with an IPv4 address; ARP, ICMP echo, the way of a datagram in and out."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import dpkt

from guest_kernel.net import checksum
from guest_kernel.net.addresses import BROADCAST_MAC, NO_MAC, ip_to_text, parse_interface
from guest_kernel.net.device import NetDevice
from guest_kernel.net.errors import NetError
from guest_kernel.net.headers import IcmpHeader, IpHeader
from guest_kernel.net.neighbours import Neighbours, Question
from guest_kernel.net.offload import BLANK, NONE, VALIDATED, Offload

if TYPE_CHECKING:
    from guest_kernel.net.stack import NetStack

ETH_IP, ETH_ARP = dpkt.ethernet.ETH_TYPE_IP, dpkt.ethernet.ETH_TYPE_ARP
ETHERNET, IP_HEADER, UDP_HEADER = 14, 20, 8
ARP_RETRY_NS = 1_000_000_000
ARP_TRIES = 3
DEFAULT_TTL = 64
NO_IP, BROADCAST_IP = bytes(4), b"\xff" * 4


class Interface:
    """`eth0`: its device, its address, its neighbours."""

    def __init__(self, stack: NetStack, device: NetDevice) -> None:
        self.stack = stack
        self.device = device
        self.address: ipaddress.IPv4Interface | None = None
        self.ip = NO_IP
        self.neighbours = Neighbours()
        self._network = self._mask = 0
        self._broadcasts: tuple[bytes, ...] = (BROADCAST_IP,)
        self._ident = 0
        device.received_raw = self.input

    @property
    def name(self) -> str:
        """Name of the device."""
        return self.device.name

    def configure(self, address: str) -> None:
        """Give the interface its address, as `10.0.0.1/24`. Raises NetError."""
        self.address = parse_interface(address)
        self.ip = self.address.ip.packed
        network = self.address.network
        self._network, self._mask = int(network.network_address), int(network.netmask)
        self._broadcasts = (
            (BROADCAST_IP, network.broadcast_address.packed) if network.prefixlen < 31 else (BROADCAST_IP,)
        )

    def reaches(self, ip: bytes) -> bool:
        """Whether an address is on this interface's own network."""
        return self.address is not None and (
            int.from_bytes(ip, "big") & self._mask == self._network or ip == BROADCAST_IP
        )

    # -- in -------------------------------------------------------------------------------------------------------

    def input(self, frame: bytes, offload: Offload) -> None:
        """Take a frame from the device. What is not for us is passed over; what is malformed is dropped and counted."""
        to = frame[:6]
        if self.address is None or (to != self.device.mac and to != BROADCAST_MAC):
            return
        kind = frame[12:14]
        try:
            if kind == b"\x08\x00":
                self._ip_input(frame, offload.validated)
            elif kind == b"\x08\x06":
                self._arp_input(dpkt.arp.ARP(frame[ETHERNET:]))
        except dpkt.UnpackError:
            self._drop()

    def _drop(self) -> None:
        self.device.counters.rx_dropped += 1

    def _arp_input(self, packet: dpkt.arp.ARP) -> None:
        """RFC 826: whoever is known is updated by any packet; whoever speaks to us becomes known."""
        if (packet.hrd, packet.pro, packet.hln, packet.pln) != (dpkt.arp.ARP_HRD_ETH, dpkt.arp.ARP_PRO_IP, 6, 4):
            return
        source, mac = packet.spa, packet.sha
        if source == self.ip or mac[0] & 1 or not self.reaches(source) or source in self._broadcasts:
            return
        if packet.tpa == self.ip or source in self.neighbours:
            for datagram in self.neighbours.learn(source, mac):
                self._send_frame(mac, ETH_IP, datagram)
        if packet.tpa == self.ip and packet.op == dpkt.arp.ARP_OP_REQUEST:
            self._send_arp(mac, dpkt.arp.ARP_OP_REPLY, mac, source)

    def _ip_input(self, frame: bytes, validated: bool) -> None:
        header = IpHeader(frame[ETHERNET : ETHERNET + IP_HEADER])
        start, end = ETHERNET + header.hl * 4, ETHERNET + header.len
        wrong = header.v != 4 or header.hl < 5 or not start <= end <= len(frame)
        # Fragments are not put together again.
        if wrong or header.mf or header.offset or checksum.checksum(frame[ETHERNET:start]):
            self._drop()
            return
        broadcast = header.dst in self._broadcasts
        if header.dst != self.ip and not broadcast:
            return
        if not validated and not checksum.verify(frame):
            self._drop()
            return
        payload = frame[start:end]
        if header.p == dpkt.ip.IP_PROTO_UDP:
            self._udp_input(header.src, payload)
        elif header.p == dpkt.ip.IP_PROTO_ICMP and not broadcast:
            self._icmp_input(header.src, payload)

    def _udp_input(self, source: bytes, payload: bytes) -> None:
        header = dpkt.udp.UDP(payload)
        if not UDP_HEADER <= header.ulen <= len(payload):
            self._drop()
            return
        self.stack.udp_input(source, header.sport, header.dport, payload[UDP_HEADER : header.ulen])

    def _icmp_input(self, source: bytes, payload: bytes) -> None:
        if checksum.checksum(payload):
            self._drop()
            return
        message = IcmpHeader(payload[:4])
        if message.type == dpkt.icmp.ICMP_ECHO:
            reply = bytearray(payload)
            reply[0] = dpkt.icmp.ICMP_ECHOREPLY
            reply[2:4] = b"\0\0"
            reply[2:4] = checksum.checksum(reply).to_bytes(2, "big")
            # There is no router: who is not a neighbour cannot be answered.
            if self.reaches(source) and source not in self._broadcasts and len(reply) + IP_HEADER <= self.device.mtu:
                self.send(source, dpkt.ip.IP_PROTO_ICMP, bytes(reply))
        elif message.type == dpkt.icmp.ICMP_ECHOREPLY:
            echo = dpkt.icmp.ICMP.Echo(payload[4:])
            self.stack.echo_reply(source, echo.id, echo.seq)

    # -- out ------------------------------------------------------------------------------------------------------

    def send(self, destination: bytes, protocol: int, payload: bytes) -> None:
        """Send an IPv4 datagram; it waits for ARP if the neighbour's address is not known yet. Raises NetError."""
        if not self.address:
            raise NetError(f"{self.name} has no address yet")
        if len(payload) + IP_HEADER > self.device.mtu:
            raise NetError(f"{len(payload)} bytes do not fit into one datagram on {self.name} (mtu {self.device.mtu})")
        datagram = self._header(destination, protocol, len(payload)) + payload
        if destination == self.ip:
            self.input(self.device.mac * 2 + ETH_IP.to_bytes(2, "big") + datagram, VALIDATED)
            return
        mac = BROADCAST_MAC if destination in self._broadcasts else self.neighbours.get(destination)
        if mac is not None:
            self._send_frame(mac, ETH_IP, datagram)
            return
        question, is_new = self.neighbours.question(destination)
        if question is None:
            self.device.counters.tx_dropped += 1
            return
        if question.is_full:
            self.device.counters.tx_dropped += 1
        question.waiting.append(datagram)
        if is_new:
            self.stack.kernel.spawn(self._resolve(destination, question), f"arp {ip_to_text(destination)}")

    async def wait_for_room(self, destination: bytes) -> None:
        """Wait until a datagram for this neighbour neither is lost here nor pushes another one out.

        Whoever sends without end gives way to others each time, even if it is to itself.
        """
        if destination == self.ip:
            await self.stack.kernel.yield_()
            return
        await self.device.wait_for_room()
        question = None if destination in self._broadcasts else self.neighbours.obstacle(destination)
        if question is not None:
            await question.settled.wait()

    def _header(self, destination: bytes, protocol: int, size: int) -> bytes:
        self._ident = self._ident + 1 & 0xFFFF
        packet = dpkt.ip.IP(
            src=self.ip, dst=destination, p=protocol, id=self._ident, ttl=DEFAULT_TTL, len=IP_HEADER + size
        )
        header = bytearray(packet.pack_hdr())
        header[10:12] = checksum.checksum(header).to_bytes(2, "big")
        return bytes(header)

    def send_udp(self, destination: bytes, header_and_data: bytearray) -> None:
        """Send a UDP datagram whose checksum field is zero; the checksum is left to the device if it can."""
        total = checksum.pseudo_header(self.ip, destination, dpkt.ip.IP_PROTO_UDP, len(header_and_data))
        if self.device.checksum_offload:
            header_and_data[6:8] = total.to_bytes(2, "big")
        else:
            value = ~checksum.fold(total + checksum.partial(header_and_data)) & 0xFFFF or 0xFFFF
            header_and_data[6:8] = value.to_bytes(2, "big")
        self.send(destination, dpkt.ip.IP_PROTO_UDP, bytes(header_and_data))

    def announce(self) -> None:
        """Tell everybody where this address is (gratuitous ARP): bridges and neighbours learn a new place from it."""
        if self.address is not None:
            self._send_arp(BROADCAST_MAC, dpkt.arp.ARP_OP_REQUEST, NO_MAC, self.ip)

    def _send_arp(self, to: bytes, op: int, target_mac: bytes, target: bytes) -> None:
        packet = dpkt.arp.ARP(op=op, sha=self.device.mac, spa=self.ip, tha=target_mac, tpa=target)
        self._send_frame(to, ETH_ARP, bytes(packet))

    def _send_frame(self, mac: bytes, kind: int, payload: bytes) -> None:
        frame = mac + self.device.mac + kind.to_bytes(2, "big") + payload
        blank = self.device.checksum_offload and kind == ETH_IP and payload[9] == dpkt.ip.IP_PROTO_UDP
        self.device.transmit(frame, BLANK if blank else NONE)

    async def _resolve(self, ip: bytes, question: Question) -> None:
        """Ask for a neighbour's address a few times; give the waiting datagrams up if nobody answers."""
        for _ in range(ARP_TRIES):
            self._send_arp(BROADCAST_MAC, dpkt.arp.ARP_OP_REQUEST, NO_MAC, ip)
            try:
                await self.stack.kernel.wait_for(question.settled.wait(), ARP_RETRY_NS)
            except TimeoutError:
                continue
            return
        self.device.counters.tx_dropped += self.neighbours.give_up(ip)
