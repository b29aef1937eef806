"""Consoles: the ring alone, then the daemon with guests that flood, lie and die."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fake_dom0 import FakeDom0, FakeGuest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.xenconsoled import XenConsoled
from backends.xenconsoled.daemon import ALLOWANCE, PERIOD_NS
from backends.xenconsoled.ring import IN_SIZE, OUT_SIZE, ConsoleRing
from backends.xenconsoled.terminal import LIMIT, OutputBuffer, parse_limit
from backends.xenstored.daemon import XenStored
from guest_kernel.hw.serial import LOG, TERMINAL
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


class FakeLine:
    """A line of the serial card; `room` is how much a terminal takes before it is read (None: everything)."""

    number = 0

    def __init__(self, name: str, room: int | None = None) -> None:
        self.name = name
        self.room = room
        self.sent = b""
        self.typed = b""
        self.open = True
        self.on_news = lambda: None

    def send(self, data: bytes) -> int:
        assert self.open
        taken = data if self.room is None else data[: self.room]
        if self.room is not None:
            self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def receive(self, limit: int) -> bytes:
        data, self.typed = self.typed[:limit], self.typed[limit:]
        return data

    def close(self) -> None:
        self.open = False


class Consoles:
    """The daemon, with the lines that it has opened by name."""

    def __init__(self, *, terminals: bool = True, room: int | None = None, **options: Any) -> None:
        self.terminals = terminals
        self.room = room
        self.log: dict[str, FakeLine] = {}
        self.terminal: dict[str, FakeLine] = {}
        self.dom0 = FakeDom0()
        self.store = XenStored(self.dom0, self.dom0.info)  # type: ignore[arg-type]
        self.daemon = XenConsoled(self.dom0, self, **options)  # type: ignore[arg-type]
        self.store.start()
        self.daemon.start()
        self.dom0.run()

    def open(self, kind: int, name: str) -> FakeLine | None:
        if kind == LOG:
            return self.log.setdefault(name, FakeLine(""))
        assert kind == TERMINAL
        return self.terminal.setdefault(name, FakeLine("/dev/pts/7", self.room)) if self.terminals else None

    @property
    def shown(self) -> dict[int, bytes]:
        return {int(name[1:]): line.sent for name, line in self.log.items() if line.sent}

    def type(self, domid: int, data: bytes) -> None:
        line = self.terminal[f"d{domid}"]
        line.typed += data
        line.on_news()
        self.dom0.run()

    def read(self, domid: int, count: int) -> None:
        """Read so much from a terminal that is full."""
        line = self.terminal[f"d{domid}"]
        assert line.room is not None
        line.room += count
        line.on_news()
        self.dom0.run()

    def boot(
        self, domid: int, *, granted: bool = True, early: bytes = b"", port: int = CONSOLE_PORT, limit: str = ""
    ) -> Frontend:
        guest = self.dom0.guest(domid)
        guest.granted = granted
        front = Frontend(guest.page(GNTTAB_RESERVED_CONSOLE if granted else 2000))
        front.write(early)
        self.dom0.do(self.announce(domid, port, limit))
        return front

    async def announce(self, domid: int, port: int, limit: str) -> None:
        xenbus = self.dom0.xenbus
        home = f"/local/domain/{domid}"
        await xenbus.write_many({f"{home}/console/ring-ref": 2000, f"{home}/console/port": port})
        if limit:
            await xenbus.write(f"{home}/console/limit", limit)
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
    with serving(Consoles()) as consoles:
        yield consoles


@contextmanager
def serving(consoles: Consoles) -> Iterator[Consoles]:
    """Run the daemon; at the end everything has been given back."""
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
    assert consoles.log == {}


def test_a_console_that_cannot_be_opened_is_reported(consoles: Consoles) -> None:
    consoles.boot(1, port=5000)
    assert consoles.daemon.consoles == {}
    assert "no console for domain 1" in consoles.dom0.printed[-1]


class TestInput:
    def test_goes_to_the_guest(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        consoles.type(1, b"typed\n")
        assert front.read() == b"typed\n"
        assert CONSOLE_PORT in consoles.dom0.guests[1].signals

    def test_of_any_length_follows_when_the_guest_reads(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        text = bytes(range(256)) * 40
        consoles.type(1, text)
        # What the guest has no room for stays where it was typed: nobody keeps it meanwhile.
        assert consoles.terminal["d1"].typed == text[IN_SIZE:]
        got = b""
        while data := front.read():
            got += data
            consoles.dom0.guests[1].notify(CONSOLE_PORT)
            consoles.dom0.pass_time(PERIOD_NS)
        assert got == text

    def test_of_a_guest_whose_index_is_nonsense_is_not_taken(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        front.words[IN_CONS] = 5
        consoles.type(1, b"typed")
        assert consoles.terminal["d1"].typed == b"typed"


class TestTerminal:
    def test_its_name_is_in_the_store(self, consoles: Consoles) -> None:
        consoles.boot(1)
        assert consoles.dom0.do(consoles.dom0.xenbus.read("/local/domain/1/console/tty")) == "/dev/pts/7"

    def test_gets_what_the_log_gets(self, consoles: Consoles) -> None:
        front = consoles.boot(1, early=b"one ")
        consoles.print(1, front, b"two")
        assert consoles.terminal["d1"].sent == consoles.log["d1"].sent == b"one two"

    def test_that_is_not_read_holds_up_neither_the_guest_nor_the_log(self) -> None:
        with serving(Consoles(room=100)) as consoles:
            front = consoles.boot(1)
            text = b"".join(b"%08d" % number for number in range(5000))
            print_all(consoles, front, text)
            assert consoles.log["d1"].sent == text
            assert consoles.terminal["d1"].sent == text[:100]
            # All of it was kept, for it is less than the limit.
            consoles.read(1, len(text))
            assert consoles.terminal["d1"].sent == text

    def test_keeps_how_it_began_and_how_it_ended(self) -> None:
        with serving(Consoles(room=0)) as consoles:
            front = consoles.boot(1, limit="1000")
            text = b"".join(b"%08d" % number for number in range(1000))
            print_all(consoles, front, text)
            kept = consoles.daemon.consoles[1].output
            assert len(kept.data) <= 1250
            consoles.read(1, 10_000)
            seen = consoles.terminal["d1"].sent
            assert len(seen) + kept.lost == len(text)
            assert seen[:500] == text[:500]
            assert seen[-400:] == text[-400:]
            assert consoles.log["d1"].sent == text

    def test_may_hold_up_its_guest_instead(self) -> None:
        with serving(Consoles(room=0, discard=False)) as consoles:
            front, other = consoles.boot(1, limit="4000"), consoles.boot(2, limit="4000")
            text = b"".join(b"%08d" % number for number in range(3000))
            sent = print_all(consoles, front, text)
            assert sent < len(text)
            assert len(consoles.daemon.consoles[1].output.data) <= 4000 + OUT_SIZE
            consoles.print(2, other, b"free\n")
            assert consoles.log["d2"].sent == b"free\n"
            for _ in range(100):
                consoles.read(1, 2000)
                sent += print_all(consoles, front, text[sent:])
            consoles.read(1, 10_000)
            assert consoles.terminal["d1"].sent == text

    def test_there_may_be_none(self) -> None:
        with serving(Consoles(terminals=False)) as consoles:
            front = consoles.boot(1)
            consoles.print(1, front, b"hello")
            assert consoles.shown[1] == b"hello"
            assert consoles.dom0.do(consoles.dom0.xenbus.read_or_none("/local/domain/1/console/tty")) is None

    def test_goes_with_its_domain(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        front.write(b"bye")
        consoles.destroy(1)
        assert consoles.terminal["d1"].sent == b"bye"
        assert not consoles.terminal["d1"].open
        assert not consoles.log["d1"].open


def print_all(consoles: Consoles, front: Frontend, text: bytes) -> int:
    """Print as the daemon reads; return how much has gone out when it reads no more."""
    sent = 0
    while sent < len(text):
        count = consoles.print(1, front, text[sent : sent + 1000])
        sent += count
        consoles.dom0.pass_time(PERIOD_NS // 10)
        if not count:
            break
    return sent


def test_an_output_buffer_forgets_the_middle() -> None:
    buffer = OutputBuffer(100)
    buffer.append(b"a" * 60)
    buffer.append(b"b" * 65)
    assert (len(buffer.data), buffer.lost) == (125, 0)
    buffer.append(b"c")
    assert (bytes(buffer.data), buffer.lost) == (b"a" * 50 + b"b" * 49 + b"c", 26)
    buffer.advance(99)
    assert buffer.data == b"c"
    assert not buffer.full
    endless = OutputBuffer(0)
    endless.append(b"x" * 10_000_000)
    assert (len(endless.data), endless.full) == (10_000_000, False)


@pytest.mark.parametrize(
    ("text", "limit"),
    [(None, LIMIT), ("1048576", 1 << 20), ("0x100", 256), ("0", 0), ("", 0), ("junk", 0), ("-5", 0), ("010", 10)],
)
def test_limits(text: str | None, limit: int) -> None:
    assert parse_limit(text) == limit


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

    def test_is_heard_exactly_so_often(self, consoles: Consoles) -> None:
        front = consoles.boot(1)
        consoles.dom0.pass_time(PERIOD_NS)
        for _ in range(ALLOWANCE + 5):
            consoles.print(1, front, b"x")
        assert len(consoles.shown[1]) == ALLOWANCE
        consoles.dom0.pass_time(PERIOD_NS)
        assert len(consoles.shown[1]) == ALLOWANCE + 5

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
