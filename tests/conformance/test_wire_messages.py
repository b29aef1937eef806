"""The wire, message by message: the session in the docs, every operation, and nonsense without end."""

from __future__ import annotations

import errno
import re
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.kit.check import CHECKS, Outcome
from conformance.kit.runner import Result, run_check
from conformance.net.frames import udp
from conformance.net_front.remote import NetErrand
from conformance.suites import SUITES
from conformance.wire import protocol as wire
from conformance.wire.agent import STORE_REQUESTS
from conformance.wire.protocol import News, Type
from conformance.wire.subject import Patience, WireSubject
from guest_kernel.net.offload import gso
from hypervisor.abi.grant_table import GNTST_bad_gntref, GNTST_bad_handle, GNTST_bad_page
from hypervisor.abi.io import xs_wire as xs
from tests.conformance.wire_client import Client, HungUp

DOCS = Path(__file__).resolve().parents[2] / "docs/conformance-wire.md"
PATIENCE = Patience(silence=10, check=60)


def play(act: Callable[[Path], None], check: str = "BLKIF-BACKEND-001") -> Result:
    """Be the process of a check, in a thread; return what the kit makes of it. Raises what `act` raises."""
    failures: list[BaseException] = []
    world = SUITES[CHECKS[check].suite].wire
    assert world is not None

    def work(path: Path) -> None:
        try:
            act(path)
        except HungUp:
            pass
        except BaseException as failure:
            failures.append(failure)

    with tempfile.TemporaryDirectory() as name, WireSubject(Path(name, "socket"), (), PATIENCE) as subject:
        thread = threading.Thread(target=work, args=(subject.path,))
        thread.start()
        result = run_check(CHECKS[check], world(subject))
        thread.join()
    for failure in failures:
        raise failure
    return result


@contextmanager
def client(path: Path) -> Iterator[Client]:
    made = Client(path)
    try:
        yield made
    finally:
        made.close()


def test_the_session_in_the_docs() -> None:
    """Byte for byte."""
    [block] = re.findall(r"```text\n(host .*?)```", DOCS.read_text(), re.DOTALL)
    messages: list[tuple[str, bytes]] = []
    for line in block.splitlines():
        who, data = line[:4].strip(), bytes.fromhex(line[4:])
        if who:
            messages.append((who, data))
        else:
            messages[-1] = (messages[-1][0], messages[-1][1] + data)
    assert len(messages) == 29

    def act(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(path))
            for who, data in messages:
                if who == "proc":
                    stream.sendall(data)
                    continue
                heard = b""
                while len(heard) < len(data):
                    heard += stream.recv(len(data) - len(heard))
                assert heard == data

    result = play(act)
    assert (result.outcome, result.message) == (
        Outcome.failure,
        "The process hangs up before the check is over.",
    )


