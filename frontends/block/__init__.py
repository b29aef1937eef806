"""The block frontend: disks of a guest whose other half is a block backend in another domain (io/blkif.h)."""

from frontends.block.driver import BlockFront
from frontends.block.names import disk_name

__all__ = ("BlockFront", "disk_name")
