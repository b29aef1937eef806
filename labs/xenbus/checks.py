"""The checks of lab 9. The submission's client talks to a xenstored; the other end of its device is the check."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from backends.xenstored.server import Server
from guest_kernel.xenbus.wire import parse_all
from labs.kit.check import Checks, Work, expect, expect_equal, miss
from toolstack.xenstore.service import NoXen

CHECKS = Checks()
check = CHECKS.check

WIRE = 0xFFFF_FFFF
XS_WRITE, XS_TRANSACTION_END = 11, 7
FRONT, BACK = "/local/domain/1/device/vbd/51712", "/local/domain/0/backend/vbd/1/51712"


class Store:
    """A xenstored, and what the check does there itself."""

    def __init__(self, rng: random.Random) -> None:
        self.server = Server(NoXen())
        self.rng = rng
        self._own = self.server.connect()

    def ask(self, kind: int, payload: bytes) -> bytes:
        """Make a request of the check's own; return its reply. (Its failure is an error of the check.)"""
        self.server.receive(self._own, struct.pack("<4I", kind, 1, 0, len(payload)) + payload)
        replies = parse_all(self._own.take(1 << 20))
        return list(replies)[-1].payload

    def write(self, path: str, value: str) -> None:
        """Write a node."""
        assert self.ask(XS_WRITE, path.encode() + b"\0" + value.encode()) == b"OK\0"

    def write_all(self, paths: list[str]) -> None:
        """Write some nodes."""
        for path in paths:
            self.write(path, "1")

    def read(self, path: str) -> str:
        """Return a node's value, or an errno's name."""
        return self.ask(2, path.encode() + b"\0").decode().rstrip("\0")

    def remove(self, path: str) -> None:
        """Remove a node with all that is below."""
        self.ask(13, path.encode() + b"\0")


