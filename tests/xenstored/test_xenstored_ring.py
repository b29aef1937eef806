"""The daemon over rings: whatever a guest does to its page, the others do not notice."""

from collections.abc import Iterator
from typing import Any

import pytest
from fake_dom0 import FakeDom0, FakeGuest

from backends.xenstored.control import inconsistencies
from backends.xenstored.daemon import EVENT_TIMEOUT_NS, TURNS, XenStored
from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus.client import XenstoreError
from guest_kernel.xenbus.ring import CONNECTION, ERROR, REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, ClientRing
from guest_kernel.xenbus.wire import Message, Parser, encode, join
from hypervisor.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from hypervisor.abi.io import xs_wire as xs

PORT = 7


class Guest:
    """A guest that speaks over its ring, and does not read unless told to."""

    def __init__(self, host: "Host", domid: int) -> None:
        self.host = host
        self.domid = domid
        self.fake: FakeGuest = host.dom0.guests[domid]
        self.page = self.fake.page(GNTTAB_RESERVED_XENSTORE if self.fake.granted else 1000)
        self.words = self.page.cast("I")
        self.ring = ClientRing(self.page)
        self.parser = Parser()

    def put(self, data: bytes) -> int:
        taken = self.ring.write(data)
        self.fake.notify(PORT)
        return taken

    def take(self) -> list[Message]:
        messages = []
        while data := self.ring.read():
            messages += self.parser.receive(data)
            self.fake.notify(PORT)
            self.host.dom0.run()
        return messages

    def ask(self, kind: int, *strings: str, value: bytes = b"") -> list[Message]:
        data = encode(kind, 1, 0, join(*strings) + value)
        while data:
            data = data[self.put(data) :]
            self.host.dom0.run()
        return self.take()

    def works(self) -> bool:
        self.put(encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"1\0"))
        self.host.dom0.run()
        return self.ring.read() != b""


class Host:
    def __init__(self, **options: Any) -> None:
        self.dom0 = FakeDom0()
        self.daemon = XenStored(self.dom0, self.dom0.info, **options)  # type: ignore[arg-type]
        self.daemon.start()
        self.dom0.run()

    def boot(self, domid: int, *, granted: bool = True) -> Guest:
        self.dom0.guest(domid).granted = granted
        guest = Guest(self, domid)
        self.dom0.do(self._introduce(domid))
        return guest

    async def _introduce(self, domid: int) -> None:
        xenbus = self.dom0.xenbus
        await xenbus.write(f"/local/domain/{domid}", "")
        await xenbus.set_perms(f"/local/domain/{domid}", [f"n{domid}"])
        await xenbus.introduce(domid, 1000, PORT)

    def introduced(self, domid: int) -> bool:
        result = self.dom0.do(self.dom0.xenbus.is_domain_introduced(domid))
        assert isinstance(result, bool)
        return result

    def finish(self) -> None:
        """Everything of every guest is given back when it has gone."""
        for domid in list(self.dom0.guests):
            self.dom0.vanish(domid)
        self.dom0.run()
        assert self.dom0.mapped == 0
        assert sorted(self.dom0.bound) == [(-1, 3), (0x7FF0, 9)]
        assert len(self.daemon.clients) == 1
        assert inconsistencies(self.daemon.server) == []
        assert not self.daemon._held
        assert not self.daemon._clogged
        assert not self.daemon._ready


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.finish()


def test_dom0_speaks_to_its_own_store(host: Host) -> None:
    xenbus = host.dom0.xenbus

    async def work() -> str:
        await xenbus.write("/a/b", "value" * 500)
        async with xenbus.transaction() as t:
            await t.write("/a/c", "x")
        assert await xenbus.directory("/a") == ["b", "c"]
        return await xenbus.read("/a/b")

    assert host.dom0.do(work()) == "value" * 500


@pytest.mark.parametrize("granted", [True, False])
def test_a_guest_is_served(host: Host, granted: bool) -> None:
    """Its page is mapped by its grant, or as a frame if the builder made no grant."""
    guest = host.boot(1, granted=granted)
    assert [message.payload for message in guest.ask(xs.XS_WRITE, "key", value=b"v" * 2000)] == [b"OK\0"]
    assert [message.payload for message in guest.ask(xs.XS_READ, "key")] == [b"v" * 2000]
    assert [message.payload for message in guest.ask(xs.XS_READ, "/tool")] == [b"EACCES\0"]


