"""The nodes of the store, by path.

A `Node` never changes once it is in the tree; a write puts a new one in its place.  So a transaction starts with
nothing at all, and what it has looked at it holds by reference, as it was; and reading and writing cost the same at
any depth and in a store of any size.

A node holds the names of its children as the wire wants them, each with its NUL, in the order of creation.  This
makes a DIRECTORY reply free and the size of a node (the quota) a sum of three lengths.
"""

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
    """A map from absolute path to `Node`."""

    __slots__ = ("_nodes", "get")

    def __init__(self) -> None:
        self._nodes: dict[bytes, Node] = {}
        #: `get(path)`: the node, or None.  The dict's own method: this is the innermost step of every request.
        self.get: Final[Callable[[bytes], Node | None]] = self._nodes.get

    def set(self, path: bytes, node: Node) -> None:
        """Put a node at `path`, new or in the place of another.  The caller keeps the parent's list of names."""
        self._nodes[path] = node

    def delete(self, path: bytes) -> None:
        """Take the node at `path` out, which must be there."""
        del self._nodes[path]

    def __contains__(self, path: bytes) -> bool:
        return path in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

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
