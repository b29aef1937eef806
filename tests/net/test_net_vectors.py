"""With numpy and without it: the same frames, the same answers, the same trace."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

import pytest
import trio
from test_net_host import HEAD

import backends.net.queue
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


def run(directory: Path, name: str) -> tuple[bytes, str]:
    """Run a sender and two receivers; returns the trace and what was printed."""
    lines: list[str] = []
    configs = []
    for number, body in enumerate((SENDER, RECEIVER, RECEIVER), 1):
        guest = "abc"[number - 1]
        (directory / f"{guest}.py").write_text(HEAD + textwrap.indent(textwrap.dedent(body), " " * 8))
        (directory / f"{guest}.cfg").write_text(
            f'name = "{guest}"\nmemory = 16\nkernel = "{guest}.py"\n'
            f'vif = ["mac=00:16:3e:00:00:{number:02x},bridge=xenbr0"]\n'
        )
        configs.append(load_config(directory / f"{guest}.cfg"))
    trace = directory / f"{name}.trace"
    host = Host(consoles=ConsoleLog(lines.append), trace_file=trace)
    result = trio.run(host.run, configs)
    assert result.exit_code == 0, lines
    assert not host.leaks()
    return trace.read_bytes(), "".join(lines)


def test_a_guest_sees_no_difference_and_neither_does_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    real = backends.net.queue.Queue._express_block

    def express_block(self: backends.net.queue.Queue, *rest: object) -> int:
        moved = real(self, *rest)  # type: ignore[arg-type]
        counts["batches"] += moved > 0
        counts["frames"] += moved
        return moved

    monkeypatch.setattr(backends.net.queue.Queue, "_express_block", express_block)
    fast = run(tmp_path, "fast")
    assert counts["batches"] > 20, counts
    assert counts["frames"] > 1000, counts
    before = counts.total()
    monkeypatch.setattr(vectors, "disabled", True)
    plain = run(tmp_path, "plain")
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
    data = rows.read(found, 700)
    assert [item[:2] for item in data.tolist()] == [(va >> 12).to_bytes(2, "little") for _, va, _ in pages]
    assert rows.read(found[3:4], 5).tolist() == [bytes([36, 0, 36, 0, 36])]
    good = found[writable >= 0]
    rows.write(good, np.frombuffer(b"".join(bytes([n]) * 9 for n in range(len(good))), "V9"))
    places = [va for _, va, flag in pages if flag]
    assert [mm.memory[va] for va in places] == list(range(len(good)))
    assert [bytes(mm.memory[va + 7 : va + 10]) for va in places] == [bytes([n, n, 0]) for n in range(len(places))]
    with pytest.raises(ValueError, match="read-only"):
        rows.write(found[writable < 0], np.frombuffer(bytes(9 * 8), "V9"))


def test_leading() -> None:
    for text in ("", "1", "0", "111", "1101", "0111", "1110"):
        assert leading(np.array([char == "1" for char in text], bool)) == len(text.partition("0")[0])