def test_an_introduction_empties_the_ring(host: Host) -> None:
    """As observed: the C daemon puts all four indices to 0, and leaves a stale error where it is."""
    host.dom0.guest(1)
    guest = Guest(host, 1)
    guest.put(encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"5\0"))
    host.dom0.do(host._introduce(1))
    assert guest.take() == []
    assert list(guest.ring.words[REQ_CONS : RSP_PROD + 1]) == [0, 0, 0, 0]
    guest.ring.attach()
    assert [message.payload for message in guest.ask(xs.XS_GET_DOMAIN_PATH, "5")] == [b"/local/domain/5\0"]


def test_one_signal_answers_a_whole_ring(host: Host) -> None:
    guest = host.boot(1)
    guest.fake.signals.clear()
    for number in range(20):
        guest.ring.write(encode(xs.XS_GET_DOMAIN_PATH, number, 0, b"5\0"))
    guest.fake.notify(PORT)
    host.dom0.run()
    assert guest.fake.signals == [PORT]
    assert [message.req_id for message in guest.take()] == list(range(20))


def test_a_request_may_be_torn_anywhere(host: Host) -> None:
    guest = host.boot(1)
    request = encode(xs.XS_WRITE, 1, 0, b"key\0value")
    for cut in range(len(request)):
        guest.put(request[:cut])
        host.dom0.run()
        assert guest.take() == []
        guest.put(request[cut:])
        host.dom0.run()
        assert [message.payload for message in guest.take()] == [b"OK\0"]


def test_replies_larger_than_the_ring_come_in_pieces(host: Host) -> None:
    guest = host.boot(1)
    host.dom0.do(host.dom0.xenbus.write("/local/domain/1/big", "v" * 4000))
    assert [len(message.payload) for message in guest.ask(xs.XS_READ, "big")] == [4000]


INDICES = [0, 1, 2, 500, 1023, 1024, 1025, 1500, 2**31, 2**32 - 1024, 2**32 - 1023, 2**32 - 1025, 2**32 - 1]


@pytest.mark.parametrize("start", [0, 1, 1000, 2**32 - 5])
def test_xsa_38_all_pairs_of_request_indices(start: int) -> None:
    """Length in [0, 1024] is taken, all else gives the ring up with error 2; the domain stays introduced (XSA-325)."""
    host = Host()
    for offset in INDICES:
        domid = INDICES.index(offset) + 1
        fake = host.dom0.guest(domid)
        words = fake.page(GNTTAB_RESERVED_XENSTORE).cast("I")
        guest = Guest(host, domid)
        host.dom0.do(host._introduce(domid))
        words[REQ_CONS] = start
        words[REQ_PROD] = (start + offset) & 0xFFFFFFFF
        fake.notify(PORT)
        host.dom0.run()
        if offset <= 1024:
            assert words[ERROR] == 0
            assert words[REQ_CONS] == words[REQ_PROD]
        else:
            assert words[ERROR] == xs.XENSTORE_ERROR_RINGIDX
            assert words[REQ_CONS] == start
            guest.page[:16] = guest.page[16:32] = bytes(16)
            words[REQ_PROD] = (start + 16) & 0xFFFFFFFF
            fake.notify(PORT)
            host.dom0.run()
            assert (words[REQ_CONS], words[RSP_PROD]) == (start, 0)
        assert host.introduced(domid)
    host.finish()


def test_xsa_38_a_full_ring_is_processed(host: Host) -> None:
    guest = host.boot(1)
    request = encode(xs.XS_READ, 1, 0, b"k" * (1024 - 16 - 1) + b"\0")
    assert guest.put(request) == 1024
    host.dom0.run()
    assert [message.payload for message in guest.take()] == [b"ENOENT\0"]


@pytest.mark.parametrize("offset", [1, 5, 1025, 2**31, 2**32 - 1])
def test_hostile_reply_indices(host: Host, offset: int) -> None:
    guest = host.boot(1)
    guest.words[RSP_CONS] = (guest.words[RSP_PROD] + offset) & 0xFFFFFFFF
    guest.put(encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"5\0"))
    host.dom0.run()
    lag = -offset & 0xFFFFFFFF
    assert guest.words[ERROR] == (xs.XENSTORE_ERROR_RINGIDX if lag > 1024 else 0)
    assert host.boot(2).works()
    assert host.introduced(1)


