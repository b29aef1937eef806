"""Messages and the ring, against every cut and every index."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_kernel.xenbus import wire
from guest_kernel.xenbus.ring import (
    CONNECTION,
    ERROR,
    REQ_CONS,
    REQ_PROD,
    RSP_CONS,
    RSP_PROD,
    ClientRing,
    RingError,
    ServerRing,
)
from hypervisor.abi.io import xs_wire as xs

U32 = 1 << 32
messages = st.builds(
    wire.Message,
    st.integers(0, U32 - 1),
    st.integers(0, U32 - 1),
    st.integers(0, U32 - 1),
    st.binary(max_size=300),
)


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 2000), max_size=12))
def test_messages_survive_any_cut(sent: list[wire.Message], cuts: list[int]) -> None:
    stream = b"".join(wire.encode(*message) for message in sent)
    edges = sorted({0, len(stream), *[cut for cut in cuts if cut < len(stream)]})
    parser = wire.Parser()
    received: list[wire.Message] = []
    for start, end in pairwise(edges):
        received += parser.receive(stream[start:end])
    assert received == sent
    assert parser.pending == 0
    assert parser.broken is None


def test_header_is_the_headers_layout() -> None:
    data = wire.encode(xs.XS_READ, 7, 3, b"x\0")
    header = xs.xsd_sockmsg.unpack_from(data)
    assert (header.type, header.req_id, header.tx_id, header.len) == (xs.XS_READ, 7, 3, 2)
    assert xs.xsd_sockmsg.size == wire.HEADER_SIZE


@pytest.mark.parametrize("length", [4097, 1 << 31, U32 - 1])
def test_too_long_a_message_ends_the_stream_after_those_before_it(length: int) -> None:
    parser = wire.Parser()
    good = wire.encode(1, 2, 3, b"abc")
    bad = struct.pack("<4I", 1, 2, 3, length)
    assert parser.receive(good + bad) == [(1, 2, 3, b"abc")]
    assert parser.broken is not None
    assert str(length) in parser.broken
    assert parser.receive(good) == []


def test_the_longest_message_is_legal() -> None:
    assert wire.Parser().receive(wire.encode(1, 1, 0, bytes(4096)))[0].payload == bytes(4096)
    with pytest.raises(ValueError, match="4097 bytes"):
        wire.encode(1, 1, 0, bytes(4097))


def test_text_survives_whatever_its_bytes() -> None:
    for data in (b"", b"abc", b"\xff\xfe", "ü".encode(), bytes(range(256))):
        assert wire.to_bytes(wire.to_text(data)) == data
    assert wire.to_bytes(True) == b"1"
    assert wire.to_bytes(False) == b"0"
    assert wire.to_bytes(51712) == b"51712"


def test_strings() -> None:
    assert wire.join("a", b"b") == b"a\0b\0"
    assert wire.split(b"a\0b\0") == ["a", "b"]
    assert wire.split(b"a\0b") == ["a", "b"]
    assert wire.split(b"a\0\0") == ["a", ""]
    assert wire.split(b"") == []


# ---- the ring


def make_ring(start: int = 0) -> tuple[ClientRing, ServerRing, memoryview]:
    page = memoryview(bytearray(4096))
    words = page.cast("I")
    for index in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD):
        words[index] = start % U32
    return ClientRing(page), ServerRing(page), page


def test_indices_lie_where_the_header_puts_them() -> None:
    layout = xs.xenstore_domain_interface
    assert [layout.offset(name) // 4 for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod")] == [
        REQ_CONS,
        REQ_PROD,
        RSP_CONS,
        RSP_PROD,
    ]
    assert (layout.offset("connection") // 4, layout.offset("error") // 4) == (CONNECTION, ERROR)
    client, _, page = make_ring()
    client.write(b"hello")
    assert bytes(page[layout.offset("req") : 5]) == b"hello"


@given(
    st.integers(0, U32 - 1),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.binary(min_size=1, max_size=1500)), max_size=12),
)
def test_bytes_come_out_as_they_went_in(start: int, moves: list[tuple[bool, bool, bytes]]) -> None:
    """Both directions, from any starting index, with writes larger than the ring and readers that lag."""
    client, server, _ = make_ring(start)
    sent = {True: b"", False: b""}
    got = {True: b"", False: b""}
    for to_server, read_too, data in moves:
        producer, consumer = (client, server) if to_server else (server, client)
        room = producer.room
        taken = producer.write(data)
        assert taken == min(room, len(data))
        assert producer.notify == (taken > 0)
        producer.notify = False
        sent[to_server] += data[:taken]
        if read_too:
            full = consumer.available == xs.XENSTORE_RING_SIZE
            got[to_server] += consumer.read()
            # A producer that found the ring full waits for a signal.
            assert consumer.notify == full
            consumer.notify = False
    got[True] += server.read()
    got[False] += client.read()
    assert got == sent


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("own", [0, 1, 1023, 1024, U32 - 1, U32 - 1024, 1 << 31])
def test_every_index_of_a_hostile_peer(side: str, own: int) -> None:
    """For each own index, the peer's index at each interesting distance: legal up to 1024, else nothing is touched."""
    for distance in [0, 1, 2, 1022, 1023, 1024, 1025, 2048, 1 << 31, U32 - 1025, U32 - 1024, U32 - 2, U32 - 1]:
        client, server, page = make_ring(own)
        ring = client if side == "client" else server
        words = page.cast("I")
        peer_produces, peer_consumes = (RSP_PROD, REQ_CONS) if side == "client" else (REQ_PROD, RSP_CONS)
        before = bytes(page)

        words[peer_produces] = (own + distance) % U32
        if distance <= 1024:
            assert len(ring.read()) == distance
        else:
            with pytest.raises(RingError):
                ring.read()
            words[peer_produces] = own
            assert bytes(page) == before

        client, server, page = make_ring(own)
        ring = client if side == "client" else server
        words = page.cast("I")
        words[peer_consumes] = (own - distance) % U32
        if distance <= 1024:
            assert ring.write(bytes(2000)) == 1024 - distance
        else:
            with pytest.raises(RingError):
                ring.write(b"x")
            words[peer_consumes] = own
            assert bytes(page) == before


