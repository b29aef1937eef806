"""Guest side of xenstore: wire format, ring, client, the xenbus state machine and the bus of split devices.

client = attach(kernel)                 # sans-I/O ring of `ring`, messages of `wire`, calls of `client`
bus = Bus(kernel, client, [BlockFront, NetFront])
await bus.start()
...
await bus.shutdown()
"""

from guest_kernel.xenbus.attach import attach
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
    "attach",
]
