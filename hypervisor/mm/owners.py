"""The owners that a guest can name besides domains: DOMID_IO for I/O memory, DOMID_XEN for Xen's own frames."""

from typing import Protocol

from hypervisor.mm.frame_table import DOMID_IO, DOMID_XEN


class PageOwner(Protocol):
    """What a frame's owner must tell when one of its frames is to be mapped: a domain, or one of the two here."""

    @property
    def domid(self) -> int:
        """Its number."""
        ...

    @property
    def is_privileged(self) -> bool:
        """Whether it controls other domains."""
        ...

    def may_use_iomem(self, mfn: int) -> bool:
        """Whether it may map a frame of I/O memory."""
        ...


class SystemOwner:
    """An owner that is no domain. It controls nobody, and nobody but a privileged domain may act for it."""

    __slots__ = ("domid", "is_privileged", "target")

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.is_privileged = False
        self.target = None

    def may_use_iomem(self, _mfn: int) -> bool:
        """Nothing was ever permitted to it: DOMID_IO stands for the permissions of the caller."""
        return False


DOM_IO = SystemOwner(DOMID_IO)
DOM_XEN = SystemOwner(DOMID_XEN)
