"""The checks of suite `netif-backend`: importing this registers them."""

from conformance.net.checks import bus, control, fetches, notices, offload, receive, transmit

__all__ = ["bus", "control", "fetches", "notices", "offload", "receive", "transmit"]