def test_pages_grants_and_copies() -> None:
    """A domain's own pages: granted to itself, mapped, copied, taken back."""

    def act(path: Path) -> None:
        with client(path) as one:
            domid = int(one.store(xs.XS_READ, "domid")[1])
            first, second = struct.unpack("<2I", one.ok(Type.alloc, wire.U32.pack(2)))
            one.page(first)[:5] = b"hello"
            ref = one.number(Type.grant, domid | wire.GRANT_READONLY << 16, first)
            assert one.ask(Type.free, wire.U32.pack(first))[0] == -errno.EBUSY
            # Read-only: the mapping that may write is refused, the other is the same frame.
            for flags, wanted in ((0, False), (wire.MAP_READONLY, True)):
                payload = wire.MAP.pack(domid, flags, 1) + wire.U32.pack(ref)
                status, handle, page = wire.MAPPED.unpack(one.ok(Type.map, payload))
                assert (status == 0) is wanted
            assert page == first
            assert one.ask(Type.end_access, wire.U32.pack(ref))[0] == -errno.EBUSY
            copies = (
                wire.COPY.pack(ref, second, domid, 0, 0, 100, 5, wire.COPY_SOURCE_GREF, 0),
                wire.COPY.pack(99, second, 0, 0, 0, 0, 5, 0, 0),
                wire.COPY.pack(second, ref, 0, domid, 0, 0, 5, wire.COPY_DEST_GREF, 0),
            )
            statuses = struct.unpack("<3i", one.ok(Type.copy, b"".join(copies)))
            assert statuses[:2] == (0, GNTST_bad_page)
            assert statuses[2] < 0
            assert bytes(one.page(second)[100:105]) == b"hello"
            assert struct.unpack("<2i", one.ok(Type.unmap, struct.pack("<2I", handle, handle))) == (0, GNTST_bad_handle)
            one.ok(Type.end_access, wire.U32.pack(ref))
            assert one.ask(Type.end_access, wire.U32.pack(ref))[0] == -errno.EINVAL
            for page in (first, second):
                one.ok(Type.free, wire.U32.pack(page))
            assert one.ask(Type.free, wire.U32.pack(first))[0] == -errno.EINVAL
            assert one.ask(Type.grant, wire.GRANT.pack(domid, 0, first))[0] == -errno.EINVAL
            assert one.ask(Type.alloc, wire.U32.pack(513))[0] == -errno.EINVAL
            # More than the domain has: all or nothing, again and again.
            got = 0
            while one.ask(Type.alloc, wire.U32.pack(512))[0] == 0:
                got += 512
            assert 2048 <= got < 4096
            one.number(Type.alloc, 1)
            status, handle, _ = wire.MAPPED.unpack(one.ok(Type.map, wire.MAP.pack(domid, 0, 1) + wire.U32.pack(5000)))
            assert (status, handle) == (GNTST_bad_gntref, 0)

    assert play(act).message == "The process hangs up before the check is over."


def test_ports_time_and_the_store() -> None:
    def act(path: Path) -> None:
        with client(path) as one:
            domid = int(one.store(xs.XS_READ, "domid")[1])
            port = one.number(Type.alloc_unbound, domid)
            other = one.number(Type.bind_interdomain, domid, port)
            assert one.wait() == [(News.event, other)]
            for _ in range(3):
                one.ok(Type.send, wire.U32.pack(other))
            assert one.wait() == [(News.event, port)]
            assert one.wait(0) == []
            before = struct.unpack("<Q", one.ok(Type.time))[0]
            assert one.wait(5_000_000) == []
            assert struct.unpack("<Q", one.ok(Type.time))[0] - before >= 5_000_000
            for bad in (0, 1, 2, 900, 1 << 31):
                # Among them those of the domain's own console and store.
                assert one.ask(Type.close, wire.U32.pack(bad))[0] == -errno.EINVAL
                assert one.ask(Type.send, wire.U32.pack(bad))[0] == -errno.EINVAL
            assert one.ask(Type.bind_interdomain, wire.BIND.pack(domid, 900))[0] == -errno.EINVAL
            assert one.ask(Type.bind_interdomain, wire.BIND.pack(1 << 16, 1))[0] == -errno.EINVAL
            one.ok(Type.close, wire.U32.pack(port))
            assert one.ask(Type.close, wire.U32.pack(port))[0] == -errno.EINVAL
            assert one.store(xs.XS_WRITE, "data/x", tail="1")[0] == 0
            assert one.store(xs.XS_WATCH, "data", "here")[0] == 0
            assert one.store(xs.XS_WATCH, "data", "here")[0] == -errno.EEXIST
            assert one.wait() == [(News.watch, ("data", "here"))]
            status, number = one.store(xs.XS_TRANSACTION_START, "")
            assert status == 0
            tx_id = int(number[:-1])
            assert one.store(xs.XS_WRITE, "data/x", tail="2", tx_id=tx_id)[0] == 0
            assert one.store(xs.XS_READ, "data/x") == (0, b"1")
            assert one.store(xs.XS_TRANSACTION_END, "T", tx_id=tx_id)[0] == 0
            assert one.store(xs.XS_READ, "data/x") == (0, b"2")
            assert one.wait() == [(News.watch, ("data/x", "here"))]
            assert one.store(xs.XS_UNWATCH, "data", "here")[0] == 0
            assert one.store(xs.XS_UNWATCH, "data", "here")[0] == -errno.ENOENT
            assert one.store(xs.XS_WRITE, "/local/domain/0/x", tail="1")[0] == -errno.EACCES
            assert one.store(xs.XS_RESET_WATCHES, "")[0] == -errno.ENOSYS
            assert one.store(xs.XS_WRITE, "data/y", tail="x" * 5000)[0] == -errno.E2BIG
            assert one.ask(Type.wait, b"1234567")[0] == -errno.EINVAL
            for number in range(100):
                assert one.store(xs.XS_WATCH, "data", f"{number}")[0] == 0
            assert one.store(xs.XS_WATCH, "data", "more")[0] == -errno.E2BIG
            one.ok(Type.log, b"a line\xff")

    assert play(act).message == "The process hangs up before the check is over."


