"""Watches, by the path they are on.

A change of `/a/b/c` concerns the watches on `/a/b/c`, `/a/b`, `/a` and `/`: a lookup for each component, whatever the
number of watches in the store.  `@introduceDomain` and its like are looked up by name.
"""

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from backends.xenstored.connection import Connection


@final
class Watch:
    """One watch: absolute path, token, and how its owner spells the path."""

    __slots__ = ("connection", "depth", "path", "sequence", "skip", "tail", "token")

    def __init__(
        self, connection: "Connection", path: bytes, token: bytes, skip: int, sequence: int, depth: int | None = None
    ) -> None:
        """`skip`: bytes to leave out at the front of the path in events, for a watch with a relative path.

        `depth`: how many levels below the path matter; None: all.
        """
        self.connection = connection
        self.path = path
        self.token = token
        self.skip = skip
        self.depth = depth
        #: Order of registration.
        self.sequence = sequence
        self.tail = b"\0" + token + b"\0"

    def payload(self, path: bytes) -> bytes:
        """Return what an event about `path` says: the path as the owner spells it, and the token."""
        return path[self.skip :] + self.tail

    def reaches(self, path: bytes) -> bool:
        """Tell whether a node at or below the path is near enough for the depth of this watch."""
        return self.depth is None or _levels(path) - _levels(self.path) <= self.depth


def _levels(path: bytes) -> int:
    return path.count(b"/") if path != b"/" else 0


def _order(watch: Watch) -> int:
    return watch.sequence


@final
class WatchIndex:
    """All watches of the store."""

    __slots__ = ("_sequence", "by_path")

    def __init__(self) -> None:
        self.by_path: dict[bytes, dict[Watch, None]] = {}
        self._sequence = 0

    def add(self, connection: "Connection", path: bytes, token: bytes, skip: int, depth: int | None = None) -> Watch:
        """Register a watch."""
        self._sequence += 1
        watch = Watch(connection, path, token, skip, self._sequence, depth)
        self.by_path.setdefault(path, {})[watch] = None
        return watch

    def remove(self, watch: Watch) -> None:
        """Unregister a watch; nothing of it stays (XSA-330)."""
        there = self.by_path[watch.path]
        del there[watch]
        if not there:
            del self.by_path[watch.path]

    def on(self, path: bytes) -> list[Watch]:
        """Return the watches on `path` itself, in order of registration."""
        there = self.by_path.get(path)
        return list(there) if there else []

    def above(self, path: bytes) -> list[Watch]:
        """Return the watches on `path` and on all directories that it is in, in order of registration."""
        by_path = self.by_path
        there = by_path.get(path)
        found = list(there) if there else []
        groups = 1 if there else 0
        if path == b"/":
            return found
        at = path.rfind(b"/")
        while True:
            path = path[:at] if at > 0 else b"/"
            there = by_path.get(path)
            if there:
                found += there
                groups += 1
            if at <= 0:
                break
            at = path.rfind(b"/")
        if groups > 1:
            found.sort(key=_order)
        return found

    def __len__(self) -> int:
        return sum(len(there) for there in self.by_path.values())
