"""Consoles: the ring alone, then the daemon with guests that flood, lie and die."""

from collections.abc import Iterator

import pytest
from fake_dom0 import FakeDom0, FakeGuest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.xenconsoled import XenConsoled
from backends.xenconsoled.daemon import ALLOWANCE, BACKLOG, PERIOD_NS
from backends.xenconsoled.ring import IN_SIZE, OUT_SIZE, ConsoleRing
from backends.xenstored.daemon import XenStored
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from hypervisor.abi.io.console import xencons_interface

OUT = xencons_interface.offset("out")
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = (
    xencons_interface.offset(name) >> 2 for name in ("in_cons", "in_prod", "out_cons", "out_prod")
)
STORE_PORT, CONSOLE_PORT = 7, 8


class Frontend:
    """The guest's end of a console page."""

    def __init__(self, page: memoryview) -> None:
        self.page = page
        self.words = page.cast("I")

    def write(self, data: bytes) -> int:
        prod = self.words[OUT_PROD]
        room = OUT_SIZE - ((prod - self.words[OUT_CONS]) & 0xFFFFFFFF)
        for index, byte in enumerate(data[:room]):
            self.page[OUT + ((prod + index) & (OUT_SIZE - 1))] = byte
        count = min(room, len(data))
        self.words[OUT_PROD] = (prod + count) & 0xFFFFFFFF
        return count

    def read(self) -> bytes:
        cons, prod = self.words[IN_CONS], self.words[IN_PROD]
        count = (prod - cons) & 0xFFFFFFFF
        self.words[IN_CONS] = prod
        return bytes(self.page[(cons + index) & (IN_SIZE - 1)] for index in range(count))


STARTS = st.sampled_from([0, 1, 1000, 2047, 2**32 - 3, 2**32 - 2048])


@settings(max_examples=60, deadline=None)
@given(STARTS, st.lists(st.tuples(st.booleans(), st.binary(max_size=3000)), max_size=12))
def test_bytes_come_out_as_they_went_in(start: int, steps: list[tuple[bool, bytes]]) -> None:
    page = memoryview(bytearray(4096))
    guest = Frontend(page)
    for word in (IN_CONS, IN_PROD, OUT_CONS, OUT_PROD):
        guest.words[word] = start
    ring = ConsoleRing(page)
    sent, got, typed, seen = b"", b"", b"", b""
    for output, data in steps:
        if output:
            sent += data[: guest.write(data)]
        else:
            typed += data[: ring.write(data)]
        if len(data) % 2:
            got += ring.read()
            seen += guest.read()
    assert got + ring.read() == sent
    assert seen + guest.read() == typed
    assert ring.read() == b""


@pytest.mark.parametrize("start", [0, 5, 2**32 - 1])
@pytest.mark.parametrize("offset", [0, 1, 2047, 2048, 2049, 4096, 2**31, 2**32 - 2048, 2**32 - 1])
def test_hostile_output_indices(start: int, offset: int) -> None:
    page = memoryview(bytearray(4096))
    words = page.cast("I")
    words[OUT_CONS] = words[OUT_PROD] = start
    ring = ConsoleRing(page)
    words[OUT_PROD] = (start + offset) & 0xFFFFFFFF
    assert ring.sane == (offset <= OUT_SIZE)
    assert len(ring.read()) == (offset if offset <= OUT_SIZE else 0)
    assert ring.notify == (0 < offset <= OUT_SIZE)
    if offset > OUT_SIZE:
        assert words[OUT_CONS] == start


@pytest.mark.parametrize("lag", [0, 1, 1024, 1025, 2**31, 2**32 - 1])
def test_hostile_input_indices(lag: int) -> None:
    page = memoryview(bytearray(4096))
    words = page.cast("I")
    words[IN_CONS] = -lag & 0xFFFFFFFF
    ring = ConsoleRing(page)
    assert ring.write(b"x" * 2000) == max(0, IN_SIZE - lag if lag <= IN_SIZE else 0)


