"""Random requests against a model that is as plain as can be: a dict that each transaction copies."""

from __future__ import annotations

import copy

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_world import World

from hypervisor.abi.io import xs_wire as xs

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, max_size=4).map(lambda names: "/" + "/".join(names))
VALUES = st.sampled_from([b"", b"v", b"w", b"\0x"])
CLIENTS = st.integers(0, 2)
SLOTS = st.integers(0, 3)


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


class Model:
    """Nodes as dom0 sees them.  A version number per node is all that a conflict needs."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[bytes, list[str], str]] = {
            "/": (b"", ["tool"], "n0"),
            "/tool": (b"", ["xenstored"], "n0"),
            "/tool/xenstored": (b"", [], "n0"),
        }
        self.version: dict[str, int] = {}
        self.clock = 0

    def touch(self, path: str) -> None:
        self.clock += 1
        self.version[path] = self.clock

    def create(self, path: str, value: bytes) -> None:
        if path == "/" or path in self.nodes:
            _, names, perms = self.nodes[path]
            self.nodes[path] = (value, names, perms)
        else:
            above = parent(path)
            if above not in self.nodes:
                self.create(above, b"")
            old, names, perms = self.nodes[above]
            self.nodes[above] = (old, [*names, path.rpartition("/")[2]], perms)
            self.touch(above)
            self.nodes[path] = (value, [], perms)
        self.touch(path)

    def write(self, path: str, value: bytes) -> str:
        self.create(path, value)
        return "=OK"

    def mkdir(self, path: str) -> str:
        if path not in self.nodes:
            self.create(path, b"")
        return "=OK"

    def rm(self, path: str) -> str:
        if path == "/":
            return "=EINVAL"
        if path not in self.nodes:
            return "=OK" if parent(path) in self.nodes else "=ENOENT"
        for below in [other for other in self.nodes if other == path or other.startswith(path + "/")]:
            del self.nodes[below]
            self.touch(below)
        old, names, perms = self.nodes[parent(path)]
        self.nodes[parent(path)] = (old, [name for name in names if name != path.rpartition("/")[2]], perms)
        self.touch(parent(path))
        return "=OK"

    def set_perms(self, path: str, perms: str) -> str:
        if path not in self.nodes:
            return "=ENOENT"
        value, names, _ = self.nodes[path]
        self.nodes[path] = (value, names, perms)
        self.touch(path)
        return "=OK"

    def read(self, path: str) -> str:
        return "=" + self.nodes[path][0].decode().rstrip("\0") if path in self.nodes else "=ENOENT"

    def directory(self, path: str) -> str:
        return "=" + "\0".join(self.nodes[path][1]) if path in self.nodes else "=ENOENT"


class Attempt:
    """An open transaction: what it has seen of each node, and at which version."""

    def __init__(self, main: Model) -> None:
        self.main = main
        self.view = Model()
        self.view.nodes = {}
        self.seen: dict[str, int] = {}
        self.first: dict[str, tuple[bytes, list[str], str] | None] = {}

    def look(self, path: str) -> bool:
        """First access: take the node as it is now."""
        if path not in self.seen:
            self.seen[path] = self.main.version.get(path, 0)
            self.first[path] = copy.deepcopy(self.main.nodes.get(path))
            if path in self.main.nodes:
                self.view.nodes[path] = copy.deepcopy(self.main.nodes[path])
        return path in self.view.nodes

    def search(self, path: str) -> None:
        """Look for a node; when it is missing, at what is above it, up to what is there."""
        while not self.look(path) and path != "/":
            path = parent(path)

    def subtree(self, path: str) -> None:
        if self.look(path):
            for name in list(self.view.nodes[path][1]):
                self.subtree(("" if path == "/" else path) + "/" + name)

    def conflicts(self) -> bool:
        return any(self.main.version.get(path, 0) != version for path, version in self.seen.items())

    def commit(self) -> str:
        if self.conflicts():
            return "=EAGAIN"
        for path in self.seen:
            now = self.view.nodes.get(path)
            if path not in self.view.version or now == self.first[path] is None:
                continue
            if now is None:
                del self.main.nodes[path]
            else:
                self.main.nodes[path] = now
            self.main.touch(path)
        return "=OK"


class Store(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.clients = [self.world.client() for _ in range(3)]
        self.model = Model()
        self.open: dict[tuple[int, int], tuple[int, Attempt]] = {}

    def run(self, client: int, slot: int, kind: int, path: str, *more: str, value: bytes = b"") -> None:
        """Make a request, in the client's transaction of that slot if it is open, and compare the answer."""
        tx, attempt = self.open.get((client, slot), (0, None))
        model = self.model
        if attempt is not None:
            attempt.search(path)
            if kind == xs.XS_RM and path != "/":
                attempt.look(parent(path))
                attempt.subtree(path)
                if path in attempt.view.nodes:
                    attempt.look(parent(path))
            model = attempt.view
        expected = {
            xs.XS_WRITE: lambda: model.write(path, value),
            xs.XS_MKDIR: lambda: model.mkdir(path),
            xs.XS_RM: lambda: model.rm(path),
            xs.XS_SET_PERMS: lambda: model.set_perms(path, *more),
            xs.XS_READ: lambda: model.read(path),
            xs.XS_DIRECTORY: lambda: model.directory(path),
        }[kind]()
        assert self.clients[client].exchange(kind, path, *more, value=value, tx=tx) == [expected]

    @rule(client=CLIENTS, slot=SLOTS, path=PATHS, value=VALUES)
    def write(self, client: int, slot: int, path: str, value: bytes) -> None:
        self.run(client, slot, xs.XS_WRITE, path, value=value)

    @rule(client=CLIENTS, slot=SLOTS, path=PATHS)
    def mkdir(self, client: int, slot: int, path: str) -> None:
        self.run(client, slot, xs.XS_MKDIR, path)

    @rule(client=CLIENTS, slot=SLOTS, path=PATHS)
    def rm(self, client: int, slot: int, path: str) -> None:
        self.run(client, slot, xs.XS_RM, path)

    @rule(client=CLIENTS, slot=SLOTS, path=PATHS, letter=st.sampled_from("nrwb"))
    def set_perms(self, client: int, slot: int, path: str, letter: str) -> None:
        self.run(client, slot, xs.XS_SET_PERMS, path, f"{letter}0")

    @rule(client=CLIENTS, slot=SLOTS, path=PATHS)
    def read(self, client: int, slot: int, path: str) -> None:
        self.run(client, slot, xs.XS_READ, path)

    @rule(client=CLIENTS, slot=SLOTS, path=PATHS)
    def directory(self, client: int, slot: int, path: str) -> None:
        self.run(client, slot, xs.XS_DIRECTORY, path)

    @rule(client=CLIENTS, slot=SLOTS)
    def start(self, client: int, slot: int) -> None:
        if (client, slot) not in self.open:
            self.open[client, slot] = (self.clients[client].start(), Attempt(self.model))

    @rule(client=CLIENTS, slot=SLOTS, commit=st.sampled_from([True, True, False]))
    def end(self, client: int, slot: int, commit: bool) -> None:
        if (client, slot) in self.open:
            tx, attempt = self.open.pop((client, slot))
            expected = attempt.commit() if commit else "=OK"
            event(f"commit {expected}" if commit else "abort")
            assert self.clients[client].end(tx, "T" if commit else "F") == expected

    @invariant()
    def stores_agree(self) -> None:
        assert {path: (value, tuple(names), perms) for path, (value, names, perms) in self.model.nodes.items()} == {
            path: (value, names, perms) for path, (value, perms, names) in self.world.dump().items()
        }

    def teardown(self) -> None:
        self.world.check()


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