def test_a_page_that_is_touched_while_nothing_is_there() -> None:
    """Reading is enough; and it is said before anything else that the check has found."""

    def act(path: Path) -> None:
        with client(path) as one:
            one.ok(Type.wait, wire.WAIT.pack(1))
            assert one.page(100)[0] == 0
            one.wait()

    message = play(act).message
    assert message == "The process reads or writes page 100 of its window, where nothing is mapped (now)."


NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from([0x7FF0, 0xFFFF, 1 << 16, 0xFFFF_FFFF]))
WORDS = st.lists(NUMBERS, max_size=6).map(lambda words: struct.pack(f"<{len(words)}I", *words))
PATHS = st.sampled_from(
    ["domid", "backend/vbd", "data", "data/x", "", "/", "//", "@releaseDomain", "a\xe9", "x" * 4000]
)
STORE = st.builds(
    lambda kind, tx_id, words, tail: wire.STORE.pack(kind, tx_id) + "\0".join(words).encode("latin-1") + tail,
    st.one_of(st.sampled_from(sorted(STORE_REQUESTS)), NUMBERS),
    NUMBERS,
    st.lists(PATHS, max_size=3),
    st.binary(max_size=4),
)
MAPS = st.builds(
    lambda domid, flags, refs: wire.MAP.pack(domid, flags, len(refs)) + struct.pack(f"<{len(refs)}I", *refs),
    st.sampled_from([0, 1, 2, 0x7FF0]),
    st.integers(0, 2),
    st.lists(NUMBERS, max_size=5),
)
COPIES = st.lists(
    st.tuples(NUMBERS, NUMBERS, *[st.sampled_from([0, 1, 2, 100, 4095, 0xFFFF])] * 5, st.integers(0, 4), st.just(0)),
    max_size=3,
).map(lambda rows: b"".join(wire.COPY.pack(*row) for row in rows))
MESSAGES = st.one_of(
    st.tuples(st.integers(0, 20), WORDS),
    st.tuples(st.integers(0, 20), st.binary(max_size=64)),
    st.tuples(st.just(Type.store), STORE),
    st.tuples(st.just(Type.map), MAPS),
    st.tuples(st.just(Type.copy), COPIES),
    st.tuples(st.just(Type.alloc), st.integers(0, 3).map(wire.U32.pack)),
    st.tuples(st.just(Type.grant), st.builds(wire.GRANT.pack, st.just(1), st.integers(0, 1), st.integers(0, 4))),
    st.tuples(st.just(Type.alloc_unbound), st.just(wire.U32.pack(1))),
    st.tuples(st.just(Type.wait), st.sampled_from([0, 1, 10_000, wire.FOREVER]).map(wire.WAIT.pack)),
)


