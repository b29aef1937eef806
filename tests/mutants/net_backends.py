"""Faulty network backends: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from backends.net import control, driver, hashing, multicast, queue, slots
from backends.net.bridge import Bridge
from backends.net.control import ControlRing
from backends.net.copies import CopyBatch
from backends.net.driver import NetBack
from backends.net.frame import Frame
from backends.net.hashing import Hashing
from backends.net.multicast import MulticastFilter
from backends.net.queue import Queue
from backends.net.slots import Packet, TxSlots
from backends.net.vif import Vif
from guest_kernel.net import gso
from guest_kernel.xenbus import states
from guest_kernel.xenbus.device import Device
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import REQ_EVENT
from tests.mutants import net_backend_faults as faults
from tests.mutants.block_backends import after, instead, nodes
from tests.mutants.xenbus_faults import pair

Patch = Callable[[pytest.MonkeyPatch], None]
EXTRAS = frozenset(range(256))


def constant(owner: Any, name: str, value: Any) -> Patch:
    """Put another value in the place of a constant."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


class Changed:
    """The layout of a response, with a fault: `change` gets what is to be packed."""

    def __init__(self, codec: Any, change: Callable[..., tuple[int, ...]]) -> None:
        self.codec = codec
        self.size = codec.size
        self.change = change

    def pack_into(self, buffer: Any, offset: int, *fields: int) -> None:
        self.codec.pack_into(buffer, offset, *self.change(*fields))


def layout(owner: Any, name: str, change: Callable[..., tuple[int, ...]]) -> Patch:
    """Change the fields of each response before it is packed."""
    return instead(owner, name, lambda codec: Changed(codec, change))


def said(change: Callable[[dict[str, str | None]], dict[str, str | None]]) -> Patch:
    """Change what the driver reads of the other end."""

    def make(old: Any) -> Any:
        async def read(self: Any, *keys: str) -> Mapping[str, str | None]:
            found = await old(self, *keys)
            return found | {key: value for key, value in change(dict(found)).items() if key in found}

        return read

    return instead(Device, "read_otherend_many", make)


