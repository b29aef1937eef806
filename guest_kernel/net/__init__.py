"""Networking of the guest kernel: interfaces, ARP, IPv4, ICMP echo, UDP sockets.

Packets are taken apart and put together with dpkt; this package decides what to do with them. There is no TCP: it comes
from real stacks at the ends of a wire.
"""

from guest_kernel.net.device import NetDevice
from guest_kernel.net.errors import NetError
from guest_kernel.net.interface import Interface
from guest_kernel.net.stack import NetStack
from guest_kernel.net.udp import UdpSocket

__all__ = ["Interface", "NetDevice", "NetError", "NetStack", "UdpSocket"]