@settings(max_examples=60)
@given(st.lists(MESSAGES, max_size=40))
def test_any_messages_at_all(messages: list[tuple[int, bytes]]) -> None:
    """Each has its answer, and the check an outcome that is the process's: the kit is never what is broken."""

    def act(path: Path) -> None:
        with client(path) as one:
            for kind, payload in messages:
                status, answer = one.ask(kind, payload)
                assert status <= 0
                assert not status or not answer
            one.wait()

    result = play(act)
    assert result.outcome is Outcome.failure, result
    assert "\n" not in result.message


@settings(max_examples=25)
@given(st.binary(max_size=200))
def test_any_bytes_at_all(data: bytes) -> None:
    def act(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(path))
            stream.sendall(data)

    result = play(act)
    assert result.outcome is Outcome.failure, result


@pytest.mark.parametrize("check", ["BLKIF-BACKEND-008", "BLKIF-BACKEND-020"])
def test_a_process_that_dies_with_pages_mapped(check: str) -> None:
    """What it held is the host's again: the leak check of the test sees that."""

    def act(path: Path) -> None:
        with client(path) as one:
            one.store(xs.XS_WATCH, "backend/vbd", "t")
            while one.store(xs.XS_DIRECTORY, "backend/vbd")[0]:
                one.wait()
            home = f"backend/vbd/{one.store(xs.XS_DIRECTORY, 'backend/vbd')[1][:-1].decode()}/51712"
            one.store(xs.XS_WRITE, f"{home}/state", tail="2")
            front = one.store(xs.XS_READ, f"{home}/frontend")[1].decode()
            domid = int(one.store(xs.XS_READ, f"{home}/frontend-id")[1])
            one.store(xs.XS_WATCH, f"{front}/state", "f")
            while one.store(xs.XS_READ, f"{front}/state")[1] != b"3":
                one.wait()
            ref = int(one.store(xs.XS_READ, f"{front}/ring-ref")[1])
            status, _, page = wire.MAPPED.unpack(one.ok(Type.map, wire.MAP.pack(domid, 0, 1) + wire.U32.pack(ref)))
            assert status == 0
            port = int(one.store(xs.XS_READ, f"{front}/event-channel")[1])
            one.number(Type.bind_interdomain, domid, port)
            one.page(page)[64:] = b"\xff" * 4032

    assert play(act, check).outcome is Outcome.failure


def test_a_network_frontend_hears_jobs_and_tells_of_frames() -> None:
    """NETIF-FRONTEND-003 wants nothing but a sign of life of it."""
    heard: list[int] = []

    def act(path: Path) -> None:
        with client(path) as one:
            assert one.hello[3] == wire.ROLES["frontend"]
            assert one.hello[4].rstrip(b"\0") == b"netif-frontend"
            assert one.ask(Type.frame, bytes(wire.MAX_FRAME)) == (0, b"")
            assert one.ask(Type.frame, bytes(wire.MAX_FRAME + 1)) == (-errno.EINVAL, b"")
            while True:
                for kind, news in one.wait():
                    assert kind == News.job
                    (number, what, *_), data = news
                    heard.append(what)
                    assert data == b""
                    one.ok(Type.done, wire.DONE.pack(number, 0))

    assert play(act, "NETIF-FRONTEND-003").outcome is Outcome.success
    assert heard == [wire.Job.nothing]


def test_a_backend_has_no_frames_to_tell_of() -> None:
    def act(path: Path) -> None:
        with client(path) as one:
            assert one.ask(Type.frame, b"frame") == (-errno.EINVAL, b"")

    play(act)


def test_how_a_frame_is_asked_for() -> None:
    errand = NetErrand("send", udp(20, blank=True), gso(1000))
    packed = errand.packed(7)
    assert wire.JOB.unpack_from(packed) == (7, wire.Job.send, 0, 0, 0)
    assert wire.SEND.unpack_from(packed, wire.JOB.size) == (34, 6, 1000, 1)
    assert packed[wire.JOB.size + wire.SEND.size :] == udp(20, blank=True)
    assert NetErrand("listen").packed(8) == wire.JOB.pack(8, wire.Job.listen, 0, 0, 0)
