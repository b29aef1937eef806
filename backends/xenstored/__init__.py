"""xenstored: the store where the two halves of split drivers meet, as the C daemon of Xen 4.17 behaves.

The core (`server.Server` and what it is made of) is synchronous and pure: bytes of a connection in, bytes for
connections out; no clock, no I/O, no await.  `ring` moves bytes through a shared page, `daemon` is the dom0 thread
that ties the core to rings and event channels.
"""

from backends.xenstored.daemon import XenStored
from backends.xenstored.quota import Quotas
from backends.xenstored.server import Server

__all__ = ["Quotas", "Server", "XenStored"]
