"""Guest side of xenstore: wire format, ring, client, the xenbus state machine and the bus of split devices.

wire, ring      messages and the shared page, as pure classes; both ends use them
client, watch   `kernel.xenbus`: requests of many threads, transactions, watches
states          what an end does when it looks at the other: tables
driver          the contract with split drivers
device, bus     `kernel.bus`: runs the tables with the drivers' hooks
"""

from guest_kernel.xenbus.bus import Bus
from guest_kernel.xenbus.client import Permission, Transaction, XenbusClient, XenstoreError
from guest_kernel.xenbus.driver import DeviceClosing, XenbusDevice, XenbusDriver
from guest_kernel.xenbus.watch import Watch

__all__ = [
    "Bus",
    "DeviceClosing",
    "Permission",
    "Transaction",
    "Watch",
    "XenbusClient",
    "XenbusDevice",
    "XenbusDriver",
    "XenstoreError",
]
