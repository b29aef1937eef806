"""Watches, by the path they are on.

A change of `/a/b/c` concerns the watches on `/a/b/c`, `/a/b`, `/a` and `/`: a lookup for each component, whatever the
number of watches in the store.  `@introduceDomain` and its like are looked up by name.
"""

from typing import TYPE_CHECKING, Final, final

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


Group = dict[Watch, None]
"""The watches on one path, in order of registration."""
REMEMBERED: Final = 1 << 14
"""Paths whose watches are remembered at a time."""


@final
class WatchIndex:
    """All watches of the store.

    Which paths above a path are watched is remembered, until a path begins or ceases to be watched: most changes are of
    the same few nodes again and again.
    """

    __slots__ = ("_above", "_sequence", "by_path")

    def __init__(self) -> None:
        self.by_path: dict[bytes, Group] = {}
        self._above: dict[bytes, tuple[Group, ...]] = {}
        self._sequence = 0

    def add(self, connection: "Connection", path: bytes, token: bytes, skip: int, depth: int | None = None) -> Watch:
        """Register a watch."""
        self._sequence += 1
        watch = Watch(connection, path, token, skip, self._sequence, depth)
        there = self.by_path.get(path)
        if there is None:
            there = self.by_path[path] = {}
            self._above.clear()
        there[watch] = None
        return watch

    def remove(self, watch: Watch) -> None:
        """Unregister a watch; nothing of it stays (XSA-330)."""
        there = self.by_path[watch.path]
        del there[watch]
        if not there:
            del self.by_path[watch.path]
            self._above.clear()

    def on(self, path: bytes) -> list[Watch]:
        """Return the watches on `path` itself, in order of registration."""
        there = self.by_path.get(path)
        return list(there) if there else []

    def above(self, path: bytes) -> list[Watch]:
        """Return the watches on `path` and on all directories that it is in, in order of registration."""
        groups = self._above.get(path)
        if groups is None:
            groups = self._find(path)
        if not groups:
            return []
        if len(groups) == 1:
            return list(groups[0])
        found = [watch for group in groups for watch in group]
        found.sort(key=_order)
        return found

    def _find(self, path: bytes) -> tuple[Group, ...]:
        by_path = self.by_path
        groups = [by_path[path]] if path in by_path else []
        above, at = path, path.rfind(b"/")
        while above != b"/":
            above = above[:at] if at > 0 else b"/"
            if above in by_path:
                groups.append(by_path[above])
            at = above.rfind(b"/")
        if len(self._above) >= REMEMBERED:
            self._above.clear()
        self._above[path] = found = tuple(groups)
        return found

    def __len__(self) -> int:
        return sum(len(there) for there in self.by_path.values())