def test_what_the_guest_writes_into_the_daemons_indices_changes_nothing() -> None:
    page = memoryview(bytearray(4096))
    guest = Frontend(page)
    ring = ConsoleRing(page)
    guest.write(b"first")
    assert ring.read() == b"first"
    guest.words[OUT_CONS] = 0
    guest.words[IN_PROD] = 500
    assert ring.read() == b""
    assert ring.write(b"typed") == 5
    assert guest.words[IN_PROD] == 5


class Consoles:
    def __init__(self) -> None:
        self.dom0 = FakeDom0()
        self.shown: dict[int, bytes] = {}
        self.store = XenStored(self.dom0, self.dom0.info)  # type: ignore[arg-type]
        self.daemon = XenConsoled(self.dom0, self.sink)  # type: ignore[arg-type]
        self.store.start()
        self.daemon.start()
        self.dom0.run()

    def sink(self, domid: int, data: bytes) -> None:
        self.shown[domid] = self.shown.get(domid, b"") + data

    def boot(self, domid: int, *, granted: bool = True, early: bytes = b"", port: int = CONSOLE_PORT) -> Frontend:
        guest = self.dom0.guest(domid)
        guest.granted = granted
        front = Frontend(guest.page(GNTTAB_RESERVED_CONSOLE if granted else 2000))
        front.write(early)
        self.dom0.do(self.announce(domid, port))
        return front

    async def announce(self, domid: int, port: int) -> None:
        xenbus = self.dom0.xenbus
        home = f"/local/domain/{domid}"
        await xenbus.write_many({f"{home}/console/ring-ref": 2000, f"{home}/console/port": port})
        await xenbus.introduce(domid, 1000, STORE_PORT)

    def print(self, domid: int, front: Frontend, data: bytes) -> int:
        count = front.write(data)
        self.dom0.guests[domid].notify(CONSOLE_PORT)
        self.dom0.run()
        return count

    def destroy(self, domid: int) -> None:
        """As the toolstack does: first the nodes, then the domain."""
        self.dom0.do(self.dom0.xenbus.rm(f"/local/domain/{domid}"))
        self.dom0.vanish(domid)
        self.dom0.run()


@pytest.fixture
def consoles() -> Iterator[Consoles]:
    consoles = Consoles()
    yield consoles
    for domid in list(consoles.dom0.guests):
        consoles.destroy(domid)
    assert consoles.daemon.consoles == {}
    assert consoles.dom0.mapped == 0
    assert sorted(consoles.dom0.bound) == [(-1, 3), (0x7FF0, 9)]
    assert not consoles.daemon._throttled
    assert not consoles.daemon._ready


@pytest.mark.parametrize("granted", [True, False])
def test_output_reaches_the_sink(consoles: Consoles, granted: bool) -> None:
    front = consoles.boot(1, granted=granted, early=b"before anybody listened\n")
    assert consoles.shown[1] == b"before anybody listened\n"
    consoles.print(1, front, b"hello\n")
    assert consoles.shown[1].endswith(b"hello\n")
    assert CONSOLE_PORT in consoles.dom0.guests[1].signals


def test_a_domain_without_a_console_is_left_alone(consoles: Consoles) -> None:
    consoles.dom0.guest(3)
    consoles.dom0.do(consoles.dom0.xenbus.write("/local/domain/3", ""))
    consoles.dom0.do(consoles.dom0.xenbus.introduce(3, 1000, STORE_PORT))
    assert consoles.daemon.consoles == {}
    assert consoles.daemon.feed(3, b"x") == 0


def test_a_console_that_cannot_be_opened_is_reported(consoles: Consoles) -> None:
    consoles.boot(1, port=5000)
    assert consoles.daemon.consoles == {}
    assert "no console for domain 1" in consoles.dom0.printed[-1]