def test_a_guest_that_moves_the_daemons_indices_is_served_where_it_says(host: Host) -> None:
    guest = host.boot(1)
    request = encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"5\0")
    guest.page[77 : 77 + len(request)] = request
    guest.words[REQ_CONS], guest.words[REQ_PROD] = 1024 + 77, 1024 + 77 + len(request)
    guest.words[RSP_CONS] = guest.words[RSP_PROD] = 99
    guest.fake.notify(PORT)
    host.dom0.run()
    assert guest.words[REQ_CONS] == guest.words[REQ_PROD]
    reply = encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"/local/domain/5\0")
    assert guest.page[1024 + 99 : 1024 + 99 + len(reply)] == reply
    assert guest.words[RSP_PROD] == 99 + len(reply)
    assert guest.words[ERROR] == 0


def test_oversize_gives_the_ring_up_after_the_answers_to_what_came_before(host: Host) -> None:
    guest = host.boot(1)
    guest.put(encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"5\0") + xs.xsd_sockmsg.pack(type=xs.XS_READ, len=4097))
    host.dom0.run()
    assert guest.words[ERROR] == xs.XENSTORE_ERROR_PROTO
    assert [message.payload for message in guest.take()] == [b"/local/domain/5\0"]
    assert not guest.works()
    assert host.introduced(1)


def test_introduce_again_empties_the_ring_but_does_not_forgive(host: Host) -> None:
    """XSA-425: in the middle of a request, twice."""
    good, bad = host.boot(1), host.boot(2)
    bad.words[REQ_PROD] = 5000
    bad.fake.notify(PORT)
    good.put(encode(xs.XS_WRITE, 1, 0, b"key\0value")[:20])
    host.dom0.run()
    for guest in (good, bad, good, bad):
        host.dom0.do(host.dom0.xenbus.introduce(guest.domid, 1000, PORT))
        guest.ring.attach()
    assert good.works()
    assert bad.words[ERROR] == xs.XENSTORE_ERROR_RINGIDX
    assert not bad.works()


def test_introduce_again_with_a_port_that_cannot_be_bound(host: Host) -> None:
    guest = host.boot(1)
    assert guest.works()
    # It answers OK, as the C daemon does; the guest is not heard any more until it is introduced with a good port.
    host.dom0.do(host.dom0.xenbus.introduce(1, 1000, 4095))
    host.dom0.do(host.dom0.xenbus.introduce(1, 1000, 4096))
    assert host.introduced(1)
    host.dom0.do(host.dom0.xenbus.introduce(1, 1000, PORT))
    guest.ring.attach()
    assert guest.works()


def test_a_reconnect_is_served_if_it_was_offered() -> None:
    host = Host(features=xs.XENSTORE_SERVER_FEATURE_RECONNECTION | xs.XENSTORE_SERVER_FEATURE_ERROR)
    guest = host.boot(1)
    assert guest.ring.can_reconnect
    assert len(guest.ask(xs.XS_WATCH, "key", "t")) == 2
    guest.words[REQ_PROD] = 5000
    guest.fake.notify(PORT)
    host.dom0.run()
    assert guest.ring.error == xs.XENSTORE_ERROR_RINGIDX
    guest.ring.reconnect()
    guest.fake.notify(PORT)
    host.dom0.run()
    assert guest.ring.connected
    assert guest.ring.error == 0
    guest.ring.attach()
    assert [message.payload for message in guest.ask(xs.XS_WRITE, "key")] == [b"OK\0"]
    host.finish()


def test_a_reconnect_that_was_not_offered_is_not_seen(host: Host) -> None:
    guest = host.boot(1)
    assert not guest.ring.can_reconnect
    guest.words[CONNECTION] = xs.XENSTORE_RECONNECT
    guest.fake.notify(PORT)
    host.dom0.run()
    assert guest.words[CONNECTION] == xs.XENSTORE_RECONNECT


