"""The checks of suite `netif-backend`: importing this registers them."""

from conformance.net.checks import bus, control, notices, offload, receive, transmit

__all__ = ["bus", "control", "notices", "offload", "receive", "transmit"]
