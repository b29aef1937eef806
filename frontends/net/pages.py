"""The pages that one device shares with its backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

Granted = tuple["Page", int]


class GrantedPages:
    """Pages granted to one domain, each from `add` until all are taken back together."""

    def __init__(self, kernel: Kernel, backend: int) -> None:
        self._kernel = kernel
        self._backend = backend
        self._pages: list[Granted] = []

    def add(self, readonly: bool = False) -> Granted:
        """Return a page of zeros (nothing of the guest's leaks with it, XSA-403) and the reference it is granted by.

        Raises OutOfMemory, GrantError; then nothing is taken.
        """
        page = self._kernel.mm.alloc_page()
        try:
            ref = self._kernel.grants.grant_access(self._backend, page, readonly)
        except BaseException:
            self._kernel.mm.free_page(page)
            raise
        self._pages.append((page, ref))
        return page, ref

    def take_back(self) -> list[Granted]:
        """End all grants and free the pages; returns those that the backend still uses, which must wait (XSA-396)."""
        pages, self._pages = self._pages, []
        return end_grants(self._kernel, pages)


def end_grants(kernel: Kernel, pages: list[Granted]) -> list[Granted]:
    """Free the pages whose grants can be ended; returns the others."""
    withheld = []
    for page, ref in pages:
        if kernel.grants.end_access(ref):
            kernel.mm.free_page(page)
        else:
            withheld.append((page, ref))
    return withheld