class TestInput:
    def test_goes_to_the_guest(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        assert consoles.daemon.feed(1, b"typed\n") == 6
        assert front.read() == b"typed\n"

    def test_that_does_not_fit_follows_when_the_guest_reads(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        text = bytes(range(256)) * 40
        taken = consoles.daemon.feed(1, text)
        assert taken == IN_SIZE + BACKLOG
        assert consoles.daemon.feed(1, b"more") == 0
        got = b""
        while data := front.read():
            got += data
            consoles.dom0.guests[1].notify(CONSOLE_PORT)
            consoles.dom0.run()
        assert got == text[:taken]

    def test_of_any_length_can_be_waited_for(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        text = b"0123456789" * 2000
        thread = consoles.dom0.spawn(consoles.daemon.feed_all(1, text))
        got = b""
        for _ in range(40):
            consoles.dom0.pass_time(PERIOD_NS)
            got += front.read()
            consoles.dom0.guests[1].notify(CONSOLE_PORT)
        assert got == text
        assert thread.result is True

    def test_of_a_guest_that_dies_meanwhile_ends(self, consoles: Consoles) -> None:
        consoles.boot(1)
        thread = consoles.dom0.spawn(consoles.daemon.feed_all(1, b"x" * 20000))
        consoles.dom0.run()
        assert not thread.done
        consoles.destroy(1)
        assert thread.result is False


class TestAFlood:
    def flood(self, consoles: Consoles, front: Frontend, domid: int, ns: int) -> int:
        """Print as fast as the daemon reads; return the bytes that came through."""
        guest: FakeGuest = consoles.dom0.guests[domid]
        before = len(consoles.shown.get(domid, b""))
        rounds = [0]

        def again() -> None:
            rounds[0] += 1
            if rounds[0] < 20_000 and front.write(b"x" * 100):
                guest.notify(CONSOLE_PORT)

        guest.on_signal = again
        again()
        consoles.dom0.pass_time(ns)
        guest.on_signal = lambda: None
        return len(consoles.shown[domid]) - before

    def test_is_slowed_down(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        through = self.flood(consoles, front, 1, 10 * PERIOD_NS)
        assert 5 * ALLOWANCE * 100 <= through <= 12 * (ALLOWANCE * 100 + OUT_SIZE)

    def test_does_not_keep_others_from_printing(self, consoles: Consoles) -> None:
        front, other = consoles.boot(1), consoles.boot(2)
        self.flood(consoles, front, 1, PERIOD_NS // 2)
        consoles.print(2, other, b"still here\n")
        assert consoles.shown[2] == b"still here\n"

    def test_loses_nothing(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        text = b"".join(b"%06d\n" % number for number in range(3000))
        sent = 0
        for _ in range(1000):
            if sent < len(text):
                sent += consoles.print(1, front, text[sent : sent + 200])
                consoles.dom0.pass_time(PERIOD_NS // 20)
        consoles.dom0.pass_time(2 * PERIOD_NS)
        assert consoles.shown[1] == text

    def test_of_a_guest_that_dies_is_forgotten(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        self.flood(consoles, front, 1, PERIOD_NS // 2)
        consoles.destroy(1)
        consoles.dom0.pass_time(5 * PERIOD_NS)


def test_a_dead_domains_last_words_are_shown(consoles: Consoles) -> None:
    front = consoles.boot(1)
    front.write(b"panic: no more\n")
    consoles.destroy(1)
    assert consoles.shown[1] == b"panic: no more\n"
    assert consoles.daemon.consoles == {}


def test_a_shut_down_domain_keeps_its_console(consoles: Consoles) -> None:
    front = consoles.boot(1)
    consoles.dom0.shut_down(1)
    consoles.dom0.run()
    consoles.print(1, front, b"crash kernel\n")
    assert consoles.shown[1] == b"crash kernel\n"


def test_a_guest_that_lies_about_its_indices_is_not_shown_garbage(consoles: Consoles) -> None:
    front, other = consoles.boot(1), consoles.boot(2)
    for offset in (2049, 2**31, 2**32 - 1):
        front.words[OUT_PROD] = (front.words[OUT_CONS] + offset) & 0xFFFFFFFF
        consoles.dom0.guests[1].notify(CONSOLE_PORT)
        consoles.dom0.run()
    assert 1 not in consoles.shown
    consoles.print(2, other, b"fine\n")
    assert consoles.shown[2] == b"fine\n"
