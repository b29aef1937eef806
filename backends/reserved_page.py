"""The page that a guest shares with a daemon of dom0 from its birth on: xenstore's ring, or the console's."""

from typing import final

from guest_kernel.grants import MappedGrant
from guest_kernel.kernel import Kernel
from guest_kernel.mm import ForeignMapping
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE, GNTST_okay
from hypervisor.abi.tracepoints import RING_CONNECT

_NAMES = {GNTTAB_RESERVED_CONSOLE: "console", GNTTAB_RESERVED_XENSTORE: "xenstore"}


@final
class ReservedPage:
    """Such a page, mapped until `unmap`."""

    __slots__ = ("_foreign", "_grant", "_kernel")

    def __init__(self, kernel: Kernel, domid: int, ref: int, mfn: int) -> None:
        """Map the page that domain `domid` grants with one of the toolstack's references (`_NAMES`).

        A builder that did not fill in the grant table leaves dom0's right to map any frame, by its number `mfn`.
        Raises XenError.
        """
        self._kernel = kernel
        self._foreign: ForeignMapping | None = None
        self._grant: MappedGrant
        (self._grant,) = kernel.grants.map_refs(domid, [ref])
        if self._grant.status != GNTST_okay:
            self._foreign = kernel.mm.map_foreign(domid, [mfn])
        trace = kernel.cpu.trace
        if trace is not None:
            trace(RING_CONNECT, f"d{domid}", _NAMES[ref], _NAMES[ref], domid, (ref,))

    @property
    def view(self) -> memoryview:
        """The bytes of the page; to be dropped before `unmap`."""
        return self._grant.view if self._foreign is None else self._foreign[0]

    def unmap(self) -> None:
        """Give the mapping back."""
        if self._foreign is not None:
            self._kernel.mm.unmap_foreign(self._foreign)
        self._kernel.grants.unmap([self._grant])
