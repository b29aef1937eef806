"""The protocol by hand: answers to what is right, wrong and hostile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
from nbd_scene import Scene
from raw_client import RawClient, info_data

from guest_kernel.nbd import connection, wire
from guest_kernel.nbd.negotiation import ExportInfo, Negotiation
from toolstack.xl_config import load_config

MIB = 1 << 20


def talk(scene: Scene, *conversations: Callable[[RawClient], None]) -> None:
    """Have conversations with one host, one after the other."""

    def client() -> None:
        for conversation in conversations:
            with RawClient(scene.path) as raw:
                conversation(raw)

    scene.serve(client)


# -- the handshake ------------------------------------------------------------------------------------------------


def test_export_name_is_answered_with_size_and_flags(scene: Scene) -> None:
    def old(raw: RawClient) -> None:
        raw.greet(flags=wire.FLAG_FIXED_NEWSTYLE)
        raw.option(wire.OPT_EXPORT_NAME, b"")
        size, flags = wire.EXPORT.unpack(raw.read(wire.EXPORT.size))
        assert size == 16 * MIB
        assert flags & wire.SEND_FLUSH
        assert raw.read(124) == bytes(124)
        assert raw.ask(wire.CMD_FLUSH) == 0

    def newer(raw: RawClient) -> None:
        raw.greet()
        raw.option(wire.OPT_EXPORT_NAME, b"xvda")
        raw.read(wire.EXPORT.size)
        assert raw.ask(wire.CMD_FLUSH) == 0

    talk(scene, old, newer)


def test_unknown_names_and_options_are_refused_and_the_handshake_goes_on(scene: Scene) -> None:
    def conversation(raw: RawClient) -> None:
        raw.greet()
        raw.option(wire.OPT_STARTTLS)
        assert raw.option_replies() == [(wire.REP_ERR_UNSUP, b"")]
        raw.option(wire.OPT_GO, info_data("xvdz"))
        assert raw.option_replies() == [(wire.REP_ERR_UNKNOWN, b"")]
        raw.option(wire.OPT_GO, b"\0\0\0\1")
        assert raw.option_replies() == [(wire.REP_ERR_INVALID, b"")]
        raw.option(wire.OPT_LIST, b"x")
        assert raw.option_replies() == [(wire.REP_ERR_INVALID, b"")]
        raw.option(wire.OPT_INFO, info_data("", [wire.INFO_NAME]))
        replies = raw.option_replies()
        assert (wire.REP_INFO, b"\0\1xvda") in replies
        raw.option(wire.OPT_ABORT)
        assert raw.option_replies() == [(wire.REP_ACK, b"")]
        assert raw.is_hung_up_on()

    talk(scene, conversation)


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\0\0\0\0",
        b"\0\0\0\3" + wire.OPTION.pack(1, 2, 3),
        b"\0\0\0\3" + wire.OPTION.pack(wire.IHAVEOPT, wire.OPT_GO, 0xFFFFFFFF),
        b"\0\0\0\3" + wire.OPTION.pack(wire.IHAVEOPT, wire.OPT_EXPORT_NAME, 4) + b"nope",
    ],
    ids=["http", "no fixed newstyle", "bad magic", "endless option", "unknown export name"],
)
def test_who_speaks_something_else_is_hung_up_on(scene: Scene, words: bytes) -> None:
    def wrong(raw: RawClient) -> None:
        raw.read(wire.GREETING.size)
        raw.send(words)
        assert raw.is_hung_up_on()

    def right(raw: RawClient) -> None:
        raw.hello()
        assert raw.ask(wire.CMD_FLUSH) == 0

    talk(scene, wrong, right)


def test_a_negotiation_in_any_pieces_is_the_same() -> None:
    info = ExportInfo("xvda", "a disk", 1 << 20, 1, (512, 4096, 1 << 20))
    data = info_data("xvda", [wire.INFO_BLOCK_SIZE])
    said = (
        wire.CLIENT_FLAGS.pack(3)
        + wire.OPTION.pack(wire.IHAVEOPT, wire.OPT_STRUCTURED_REPLY, 0)
        + wire.OPTION.pack(wire.IHAVEOPT, 77, 3)
        + b"abc"
        + wire.OPTION.pack(wire.IHAVEOPT, wire.OPT_GO, len(data))
        + data
        + b"requests"
    )
    whole = Negotiation(info)
    answer = whole.feed(said)
    assert whole.ready
    assert whole.structured
    for step in (1, 2, 5, 13):
        parts = Negotiation(info)
        heard = b"".join(parts.feed(said[at : at + step]) for at in range(0, len(said), step))
        assert heard == answer
        assert (parts.ready, bytes(parts.rest)) == (True, b"requests")


# -- requests -----------------------------------------------------------------------------------------------------


def test_reads_and_writes_of_all_sizes(scene: Scene) -> None:
    model = bytearray(16 * MIB)
    rng = random.Random(1)
    sizes = [512, 4096, 4608, 16384, 16896, 65536, 66048, MIB, MIB + 512, 5 * MIB]

    def conversation(raw: RawClient) -> None:
        raw.hello()
        for size in sizes:
            offset = rng.randrange(0, (16 * MIB - size) // 512) * 512
            data = rng.randbytes(size)
            assert raw.ask(wire.CMD_WRITE, offset, size, data=data) == 0
            model[offset : offset + size] = data
            raw.request(wire.CMD_READ, max(0, offset - 512), size)
            assert raw.reply(size) == (0, bytes(model[max(0, offset - 512) : max(0, offset - 512) + size]))

    talk(scene, conversation)
    assert scene.image.read_bytes() == model


def test_structured_replies(scene: Scene) -> None:
    data = random.Random(2).randbytes(16 * MIB)
    scene.make_image(16 * MIB, data)

    def conversation(raw: RawClient) -> None:
        raw.hello(structured=True)
        for offset, size in ((0, 512), (4096, 65536), (512, 3 * MIB)):
            raw.request(wire.CMD_READ, offset, size)
            found = bytearray(size)
            flags = 0
            while not flags & wire.CHUNK_DONE:
                flags, kind, payload = raw.chunk()
                assert kind == wire.CHUNK_OFFSET_DATA
                at = int.from_bytes(payload[:8], "big") - offset
                found[at : at + len(payload) - 8] = payload[8:]
            assert found == data[offset : offset + size]
        raw.request(wire.CMD_READ, 16 * MIB, 512)
        flags, kind, payload = raw.chunk()
        assert (flags, kind) == (wire.CHUNK_DONE, wire.CHUNK_ERROR)
        assert int.from_bytes(payload[:4], "big") == wire.NBD_EINVAL

    talk(scene, conversation)


def test_many_requests_in_one_breath_are_all_answered(scene: Scene) -> None:
    count = 2000
    rng = random.Random(3)
    blocks = [rng.randbytes(4096) for _ in range(count)]

    def conversation(raw: RawClient) -> None:
        raw.hello()
        writes = b"".join(
            wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, n.to_bytes(8), 4096 * n, 4096) + block
            for n, block in enumerate(blocks)
        )
        raw.send(writes)
        cookies = {wire.SIMPLE_REPLY.unpack(raw.read(16))[1:] for _ in range(count)}
        assert cookies == {(0, n.to_bytes(8)) for n in range(count)}

    talk(scene, conversation)
    assert scene.image.read_bytes()[: 4096 * count] == b"".join(blocks)


SIZES = [512, 4096, 4096, 4096, 1536, 8192, 16384, 20480, 65536, 300 << 10, 1280 << 10]
"""Bytes of reads and writes: small ones, copied ones, those that are received into buffers, and one that is longer."""


@pytest.mark.parametrize("seed", range(6))
def test_requests_of_all_kinds_in_any_pieces(scene: Scene, seed: int) -> None:
    """Whatever is there when the server looks, and wherever it ends: each request gets its answer and its data."""
    rng = random.Random(seed)
    old = rng.randbytes(16 << 20)
    scene.image.write_bytes(old)
    new = bytearray(old)
    words, at = bytearray(), 8 << 20
    expected: dict[int, bytes] = {}
    sizes = [rng.choice(SIZES[: rng.choice([4, 5, 9, 11])]) for _ in range(120)]
    for cookie, size in enumerate(sizes):
        kind = rng.choice([wire.CMD_READ, wire.CMD_WRITE]) if at + size <= len(new) else wire.CMD_READ
        offset = rng.randrange(0, (8 << 20) - size, 512)  # what is read is not written
        data = b""
        if kind == wire.CMD_WRITE:
            offset, data = at, rng.randbytes(size)
            new[at : at + size] = data
            at += size
        words += wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, kind, cookie.to_bytes(8), offset, size) + data
        expected[cookie] = old[offset : offset + size] if kind == wire.CMD_READ else b""

    def speak(client: RawClient) -> None:
        start = 0
        while start < len(words):
            size = rng.choice([1, 28, 100, 4124, 30000, 66000, 1 << 20])
            client.send(bytes(words[start : start + size]))
            start += size
            if rng.random() < 0.3:
                time.sleep(rng.choice([0, 0.0001, 0.002]))

    def client() -> None:
        with RawClient(scene.path) as client:
            client.hello()
            speaker = threading.Thread(target=speak, args=(client,))
            speaker.start()
            while expected:
                magic, error, cookie = wire.SIMPLE_REPLY.unpack(client.read(wire.SIMPLE_REPLY.size))
                assert (magic, error) == (wire.SIMPLE_REPLY_MAGIC, 0)
                data = expected.pop(int.from_bytes(cookie))
                assert client.read(len(data)) == data
            speaker.join()

    scene.serve(client)
    assert not expected
    assert scene.image.read_bytes() == new


def test_zeros_trim_and_flags(scene: Scene) -> None:
    scene.make_image(16 * MIB, b"\xff" * (16 * MIB))

    def conversation(raw: RawClient) -> None:
        raw.hello()
        assert raw.ask(wire.CMD_WRITE_ZEROES, MIB, 5 * MIB + 512) == 0
        assert raw.ask(wire.CMD_WRITE_ZEROES, 0, 512, flags=wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FUA) == 0
        assert raw.ask(wire.CMD_WRITE_ZEROES, 0, 512, flags=wire.CMD_FLAG_FAST_ZERO) == wire.NBD_ENOTSUP
        assert raw.ask(wire.CMD_TRIM, 8 * MIB, MIB) == 0
        assert raw.ask(wire.CMD_WRITE, 512, 512, flags=wire.CMD_FLAG_FUA, data=b"x" * 512) == 0
        assert raw.ask(wire.CMD_FLUSH) == 0

    talk(scene, conversation)
    image = scene.image.read_bytes()
    assert image[:512] == bytes(512)
    assert image[512:1024] == b"x" * 512
    assert image[1024:MIB] == b"\xff" * (MIB - 1024)
    assert image[MIB : 6 * MIB + 512] == bytes(5 * MIB + 512)
    assert image[6 * MIB + 512 : 8 * MIB] == b"\xff" * (2 * MIB - 512)


def test_wrong_requests_get_the_right_error_and_harm_nothing(scene: Scene) -> None:
    end = 16 * MIB

    def conversation(raw: RawClient) -> None:
        raw.hello()
        assert raw.ask(wire.CMD_READ, 1, 512) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_READ, 0, 513) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_READ, end, 512) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_READ, (1 << 64) - 512, 512) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_READ, 0, 64 * MIB) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_READ, 0, 512, flags=1 << 9) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_WRITE, end - 512, 1024, data=bytes(1024)) == wire.NBD_ENOSPC
        assert raw.ask(wire.CMD_WRITE, 3, 1024, data=bytes(1024)) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_WRITE, (1 << 64) - 512, 2 * MIB, data=bytes(2 * MIB)) == wire.NBD_ENOSPC
        assert raw.ask(wire.CMD_TRIM, end, 512) == wire.NBD_ENOSPC
        assert raw.ask(wire.CMD_WRITE_ZEROES, end, 512) == wire.NBD_ENOSPC
        assert raw.ask(wire.CMD_FLUSH, 512, 0) == wire.NBD_EINVAL
        assert raw.ask(99) == wire.NBD_EINVAL
        assert raw.ask(wire.CMD_READ, 0, 0) == 0
        assert raw.ask(wire.CMD_WRITE, 0, 0) == 0
        raw.request(wire.CMD_READ, 0, 512)
        assert raw.reply(512) == (0, bytes(512))

    talk(scene, conversation)
    assert scene.image.read_bytes() == bytes(16 * MIB)


def test_a_read_only_disk(scene: Scene) -> None:
    scene.make_image(MIB, b"r" * MIB)

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.greet()
            raw.option(wire.OPT_EXPORT_NAME, b"")
            _, flags = wire.EXPORT.unpack(raw.read(wire.EXPORT.size))
            assert flags & (wire.READ_ONLY | wire.CAN_MULTI_CONN) == wire.READ_ONLY | wire.CAN_MULTI_CONN
            assert not flags & (wire.SEND_FLUSH | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES)
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=bytes(512)) == wire.NBD_EPERM
            assert raw.ask(wire.CMD_TRIM, 0, 512) == wire.NBD_EPERM
            raw.request(wire.CMD_READ, 0, 512)
            assert raw.reply(512) == (0, b"r" * 512)

    scene.serve(client, scene.guest(access="ro"))
    assert scene.image.read_bytes() == b"r" * MIB


# -- hostile and dying clients ------------------------------------------------------------------------------------


def is_served(scene: Scene) -> None:
    """Somebody else is served as ever."""
    with RawClient(scene.path) as raw:
        raw.hello()
        data = random.Random(9).randbytes(256 << 10)
        assert raw.ask(wire.CMD_WRITE, 8 * MIB, len(data), data=data) == 0
        raw.request(wire.CMD_READ, 8 * MIB, len(data))
        assert raw.reply(len(data)) == (0, data)


def abandon_a_write(raw: RawClient) -> None:
    raw.request(wire.CMD_WRITE, 0, 4 * MIB, data=bytes(3 * MIB + 100))


def never_read(raw: RawClient) -> None:
    for n in range(100):
        raw.request(wire.CMD_READ, 0, 64 << 10, cookie=n)


def end_in_a_header(raw: RawClient) -> None:
    raw.request(wire.CMD_FLUSH)
    raw.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_FLUSH, bytes(8), 0, 0)[:13])


def say_goodbye_at_once(raw: RawClient) -> None:
    raw.request(wire.CMD_READ, 0, 2 * MIB)
    raw.request(wire.CMD_DISC)


def speak_nonsense(raw: RawClient) -> None:
    raw.send(b"nonsense" * 1000)
    assert raw.is_hung_up_on()


def write_too_much(raw: RawClient) -> None:
    raw.request(wire.CMD_WRITE, 0, 33 * MIB)
    assert raw.is_hung_up_on()


def zero_and_go(raw: RawClient) -> None:
    raw.request(wire.CMD_WRITE_ZEROES, 0, 16 * MIB)


HOSTILE = (
    abandon_a_write,
    never_read,
    end_in_a_header,
    say_goodbye_at_once,
    speak_nonsense,
    write_too_much,
    zero_and_go,
)


@pytest.mark.parametrize("behave", HOSTILE, ids=lambda behave: behave.__name__)
def test_a_hostile_client_is_alone_in_its_trouble(scene: Scene, behave: Callable[[RawClient], None]) -> None:
    """While it is connected others are served, and after it has gone nothing is left of it."""

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello()
            behave(raw)
            is_served(scene)
        for _ in range(3):
            is_served(scene)
        time.sleep(0.1)

    scene.serve(client)


def test_many_clients_that_hold_everything_cannot_starve_another_one(scene: Scene) -> None:
    def client() -> None:
        greedy = [RawClient(scene.path) for _ in range(8)]
        for raw in greedy:
            raw.hello()
            abandon_a_write(raw)
        is_served(scene)
        for raw in greedy:
            raw.socket.close()
        is_served(scene)

    scene.serve(client)


def test_more_clients_than_there_is_room_for_wait(scene: Scene) -> None:
    def client() -> None:
        clients = [RawClient(scene.path) for _ in range(20)]
        for raw in clients[:16]:
            raw.hello()
        clients[0].socket.close()
        clients[1].socket.close()
        for raw in clients[16:18]:
            raw.hello()
            assert raw.ask(wire.CMD_FLUSH) == 0
        for raw in clients:
            raw.socket.close()

    scene.serve(client)


# -- ends ---------------------------------------------------------------------------------------------------------


def test_the_end_of_the_guest_is_the_end_of_its_clients(scene: Scene) -> None:
    body = """
    disk = await self.disk("xvda")
    while not any(await disk.read(0, 1)):
        await self.sleep(0.01)
    await self.kernel.power.poweroff()
    """

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello()
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=b"\1" * 512) == 0
            assert raw.is_hung_up_on()

    scene.serve(client, scene.guest(body), stop=False)


@pytest.mark.parametrize("end", ["raise RuntimeError('no more')", "await self.kernel.power.crash()"])
def test_a_guest_that_crashes(scene: Scene, end: str) -> None:
    body = f"""
    disk = await self.disk("xvda")
    while not any(await disk.read(0, 1)):
        await self.sleep(0.01)
    {end}
    """

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello()
            raw.request(wire.CMD_WRITE, 0, 512, data=b"\1" * 512)
            raw.read(16)
            assert raw.is_hung_up_on()

    result = scene.serve(client, scene.guest(body), stop=False)
    assert [domain.reason for domain in result.domains if domain.name == "guest"] == ["crash"]


def test_a_guest_that_is_started_again_serves_again(scene: Scene) -> None:
    body = """
    disk = await self.disk("xvda")
    lives = (await disk.read(1, 1))[0]
    await disk.write(1, bytes([lives + 1]) * 512)
    while lives == 0:
        await self.sleep(0.01)
        if any(await disk.read(0, 1)):
            await self.kernel.power.reboot()
    """

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello()
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=b"\1" * 512) == 0
            assert raw.is_hung_up_on()
        with RawClient(scene.path) as raw:
            raw.hello()
            lives = b""
            while lives != b"\2" * 512:  # the guest writes that as soon as it runs, but the server runs, too
                raw.request(wire.CMD_READ, 512, 512)
                error, lives = raw.reply(512)
                assert error == 0

    scene.serve(client, scene.guest(body))


def test_errors_of_the_disk_reach_the_client(scene: Scene) -> None:
    scene.guest()
    file = scene.directory / "guest.cfg"
    file.write_text(file.read_text().replace("format=raw,", "format=raw,faults=bad:64-71;flush,", 1))

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello()
            raw.request(wire.CMD_READ, 64 * 512, 4096)
            assert raw.reply(4096)[0] == wire.NBD_EIO
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=bytes(512)) == 0
            assert raw.ask(wire.CMD_FLUSH) == wire.NBD_EIO
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=bytes(512), flags=wire.CMD_FLAG_FUA) == wire.NBD_EIO

    scene.serve(client, load_config(file))


@pytest.mark.parametrize("structured", [False, True])
def test_areas_of_one_page(scene: Scene, monkeypatch: pytest.MonkeyPatch, structured: bool) -> None:
    """A guest whose memory is in pieces may have no more: then a page of data does not fit behind its header."""
    monkeypatch.setattr(connection, "AREA_PAGES", 1)

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello(structured=structured)
            for size in (4096, 3584, 512):
                assert raw.ask(wire.CMD_WRITE, 0, size, data=b"w" * size) == 0
                for _ in range(3):
                    raw.request(wire.CMD_READ, 0, size)
                for _ in range(3):
                    if structured:
                        assert raw.chunk() == (wire.CHUNK_DONE, wire.CHUNK_OFFSET_DATA, bytes(8) + b"w" * size)
                    else:
                        assert raw.reply(size) == (0, b"w" * size)

    scene.serve(client)


FULL = """
await self.disk("xvda")
mm = self.kernel.mm
self.pages = mm.alloc_pages(mm.free_pages - 20)
await self.kernel.never()
"""


def test_a_guest_without_memory_hangs_up_on_who_takes_some(scene: Scene) -> None:
    """A guest's own program may have taken nearly all: clients cost it no more than an answer."""

    def client() -> None:
        for _ in range(3):
            with RawClient(scene.path) as raw:
                raw.hello()
                raw.request(wire.CMD_WRITE, 0, 1 << 16, data=bytes(1 << 16))
                assert raw.is_hung_up_on()
        with RawClient(scene.path) as raw:
            raw.hello()
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=b"1" * 512) == 0
            raw.request(wire.CMD_READ, 0, 512)
            assert raw.reply(512) == (0, b"1" * 512)

    result = scene.serve(client, scene.guest(FULL, memory=8))
    assert result.exit_code == 0, scene.text
    assert scene.text.count("nbd: there is no memory for clients of xvda: 16 pages wanted") == 1
