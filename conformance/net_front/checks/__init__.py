"""The checks of suite `netif-frontend`: importing this registers them."""

from conformance.net_front.checks import bus, hostile, notices, receive, transmit

__all__ = ["bus", "hostile", "notices", "receive", "transmit"]
