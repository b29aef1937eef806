"""Xenbus (io/xenbus.h): the states that both ends of a split device write to xenstore while they connect."""

from hypervisor.abi._names import names

# io/xenbus.h, enum xenbus_state: written in decimal to the `state` node. Unknown stands for a node that is not there.
XenbusStateUnknown = 0
XenbusStateInitialising = 1
XenbusStateInitWait = 2
XenbusStateInitialised = 3
XenbusStateConnected = 4
XenbusStateClosing = 5
XenbusStateClosed = 6
XenbusStateReconfiguring = 7
XenbusStateReconfigured = 8

NAMES = names(globals(), r"XenbusState\w+")
"""States by number."""