def _never_closes(_: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        await self.kernel.never()

    return close


def _keeps_rings(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        if device.data is not None:
            device.data.grants = []
        await old(self, device)

    return close


def _falls_later(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        async def fall() -> None:
            await self.kernel.sleep(2_000_000)
            raise RuntimeError("a worker of the last connection looks at its rings")

        if device.data is not None:
            self.kernel.spawn(fall(), "falls")
        await old(self, device)

    return close


def _waits_for_frames(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        while device.data is not None and any(one._queue for one in device.data.vif.queues):
            await self.kernel.sleep(1_000_000)
        await old(self, device)

    return close


def _falls_with_its_frontend(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        async def fall() -> None:
            raise RuntimeError("the frontend is gone")

        if device.otherend_state == 0:
            self.kernel.spawn(fall(), "falls")
        await old(self, device)

    return close


def _any_count(old: Any) -> Any:
    def directories(told: Any) -> list[str]:
        try:
            return list(old(told))
        except ValueError:
            return [""]

    return directories


def _half_a_queue(old: Any) -> Any:
    def bind(self: Any, device: Any, one: Any, told: Any, directory: str) -> None:
        if told.get(directory + "event-channel") is not None or told.get(directory + "event-channel-tx") is not None:
            old(self, device, one, told, directory)

    return bind


def _tells_on_tx(old: Any) -> Any:
    def push(self: Any, ring: Any, what: str) -> None:
        kept, self.rx_port = self.rx_port, self.port
        old(self, ring, what)
        self.rx_port = kept

    return push


def _first_queue(old: Any) -> Any:
    def event(self: Any, one: Any) -> None:
        if one is one.vif.queues[0]:
            old(self, one)

    return event


def _no_offset(old: Any) -> Any:
    def request(self: Any, at: int) -> Any:
        ref, _, *more = old(self, at)
        return (ref, 0, *more)

    return request


def _own_size(self: Any) -> None:
    self.lengths[0] = self.slots[0][4]


def _no_less_than_nothing(self: Any) -> None:
    self.lengths[0] = max(0, self.lengths[0])


def _reads_ahead(old: Any) -> Any:
    def make(ring: Any, words: Any, count: int) -> Any:
        found = old(ring, words, count)
        return old(ring, words, count + 1) if found.marks[-1] >> 16 & netif.NETTXF_more_data else found

    return make


def _dozes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop an event that comes while the worker is about to sleep."""
    serve, event = NetBack._serve, NetBack._event

    def serves(self: Any, one: Any, *, tx: bool) -> None:
        serve(self, one, tx=tx)
        if tx:
            one.dozes = True
            self.kernel.spawn(wakes(self, one), "dozes")

    async def wakes(self: Any, one: Any) -> None:
        # So short that nobody else runs meanwhile, as a rule.
        await self.kernel.yield_()
        one.dozes = False

    def hears(self: Any, one: Any) -> None:
        if not getattr(one, "dozes", False):
            event(self, one)

    monkeypatch.setattr(NetBack, "_serve", serves)
    monkeypatch.setattr(NetBack, "_event", hears)


def _all_well(old: Any) -> Any:
    return lambda self: [0] * len(old(self))


def _one_for_all(old: Any) -> Any:
    def run(self: Any) -> list[int]:
        statuses = old(self)
        return [max(statuses)] * len(statuses) if statuses else []

    return run


def _copies_late(old: Any) -> Any:
    """Answer frames at once, and copy them a millisecond later."""

    def carry(self: Any, found: Any, at: int) -> int:
        packet = found.packet(at)
        if packet is None or len(packet.slots) > 1 or packet.extras:
            return int(old(self, found, at))
        self.tx.req_cons += 1
        self._answer_packets([packet])

        async def later() -> None:
            await self.kernel.sleep(1_000_000)
            self._answer_packets, kept = lambda packets: None, self._answer_packets
            self._start(packet)
            self._finish([packet])
            self._answer_packets = kept

        self.kernel.spawn(later(), "copies late")
        return at + 1

    return carry


def _reads_again(old: Any) -> Any:
    """Check a frame's slots in the ring, and read them there once more when the frame's turn comes."""

    def carry(self: Any, found: Any, at: int) -> int:
        packet = found.packet(at)
        if packet is None or packet.extras or not packet.is_possible(14, 4096):
            return int(old(self, found, at))
        first, count = self.tx.req_cons, len(packet.slots)
        self.tx.req_cons += count

        async def later() -> None:
            await self.kernel.sleep(2_000)
            self.tx.req_cons, kept = first, self.tx.req_cons
            again = TxSlots(self.tx, self.tx_words, count)
            self.tx.req_cons = kept
            packet.slots = [again.request(number) for number in range(count)]
            self._start(packet)
            self._finish([packet])
            self._push(self.tx, "tx")

        self.kernel.spawn(later(), "reads again")
        return at + count

    return carry


def _reads_ids_again(old: Any) -> Any:
    """Answer a little later, with the ids that stand in the ring then."""

    def answer(self: Any, sent: Any) -> None:
        self._copies.run()

        async def later() -> None:
            await self.kernel.sleep(2_000)
            ring, index = self._rx, self._rx.rsp_prod_pvt
            again = []
            for waiting, idents, _ in sent:
                slots = [ring.offset(index + number) for number in range(len(idents))]
                told = [queue.RX_REQUEST.unpack_from(ring.view, slot)[0] for slot in slots]
                again.append((waiting, told, [-1] * len(told)))
                index += len(idents)
            old(self, again)

        self.kernel.spawn(later(), "reads ids again")

    return answer


def _looks_at_nothing(old: Any) -> Any:
    def copy(self: Any, gref: int, offset: int, length: int, *more: Any) -> int:
        if not length:
            raise RuntimeError("a page that was never taken is given back")
        return int(old(self, gref, offset, length, *more))

    return copy


def _echoes(old: Any) -> Any:
    def forward(self: Any, frame: Any, source: Any) -> None:
        old(self, frame, source)
        source.deliver(frame)

    return forward


def _swaps_ids(old: Any) -> Any:
    def answer(self: Any, sent: Any) -> None:
        whole = [idents for _, idents, _ in sent]
        flat = [ident for idents in whole for ident in idents][::-1]
        for idents in whole:
            idents[:], flat = flat[: len(idents)], flat[len(idents) :]
        old(self, sent)

    return answer


def _empty_answer(old: Any) -> Any:
    """Answer the next buffer, too, as if it had an error."""

    def answer(self: Any, sent: Any) -> None:
        old(self, sent)
        ring = self._rx
        if ring.shared[0] != ring.req_cons:
            ident, _ = self._next_buffer()
            queue.RX_RESPONSE.pack_into(ring.view, ring.offset(ring.rsp_prod_pvt), ident, 0, 0, -1)
            ring.rsp_prod_pvt += 1
            ring.push_responses()

    return answer


def _fills_the_page(old: Any) -> Any:
    def fill(self: Any, waiting: Any) -> Any:
        size, waiting.frame.size = waiting.frame.size, len(waiting.frame.pages) * 4096
        for page in waiting.frame.pages:
            page.view[size % 4096 :] = b"\xa5" * (4096 - size % 4096)
        try:
            return old(self, waiting)
        finally:
            waiting.frame.size = size

    return fill


def _does_not_wait(old: Any) -> Any:
    return lambda self: False


def _not_notified(what: str) -> Patch:
    def make(old: Any) -> Any:
        def push(self: Any, ring: Any, name: str) -> None:
            if name == what:
                ring.push_responses()
            else:
                old(self, ring, name)

        return push

    return instead(Queue, "_push", make)


def _always_notified(what: str) -> Patch:
    def make(old: Any) -> Any:
        def push(self: Any, ring: Any, name: str) -> None:
            old(self, ring, name)
            if name == what:
                self.kernel.events.notify(self.port if what == "tx" else self.rx_port)

        return push

    return instead(Queue, "_push", make)


def _spins(old: Any) -> Any:
    """Serve slots up to req_prod, wherever that is: a turn of the ring each time."""

    def poll(self: Any) -> None:
        ring = self.tx
        if ring.request_overflow(ring.shared[0]):
            for _ in range(4 * ring.size):
                queue.TX_RESPONSE.pack_into(ring.view, ring.offset(ring.rsp_prod_pvt), 0, 0)
                ring.rsp_prod_pvt += 1
            ring.push_responses()
            return
        old(self)

    return poll


def _spins_on_rx(old: Any) -> Any:
    def flush(self: Any) -> None:
        ring = self._rx
        if self._queue and ring.request_overflow(ring.shared[0]):
            ring.rsp_prod_pvt = 100_000
            ring.push_responses()
            return
        old(self)

    return flush


def _looks_early(old: Any) -> Any:
    """Take a slot whenever there is an event."""

    def poll(self: Any) -> None:
        ring = self.tx
        at = ring.offset(ring.req_cons)
        if ring.shared[0] == ring.req_cons and any(ring.view[at : at + 12]):
            ident = int.from_bytes(ring.view[at + 8 : at + 10], "little")
            ring.req_cons += 1
            queue.TX_RESPONSE.pack_into(ring.view, at, ident, 0)
            ring.rsp_prod_pvt += 1
            ring.push_responses()
            return
        old(self)

    return poll


def _no_sequence(old: Any) -> Any:
    return lambda segment, place, number, before: old(segment, place, number, 0)


def _no_six(old: Any) -> Any:
    def number(segment: bytearray, place: Any, count: int, before: int) -> None:
        lengths = bytes(segment[18:20])
        old(segment, place, count, before)
        if place.version == 6:
            segment[18:20] = lengths

    return number


def _mapped_or_nothing(old: Any) -> Any:
    def copy(self: Any, gref: int, offset: int, length: int, frame: Any, place: int) -> int:
        if self.vif.mapped and gref not in self.vif.mapped:
            return place + length
        return int(old(self, gref, offset, length, frame, place))

    return copy


def _silent_extras(old: Any) -> Any:
    return lambda self, frame, extras, prefix: old(self, frame, (), 0)


def _longer_segments(old: Any) -> Any:
    return lambda self, frame, extras, prefix: old(self, frame, extras, prefix and prefix + 1)


def _always_extras(old: Any) -> Any:
    """Announce large packets in the only form that netif.h describes."""

    def put(self: Any, frame: Any, extras: tuple[int, ...], prefix: int) -> bool:
        word = netif.XEN_NETIF_EXTRA_TYPE_GSO | prefix << 16 | netif.XEN_NETIF_GSO_TYPE_TCPV4 << 32
        return bool(old(self, frame, (word,) if prefix else extras, 0))

    return put


def _stays_whole(old: Any) -> Any:
    return lambda self, frame: frame.cutting is not None


def _anything_goes(old: Any) -> Any:
    def begin(self: Any, offload: Any) -> bool:
        old(self, offload)
        return True

    return begin


def _cuts_all(old: Any) -> Any:
    """Send what cannot be cut on as it is."""

    def begin(self: Any, offload: Any) -> bool:
        return bool(old(self, offload)) or offload.gso_size > 0

    return begin


def _another_hash(old: Any) -> Any:
    return lambda self, flow, ports: int.from_bytes(old(self, flow, ports).to_bytes(4, "big"), "little")


def _any_number(old: Any) -> Any:
    return lambda self, offset, numbers: hashing.SUCCESS


def _any_type(old: Any) -> Any:
    def choose(self: Any, types: int) -> int:
        self.types = types
        return hashing.SUCCESS

    return choose


def _keeps_the_good(old: Any) -> Any:
    def add(self: Any, entries: Any) -> int:
        class Grants:
            def __getattr__(self, name: str) -> Any:
                return getattr(kernel.grants, name)

            def unmap(self, grants: Any) -> None:
                pass

        kernel = self._kernel
        self._kernel = SimpleNamespace(grants=Grants(), events=kernel.events, mm=kernel.mm)
        try:
            return int(old(self, entries))
        finally:
            self._kernel = kernel

    return add


def _forgets(old: Any) -> Any:
    """Take pages off the list, and leave them mapped."""

    def delete(self: Any, entries: Any, view: Any) -> int:
        for number, (ref, _) in enumerate(entries):
            self.mapped.pop(ref, None)
            self.writable.pop(ref, None)
            view[number * 8 + 6 : number * 8 + 8] = b"\0\0"
        self._forget()
        return len(entries)

    return delete


def _no_entries(old: Any) -> Any:
    def delete(self: Any, entries: Any, view: Any) -> int:
        return int(old(self, entries, memoryview(bytearray(view))))

    return delete


def _maps_again(old: Any) -> Any:
    def add(self: Any, entries: Any) -> int:
        known = self._grants.keys()
        return int(old(self, [entry for entry in dict.fromkeys(entries) if entry[0] not in known])) if entries else 0

    return add


def _keeps_registered(old: Any) -> Any:
    def close(self: Any) -> None:
        self._grants.clear()
        old(self)

    return close


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "no-copying": (
        "feature-rx-copy is not offered",
        "NETIF-BACKEND-002",
        nodes(lambda values: {key: value for key, value in values.items() if key != "feature-rx-copy"}),
    ),
    "features-in-words": (
        "features are offered in words",
        "NETIF-BACKEND-003",
        nodes(lambda values: {key: "yes" if key == "feature-sg" else value for key, value in values.items()}),
    ),
    "wants-split-channels": (
        "a frontend with one event channel is not served",
        "NETIF-BACKEND-004",
        said(lambda found: {f"event-channel-{end}": found.get(f"event-channel-{end}") or "0" for end in ("tx", "rx")}),
    ),
    "never-closes": (
        "the frontend's Closing is not answered",
        "NETIF-BACKEND-005",
        instead(NetBack, "close", _never_closes),
    ),
    "keeps-rings": ("rings stay mapped after Closed", "NETIF-BACKEND-005", instead(NetBack, "close", _keeps_rings)),
    "worker-of-the-last-time": (
        "a worker of the last connection is still there",
        "NETIF-BACKEND-006",
        instead(NetBack, "close", _falls_later),
    ),
    "flips": (
        "a frontend that wants pages flipped is taken",
        "NETIF-BACKEND-010",
        said(lambda found: {"request-rx-copy": "1"}),
    ),
    "one-channel-for-both": (
        "frames are told on the channel of the tx ring",
        "NETIF-BACKEND-011",
        instead(Queue, "_push", _tells_on_tx),
    ),
    "first-queue-only": (
        "only the first queue is looked at",
        "NETIF-BACKEND-012",
        instead(NetBack, "_event", _first_queue),
    ),
    "any-count": (
        "a number of queues that cannot be is taken for one",
        "NETIF-BACKEND-014",
        instead(driver, "queue_directories", _any_count),
    ),
    "half-a-queue": (
        "a queue without an event channel is taken",
        "NETIF-BACKEND-015",
        instead(NetBack, "_bind", _half_a_queue),
    ),
    "dead-frontend": (
        "the backend falls when the frontend dies",
        "NETIF-BACKEND-016",
        instead(NetBack, "close", _falls_with_its_frontend),
    ),
    "waits-for-frames": (
        "the device closes only when all its frames have been taken",
        "NETIF-BACKEND-017",
        instead(NetBack, "close", _waits_for_frames),
    ),
    "no-offset": ("frames begin where their page does", "NETIF-BACKEND-031", instead(TxSlots, "request", _no_offset)),
    "wrong-id": (
        "responses have another id",
        "NETIF-BACKEND-032",
        layout(queue, "TX_RESPONSE", lambda ident, status: (ident ^ 1, status)),
    ),
    "own-size-first": (
        "the first slot's size is taken for its own",
        "NETIF-BACKEND-034",
        after(Packet, "__init__", _own_size),
    ),
    "seventeen-slots": ("a frame may have 17 slots", "NETIF-BACKEND-035", constant(slots, "MAX_SLOTS", 17)),
    "nineteen-slots": ("a frame may have 19 slots", "NETIF-BACKEND-037", constant(slots, "MAX_SLOTS", 19)),
    "reads-ahead": (
        "the slot behind the last one is read if that says more_data",
        "NETIF-BACKEND-039",
        instead(queue, "TxSlots", _reads_ahead),
    ),
    "short-frames": ("13 bytes are a frame", "NETIF-BACKEND-040", constant(queue, "ETHERNET_HEADER", 13)),
    "less-than-nothing": (
        "slots may be longer together than the frame",
        "NETIF-BACKEND-042",
        after(Packet, "__init__", _no_less_than_nothing),
    ),
    "one-bad-all-bad": (
        "one bad grant of a batch fails all frames",
        "NETIF-BACKEND-043",
        instead(CopyBatch, "run", _one_for_all),
    ),
    "bad-grant-okay": (
        "the statuses of copies are not looked at",
        "NETIF-BACKEND-044",
        instead(CopyBatch, "run", _all_well),
    ),
    "copies-late": (
        "frames are answered before they are copied",
        "NETIF-BACKEND-046",
        instead(Queue, "_carry", _copies_late),
    ),
    "slots-of-nothing": (
        "a slot without data is taken for a page",
        "NETIF-BACKEND-047",
        instead(Queue, "_copy_slot", _looks_at_nothing),
    ),
    "echo": ("frames come back to their sender", "NETIF-BACKEND-048", instead(Bridge, "forward", _echoes)),
    "swapped-ids": ("responses are not in their slots", "NETIF-BACKEND-060", instead(Queue, "_answer", _swaps_ids)),
    "counts-the-checksum": (
        "the status counts the four bytes of a wire's checksum",
        "NETIF-BACKEND-061",
        layout(queue, "RX_RESPONSE", lambda ident, at, flags, status: (ident, at, flags, status + 4)),
    ),
    "whole-pages": (
        "pages are written to their end",
        "NETIF-BACKEND-061",
        instead(Queue, "_fill_buffers", _fills_the_page),
    ),
    "empty-answers": (
        "a buffer more than a frame needs is answered",
        "NETIF-BACKEND-062",
        instead(Queue, "_answer", _empty_answer),
    ),
    "no-bound": (
        "frames wait without a bound for a guest that posts no buffers",
        "NETIF-BACKEND-064",
        constant(queue, "RX_QUEUE_PAGES", 1 << 30),
    ),
    "bad-buffer-okay": (
        "a bad buffer is not told",
        "NETIF-BACKEND-065",
        layout(queue, "RX_RESPONSE", lambda ident, at, flags, status: (ident, at, flags, abs(status))),
    ),
    "scatters-unasked": (
        "feature-sg is taken for granted",
        "NETIF-BACKEND-066",
        said(lambda found: {"feature-sg": "1"}),
    ),
    "no-more-data": (
        "more_data is not said",
        "NETIF-BACKEND-067",
        layout(
            queue,
            "RX_RESPONSE",
            lambda ident, at, flags, status: (ident, at, flags & ~netif.NETRXF_more_data, status),
        ),
    ),
    "filters-by-itself": (
        "multicast is filtered for those who have not asked for it",
        "NETIF-BACKEND-070",
        instead(MulticastFilter, "passes", lambda old: lambda self, to: not to & 1 or to == multicast.BROADCAST),
    ),
    "no-filter": (
        "the list of multicast addresses does not count",
        "NETIF-BACKEND-071",
        instead(MulticastFilter, "passes", lambda old: lambda self, to: True),
    ),
    "filter-once": (
        "request-multicast-control is read once",
        "NETIF-BACKEND-072",
        instead(NetBack, "_changed", lambda old: lambda self, device, key: None),
    ),
    "list-without-end": (
        "any number of multicast addresses is remembered",
        "NETIF-BACKEND-073",
        constant(multicast, "CAPACITY", 1 << 30),
    ),
    "reads-again": (
        "what is checked in a slot is read there again",
        "NETIF-BACKEND-049",
        instead(Queue, "_carry", _reads_again),
    ),
    "reads-ids-again": (
        "the id of a buffer is read again for the response",
        "NETIF-BACKEND-074",
        instead(Queue, "_answer", _reads_ids_again),
    ),
    "no-threshold": (
        "the backend does not ask to be told of frames",
        "NETIF-BACKEND-080",
        after(Queue, "poll_tx", lambda self: self.tx.shared.__setitem__(REQ_EVENT, 0)),
    ),
    "no-threshold-for-buffers": (
        "the backend does not ask to be told of buffers",
        "NETIF-BACKEND-082",
        instead(Queue, "_room_for_head", _does_not_wait),
    ),
    "silent": ("answers are not notified", "NETIF-BACKEND-083", _not_notified("tx")),
    "noisy": ("every answer is notified", "NETIF-BACKEND-083", _always_notified("tx")),
    "silent-frames": ("frames are not notified", "NETIF-BACKEND-084", _not_notified("rx")),
    "noisy-frames": ("every frame is notified", "NETIF-BACKEND-084", _always_notified("rx")),
    "spins": ("req_prod is believed", "NETIF-BACKEND-085", instead(Queue, "poll_tx", _spins)),
    "spins-on-buffers": (
        "req_prod of the rx ring is believed",
        "NETIF-BACKEND-086",
        instead(Queue, "flush_rx", _spins_on_rx),
    ),
    "looks-early": (
        "a slot is looked at before it has been shown",
        "NETIF-BACKEND-088",
        instead(Queue, "poll_tx", _looks_early),
    ),
    "dozes": ("it drops an event that comes when it is about to sleep", "NETIF-BACKEND-130", _dozes),
    "copies-the-flags": (
        "checksum flags are copied, bit by bit",
        "NETIF-BACKEND-090",
        constant(queue, "RX_FLAGS", (0, 1, 2, 3)),
    ),
    "blank-for-all": (
        "a guest that wants checksums gets none",
        "NETIF-BACKEND-091",
        said(lambda found: {"feature-no-csum-offload": "0"}),
    ),
    "ipv6-blank-for-all": (
        "IPv6 is taken for IPv4 where checksums are offered",
        "NETIF-BACKEND-092",
        said(lambda found: {"feature-ipv6-csum-offload": "1"}),
    ),
    "validates-all": (
        "every frame is marked as validated",
        "NETIF-BACKEND-093",
        constant(queue, "RX_FLAGS", (1, 1, 3, 3)),
    ),
    "whole-for-all": (
        "large packets are cut for nobody",
        "NETIF-BACKEND-096",
        instead(Vif, "takes_whole", _stays_whole),
    ),
    "one-sequence-number": (
        "all segments have one sequence number",
        "NETIF-BACKEND-096",
        instead(gso, "_number", _no_sequence),
    ),
    "one-length-of-ipv6": (
        "segments of IPv6 have the length of the whole",
        "NETIF-BACKEND-104",
        instead(gso, "_number", _no_six),
    ),
    "no-prefix": (
        "large packets come without the slot before them that was asked for",
        "NETIF-BACKEND-105",
        instead(Queue, "put", _silent_extras),
    ),
    "another-length-of-segments": (
        "the slot before a large packet has another length of segments",
        "NETIF-BACKEND-105",
        instead(Queue, "put", _longer_segments),
    ),
    "extra-info-for-all": (
        "who asked for a slot before large packets gets extra info",
        "NETIF-BACKEND-105",
        instead(Queue, "put", _always_extras),
    ),
    "no-extra-info": (
        "large packets come without extra info",
        "NETIF-BACKEND-097",
        instead(Queue, "put", _silent_extras),
    ),
    "extra-okay": ("extra info is answered with OKAY", "NETIF-BACKEND-099", constant(queue, "NULL", 0)),
    "segments-of-nothing": (
        "a segment size of nothing is taken",
        "NETIF-BACKEND-100",
        instead(Frame, "begin_cutting", _anything_goes),
    ),
    "cuts-no-tcp": (
        "what is no TCP goes on as it is, however long",
        "NETIF-BACKEND-101",
        instead(Frame, "begin_cutting", _cuts_all),
    ),
    "any-extra-info": (
        "extra info of any type is passed over",
        "NETIF-BACKEND-102",
        constant(slots, "FRAME_INFOS", EXTRAS),
    ),
    "mapped-or-nothing": (
        "where pages are registered, others are not looked for, and what is in no page is sent",
        "NETIF-BACKEND-123",
        instead(Queue, "_copy_slot", _mapped_or_nothing),
    ),
    "knows-every-request": (
        "a control request that there is not succeeds",
        "NETIF-BACKEND-110",
        constant(control, "NOT_SUPPORTED", 0),
    ),
    "any-hash-type": (
        "a type of hash that there is not is taken",
        "NETIF-BACKEND-111",
        instead(Hashing, "set_types", _any_type),
    ),
    "long-keys": ("a key may have any length", "NETIF-BACKEND-112", constant(control, "LONGEST_KEY", 1 << 40)),
    "any-queue": (
        "a table may name any queue",
        "NETIF-BACKEND-113",
        instead(Hashing, "set_mapping", _any_number),
    ),
    "backward-hash": (
        "the hash has its bytes backwards",
        "NETIF-BACKEND-114",
        instead(Hashing, "_value", _another_hash),
    ),
    "forgets-to-unmap": (
        "what is taken off the list stays mapped",
        "NETIF-BACKEND-115",
        instead(ControlRing, "_delete", _forgets),
    ),
    "half-a-list": (
        "the good ones of a list that is refused stay mapped",
        "NETIF-BACKEND-116",
        instead(ControlRing, "_add", _keeps_the_good),
    ),
    "no-word-of-each": (
        "the entries' statuses are not written",
        "NETIF-BACKEND-117",
        instead(ControlRing, "_delete", _no_entries),
    ),
    "twice-is-once": (
        "a page that is twice on the list is taken",
        "NETIF-BACKEND-119",
        instead(ControlRing, "_add", _maps_again),
    ),
    "mapped-for-ever": (
        "registered pages stay mapped when the device closes",
        "NETIF-BACKEND-120",
        instead(ControlRing, "close", _keeps_registered),
    ),
    "goes-on": (
        "it goes on to Initialised before there is a frontend",
        "NETIF-BACKEND-001",
        pair("backend", states.INITWAIT, (states.INITIALISING,), (states.IGNORE, states.INITIALISED)),
    ),
    "wants-to-be-connected": (
        "a frontend that closes before it connects is not followed",
        "NETIF-BACKEND-007",
        pair("backend", states.INITWAIT, (states.CLOSING,), (states.IGNORE, states.INITWAIT)),
    ),
    "keeps-the-good-ring": (
        "of two rings one of which is bad the other one stays mapped",
        "NETIF-BACKEND-008",
        instead(NetBack, "connect", faults.keeps_the_good_ring),
    ),
    "needs-no-channel": (
        "a frontend whose event channel cannot be bound is taken",
        "NETIF-BACKEND-009",
        instead(NetBack, "_bind", faults.needs_no_channel),
    ),
    "one-queue-in-a-directory": (
        "the nodes of an only queue are looked for in queue-0",
        "NETIF-BACKEND-013",
        said(faults.one_queue_in_a_directory),
    ),
    "wants-closing": (
        "a frontend that is Closed without Closing is not followed",
        "NETIF-BACKEND-018",
        pair("backend", states.CONNECTED, (states.CLOSED,), (states.IGNORE, states.CONNECTED)),
    ),
    "no-initialised": (
        "a frontend that says Initialised is taken for a mistake",
        "NETIF-BACKEND-019",
        pair("backend", states.INITWAIT, (states.INITIALISED,), (states.CLOSE, states.CLOSING)),
    ),
    "pads": ("short frames arrive with 60 bytes", "NETIF-BACKEND-030", instead(Bridge, "forward", faults.pads)),
    "last-come-first": (
        "of frames that wait the last one comes first",
        "NETIF-BACKEND-033",
        instead(Queue, "put", faults.last_come_first),
    ),
    "headers-of-the-first-slot": (
        "all headers are taken out of the first slot",
        "NETIF-BACKEND-036",
        after(Packet, "__init__", faults.headers_of_the_first_slot),
    ),
    "falls-over-slots": (
        "a frame of many slots overruns what they are noted in",
        "NETIF-BACKEND-038",
        instead(TxSlots, "packet", faults.falls_over("a frame of more than")),
    ),
    "masks-offsets": (
        "an offset behind the page is one in the page",
        "NETIF-BACKEND-041",
        instead(TxSlots, "request", faults.masks_offsets),
    ),
    "clears-behind": (
        "what is behind a frame is cleared in the guest's page",
        "NETIF-BACKEND-045",
        instead(Queue, "_start", faults.clears_behind),
    ),
    "stalled-for-ever": (
        "a guest that has no buffers at first gets no frames later",
        "NETIF-BACKEND-063",
        instead(Queue, "flush_rx", faults.stalled_for_ever),
    ),
    "looks-at-the-first-status": (
        "a bad buffer is not told but in the first slot of a frame",
        "NETIF-BACKEND-068",
        instead(Queue, "_answer", faults.looks_at_the_first_status),
    ),
    "skips-the-first": (
        "a batch that goes around the ring's end goes on in its second slot",
        "NETIF-BACKEND-069",
        instead(slots, "copy_bytes", faults.skips_the_first),
    ),
    "waits-for-the-rest": (
        "it does not ask to be told of the rest of a frame",
        "NETIF-BACKEND-081",
        instead(Queue, "_more_coming", faults.waits_for_the_rest),
    ),
    "counts-events": (
        "each event without work stops the work for all, for ten milliseconds",
        "NETIF-BACKEND-087",
        faults.counts_events,
    ),
    "validates-nothing": (
        "what a sender says is validated is not marked so",
        "NETIF-BACKEND-094",
        constant(queue, "RX_FLAGS", (0, 3, 0, 3)),
    ),
    "believes-headers": (
        "a checksum is looked for behind the end of the packet",
        "NETIF-BACKEND-095",
        instead(Frame, "fill_checksum", faults.believes_headers),
    ),
    "cuts-no-page": (
        "a packet in one page is not cut",
        "NETIF-BACKEND-098",
        instead(Frame, "begin_cutting", faults.cuts_no_page),
    ),
    "falls-over-extra-info": (
        "much extra info overruns what it is noted in",
        "NETIF-BACKEND-103",
        instead(TxSlots, "packet", faults.falls_over("endless extra info")),
    ),
    "counts-in-32-bits": (
        "the length of a list of pages is a number of 32 bits",
        "NETIF-BACKEND-118",
        instead(ControlRing, "_change_grefs", faults.counts_in_32_bits),
    ),
    "ends-with-its-ring": (
        "a control ring that overflows is the end of all interfaces",
        "NETIF-BACKEND-121",
        instead(NetBack, "_serve_control", faults.ends_with_its_ring),
    ),
    "forgets-the-others": (
        "the rings stay mapped if the control ring is none",
        "NETIF-BACKEND-122",
        instead(NetBack, "_connect_control", faults.forgets_the_others),
    ),
}
"""Name → the fault, the check meant for it, what makes it."""
