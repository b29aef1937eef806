"""The persistent tree: snapshots never change, whatever happens to the tree, and cost nothing."""

import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from store_world import World

from backends.xenstored.permissions import only_owner
from backends.xenstored.tree import Node, Snapshot, Tree

OWNER = only_owner()
PATHS = [b"/", b"/a", b"/b", b"/a/c", b"/a/d"]


def node(value: bytes, children: bytes = b"") -> Node:
    return Node(value, children, OWNER, 1)


class TreeMachine(RuleBasedStateMachine):
    """Each snapshot is compared with a copy made when it was taken."""

    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree()
        self.model: dict[bytes, Node] = {}
        self.taken: dict[int, tuple[Snapshot, dict[bytes, Node]]] = {}
        self.count = 0

    @rule(path=st.sampled_from(PATHS), value=st.binary(max_size=2))
    def put(self, path: bytes, value: bytes) -> None:
        new = node(value)
        self.tree.set(path, new)
        self.model[path] = new

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path: bytes) -> None:
        if path in self.model:
            self.tree.delete(path)
            del self.model[path]

    @rule(target=snapshots)
    def take(self) -> int:
        self.count += 1
        self.taken[self.count] = (self.tree.snapshot(), dict(self.model))
        return self.count

    @rule(number=consumes(snapshots))
    def drop(self, number: int) -> None:
        del self.taken[number]

    @invariant()
    def all_is_as_it_was(self) -> None:
        for paths, model in ((self.tree, self.model), *self.taken.values()):
            assert {path: paths.get(path) for path in PATHS} == {path: model.get(path) for path in PATHS}
            assert len(paths) == len(model)
            assert all((path in paths) == (path in model) for path in PATHS)

    @invariant()
    def nothing_is_recorded_for_nobody(self) -> None:
        if not self.taken:
            assert self.tree._before is None


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_snapshot_walks_as_the_store_did(world: World) -> None:
    for path in ("/a", "/a/b", "/a/b/c", "/d"):
        world.dom0.write(path, "1")
    snapshot = world.server.store.tree.snapshot()
    before = list(world.server.store.tree.walk())
    world.dom0.write("/a/b", "2")
    world.dom0.rm("/d")
    world.dom0.rm("/a/b/c")
    world.dom0.write("/e", "new")
    assert list(snapshot.walk()) == before
    assert list(snapshot.walk(b"/a")) == [entry for entry in before if entry[0].startswith(b"/a")]
    assert list(world.server.store.tree.walk()) != before
    assert len(snapshot) == len(before)


@pytest.mark.parametrize("size", [100, 50_000])
def test_a_snapshot_costs_the_same_in_a_store_of_any_size(size: int) -> None:
    tree = Tree()
    for number in range(size):
        tree.set(b"/%d" % number, node(b""))
    best = 1.0
    for number in range(20):
        tree.set(b"/0", node(b"%d" % number))
        began = time.perf_counter()
        snapshot = tree.snapshot()
        best = min(best, time.perf_counter() - began)
        assert snapshot.get(b"/0") is tree.get(b"/0")
    # A copy of 50,000 entries takes half a millisecond.
    assert best < 0.0001


def test_an_unchanged_tree_has_one_snapshot() -> None:
    tree = Tree()
    assert tree.snapshot() is not None
    first = tree.snapshot()
    assert tree.snapshot() is first
    tree.set(b"/", node(b"x"))
    assert tree.snapshot() is not first
