"""The control ring of a vif (io/netif.h): the frontend registers grants that stay mapped ("staging grants").

A request names a page with a list of grant references. Data of a registered page is then moved by plain copies, without
asking Xen for each frame.

Other requests say how frames are to be hashed, and which queue goes with which hash (`hashing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.net.hashing import INVALID, LARGEST_MAPPING, LONGEST_KEY, NOT_SUPPORTED, OVERFLOW, SUCCESS
from guest_kernel import vectors
from guest_kernel.net.page_rows import PageRows
from guest_kernel.net.spans import Spans, Views
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, REQ_PROD, BackRing

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.net.hashing import Hashing
    from guest_kernel.grants import MappedGrant
    from guest_kernel.kernel import Kernel

REQUEST, RESPONSE = netif.xen_netif_ctrl_request.codec, netif.xen_netif_ctrl_response.codec
ENTRY = netif.xen_netif_gref.codec
STATUS_AT = netif.xen_netif_gref.offset("status")
READONLY = netif.XEN_NETIF_CTRLF_GREF_readonly
MAX_GREFS = 1024
"""Grants that one vif may keep mapped for each queue: all buffers of both rings, twice."""
LIST_ENTRIES = 4096 // ENTRY.size


class ControlRing:
    """The backend's end. `mapped` is gref → view of the page, writable unless registered read-only."""

    def __init__(self, kernel: Kernel, domid: int, ring: MappedGrant, hashing: Hashing) -> None:
        self._kernel = kernel
        self._hashing = hashing
        self._most = MAX_GREFS * hashing.queues
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
        self._simple: dict[int, Callable[[int], tuple[int, int]]] = {
            netif.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: lambda value: (hashing.set_algorithm(value), 0),
            netif.XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: lambda value: hashing.get_types(),
            netif.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: lambda value: (hashing.set_types(value), 0),
            netif.XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: lambda value: (SUCCESS, LARGEST_MAPPING),
            netif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: lambda value: (hashing.set_mapping_size(value), 0),
            netif.XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: self._gref_size,
        }
        """Requests of one number, by type."""
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
        """Return the status of a request, and the number that goes with it."""
        simple = self._simple.get(kind)
        if simple is not None:
            return simple(data[0])
        if kind == netif.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY:
            return self._set_key(data[0], data[1]), 0
        if kind == netif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING:
            return self._set_mapping(*data), 0
        if kind in (netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, netif.XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING):
            return self._change_grefs(kind, *data)
        return NOT_SUPPORTED, 0

    def _gref_size(self, queue: int) -> tuple[int, int]:
        return (INVALID, 0) if queue >= self._hashing.queues else (SUCCESS, self._most)

    def _set_key(self, gref: int, size: int) -> int:
        if size > LONGEST_KEY:
            return OVERFLOW
        key = self._read(gref, size)
        return INVALID if key is None else self._hashing.set_key(key)

    def _set_mapping(self, gref: int, count: int, offset: int) -> int:
        if count > LARGEST_MAPPING:
            return OVERFLOW
        table = self._read(gref, 4 * count)
        return INVALID if table is None else self._hashing.set_mapping(offset, memoryview(table).cast("I").tolist())

    def _read(self, gref: int, size: int) -> bytes | None:
        """Return one copy of the beginning of a page of the guest's; None if it cannot be read. Of nothing, no look."""
        if not size:
            return b""
        (page,) = self._kernel.grants.map_refs(self._domid, [gref], writable=False)
        if page.status:
            return None
        data = bytes(page.view[:size])
        page.view.release()
        self._kernel.grants.unmap([page])
        return data

    def _change_grefs(self, kind: int, queue: int, gref: int, count: int) -> tuple[int, int]:
        """Map or unmap a list of pages. They are the vif's: a guest may use them on any queue."""
        if queue >= self._hashing.queues or not 0 < count <= LIST_ENTRIES:
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
        if len(self._grants) + len(refs) > self._most or len(set(refs)) < len(refs) or self._grants.keys() & set(refs):
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
