"""The store itself: the tree, the number of its last change, and who pays for which node.

`Store` and `Transaction` offer the same three methods (`View`), so that an operation is written once.  An operation
makes all its checks before its first change: a failing one leaves nothing behind (XSA-414).
"""

from typing import Protocol, final

from backends.xenstored.domains import Domain, Domains
from backends.xenstored.permissions import Permissions, only_owner
from backends.xenstored.quota import ENTRY_SIZE, NODE_HEADER
from backends.xenstored.tree import Node, Tree


class View(Protocol):
    """The store, or a transaction's view of it."""

    def get(self, path: bytes) -> Node | None:
        """Return a node."""
        ...

    def put(self, path: bytes, old: Node | None, value: bytes, children: bytes, perms: Permissions) -> None:
        """Make a node, or a new version of `old`.  The parent's list of names is the caller's business."""
        ...

    def remove(self, path: bytes, old: Node) -> None:
        """Take a node out, likewise."""
        ...

    def bill(self, path: bytes, owner: int) -> tuple[Domain, int, int]:
        """Return who pays for a node with this owner, what it pays for `path` now, and what the path itself costs."""
        ...

    def refused(self) -> None:
        """Take note that a change was refused for its size: it has used up a generation, and ends a transaction."""
        ...


def size_of(value: bytes, children: bytes, perms: Permissions) -> int:
    """Return the bytes that a node counts against `node-size` and `memory`."""
    return NODE_HEADER + ENTRY_SIZE * len(perms.entries) + len(value) + len(children)


@final
class Store:
    """The tree that everybody sees."""

    __slots__ = ("domains", "get", "next_generation", "tree")

    def __init__(self, domains: Domains) -> None:
        self.tree = Tree()
        self.domains = domains
        self.next_generation = 1
        self.get = self.tree.get
        perms = only_owner()
        self.put(b"/", None, b"", b"tool\0", perms)
        self.put(b"/tool", None, b"", b"xenstored\0", perms)
        self.put(b"/tool/xenstored", None, b"", b"", perms)

    def take_generation(self) -> int:
        """Return the number of a change that is being made."""
        generation = self.next_generation
        self.next_generation = generation + 1
        return generation

    def bill(self, path: bytes, owner: int) -> tuple[Domain, int, int]:
        """Return who pays for a node with this owner, what it pays for `path` now, and what the path itself costs."""
        payer = self.domains.owner(owner)
        node = self.get(path)
        paid = 0
        if node is not None and self.domains.owner(node.perms.owner) is payer:
            paid = size_of(node.value, node.children, node.perms) + len(path)
        return payer, paid, len(path)

    def put(self, path: bytes, old: Node | None, value: bytes, children: bytes, perms: Permissions) -> None:
        """Make a node, or a new version of `old`."""
        generation = self.next_generation
        self.next_generation = generation + 1
        self.tree.set(path, Node(value, children, perms, generation))
        if old is not None and (old.perms is perms or old.perms == perms):
            more = len(value) + len(children) - len(old.value) - len(old.children)
            if more:
                self.domains.owner(perms.owner).memory += more
            return
        if old is not None:
            self._discharge(path, old)
        owner = self.domains.owner(perms.owner)
        owner.nodes[path] = None
        owner.memory += size_of(value, children, perms) + len(path)

    def set_value(self, path: bytes, old: Node, value: bytes) -> None:
        """Make a new version of `old` that differs in its value: `put`, for what is done all day."""
        perms = old.perms
        if old.generation < self.domains.newest:
            # Somebody whom the list names may be another by now.
            self.put(path, old, value, old.children, self.domains.current(perms, old.generation))
            return
        generation = self.next_generation
        self.next_generation = generation + 1
        self.tree.set(path, Node(value, old.children, perms, generation))
        more = len(value) - len(old.value)
        if more:
            self.domains.owner(perms.owner).memory += more

    def remove(self, path: bytes, old: Node) -> None:
        """Take a node out."""
        self.take_generation()
        self.tree.delete(path)
        self._discharge(path, old)

    def refused(self) -> None:
        """Take note that a change was refused for its size."""
        self.take_generation()

    def _discharge(self, path: bytes, node: Node) -> None:
        owner = self.domains.owner(node.perms.owner)
        del owner.nodes[path]
        owner.memory -= size_of(node.value, node.children, node.perms) + len(path)
