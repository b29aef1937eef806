"""xenconsoled: the other end of the guests' PV consoles, a thread of dom0.

`ring` is one console's shared page without I/O, `daemon` finds the domains, maps their rings and moves the bytes
between them and whoever shows or types them.
"""

from backends.xenconsoled.daemon import XenConsoled

__all__ = ["XenConsoled"]
