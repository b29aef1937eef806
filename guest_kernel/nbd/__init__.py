"""An NBD server on the guest kernel: a disk, as this guest sees it, for clients outside (docs/nbd-export.md)."""

from guest_kernel.nbd.export import NbdExport

__all__ = ["NbdExport"]
