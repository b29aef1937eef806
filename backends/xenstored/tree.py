"""The nodes of the store, in a persistent map: every version of the store that somebody holds stays as it was.

A `Node` never changes once it is in the tree; a write puts a new one in its place.  The map from path to node is a
tree itself, two levels of 64 branches and a small dict in each leaf, and a write copies one branch of each level.  So

* a snapshot of the whole store is a reference to its root (`Tree.snapshot`): it costs nothing and shares all structure,
* a transaction starts with nothing at all, and what it has read it holds by reference,
* reading costs the same at any depth, and writing the same in a store of a hundred nodes and of a hundred thousand.

A node holds the names of its children as the wire wants them, each with its NUL, in the order of creation.  This
makes a DIRECTORY reply free and the size of a node (the quota) a sum of three lengths.
"""

from collections.abc import Iterator
from typing import Final, final

from backends.xenstored.permissions import Permissions

_FANOUT: Final = 64
_MASK: Final = _FANOUT - 1
_SHIFT: Final = 6

Leaf = dict[bytes, "Node"]
_NO_LEAF: Final[Leaf] = {}
_NO_BRANCH: Final[list[Leaf]] = [_NO_LEAF] * _FANOUT
_NO_ROOT: Final[list[list[Leaf]]] = [_NO_BRANCH] * _FANOUT


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


def without_child(children: bytes, name: bytes) -> bytes:
    """Return the list of names without `name`, which must be there."""
    entry = name + b"\0"
    if children.startswith(entry):
        return children[len(entry) :]
    at = children.index(b"\0" + entry) + 1
    return children[:at] + children[at + len(entry) :]


def parent_of(path: bytes) -> bytes:
    """Return the path of the directory that holds `path` (which is not `/`)."""
    return path[: path.rindex(b"/")] or b"/"


def child_of(path: bytes, name: bytes) -> bytes:
    """Return the path of a child."""
    return b"/" + name if path == b"/" else path + b"/" + name


@final
class Tree:
    """A map from absolute path to `Node`; a value that can be kept (`snapshot`) while this one goes on changing."""

    __slots__ = ("_root", "count")

    def __init__(self) -> None:
        self._root = _NO_ROOT
        #: Number of nodes.
        self.count = 0

    def snapshot(self) -> "Tree":
        """Return the store as it is now; later changes of either do not show in the other."""
        other = Tree()
        other._root = self._root
        other.count = self.count
        return other

    def get(self, path: bytes) -> Node | None:
        """Return the node, or None."""
        h = hash(path)
        return self._root[h & _MASK][(h >> _SHIFT) & _MASK].get(path)

    def set(self, path: bytes, node: Node) -> None:
        """Put a node at `path`, new or in the place of another.  The caller keeps the parent's list of names."""
        h = hash(path)
        at, below = h & _MASK, (h >> _SHIFT) & _MASK
        root = self._root.copy()
        branch = root[at] = root[at].copy()
        leaf = branch[below] = branch[below].copy()
        self.count += path not in leaf
        leaf[path] = node
        self._root = root

    def delete(self, path: bytes) -> None:
        """Take the node at `path` out, which must be there."""
        h = hash(path)
        at, below = h & _MASK, (h >> _SHIFT) & _MASK
        root = self._root.copy()
        branch = root[at] = root[at].copy()
        leaf = branch[below] = branch[below].copy()
        del leaf[path]
        self.count -= 1
        self._root = root

    def __contains__(self, path: bytes) -> bool:
        return self.get(path) is not None

    def __len__(self) -> int:
        return self.count

    def walk(self, path: bytes = b"/") -> Iterator[tuple[bytes, Node]]:
        """Yield path and node of a subtree: parents first, siblings oldest first.  Depth costs no stack."""
        todo = [path]
        while todo:
            path = todo.pop()
            node = self.get(path)
            if node is None:
                continue
            yield path, node
            if node.children:
                todo.extend(child_of(path, name) for name in reversed(node.names))
