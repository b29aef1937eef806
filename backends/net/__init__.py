"""The network backend: vifs, and the bridge that connects them (io/netif.h)."""

from backends.net.bridge import Bridge, NicPort, Port
from backends.net.driver import NetBack

__all__ = ["Bridge", "NetBack", "NicPort", "Port"]