class TestXsa326AGuestThatNeverReads:
    def test_is_heard_until_twenty_requests_are_outstanding(self, host: Host) -> None:
        host.dom0.do(host.dom0.xenbus.write("/big", "v" * 1000))
        host.dom0.do(host.dom0.xenbus.set_perms("/big", ["r0"]))
        guest, other = host.boot(1), host.boot(2)
        request = encode(xs.XS_READ, 1, 0, b"/big\0")
        sent = 0
        while guest.ring.room >= len(request):
            guest.put(request)
            sent += 1
            host.dom0.run()
        domain = host.daemon.server.domains.by_id[1]
        connection = domain.connection
        assert connection is not None
        assert domain.outstanding == 20
        assert connection.queued <= 20 * (1000 + 16)
        assert len(connection.input) <= 1024
        assert other.works()
        assert len(guest.take()) == sent
        assert domain.outstanding == 0

    def test_has_a_bounded_number_of_events_waiting(self, host: Host) -> None:
        guest = host.boot(1)
        assert guest.ask(xs.XS_WATCH, "/local/domain/1", "t" * 900)
        for number in range(4000):
            host.dom0.do(host.dom0.xenbus.write(f"/local/domain/1/n{number}", ""))
        domain = host.daemon.server.domains.by_id[1]
        connection = domain.connection
        assert connection is not None
        assert 2_000_000 < connection.queued <= host.daemon.server.quotas.memory
        assert host.dom0.do(host.dom0.xenbus.exists("/local/domain/1/n3999"))

    def test_is_given_up_after_a_while(self, host: Host) -> None:
        """Whoever causes events for it would have to wait for it."""
        deaf, busy = host.boot(1), host.boot(2)
        host.dom0.do(host.dom0.xenbus.write("/shared", ""))
        host.dom0.do(host.dom0.xenbus.set_perms("/shared", ["b0"]))
        assert deaf.ask(xs.XS_WATCH, "/shared", "t" * 200)
        for number in range(40):
            busy.put(encode(xs.XS_WRITE, number, 0, f"/shared/n{number}\0".encode()))
            host.dom0.run()
            busy.take()
        assert not host.introduced(9)
        assert host.daemon.server.domains.by_id[2].outstanding == 20
        assert not busy.works()
        host.dom0.pass_time(EVENT_TIMEOUT_NS)
        assert deaf.words[ERROR] == xs.XENSTORE_ERROR_COMM
        assert host.introduced(1)
        assert busy.take()
        assert busy.works()
        assert host.daemon.server.domains.by_id[2].outstanding == 0

    def test_is_not_given_up_while_it_reads_slowly(self, host: Host) -> None:
        guest = host.boot(1)
        assert guest.ask(xs.XS_WATCH, "/local/domain/1", "t" * 900)
        for number in range(10):
            host.dom0.do(host.dom0.xenbus.write(f"/local/domain/1/n{number}", ""))
        got = b""
        for _ in range(12):
            host.dom0.pass_time(EVENT_TIMEOUT_NS - 1)
            got += guest.ring.read()
            guest.fake.notify(PORT)
            host.dom0.run()
        assert guest.words[ERROR] == 0
        assert len(got) > 9000


def test_xsa_206_a_busy_guest_waits_its_turn(host: Host) -> None:
    """With every ring full again as soon as it is drained, the store serves them in turn, dom0 among them."""
    guests = [host.boot(domid) for domid in range(1, 6)]
    order: list[int] = []
    server = host.daemon.server
    receive = server.receive

    def noted(connection: Any, data: bytes) -> None:
        order.append(connection.id)
        receive(connection, data)

    server.receive = noted  # type: ignore[method-assign]
    request = encode(xs.XS_TRANSACTION_START, 1, 0, b"\0") + encode(xs.XS_RESET_WATCHES, 1, 0, b"\0")

    def again(guest: Guest) -> None:
        """Read and fill the ring anew, as fast as the daemon answers."""
        if len(order) < 100:
            guest.ring.read()
            while guest.ring.room >= len(request):
                guest.ring.write(request)
            guest.fake.notify(PORT)

    for guest in guests:
        guest.fake.on_signal = lambda guest=guest: again(guest)  # type: ignore[misc]
        again(guest)
    host.dom0.do(host.dom0.xenbus.write("/quick", "v"))
    assert order.index(0) <= TURNS + len(guests)


