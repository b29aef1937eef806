"""Faulty network frontends: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from frontends.net import driver, pages, receive
from frontends.net.device import FrontDevice
from frontends.net.driver import NetFront
from frontends.net.pages import GrantedPages
from frontends.net.pieces import Reassembly
from frontends.net.queue import FrontQueue
from frontends.net.receive import RxEnd
from frontends.net.transmit import TxEnd
from guest_kernel.net.device import NetDevice
from guest_kernel.xenbus import states
from guest_kernel.xenbus.device import Device
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import REQ_PROD, RSP_EVENT, FrontRing
from tests.mutants import net_frontend_faults as faults
from tests.mutants.block_backends import after, instead, nodes
from tests.mutants.net_backends import constant, said
from tests.mutants.xenbus_faults import pair

Patch = Callable[[pytest.MonkeyPatch], None]


def tampered(change: Callable[[Any, int], None], end: type[TxEnd | RxEnd] = TxEnd) -> Patch:
    """Change slots of a ring, each just before it is shown: `change(queue, byte offset)`."""

    def make(old: Any) -> Any:
        def push(self: Any) -> Any:
            one = self.ring
            index = one.shared[REQ_PROD]
            while index != one.req_prod_pvt:
                change(self, one.offset(index))
                index += 1
            return old(self)

        return push

    return instead(end, "push", make)


def responses(change: Callable[[bytearray], None]) -> Patch:
    """Change each slot of the rx ring just before it is looked at."""

    def make(old: Any) -> Any:
        def take(self: Any) -> Any:
            ring = self.ring
            if self._device.connected:
                index = ring.rsp_cons
                while index != ring.shared[2] and index - ring.rsp_cons < ring.size:
                    at = ring.offset(index)
                    slot = bytearray(ring.view[at : at + 8])
                    change(slot)
                    ring.view[at : at + 8] = slot
                    index += 1
            return old(self)

        return take

    return instead(RxEnd, "take_responses", make)


def _always_copies(old: Any) -> Any:
    async def read(self: Any, key: str) -> Any:
        return "1" if key == "feature-rx-copy" else await old(self, key)

    return read


def _early(old: Any) -> Any:
    async def publish(self: Any, device: Any) -> None:
        await old(self, device)
        device.data.connect()
        self.kernel.net.attach(device.data)

    return publish


def _never_closes(_: Any) -> Any:
    async def disconnect(self: Any, device: Any) -> None:
        await self.kernel.never()

    return disconnect


def _falls_alone(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        async def fall() -> None:
            raise RuntimeError("the backend is gone")

        if device.otherend_state == 0:
            self.kernel.spawn(fall(), "falls")
        await old(self, device)

    return close


def _believes_numbers(old: Any) -> Any:
    """Read a number that is offered where nobody catches what comes of it."""

    async def publish(self: Any, device: Any) -> None:
        offered = await device.read_otherend("multi-queue-max-queues")

        async def count() -> None:
            assert offered is None or int(offered) < 1 << 32, "more queues than there are numbers"

        self.kernel.spawn(count(), "counts")
        await old(self, device)

    return publish


def _begins_anew(old: Any) -> Any:
    """Write the rings' nodes again whenever the other end's state is written."""

    async def connect(self: Any, device: Any) -> None:
        await old(self, device)

        async def again() -> None:
            await self.kernel.sleep(3_000_000)
            await device.write_many({"tx-ring-ref": 77777})

        self.kernel.spawn(again(), "again")

    return connect


def _own_size(self: Any, at: int) -> None:
    view, words = self.ring.view, self.ring.view[at : at + 12].cast("H")
    if words[3] & 4 and words[5] > 4096:
        view[at + 10 : at + 12] = (4096).to_bytes(2, "little")


def _unmarked(self: Any, at: int) -> None:
    self.ring.view[at + 6] &= 0xFE


def _same_id(self: Any, at: int) -> None:
    self.ring.view[at + 8 : at + 10] = b"\0\0"


def _wrong_segments(self: Any, at: int) -> None:
    if self.ring.view[at : at + 4] == bytes((netif.XEN_NETIF_EXTRA_TYPE_GSO, 0, 1000 & 0xFF, 1000 >> 8)):
        self.ring.view[at + 2] += 1


def _fatal_errors(old: Any) -> Any:
    """Give the device up when a frame has been dropped."""

    def take(self: Any) -> Any:
        before = self._device.counters.tx_dropped
        taken = old(self)
        if self._device.counters.tx_dropped != before:
            return self._device.give_up("a frame was not sent")
        return taken

    return take


def _dirty(old: Any) -> Any:
    def add(self: Any, readonly: bool = False) -> Any:
        page, ref = old(self, readonly)
        if readonly:
            page.view[2048:2056] = b"password"
        return page, ref

    return add


def _forgets_its_frames(self: Any) -> None:
    """Clear the pages of what has been shown: the next frames may have them."""
    for view in self._views:
        view[:64] = bytes(64)


def _read_only_buffers(old: Any) -> Any:
    def add(self: Any) -> None:
        plain = self._device.pages.add
        self._device.pages.add = lambda readonly=False: plain(True)
        try:
            old(self)
        finally:
            del self._device.pages.add

    return add


def _no_offset(slot: bytearray) -> None:
    if not slot[4] & 8 and slot[5] == 0:
        slot[2:4] = b"\0\0"


def _no_error(slot: bytearray) -> None:
    if slot[7] & 0x80:
        slot[6:8] = (60).to_bytes(2, "little")


def _first_piece(old: Any) -> Any:
    def finish(self: Any) -> Any:
        if not self._more and not self.expects_extra:
            del self._pieces[1:]
        return old(self)

    return finish


def _good_enough(old: Any) -> Any:
    def finish(self: Any) -> Any:
        self._bad = self._bad and not self._pieces
        return old(self)

    return finish


def _as_it_came(old: Any) -> Any:
    return lambda self, frame, offload: old(self, frame, attrs.evolve(offload, blank=False))


def _uncut(old: Any) -> Any:
    return lambda self, frame, offload: [frame]


def _backwards(old: Any) -> Any:
    def hand_over(self: Any, frames: Any, offloads: Any) -> None:
        old(self, frames[::-1], offloads[::-1] if isinstance(offloads, list) else offloads)

    return hand_over


def _one_less(old: Any) -> Any:
    def post(self: Any, idents: Any, *more: Any) -> None:
        old(self, idents[:-1] if len(idents) > 1 else idents)

    return post


def _falls(old: Any) -> Any:
    def give_up(self: Any, why: str) -> bool:
        raise RuntimeError(why)

    return give_up


def _overruns(old: Any) -> Any:
    def take(self: Any, data: bytes, answer: int) -> Any:
        if len(self._pieces) >= 18:
            raise RuntimeError("a frame has more pieces than there is room for")
        return old(self, data, answer)

    return take


def _divides(old: Any) -> Any:
    def take(self: Any, answer: int) -> Any:
        4096 // (answer >> 16 & 0xFFFF)
        return old(self, answer)

    return take


def _trusts(kernel: Any, granted: Any) -> list[Any]:
    """Free the pages that a backend still uses, too."""
    for page, ref in granted:
        kernel.grants.end_access(ref)
        kernel.mm.free_page(page)
    return []


def _trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pages, driver):
        monkeypatch.setattr(module, "end_grants", _trusts)


def _wakes_nobody(self: Any) -> None:
    self.ring.shared[RSP_EVENT] = self.ring.rsp_cons


def _always_room(old: Any) -> Any:
    return lambda self: 256 if self.entry_size == 12 else old(self)


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "port-that-is-none": (
        "the event channel that is written is another one",
        "NETIF-FRONTEND-001",
        nodes(lambda values: values | ({"event-channel": 4000} if "event-channel" in values else {})),
    ),
    "does-not-ask-for-copying": (
        "request-rx-copy is not written",
        "NETIF-FRONTEND-002",
        nodes(lambda values: {key: value for key, value in values.items() if key != "request-rx-copy"}),
    ),
    "copies-with-anybody": (
        "a backend that does not copy is used",
        "NETIF-FRONTEND-003",
        instead(Device, "read_otherend", _always_copies),
    ),
    "early": (
        "frames are sent before the backend is Connected",
        "NETIF-FRONTEND-004",
        instead(NetFront, "publish", _early),
    ),
    "splits-unasked": (
        "event channels are split though nobody offers it",
        "NETIF-FRONTEND-005",
        said(lambda found: {"feature-split-event-channels": "1"}),
    ),
    "half-split": (
        "the event channel of the rx ring is not written",
        "NETIF-FRONTEND-006",
        nodes(lambda values: {key: value for key, value in values.items() if key != "event-channel-rx"}),
    ),
    "many-queues": (
        "there are four queues, however many are offered",
        "NETIF-FRONTEND-007",
        instead(NetFront, "_queues", lambda old: lambda self, offered: 4),
    ),
    "never-closes": (
        "the backend's Closing is not followed",
        "NETIF-FRONTEND-008",
        instead(NetFront, "disconnect", _never_closes),
    ),
    "falls-alone": ("the guest falls with its backend", "NETIF-FRONTEND-011", instead(NetFront, "close", _falls_alone)),
    "believes-numbers": (
        "what the backend offers is taken for a number",
        "NETIF-FRONTEND-012",
        instead(NetFront, "publish", _believes_numbers),
    ),
    "begins-anew": (
        "other rings are written while connected",
        "NETIF-FRONTEND-015",
        instead(NetFront, "connect", _begins_anew),
    ),
    "no-cable-is-seen": (
        "frames are sent without carrier",
        "NETIF-FRONTEND-016",
        instead(FrontDevice, "set_carrier", lambda old: lambda self, is_up: None),
    ),
    "scatters-unasked": (
        "feature-sg is taken for granted",
        "NETIF-FRONTEND-021",
        said(lambda found: {"feature-sg": "1"}),
    ),
    "own-size-first": ("the first slot tells its own size", "NETIF-FRONTEND-022", tampered(_own_size)),
    "unmarked": ("csum_blank is not said", "NETIF-FRONTEND-023", tampered(_unmarked)),
    "ipv6-blank": (
        "IPv6 packets go without a checksum to any backend",
        "NETIF-FRONTEND-024",
        said(lambda found: {"feature-ipv6-csum-offload": "1"}),
    ),
    "large-for-all": (
        "large packets go whole to any backend",
        "NETIF-FRONTEND-025",
        said(lambda found: {"feature-gso-tcpv4": "1"}),
    ),
    "wrong-segments": (
        "extra info has another segment size",
        "NETIF-FRONTEND-026",
        tampered(_wrong_segments),
    ),
    "same-id": ("all requests have one id", "NETIF-FRONTEND-027", tampered(_same_id)),
    "fatal-errors": (
        "a frame that is not sent is the end of the device",
        "NETIF-FRONTEND-028",
        instead(TxEnd, "take_responses", _fatal_errors),
    ),
    "dirty-pages": ("granted pages are not cleared", "NETIF-FRONTEND-029", instead(GrantedPages, "add", _dirty)),
    "forgets-its-frames": (
        "pages are used again before they are answered",
        "NETIF-FRONTEND-030",
        after(TxEnd, "push", _forgets_its_frames),
    ),
    "read-only-buffers": (
        "buffers cannot be written to",
        "NETIF-FRONTEND-040",
        instead(RxEnd, "_add_buffer", _read_only_buffers),
    ),
    "no-offset": ("frames begin where their page does", "NETIF-FRONTEND-042", responses(_no_offset)),
    "first-slot-only": (
        "of a frame of several slots the first reaches the guest",
        "NETIF-FRONTEND-043",
        instead(Reassembly, "_finish", _first_piece),
    ),
    "no-errors": ("an error is taken for a frame", "NETIF-FRONTEND-044", responses(_no_error)),
    "good-enough": (
        "a frame with a bad slot reaches the guest without it",
        "NETIF-FRONTEND-045",
        instead(Reassembly, "_finish", _good_enough),
    ),
    "left-blank": (
        "checksums are not filled in for a program that wants whole frames",
        "NETIF-FRONTEND-046",
        instead(NetDevice, "_as_on_a_wire", _as_it_came),
    ),
    "uncut": (
        "a large packet reaches such a program as it came",
        "NETIF-FRONTEND-047",
        instead(NetDevice, "_as_on_a_wire", _uncut),
    ),
    "backwards": (
        "frames that come together reach the guest backwards",
        "NETIF-FRONTEND-048",
        instead(FrontDevice, "hand_over_alike", _backwards),
    ),
    "loses-buffers": (
        "one buffer of each batch is not posted again",
        "NETIF-FRONTEND-048",
        instead(RxEnd, "_post", _one_less),
    ),
    "silent": (
        "frames are not notified",
        "NETIF-FRONTEND-060",
        instead(TxEnd, "push", lambda old: lambda self: self.ring.push_requests()),
    ),
    "noisy": (
        "every frame is notified",
        "NETIF-FRONTEND-060",
        after(TxEnd, "push", lambda self: self._events.notify(self.port)),
    ),
    "no-threshold": (
        "it does not ask to be told of frames",
        "NETIF-FRONTEND-061",
        after(FrontQueue, "_interrupt", lambda self: self.rx.ring.shared.__setitem__(RSP_EVENT, 0)),
    ),
    "no-threshold-for-answers": (
        "it does not ask to be told of answers",
        "NETIF-FRONTEND-062",
        after(TxEnd, "push", _wakes_nobody),
    ),
    "always-room": (
        "more requests are under way than there are slots",
        "NETIF-FRONTEND-063",
        instead(FrontRing, "free_requests", _always_room),
    ),
    "silent-buffers": (
        "buffers are not notified",
        "NETIF-FRONTEND-064",
        instead(RxEnd, "push", lambda old: lambda self: self.ring.push_requests()),
    ),
    "falls-over-answers": (
        "answers that nobody asked for bring the guest down",
        "NETIF-FRONTEND-070",
        instead(FrontDevice, "give_up", _falls),
    ),
    "falls-over-frames": (
        "frames without buffers bring the guest down",
        "NETIF-FRONTEND-071",
        instead(FrontDevice, "give_up", _falls),
    ),
    "falls-over-an-id": (
        "a strange id of an answer brings the guest down",
        "NETIF-FRONTEND-072",
        instead(FrontDevice, "give_up", _falls),
    ),
    "falls-over-a-second-answer": (
        "a second answer brings the guest down",
        "NETIF-FRONTEND-073",
        instead(FrontDevice, "give_up", _falls),
    ),
    "falls-over-a-buffer": (
        "a strange id of a buffer brings the guest down",
        "NETIF-FRONTEND-074",
        instead(FrontDevice, "give_up", _falls),
    ),
    "beyond-the-page": (
        "frames may go on behind their page",
        "NETIF-FRONTEND-075",
        constant(receive, "PAGE_SIZE", 1 << 20),
    ),
    "overruns": (
        "a frame of many slots overruns what it is gathered in",
        "NETIF-FRONTEND-076",
        instead(Reassembly, "take", _overruns),
    ),
    "falls-over-extra-info": (
        "extra info of no type brings the guest down",
        "NETIF-FRONTEND-077",
        instead(FrontDevice, "give_up", _falls),
    ),
    "divides": (
        "a segment size of nothing is divided by",
        "NETIF-FRONTEND-078",
        instead(Reassembly, "take_extra", _divides),
    ),
    "trusts": (
        "pages that the backend still uses are free again",
        "NETIF-FRONTEND-080",
        _trusting,
    ),
    "falls-over-anything": (
        "nonsense on a ring brings the guest down",
        "NETIF-FRONTEND-081",
        instead(FrontDevice, "give_up", _falls),
    ),
    "waits-to-be-connected": (
        "a backend that closes before it is Connected is not followed",
        "NETIF-FRONTEND-009",
        instead(states.Machine, "step", faults.waits_to_be_connected),
    ),
    "wants-closing": (
        "a backend that is Closed without Closing is not followed",
        "NETIF-FRONTEND-010",
        pair("frontend", states.CONNECTED, (states.CLOSED,), (states.IGNORE, states.CONNECTED)),
    ),
    "looks-states-up": (
        "the backend's state is taken for the number of a row",
        "NETIF-FRONTEND-013",
        faults.looks_states_up,
    ),
    "sends-with-leave": (
        "nothing is sent while a control request is under way",
        "NETIF-FRONTEND-014",
        instead(FrontQueue, "_register", faults.sends_with_leave),
    ),
    "pads": ("short frames are sent with 60 bytes", "NETIF-FRONTEND-020", tampered(faults.pads)),
    "keeps-sizes": (
        "a slot keeps the size of the frame that was there first",
        "NETIF-FRONTEND-031",
        tampered(faults.keeps_sizes),
    ),
    "drops-debris": (
        "frames of less than 60 bytes are thrown away",
        "NETIF-FRONTEND-041",
        responses(faults.drops_debris),
    ),
    "mixes-up": (
        "buffers are posted again with each other's ids",
        "NETIF-FRONTEND-049",
        instead(RxEnd, "_post", faults.mixes_up),
    ),
    "takes-cover": (
        "after an event without work no other one is heard",
        "NETIF-FRONTEND-079",
        instead(FrontQueue, "_interrupt", faults.takes_cover),
    ),
}
"""Name → the fault, the check meant for it, what makes it."""