class Pipe:
    """The connection of a submission: replies come in pieces of any size."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.connection = store.server.connect()
        self.sent: list[tuple[int, int, bytes]] = []
        self.before: Callable[[int], None] = lambda kind: None
        """Called before a request of this kind is served: what somebody else does in that moment."""
        self.after: Callable[[int], None] = lambda kind: None
        self._buffer = b""

    def send(self, data: bytes) -> None:
        """Send bytes to the store."""
        self._buffer += bytes(data)
        while len(self._buffer) >= 16:
            kind, _, tx_id, length = struct.unpack_from("<4I", self._buffer)
            if len(self._buffer) < 16 + length:
                return
            message, self._buffer = self._buffer[: 16 + length], self._buffer[16 + length :]
            self.sent.append((kind, tx_id, message[16:]))
            self.before(kind)
            self.store.server.receive(self.connection, message)
            self.after(kind)

    def receive(self) -> bytes:
        """Return some bytes from the store. Raises Miss if none will ever come."""
        data = self.connection.take(self.store.rng.choice([1, 3, 7, 15, 16, 17, 40, 1000]))
        if not data:
            miss("the client waits for a message that never comes: it has all replies and events already")
        return bytes(data)


def client(work: Work) -> tuple[Any, Store, Pipe, Any]:
    """Return the submission's module, a store, a connection and the submission's client on it."""
    lab = work.load("xenbus")
    store = Store(work.rng)
    pipe = Pipe(store)
    return lab, store, pipe, lab.Client(pipe)


def refusal(lab: Any, action: Callable[[], object]) -> str:
    """Return the name of the StoreError that an action raises; "no StoreError"."""
    try:
        action()
    except lab.StoreError as error:
        return str(error.name)
    return "no StoreError"


@check(10, "ring")
def ring(work: Work) -> None:
    """Bytes go round the ring in both directions, also where the indices wrap."""
    lab = work.load("xenbus")
    for start in (0, 1000, (1 << 32) - work.rng.randrange(1, 900)):
        page = memoryview(bytearray(4096))
        for at in (2048, 2052, 2056, 2060):
            struct.pack_into("<I", page, at, start)
        data = work.rng.randbytes(1500)
        taken = lab.ring_put(page, data)
        expect_equal(taken, 1024, "what ring_put returns for 1500 bytes and an empty ring")
        expect_equal(lab.ring_put(page, b"x"), 0, "what ring_put returns for a full ring")
        expect_equal(struct.unpack_from("<I", page, 2052)[0], (start + 1024) & WIRE, "req_prod afterwards")
        found = bytes(page[(start + number) % 1024] for number in range(1024))
        expect(found == data[:1024], "the ring holds other bytes than ring_put was given")
        answer = work.rng.randbytes(work.rng.randrange(500, 1024))
        for number, byte in enumerate(answer):
            page[1024 + (start + number) % 1024] = byte
        struct.pack_into("<I", page, 2060, (start + len(answer)) & WIRE)
        expect(lab.ring_take(page) == answer, "ring_take returns other bytes than the ring holds")
        expect_equal(struct.unpack_from("<I", page, 2056)[0], (start + len(answer)) & WIRE, "rsp_cons afterwards")
        struct.pack_into("<I", page, 2060, (start + 5000) & WIRE)
        try:
            lab.ring_take(page)
        except ValueError:
            continue
        miss("ring_take with rsp_prod 5000 bytes ahead raises no ValueError")


@check(10, "decoder")
def decoder(work: Work) -> None:
    """Messages are found in bytes that are cut anywhere."""
    lab = work.load("xenbus")
    messages = [
        (work.rng.randrange(20), number, work.rng.randrange(5), work.rng.randbytes(work.rng.choice([0, 1, 30, 4096])))
        for number in range(60)
    ]
    data = b"".join(struct.pack("<4I", *message[:3], len(message[3])) + message[3] for message in messages)
    made, found = lab.Decoder(), []
    while data:
        size = work.rng.choice([1, 5, 15, 16, 17, 100, 5000])
        found += [(kind, req, tx, bytes(payload)) for kind, req, tx, payload in made.feed(data[:size])]
        data = data[size:]
    expect_equal(len(found), len(messages), "the number of messages")
    expect(found == messages, "the messages are not those that were sent")


@check(15, "client")
def requests(work: Work) -> None:
    """Nodes are written, read and listed, and errors are raised."""
    lab, store, _pipe, made = client(work)
    name, value = f"/lab/{work.word()}", f"{work.word()} größer"
    made.write(name, value)
    expect_equal(store.ask(2, name.encode() + b"\0"), value.encode(), "the value in the store after write()")
    store.write(name, "")
    expect_equal(made.read(name), "", "read() of a node that is empty")
    store.write(name, "changed")
    expect_equal(made.read(name), "changed", "read()")
    expect_equal(made.directory(name), [], "directory() of a node without children")
    names = sorted({work.word() for _ in range(20)})
    for one in names:
        store.write(f"{name}/{one}", "1")
    expect_equal(sorted(made.directory(name)), names, "directory()")
    expect_equal(refusal(lab, lambda: made.read("/lab/nothing")), "ENOENT", "the error for a node that is not there")
    expect_equal(refusal(lab, lambda: made.write("no path!", "x")), "EINVAL", "the error for a path that is none")


@check(15, "events")
def events(work: Work) -> None:
    """Watch events are kept, in order, and are never taken for a reply."""
    _lab, store, pipe, made = client(work)
    token = work.word()
    made.watch("/lab/watched", token)
    made.directory("/")
    expect_equal(made.events, [("/lab/watched", token)], "the events after watch(): one comes at once")
    made.events.clear()
    wanted = []
    for number in range(10):
        names = [f"/lab/watched/{work.word()}-{number}-{at}" for at in range(work.rng.randrange(4))]
        pipe.before = lambda kind, names=names: store.write_all(names)  # type: ignore[misc]
        store.write("/lab/other", str(number))
        expect_equal(made.read("/lab/other"), str(number), "read() while events come in between")
        pipe.before = lambda kind: None
        wanted += [(one, token) for one in names]
    made.directory("/")
    expect_equal([tuple(event) for event in made.events], wanted, "the events")


@check(15, "transaction")
def transaction(work: Work) -> None:
    """A transaction is all or nothing, and begins anew if somebody else was there."""
    _lab, store, _pipe, made = client(work)
    store.write("/lab/counter", "0")
    conflicts = [work.rng.randrange(2, 5)]
    calls = [0]

    def work_in(tx: int) -> int:
        calls[0] += 1
        expect(tx != 0, "the transaction's number is 0")
        number = int(made.read("/lab/counter", tx))
        if conflicts[0]:
            conflicts[0] -= 1
            store.write("/lab/counter", str(number + 100))
        made.write("/lab/counter", str(number + 1), tx)
        made.write("/lab/seen", str(number), tx)
        return number + 1

    rounds = conflicts[0]
    result = made.transaction(work_in)
    expect_equal(result, 100 * rounds + 1, "what transaction() returns")
    expect_equal(store.read("/lab/counter"), str(100 * rounds + 1), "the counter in the store")
    expect_equal(calls[0], rounds + 1, f"how often the work was done, with {rounds} conflicts,")

    def fails(tx: int) -> None:
        made.write("/lab/counter", "wrong", tx)
        raise KeyError("the work fails")

    try:
        made.transaction(fails)
    except KeyError:
        pass
    else:
        miss("transaction() does not raise what its work raises")
    expect_equal(store.read("/lab/counter"), str(100 * rounds + 1), "the counter after work that failed")
    expect_equal(store.server.open_transactions, 0, "the number of transactions that are still open")


class Device:
    """A device: the submission is its frontend, the check its backend."""

    def __init__(self, work: Work) -> None:
        self.lab, self.store, self.pipe, made = client(work)
        self.store.write(f"{FRONT}/backend", BACK)
        self.store.write(f"{FRONT}/state", "1")
        self.store.write(f"{BACK}/state", "1")
        self.front = self.lab.Frontend(made, FRONT)
        self.written: list[str] = []
        """The states that the frontend has written, as anybody sees them."""
        self.pipe.after = self._look
        self.front.start()
        self.front.step()

    def _look(self, kind: int) -> None:
        if kind not in (XS_WRITE, XS_TRANSACTION_END):
            return
        state = self.store.read(f"{FRONT}/state")
        if kind == XS_WRITE and self.pipe.sent[-1][1]:
            return  # In a transaction nobody sees it.
        if self.written[-1:] != [state] or self.pipe.sent[-1][2].startswith(f"{FRONT}/state\0".encode()):
            self.written.append(state)
        if state == "3":
            for name in ("ring-ref", "event-channel"):
                there = self.store.read(f"{FRONT}/{name}")
                expect(there != "ENOENT", f"the backend sees the state Initialised, and no {name}")

    def says(self, state: object, times: int = 1) -> None:
        """Have the backend write a state; the watch fires, and perhaps once more."""
        self.store.write(f"{BACK}/state", str(state))
        for _ in range(times):
            self.front.step()

    @property
    def states(self) -> list[str]:
        """The states that were written, without the first one."""
        return [state for state in self.written if state != "1"]


@check(15, "handshake")
def handshake(work: Work) -> None:
    """The frontend publishes in one transaction, connects, and says each thing once."""
    device = Device(work)
    expect_equal(device.states, [], "the states written while the backend is Initialising")
    device.says(2, times=3)
    expect_equal(device.states, ["3"], "the states written by then (3 is Initialised)")
    expect_equal(device.store.read(f"{FRONT}/ring-ref"), "8", "ring-ref")
    expect_equal(device.store.read(f"{FRONT}/event-channel"), "5", "event-channel")
    sectors = work.rng.randrange(1, 1 << 40)
    device.store.write(f"{BACK}/sectors", str(sectors))
    device.says(4, times=3)
    expect_equal(device.states, ["3", "4"], "the states written by then (4 is Connected)")
    expect_equal(device.front.size, sectors, "the size that the frontend has learnt")
    device.says(5, times=2)
    device.says(6, times=2)
    expect_equal(device.states, ["3", "4", "6"], "the states written by then (6 is Closed)")
    expect_equal(device.front.closes, 1, "how often the frontend has given everything back")


@check(10, "closing")
def closing(work: Work) -> None:
    """The backend may close, or vanish, at any moment."""
    for reached in (1, 2, 4):
        for end in (5, 6, "gone"):
            device = Device(work)
            device.store.write(f"{BACK}/sectors", "100")
            for state in (2, 4):
                if state <= reached:
                    device.says(state)
            if end == "gone":
                device.store.remove(BACK)
                device.front.step()
                device.front.step()
            else:
                device.says(end, times=2)
            told = f"when the backend has come to {reached} and then is {end}"
            expect_equal(device.store.read(f"{FRONT}/state"), "6", f"{told}, the frontend's state")
            expect_equal(device.front.closes, 1, f"{told}, how often the frontend closes")


@check(10, "nonsense")
def nonsense(work: Work) -> None:
    """What the backend writes may be anything; the frontend does not fall over it."""
    for text in ("", "banana", "99", "-1", "²"):
        device = Device(work)
        device.says(text)
        expect_equal(device.states, [], f"the states written when the backend's state is {text!r}")
        device.says(2)
        expect_equal(device.states, ["3"], "the states written when it is InitWait after that")
        device.says(text)
        expect_equal(device.states, ["3"], f"the states written when the backend's state is {text!r} again")
    for size in ("many", "", "-5"):
        device = Device(work)
        device.says(2)
        device.store.write(f"{BACK}/sectors", size)
        device.says(4)
        expect_equal(device.states[-1], "6", f"the last state written when the backend's sectors is {size!r}")
    device = Device(work)
    device.store.write(f"{BACK}/sectors", "8")
    device.says(4)
    expect_equal(device.states, [], "the states written when the backend is Connected before anything was published")