class TestXsa206WritesThatDisturbTransactions:
    @staticmethod
    def write_on(host: Host, guest: Guest, ns: int) -> int:
        """Let a guest write as fast as it is let, for so long; return how many writes went through."""
        request = encode(xs.XS_WRITE, 1, 0, b"key\0v")
        domain = host.daemon.server.domains.by_id[guest.domid]
        before = domain.disturbances

        def again() -> None:
            guest.ring.read()
            while guest.ring.room >= len(request):
                guest.ring.write(request)

        guest.fake.on_signal = lambda: (again(), guest.fake.notify(PORT))[0] if domain.disturbances < 5000 else None
        again()
        guest.fake.notify(PORT)
        host.dom0.pass_time(ns)
        return domain.disturbances - before

    def test_are_limited_while_there_are_any(self, host: Host) -> None:
        guest = host.boot(1)
        transaction = host.dom0.xenbus.transaction()
        host.dom0.do(transaction.__aenter__())
        host.dom0.do(transaction.read("/local/domain/1"))
        written = self.write_on(host, guest, 2_000_000_000)
        # Its own credit and the reserve, then 200 a second, and at most a ring's worth more.
        assert 1010 + 400 - 100 <= written <= 1010 + 400 + 100
        host.dom0.do(transaction.end(commit=False))

    def test_cost_nothing_otherwise(self, host: Host) -> None:
        guest = host.boot(1)
        for _ in range(200):
            assert [message.payload for message in guest.ask(xs.XS_WRITE, "key", value=b"v")] == [b"OK\0"]
        assert host.daemon.server.domains.by_id[1].disturbances == 0
        assert not host.daemon._slowed


def test_ends_of_domains(host: Host) -> None:
    changed = WaitQueue()
    seen: list[str] = []

    def note(path: str, token: str) -> None:
        seen.append(path)
        changed.wake()

    host.boot(1)
    host.dom0.do(host.dom0.xenbus.watch("@releaseDomain", note))
    seen.clear()
    host.dom0.shut_down(1)
    host.dom0.run()
    assert seen == ["@releaseDomain"]
    assert host.introduced(1)
    host.dom0.die(1)
    host.dom0.run()
    assert seen == ["@releaseDomain"] * 2
    assert not host.introduced(1)
    assert not host.dom0.do(host.dom0.xenbus.exists("/local/domain/1"))


def test_a_domain_that_dies_with_its_requests_unread(host: Host) -> None:
    guest = host.boot(1)
    guest.put(encode(xs.XS_WRITE, 1, 0, b"key\0value"))
    host.dom0.vanish(1)
    host.dom0.run()
    assert not host.introduced(1)


def test_states_of_all_domains_are_asked_for_at_once() -> None:
    dom0 = FakeDom0()
    daemon = XenStored(dom0, dom0.info, domain_infos=dom0.infos)  # type: ignore[arg-type]
    daemon.start()
    host = Host.__new__(Host)
    host.dom0, host.daemon = dom0, daemon
    dom0.run()
    for domid in range(1, 30):
        host.boot(domid)
    dom0.asked.clear()
    dom0.die(7)
    dom0.run()
    assert dom0.asked == []
    assert daemon.status()["domains"] == 29
    host.finish()


def test_an_introduction_that_cannot_be(host: Host) -> None:
    for domid, port in ((50, PORT), (1, 5000)):
        if domid == 1:
            host.dom0.guest(1)
        with pytest.raises(XenstoreError) as refused:
            host.dom0.do(host.dom0.xenbus.introduce(domid, 1000, port))
        assert refused.value.name == "EINVAL"
    assert host.dom0.mapped == 0


def test_silent_domains_cost_nothing(host: Host) -> None:
    """Serving one request looks at one client, however many there are."""
    for domid in range(1, 200):
        host.boot(domid)
    looked: list[Any] = []
    deliver, serve = host.daemon._deliver, host.daemon._serve_client
    host.daemon._deliver = lambda client: (looked.append(client), deliver(client))[1]  # type: ignore[method-assign]
    host.daemon._serve_client = lambda client: (looked.append(client), serve(client))[1]  # type: ignore[method-assign]
    host.dom0.do(host.dom0.xenbus.read("/tool"))
    assert len(looked) == 2
