"""The nodes of xenstore in a trace that shows the state of a host (`hypervisor.state_trace`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from hypervisor.abi.tracepoints import STATE_NODE

if TYPE_CHECKING:
    from backends.xenstored.tree import Node, Snapshot, Tree
    from hypervisor.trace import Emit


@final
class StoreWatch:
    """Looks at the store: what has changed since a snapshot is known to the snapshot."""

    def __init__(self, tree_of: Callable[[], Tree], emit: Emit) -> None:
        """`tree_of`: the tree as it is now; a live update puts another in its place."""
        self._tree_of = tree_of
        self._emit = emit
        self._tree: Tree | None = None
        self._snapshot: Snapshot

    def look(self) -> None:
        """Emit which nodes have changed."""
        tree = self._tree_of()
        if tree is not self._tree:
            self._tell_all(tree)
        elif changed := self._snapshot.changed:
            self._snapshot = tree.snapshot()
            for path in changed:
                self._tell(path, tree.get(path))

    def _tell_all(self, tree: Tree) -> None:
        if self._tree is not None:
            for path, _ in self._snapshot.walk():
                if path not in tree:
                    self._tell(path, None)
        self._tree, self._snapshot = tree, tree.snapshot()
        for path, node in tree.walk():
            self._tell(path, node)

    def _tell(self, path: bytes, node: Node | None) -> None:
        if node is None:
            self._emit(0, 0, STATE_NODE, path, None, b"")
        else:
            self._emit(0, 0, STATE_NODE, path, node.value, node.perms.encode().replace(b"\0", b" ").rstrip())
