"""With numpy and without it: the same frames, the same answers, the same trace."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_net_host import HEAD

import backends.net.express
from guest_kernel import vectors
from guest_kernel.net.page_rows import PAGE_SIZE, PageRows, leading
from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.xl_config import load_config

np = pytest.importorskip("numpy")

SENDER = """
    from guest_kernel.net.offload import BLANK, NONE
    own = self.device.mac
    peers = [bytes([0, 0x16, 0x3E, 0, 0, n]) for n in (2, 3)]
    length = (60, 1500, 61, 4096, 14)
    frames = []
    for n in range(9000):
        # Runs of all lengths of frames that are alike, to one peer and the other; some nearly alike.
        batch = n // (4, 20, 50)[n // 3000]
        frame = peers[batch % 2] + own + KIND + n.to_bytes(4, "big")
        frames.append(frame[:14] if length[batch % 5] == 14 else frame.ljust(length[batch % 5] + (n % 500 == 0), b"y"))
    heard = set()
    self.device.received = lambda frame, validated: heard.add(frame[6:12])
    while len(heard) < 2:
        await self.sleep(0.001)
    sent = 0
    while sent < len(frames):
        await self.device.wait_for_room()
        sent += self.device.transmit_many(frames[sent : sent + (256 if sent % 3 else 100)])
        if sent % 5 == 0:
            self.device.transmit(peers[0] + own + KIND + b"blank" * 20, BLANK if sent % 2 else NONE)
    for peer in peers:
        await self.sleep(0.01)
        await self.device.wait_for_room()
        self.device.transmit((peer + own + b"\\x88\\xb6").ljust(60, b"."))
    await self.sleep(0.1)
    self.print("sent", sent)
"""
RECEIVER = """
    import hashlib
    from guest_kernel.threads import Event
    stop = Event()
    seen = hashlib.sha256()
    count = 0
    def received(frame, validated):
        nonlocal count
        count += 1
        seen.update(frame + bytes([validated]))
        if frame[12:14] == b"\\x88\\xb6":
            stop.set()
    self.device.received = received
    self.device.transmit((bytes([0, 0x16, 0x3E, 0, 0, 1]) + self.device.mac + KIND).ljust(60, b"!"))
    await stop.wait()
    self.print(self.name, count, seen.hexdigest(), self.device.counters.rx_bytes)
"""


def run(directory: Path, name: str, words: str, extra: str) -> tuple[bytes, str]:
    """Run a sender and two receivers; returns the trace and what was printed. `words`, `extra`: of configurations."""
    lines: list[str] = []
    configs = []
    for number, body in enumerate((SENDER, RECEIVER, RECEIVER), 1):
        guest = "abc"[number - 1]
        (directory / f"{guest}.py").write_text(HEAD + textwrap.indent(textwrap.dedent(body), " " * 8))
        (directory / f"{guest}.cfg").write_text(
            f'name = "{guest}"\nmemory = 16\nkernel = "{guest}.py"\nextra = "{extra}"\n'
            f'vif = ["mac=00:16:3e:00:00:{number:02x},bridge=xenbr0{words}"]\n'
        )
        configs.append(load_config(directory / f"{guest}.cfg"))
    trace = directory / f"{name}.trace"
    host = Host(consoles=ConsoleLog(lines.append), trace_file=trace)
    result = trio.run(host.run, configs)
    assert result.exit_code == 0, lines
    assert not host.leaks()
    return trace.read_bytes(), "".join(lines)


@pytest.mark.parametrize(
    ("words", "extra"), [("", ""), (",mtu=1500", "xen_netfront.max_queues=3"), (",rate=80Mb/s", "")]
)
def test_a_guest_sees_no_difference_and_neither_does_a_trace(
    words: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    real = backends.net.express.Express._take_burst

    def take_burst(self: backends.net.express.Express, *rest: object) -> int:
        moved = real(self, *rest)  # type: ignore[arg-type]
        counts["batches"] += moved > 0
        counts["frames"] += moved
        return moved

    monkeypatch.setattr(backends.net.express.Express, "_take_burst", take_burst)
    fast = run(tmp_path, "fast", words, extra)
    # Who has a limit pays for each frame.
    assert (counts["batches"] > 10) == ("rate" not in words), counts
    assert (counts["frames"] > 500) == ("rate" not in words), counts
    before = counts.total()
    monkeypatch.setattr(vectors, "disabled", True)
    plain = run(tmp_path, "plain", words, extra)
    assert counts.total() == before
    assert "sent 9000" in plain[1]
    assert fast[1] == plain[1]
    assert fast[0] == plain[0]


class Pieces:
    """Pages of a memory in which a page's address is its place; every fifth page begins a new piece."""

    def __init__(self, pages: int) -> None:
        self.memory = memoryview(bytearray(pages * PAGE_SIZE))

    def pieces(self, addresses: list[int], writable: bool) -> list[memoryview]:
        views: list[memoryview] = []
        end = -1
        for va in addresses:
            if va != end or va % (5 * PAGE_SIZE) == 0:
                start = va
                views.append(self.memory[va : va + PAGE_SIZE])
            else:
                views[-1] = self.memory[start : va + PAGE_SIZE]
            end = va + PAGE_SIZE
        return views if writable else [view.toreadonly() for view in views]


