"""Random requests against a model that is as plain as can be: a dict that each transaction copies."""

from __future__ import annotations

import copy
import random

from hypothesis import event, given, settings
from hypothesis import strategies as st
from store_world import World

from hypervisor.abi.io import xs_wire as xs

PATHS = ["/", *[f"/{x}" for x in "ab"], *[f"/{x}/{y}" for x in "ab" for y in "ab"], "/a/b/a", "/b/a/a/b"]
KINDS = [
    *[xs.XS_WRITE, xs.XS_MKDIR, xs.XS_RM, xs.XS_SET_PERMS, xs.XS_READ, xs.XS_DIRECTORY],
    *[xs.XS_WRITE, xs.XS_READ, xs.XS_TRANSACTION_START, xs.XS_TRANSACTION_START, xs.XS_TRANSACTION_END],
]


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
        #: It has met a directory and a child that do not fit together: all that is sure then is that it cannot commit.
        self.torn = False

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

    def removing(self, path: str) -> None:
        """Look at a subtree and at what holds it."""
        if path not in self.view.nodes:
            return
        above, _, name = path.rpartition("/")
        if not self.look(above or "/") or name not in self.view.nodes[above or "/"][1]:
            self.torn = True
        todo, found = [path], set()
        while todo:
            at = todo.pop()
            found.add(at)
            if self.look(at):
                names = self.view.nodes[at][1]
                self.torn |= len(set(names)) != len(names)
                todo += [f"{at}/{name}" for name in names]
            else:
                self.torn = True
        if any(other.startswith(path + "/") and other not in found for other in self.view.nodes):
            self.torn = True

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


class Store:
    """A real server and the model side by side."""

    def __init__(self) -> None:
        self.world = World()
        self.clients = [self.world.client() for _ in range(2)]
        self.model = Model()
        self.open: dict[tuple[int, int], tuple[int, Attempt]] = {}

    def step(self, who: int, slot: int, kind: int, path: str, value: bytes, commit: bool) -> None:
        """Do one thing; slot 0 is outside of any transaction."""
        if kind == xs.XS_TRANSACTION_START:
            if slot and (who, slot) not in self.open:
                self.open[who, slot] = (self.clients[who].start(), Attempt(self.model))
        elif kind == xs.XS_TRANSACTION_END:
            if (who, slot) in self.open:
                tx, attempt = self.open.pop((who, slot))
                assert attempt.conflicts() or not attempt.torn
                expected = attempt.commit() if commit else "=OK"
                event(f"commit {expected}" if commit else "abort")
                assert self.clients[who].end(tx, "T" if commit else "F") == expected
        else:
            more = ("r0" if commit else "w0",) if kind == xs.XS_SET_PERMS else ()
            self.request(who, slot, kind, path, *more, value=value if kind == xs.XS_WRITE else b"")

    def request(self, who: int, slot: int, kind: int, path: str, *more: str, value: bytes = b"") -> None:
        """Make a request, in a transaction if that is open, and compare the answer."""
        tx, attempt = self.open.get((who, slot), (0, None))
        model = self.model
        if attempt is not None:
            attempt.search(path)
            if kind == xs.XS_RM and path != "/":
                attempt.look(parent(path))
                attempt.removing(path)
            model = attempt.view
            if attempt.torn:
                self.clients[who].exchange(kind, path, *more, value=value, tx=tx)
                return
        expected = {
            xs.XS_WRITE: lambda: model.write(path, value),
            xs.XS_MKDIR: lambda: model.mkdir(path),
            xs.XS_RM: lambda: model.rm(path),
            xs.XS_SET_PERMS: lambda: model.set_perms(path, *more),
            xs.XS_READ: lambda: model.read(path),
            xs.XS_DIRECTORY: lambda: model.directory(path),
        }[kind]()
        answer = self.clients[who].exchange(kind, path, *more, value=value, tx=tx)
        if attempt is not None and kind == xs.XS_RM and answer == ["=EIO"] and attempt.conflicts():
            # As Xen's daemon says, too: what it has seen of a directory and of a child does not fit together.
            attempt.torn = True
            return
        assert answer == [expected]

    def agree(self) -> None:
        assert self.world.dump() == {
            path: (value, perms, tuple(names)) for path, (value, names, perms) in self.model.nodes.items()
        }
        self.world.check()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_the_store_does_what_a_dict_does(seed: int) -> None:
    """Sequences are drawn from a seed: drawn step by step, hardly a transaction would come to its end."""
    rng = random.Random(seed)
    store = Store()
    for _ in range(120):
        value = rng.choice([b"", b"v", b"w", b"\0x"])
        store.step(rng.randrange(2), rng.randrange(3), rng.choice(KINDS), rng.choice(PATHS), value, rng.random() < 0.7)
        store.agree()
