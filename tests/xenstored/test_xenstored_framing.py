"""Bytes of any kind, cut anywhere: the server answers what can be answered, and nobody else notices."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import World

from guest_kernel.xenbus.wire import encode, parse_all
from hypervisor.abi.io import xs_wire as xs

KINDS = st.one_of(st.integers(0, 30), st.integers(0, 2**32 - 1))
TEXTS = st.sampled_from([b"/tool", b"/a", b"rel", b"T", b"1", b"n1", b"@releaseDomain", b"", b"t", b"//", b"quota"])
PAYLOADS = st.one_of(
    st.lists(TEXTS, max_size=4).map(b"\0".join),
    st.lists(TEXTS, max_size=4).map(lambda texts: b"".join(text + b"\0" for text in texts)),
    st.binary(max_size=60),
)
REQUESTS = st.builds(
    encode,
    KINDS.filter(lambda kind: kind not in (xs.XS_RELEASE,)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 3),
    PAYLOADS,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUESTS, max_size=12), st.lists(st.integers(0, 5000), max_size=8), st.booleans())
def test_the_answer_does_not_depend_on_the_cuts(requests: list[bytes], places: list[int], guest: bool) -> None:
    """A reply for each request, in order, with its req_id and tx_id, however the bytes come."""
    stream = b"".join(requests)
    answers = []
    for pieces in ([stream], cut(stream, places), [stream[at : at + 1] for at in range(len(stream))]):
        world = World()
        client = world.guest(1) if guest else world.client()
        for piece in pieces:
            client.raw(piece)
        answers.append(client.connection.take(1 << 30))
        assert client.connection.input == b""
        world.check()
    assert answers[0] == answers[1] == answers[2]
    replies = [message for message in parse_all(answers[0]) if message.type != xs.XS_WATCH_EVENT]
    assert len(replies) == len(requests)
    for reply, request in zip(replies, requests, strict=True):
        kind, req_id, tx_id, _ = (int.from_bytes(request[at : at + 4], "little") for at in (0, 4, 8, 12))
        assert (reply.req_id, reply.tx_id) == (req_id, tx_id)
        assert reply.type in (kind, xs.XS_ERROR)
        assert len(reply.payload) <= 4096
        if reply.type == xs.XS_ERROR:
            assert reply.payload.decode()[:-1] in xs.XSD_ERRORS


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5), st.booleans())
def test_noise_harms_nobody(noise: bytes, places: list[int], guest: bool) -> None:
    world = World()
    world.dom0.watch("/a", "t")
    client = world.guest(1) if guest else world.client()
    for piece in cut(noise, places):
        client.raw(piece)
    assert len(client.connection.input) < 16 + 4096
    assert world.dom0.exchange(xs.XS_WRITE, "/a")[-2:] == ["/a|t", "=OK"]
    world.check()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_output_may_be_taken_in_any_pieces(rooms: list[int]) -> None:
    world = World()
    client = world.client()
    client.watch("/a", "t")
    for number in range(10):
        client.raw(encode(xs.XS_WRITE, number, 0, b"/a\0v"))
        client.raw(encode(xs.XS_READ, number, 0, b"/tool\0"))
    whole = b""
    for room in rooms:
        piece = client.connection.take(room)
        assert len(piece) <= room
        whole += piece
    whole += client.connection.take(1 << 20)
    assert client.connection.queued == 0
    assert not client.connection.torn
    replies = [message for message in parse_all(whole) if message.type != xs.XS_WATCH_EVENT]
    assert [reply.req_id for reply in replies] == [number // 2 for number in range(20)]
