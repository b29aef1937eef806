"""The block backend: serves a disk of this domain's hardware to frontends in other domains (io/blkif.h)."""

from backends.block.driver import BlockBack

__all__ = ("BlockBack",)
