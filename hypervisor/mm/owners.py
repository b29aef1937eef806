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

    __slots__ = ("_caller", "domid", "is_privileged", "target")

    def __init__(self, domid: int, caller: PageOwner | None = None) -> None:
        self.domid = domid
        self.is_privileged = False
        self.target = None
        self._caller = caller

    def may_use_iomem(self, mfn: int) -> bool:
        """Nothing was ever permitted to itself: DOMID_IO stands for what the caller may."""
        return self._caller is not None and self._caller.may_use_iomem(mfn)


def io_owner(caller: PageOwner) -> SystemOwner:
    """Return DOMID_IO as a domain names it, whose rights to I/O memory count then."""
    return SystemOwner(DOMID_IO, caller)


DOM_XEN = SystemOwner(DOMID_XEN)