def test_rows_over_several_pieces() -> None:
    mm = Pieces(40)
    pages = [(100 + 3 * n, 4096 * (39 - n), n % 4 != 0) for n in range(30)]
    rows = PageRows(mm, pages)  # type: ignore[arg-type]
    found = rows.find(np.array([key for key, _, _ in pages], np.uint32))
    assert sorted(found) == list(range(30))
    assert rows.find(np.array([0, 99, 101, 188, 10**6, 2**32 - 1], np.uint32)).tolist() == [-1] * 6
    writable = rows.find_writable(np.array([key for key, _, _ in pages], np.uint32))
    assert [row >= 0 for row in writable] == [flag for _, _, flag in pages]
    for _, va, _ in pages:
        mm.memory[va : va + 700] = (va >> 12).to_bytes(2, "little") * 350
    place = rows.place(found)
    assert [item[:2] for item in place.tolist(700)] == [(va >> 12).to_bytes(2, "little") for _, va, _ in pages]
    assert rows.place(found[3:4]).tolist(5) == [bytes([36, 0, 36, 0, 36])]
    good = rows.place(found[writable >= 0])
    good.write(np.frombuffer(b"".join(bytes([n]) * 9 for n in range(good.count)), "V9"))
    places = [va for _, va, flag in pages if flag]
    assert [mm.memory[va] for va in places] == list(range(good.count))
    assert [bytes(mm.memory[va + 7 : va + 10]) for va in places] == [bytes([n, n, 0]) for n in range(len(places))]
    with pytest.raises(ValueError, match="read-only"):
        rows.place(found[writable < 0]).write(np.frombuffer(bytes(9 * 8), "V9"))


KEYS = st.lists(st.integers(0, 39), min_size=1, max_size=60)
STRETCHES = st.lists(st.tuples(st.integers(0, 39), st.integers(1, 20)), min_size=1, max_size=6).map(
    lambda parts: [(start + n) % 40 for start, count in parts for n in range(count)]
)


@given(KEYS | STRETCHES, KEYS | STRETCHES, st.data())
def test_places_move_what_loops_would(sources: list[int], targets: list[int], data: st.DataObject) -> None:
    mm, other = Pieces(40), Pieces(40)
    for number in range(40):
        mm.memory[number * PAGE_SIZE : number * PAGE_SIZE + 8] = (number + 1).to_bytes(8, "little")
    pages = [(number, number * PAGE_SIZE, True) for number in range(40)]
    count = data.draw(st.integers(1, min(len(sources), len(targets))))
    places = []
    for memory, keys in ((mm, sources), (other, targets)):
        rows = PageRows(memory, pages)  # type: ignore[arg-type]
        place = rows.place(rows.find(np.array(keys, np.uint32))).first(count)
        assert place.count == count
        places.append(place)
    source, target = places
    frames = [(key + 1).to_bytes(8, "little") for key in sources[:count]]
    assert source.tolist(8) == frames
    assert source.tobytes(8) == b"".join(frames)
    expected = dict(zip(targets, frames, strict=False))
    target.copy_from(source, 8)
    for key in range(40):
        assert other.memory[key * PAGE_SIZE : key * PAGE_SIZE + 8] == expected.get(key, bytes(8))
    target.fill([frame[::-1] for frame in frames], 8)
    for key in range(40):
        assert other.memory[key * PAGE_SIZE : key * PAGE_SIZE + 8] == expected.get(key, bytes(8))[::-1]


def test_leading() -> None:
    for text in ("", "1", "0", "111", "1101", "0111", "1110"):
        assert leading(np.array([char == "1" for char in text], bool)) == len(text.partition("0")[0])
