"""The network frontend: a guest's Ethernet device on two rings (io/netif.h)."""

from frontends.net.device import FrontDevice
from frontends.net.driver import NetFront

__all__ = ["FrontDevice", "NetFront"]
