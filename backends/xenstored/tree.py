"""The nodes of the store, by path.

A `Node` never changes once it is in the tree; a write puts a new one in its place.  So a transaction starts with
nothing at all, and what it has looked at it holds by reference, as it was; and reading and writing cost the same at
any depth and in a store of any size.

The tree is persistent: `snapshot` gives its present state, for ever, in no time.  The newest state is the one that is
asked for all day, so it is a plain dict; a snapshot is that dict and, for each path that has changed since, the node
that was there (the classic trick for persistent arrays: only the newest version is direct, older ones are differences
to a newer one).  Nodes are shared by all of them.  A change costs one dict entry more while there is a snapshot that
has not seen that path change, and nothing at all while there is no snapshot.

A node holds the names of its children as the wire wants them, each with its NUL, in the order of creation.  This
makes a DIRECTORY reply free and the size of a node (the quota) a sum of three lengths.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Final, final

from backends.xenstored.permissions import Permissions


@final
class Node:
    """One node; not to be changed after it is made.

    `children`: the names, each followed by a NUL, oldest first.  `generation` is the number of the change that made
    this version: it differs between any two versions of a node.
    """

    __slots__ = ("children", "generation", "perms", "value")

    def __init__(self, value: bytes, children: bytes, perms: Permissions, generation: int) -> None:
        self.value = value
        self.children = children
        self.perms = perms
        self.generation = generation

    def __repr__(self) -> str:
        return f"Node({self.value!r}, {self.children!r}, {self.perms}, generation={self.generation})"

    @property
    def names(self) -> list[bytes]:
        """The children's names, oldest first."""
        return self.children.split(b"\0")[:-1]


def without_child(children: bytes, name: bytes) -> bytes | None:
    """Return the list of names without `name`; None if it is not in there."""
    entry = name + b"\0"
    if children.startswith(entry):
        return children[len(entry) :]
    at = children.find(b"\0" + entry) + 1
    return children[:at] + children[at + len(entry) :] if at else None


def parent_of(path: bytes) -> bytes:
    """Return the path of the directory that holds `path` (which is not `/`)."""
    return path[: path.rindex(b"/")] or b"/"


def child_of(path: bytes, name: bytes) -> bytes:
    """Return the path of a child."""
    return b"/" + name if path == b"/" else path + b"/" + name


@final
class Tree:
    """A map from absolute path to `Node`: the newest state."""

    __slots__ = ("_before", "_newest", "_nodes", "get")

    def __init__(self) -> None:
        self._nodes: dict[bytes, Node] = {}
        #: What has been changed since the newest snapshot was taken; None if there is none.
        self._before: dict[bytes, Node | None] | None = None
        self._newest: weakref.ref[Snapshot] | None = None
        #: `get(path)`: the node, or None.  The dict's own method: this is the innermost step of every request.
        self.get: Final[Callable[[bytes], Node | None]] = self._nodes.get

    def set(self, path: bytes, node: Node) -> None:
        """Put a node at `path`, new or in the place of another.  The caller keeps the parent's list of names."""
        if self._before is not None and path not in self._before:
            self._before[path] = self.get(path)
        self._nodes[path] = node

    def delete(self, path: bytes) -> None:
        """Take the node at `path` out, which must be there."""
        if self._before is not None and path not in self._before:
            self._before[path] = self.get(path)
        del self._nodes[path]

    def snapshot(self) -> "Snapshot":
        """Return the tree as it is now; whatever happens to the tree, the snapshot stays as it is."""
        newest = self._newest() if self._newest is not None else None
        if newest is not None and not self._before:
            return newest
        before: dict[bytes, Node | None] = {}
        snapshot = Snapshot(self._nodes, before, len(self._nodes))
        if newest is not None:
            newest.newer = snapshot
        self._before = before
        # Once nobody has the newest one any more nobody has an older one either: those hold on to it.
        self._newest = weakref.ref(snapshot, self._forget)
        return snapshot

    def _forget(self, reference: "weakref.ref[Snapshot]") -> None:
        if reference is self._newest:
            self._before = self._newest = None

    def __contains__(self, path: bytes) -> bool:
        return path in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def walk(self, path: bytes = b"/") -> Iterator[tuple[bytes, Node]]:
        """Yield path and node of a subtree: parents first, siblings oldest first."""
        return _walk(self.get, path)


@final
class Snapshot:
    """A tree as it was: `get`, `walk`, `len` and `in` as those of `Tree`."""

    __slots__ = ("__weakref__", "_before", "_nodes", "_size", "newer")

    def __init__(self, nodes: dict[bytes, Node], before: dict[bytes, Node | None], size: int) -> None:
        """`nodes`: the tree's own dict; `before`: to be filled by the tree with what it changes."""
        self._nodes = nodes
        self._before = before
        self._size = size
        #: The snapshot taken next.
        self.newer: Snapshot | None = None

    @property
    def changed(self) -> list[bytes]:
        """The paths whose nodes have changed since, or until the next snapshot was taken; in order."""
        return list(self._before)

    def get(self, path: bytes) -> Node | None:
        """Return the node that was there, or None."""
        version: Snapshot | None = self
        while version is not None:
            if path in version._before:
                return version._before[path]
            version = version.newer
        return self._nodes.get(path)

    def __contains__(self, path: bytes) -> bool:
        return self.get(path) is not None

    def __len__(self) -> int:
        return self._size

    def walk(self, path: bytes = b"/") -> Iterator[tuple[bytes, Node]]:
        """Yield path and node of a subtree: parents first, siblings oldest first."""
        return _walk(self.get, path)


def _walk(get: Callable[[bytes], Node | None], path: bytes) -> Iterator[tuple[bytes, Node]]:
    """Depth costs no stack."""
    todo = [path]
    while todo:
        path = todo.pop()
        node = get(path)
        if node is None:
            continue
        yield path, node
        if node.children:
            todo.extend(child_of(path, name) for name in reversed(node.names))
