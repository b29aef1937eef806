"""Small requests in batches: some of which fail, that are under way at once, of several clients that share buffers."""

from __future__ import annotations

import random
import threading

import pytest
from nbd_scene import Scene
from raw_client import RawClient

from guest_kernel.nbd import wire
from toolstack.xl_config import DomainConfig, load_config

PAGE = 4096
BAD = range(40, 44)
"""Pages of the disk that cannot be read or written."""


def faulty(scene: Scene, faults: str) -> DomainConfig:
    """Return a guest with a disk that has faults."""
    scene.guest()
    file = scene.directory / "guest.cfg"
    file.write_text(file.read_text().replace("format=raw,", f"format=raw,faults={faults},", 1))
    return load_config(file)


def request(kind: int, cookie: int, page: int, data: bytes = b"", size: int = PAGE) -> bytes:
    head = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, kind, cookie.to_bytes(8), page * PAGE, size)
    return head + data


def answers(raw: RawClient, reads: dict[int, int], count: int, *, structured: bool) -> dict[int, tuple[int, bytes]]:
    """Read so many answers; `reads` has the sizes of those requests that read. Returns error and data by cookie."""
    found: dict[int, tuple[int, bytes]] = {}
    for _ in range(count):
        magic = int.from_bytes(raw.read(4))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            error, number = int.from_bytes(raw.read(4)), int.from_bytes(raw.read(8))
            data = b"" if error or number not in reads else raw.read(reads[number])
            assert not (structured and number in reads)
        else:
            assert magic == wire.STRUCTURED_REPLY_MAGIC
            raw.read(2)
            kind, number, length = int.from_bytes(raw.read(2)), int.from_bytes(raw.read(8)), int.from_bytes(raw.read(4))
            payload = raw.read(length)
            assert number in reads
            error = int.from_bytes(payload[:4]) if kind == wire.CHUNK_ERROR else 0
            data = b"" if error else payload[8:]
        assert number not in found
        found[number] = error, data
    return found


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("kind", [wire.CMD_READ, wire.CMD_WRITE])
def test_some_of_a_batch_fail_and_the_next_one_does_not_hear_of_it(scene: Scene, kind: int, structured: bool) -> None:
    rng = random.Random(1)
    old = rng.randbytes(64 * PAGE)
    scene.make_image(16 << 20, old)
    pages = list(range(34, 50))
    fresh = {page: rng.randbytes(PAGE) for page in range(64)}

    def ask(raw: RawClient, pages: list[int]) -> dict[int, tuple[int, bytes]]:
        raw.send(b"".join(request(kind, page, page, fresh[page] if kind == wire.CMD_WRITE else b"") for page in pages))
        reads = {page: PAGE for page in pages if kind == wire.CMD_READ}
        return answers(raw, reads, len(pages), structured=structured)

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello(structured=structured)
            for _ in range(3):
                for page, (error, data) in ask(raw, pages).items():
                    assert error == (wire.NBD_EIO if page in BAD else 0)
                    if kind == wire.CMD_READ and not error:
                        assert data == old[page * PAGE : (page + 1) * PAGE]
                assert all(not error for error, _ in ask(raw, list(range(16))).values())

    scene.serve(client, faulty(scene, f"bad:{BAD.start * 8}-{BAD.stop * 8 - 1}"))
    if kind == wire.CMD_WRITE:
        for page in (*range(16), *pages):
            wanted = old[page * PAGE : (page + 1) * PAGE] if page in BAD else fresh[page]
            assert scene.image.read_bytes()[page * PAGE : (page + 1) * PAGE] == wanted


def test_a_failure_that_nobody_hears_of_is_not_the_next_clients(scene: Scene) -> None:
    """The first client is hung up on before its requests have failed; the second one's take the same buffers."""

    def client() -> None:
        for _ in range(3):
            with RawClient(scene.path) as raw:
                raw.hello()
                # (At one go, and less than a batch: else the server would answer before it looks at the rest.)
                words = [request(wire.CMD_WRITE, n, BAD.start + n % 4, bytes(PAGE)) for n in range(12)]
                raw.send(b"".join(words) + b"nonsense" * 4)
                assert raw.is_hung_up_on()
            with RawClient(scene.path) as raw:
                raw.hello()
                for turn in range(4):
                    # Mixed, so that each is answered by itself, and of one kind.
                    kinds = [wire.CMD_READ if (n + turn) % 2 or turn == 3 else wire.CMD_WRITE for n in range(32)]
                    words = [
                        request(kind, n, n, b"w" * PAGE if kind == wire.CMD_WRITE else b"")
                        for n, kind in enumerate(kinds)
                    ]
                    raw.send(b"".join(words))
                    reads = {n: PAGE for n, kind in enumerate(kinds) if kind == wire.CMD_READ}
                    found = answers(raw, reads, 32, structured=False)
                    assert all(not error for error, _ in found.values())

    scene.serve(client, faulty(scene, f"bad:{BAD.start * 8}-{BAD.stop * 8 - 1};slow:30"), time="real")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_several_clients_at_once(scene: Scene, seed: int, clock: str) -> None:
    """Each has pages of its own, keeps up to 40 requests under way, and sees what it has written, and every failure."""
    scene.make_image(16 << 20)
    clients, rounds = 3, 12
    failures: list[BaseException] = []

    def live(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        structured = rng.random() < 0.5
        first = 64 + 256 * number
        model: dict[int, bytes] = {}
        try:
            with RawClient(scene.path) as raw:
                raw.hello(structured=structured)
                cookie = 0
                for _ in range(rounds):
                    words, reads, expected = [], {}, {}
                    mixed = rng.random() < 0.5
                    kind = rng.choice([wire.CMD_READ, wire.CMD_WRITE])
                    pages = rng.sample(range(first, first + 256), rng.randrange(1, 40))
                    if rng.random() < 0.3:
                        pages[rng.randrange(len(pages))] = rng.choice(BAD)
                    for page in pages:
                        cookie += 1
                        kind = rng.choice([wire.CMD_READ, wire.CMD_WRITE]) if mixed else kind
                        size = rng.choice([512, 1024, PAGE]) if mixed else PAGE
                        error = wire.NBD_EIO if page in BAD else 0
                        if kind == wire.CMD_READ:
                            reads[cookie] = size
                            expected[cookie] = error, b"" if error else model.get(page, bytes(PAGE))[:size]
                            words.append(request(kind, cookie, page, size=size))
                        else:
                            data = rng.randbytes(size)
                            expected[cookie] = error, b""
                            if not error:
                                model[page] = data + model.get(page, bytes(PAGE))[size:]
                            words.append(request(kind, cookie, page, data, size))
                    raw.send(b"".join(words))
                    assert answers(raw, reads, len(pages), structured=structured) == expected
        except BaseException as error:
            failures.append(error)

    def client() -> None:
        threads = [threading.Thread(target=live, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    scene.serve(client, faulty(scene, f"bad:{BAD.start * 8}-{BAD.stop * 8 - 1}"), time=clock)
    assert failures == []
