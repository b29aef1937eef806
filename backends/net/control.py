"""The control ring of a vif (io/netif.h): the frontend registers grants that stay mapped ("staging grants").

A request names a page with a list of grant references. Data of a registered page is then moved by plain copies, without
asking Xen for each frame. Hashing is not built: its requests are answered with NOT_SUPPORTED, as the header foresees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest_kernel import vectors
from guest_kernel.net.page_rows import PageRows
from guest_kernel.net.spans import Spans, Views
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, REQ_PROD, BackRing

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_kernel.grants import MappedGrant
    from guest_kernel.kernel import Kernel

REQUEST, RESPONSE = netif.xen_netif_ctrl_request.codec, netif.xen_netif_ctrl_response.codec
ENTRY = netif.xen_netif_gref.codec
STATUS_AT = netif.xen_netif_gref.offset("status")
SUCCESS = netif.XEN_NETIF_CTRL_STATUS_SUCCESS
NOT_SUPPORTED = netif.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED
INVALID = netif.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
READONLY = netif.XEN_NETIF_CTRLF_GREF_readonly
MAX_GREFS = 1024
"""Grants that one vif may keep mapped: all buffers of both rings, twice."""
LIST_ENTRIES = 4096 // ENTRY.size


class ControlRing:
    """The backend's end. `mapped` is gref → view of the page, writable unless registered read-only."""

    def __init__(self, kernel: Kernel, domid: int, ring: MappedGrant) -> None:
        self._kernel = kernel
        self._domid = domid
        self._grant = ring
        self._ring = BackRing(ring.view, max(REQUEST.size, RESPONSE.size))
        self._grants: dict[int, MappedGrant] = {}
        self.mapped: dict[int, memoryview] = {}
        self.writable: dict[int, memoryview] = {}
        """The part of `mapped` that may be written to."""
        self._spans = {
            writable: Spans(kernel.mm, lambda ref: self._grants[ref].va, writable=writable)
            for writable in (False, True)
        }
        self.changed: Callable[[PageRows | None], None] = lambda rows: None
        """Told of the same pages as rows of arrays, when they have changed and there is numpy."""
        self.port = 0
        self.broken = False
        self.queued = False
        """Stands in the worker's queue."""
        self.ready: Callable[[ControlRing], None] = lambda control: None
        """Told that there may be something to do."""

    def interrupt(self) -> None:
        """Have the worker look at the ring: mapping a list takes its time, and must not be done in an upcall."""
        if not self.queued and not self.broken:
            self.queued = True
            self.ready(self)

    def readable_span(self, refs: tuple[int, ...]) -> Views | None:
        """Return views of these pages; None if one of them is not mapped."""
        return self._spans[False].get(refs) if self.mapped.keys() >= set(refs) else None

    def writable_span(self, refs: tuple[int, ...]) -> Views | None:
        """Return views of these pages, to be written to; None if that must not be done with one of them."""
        return self._spans[True].get(refs) if self.writable.keys() >= set(refs) else None

    def _forget(self) -> None:
        """What is unmapped must not be seen any more."""
        self.changed(None)
        for spans in self._spans.values():
            spans.forget()

    def serve_one(self) -> bool:
        """Answer one request; whether there may be more."""
        if self.broken:
            return False
        ring = self._ring
        produced = ring.shared[REQ_PROD]
        if ring.request_overflow(produced):
            # Nobody needs this ring to go on working: frames are copied through Xen instead.
            self.broken = True
            return False
        if ring.req_cons == produced:
            return bool(ring.final_check_for_requests())
        ident, kind, *data = REQUEST.unpack(ring.copy(ring.req_cons)[: REQUEST.size])
        ring.req_cons = ring.req_cons + 1 & MASK32
        status, result = self._handle(kind, data)
        RESPONSE.pack_into(ring.view, ring.offset(ring.rsp_prod_pvt), ident, kind, status, result)
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + 1 & MASK32
        if ring.push_responses_and_check_notify():
            self._kernel.events.notify(self.port)
        return True

    def _handle(self, kind: int, data: list[int]) -> tuple[int, int]:
        queue, gref, count = data
        if kind == netif.XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE:
            return (INVALID, 0) if queue else (SUCCESS, MAX_GREFS)
        if kind not in (netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, netif.XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING):
            return NOT_SUPPORTED, 0
        if queue or not 0 < count <= LIST_ENTRIES:
            return INVALID, 0
        (page,) = self._kernel.grants.map_refs(self._domid, [gref])
        if page.status:
            return INVALID, 0
        try:
            # One copy of the list, which the frontend can change at any time.
            raw = bytes(page.view[: count * ENTRY.size])
            entries = [(ref, flags) for ref, flags, _ in ENTRY.iter_unpack(raw)]
            if kind == netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING:
                return self._add(entries), 0
            return SUCCESS, self._delete(entries, page.view)
        finally:
            page.view.release()
            self._kernel.grants.unmap([page])

    def _add(self, entries: list[tuple[int, int]]) -> int:
        """Map all of the list, or none of it."""
        refs = [ref for ref, _ in entries]
        if len(self._grants) + len(refs) > MAX_GREFS or len(set(refs)) < len(refs) or self._grants.keys() & set(refs):
            return INVALID
        groups = [[ref for ref, flags in entries if bool(flags & READONLY) == readonly] for readonly in (False, True)]
        grants: list[MappedGrant] = []
        for group, writable in zip(groups, (True, False), strict=True):
            if group:
                grants += self._kernel.grants.map_refs(self._domid, group, writable)
        good = [grant for grant in grants if not grant.status]
        if len(good) < len(grants):
            self._kernel.grants.unmap(good)
            return INVALID
        writable_refs = set(groups[0])
        for grant in grants:
            self._grants[grant.ref] = grant
            self.mapped[grant.ref] = grant.view
            if grant.ref in writable_refs:
                self.writable[grant.ref] = grant.view
        self._arrange()
        return SUCCESS

    def _arrange(self) -> None:
        """Make the rows anew."""
        if vectors.numpy() is not None:
            pages = [(grant.ref, grant.va, grant.ref in self.writable) for grant in self._grants.values()]
            self.changed(PageRows(self._kernel.mm, pages))

    def _delete(self, entries: list[tuple[int, int]], view: memoryview) -> int:
        self._forget()
        gone = []
        for number, (ref, _) in enumerate(entries):
            grant = self._grants.pop(ref, None)
            status = INVALID if grant is None else SUCCESS
            view[number * ENTRY.size + STATUS_AT : number * ENTRY.size + STATUS_AT + 2] = status.to_bytes(2, "little")
            if grant is not None:
                self._drop(grant)
                gone.append(grant)
        if gone:
            self._kernel.grants.unmap(gone)
        self._arrange()
        return len(gone)

    def _drop(self, grant: MappedGrant) -> None:
        self.mapped.pop(grant.ref, None)
        self.writable.pop(grant.ref, None)
        grant.view.release()

    def close(self) -> None:
        """Unmap everything."""
        self.broken = True
        self._forget()
        if self.port:
            self._kernel.events.unbind(self.port)
            self.port = 0
        self._ring.release()
        self._grant.view.release()
        for grant in self._grants.values():
            self._drop(grant)
        self._kernel.grants.unmap([self._grant, *self._grants.values()])
        self._grants.clear()