def test_own_indices_are_private() -> None:
    """A peer that overwrites our half of the page changes nothing of what we believe."""
    client, server, page = make_ring()
    client.write(b"abc")
    words = page.cast("I")
    words[REQ_PROD] = 77
    words[RSP_CONS] = 99
    client.write(b"def")
    assert words[REQ_PROD] == 6
    assert server.read() == b"abcdef"
    assert client.read() == b""


def test_producer_that_fills_the_ring_while_it_is_read_gets_its_signal() -> None:
    client, server, page = make_ring()
    server.write(bytes(1000))

    class Words:
        """Stand for the 'I' view: the server fills the ring between our look at its index and the move of ours."""

        def __init__(self, words: memoryview) -> None:
            self.words = words
            self.looked = False

        def __getitem__(self, index: int) -> int:
            return self.words[index]

        def __setitem__(self, index: int, value: int) -> None:
            if not self.looked:
                self.looked = True
                assert server.write(bytes(500)) == 24
            self.words[index] = value

    client.words = Words(page.cast("I"))  # type: ignore[assignment]
    assert len(client.read()) == 1000
    assert client.notify


def test_reconnect_and_error_fields() -> None:
    client, server, _ = make_ring(12345)
    assert client.connected
    assert not client.can_reconnect
    server.advertise(xs.XENSTORE_SERVER_FEATURE_RECONNECTION | xs.XENSTORE_SERVER_FEATURE_ERROR)
    assert client.can_reconnect
    server.fail(xs.XENSTORE_ERROR_PROTO)
    assert client.error == xs.XENSTORE_ERROR_PROTO
    client.write(b"half a message")
    client.reconnect()
    assert not client.connected
    assert server.reconnect_requested
    server.reset()
    client.attach()
    assert client.connected
    assert client.error == 0
    assert server.read() == b""
    client.write(b"new")
    assert server.read() == b"new"
