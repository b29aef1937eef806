"""Transactions, optimistic and per node, as the C daemon has them.

Nothing is copied at the start.  The first access to a node (a read, a miss, a write) notes its generation and holds
that version; from then on the transaction sees this version, or its own.  At the end every noted generation must
still be the one in the store, else EAGAIN.  So

* a node that is first read after somebody's write is read as written, and commits,
* looking for a node that is not there counts, and so does looking for its parents to find out who may know,
* two that create in one directory conflict (its list of names is part of the directory's node), while a change of a
  child's value does not touch its directory,
* even a write of the same value, and one's own write outside the transaction, are changes,
* an empty transaction always commits.
"""

from collections.abc import Callable
from typing import Final, final

from backends.xenstored.domains import Domain
from backends.xenstored.errors import EAGAIN, ENOMEM, ENOSPC, StoreError
from backends.xenstored.permissions import Permissions
from backends.xenstored.quota import Quotas
from backends.xenstored.store import Store, size_of
from backends.xenstored.tree import Node

_MISSING: Final = -1

Fire = Callable[[bytes, Node | None, Node | None, bool], None]
"""fire(path, node now, node before, exact)"""


@final
class Access:
    """What a transaction has done with one node."""

    __slots__ = ("before", "event", "exact", "modified", "node", "seen")

    def __init__(self, node: Node | None) -> None:
        #: Generation at first access; -1: there was no node.
        self.seen = _MISSING if node is None else node.generation
        self.before = node
        #: As the transaction sees it now.
        self.node = node
        self.modified = False
        #: Watches are to be told, and whether those on this very node only.
        self.event = False
        self.exact = False


@final
class Transaction:
    """One open transaction: a `View` of the store.

    Its domain pays for each node that it has read or written, as if the node were a copy with the transaction's number
    before its path.
    """

    __slots__ = (
        "accessed",
        "began",
        "changed",
        "charged",
        "created",
        "domain",
        "failed",
        "limits",
        "lost",
        "prefix",
        "store",
    )

    def __init__(self, store: Store, domain: Domain, limits: Callable[[Domain], Quotas] | None) -> None:
        """`domain` pays for what it touches until the end; `limits(domain)`: what binds it now; None: nothing."""
        self.store = store
        self.domain = domain
        self.charged = 0
        #: Domain id → how many nodes more it owns, for every domain whose nodes were made, removed or given away.
        self.changed: dict[int, int] = {}
        #: A node was made.
        self.created = False
        #: What domains there were at the start.
        self.began = store.domains.changes
        self.limits = limits
        #: In order of first touch, which is the order of the events.
        self.accessed: dict[bytes, Access] = {}
        #: Something went wrong that cannot be undone: it must not commit.
        self.failed = False
        #: It had a conflict before a live update, which its nodes do not show any more.
        self.lost = False
        domain.transactions += 1
        #: Bytes by which its copies' paths are longer.
        self.prefix = len(f"{store.take_generation()}/")

    def _access(self, path: bytes, writing: bool = False) -> Access:
        access = self.accessed.get(path)
        if access is None:
            if self.limits is not None and len(self.accessed) >= self.limits(self.domain).transaction_nodes:
                self.failed = True
                raise StoreError(ENOSPC)
            node = self.store.get(path)
            access = self.accessed[path] = Access(node)
            if node is not None and not writing:
                self._charge(self._cost(path, node))
        return access

    def _cost(self, path: bytes, node: Node | None) -> int:
        if node is None:
            return 0
        return size_of(node.value, node.children, node.perms) + len(path) + self.prefix

    def _charge(self, size: int) -> None:
        self.charged += size
        self.domain.memory += size

    def bill(self, path: bytes, owner: int) -> tuple[Domain, int, int]:
        """Return who pays for a node, what it pays for `path` now, and what the path itself costs."""
        access = self.accessed.get(path)
        return self.domain, self._cost(path, access.node) if access is not None else 0, len(path) + self.prefix

    def get(self, path: bytes) -> Node | None:
        """Return a node as this transaction sees it."""
        return (self.accessed.get(path) or self._access(path)).node

    def put(self, path: bytes, old: Node | None, value: bytes, children: bytes, perms: Permissions) -> None:
        """Make a node, or a new version of it, for this transaction."""
        access = self.accessed.get(path)
        paid = self._cost(path, access.node) if access is not None else 0
        access = access or self._access(path, writing=True)
        access.node = Node(value, children, perms, self.store.take_generation())
        access.modified = True
        self._charge(self._cost(path, access.node) - paid)
        if old is None:
            self.created = True
            self._count(perms.owner, 1)
        elif old.perms is not perms:
            self._count(self._owner(old), -1)
            self._count(perms.owner, 1)

    def remove(self, path: bytes, old: Node) -> None:
        """Take a node out for this transaction."""
        access = self._access(path)
        self.store.take_generation()
        self._charge(-self._cost(path, access.node))
        self._count(self._owner(old), -1)
        access.node = None
        access.modified = True

    def _owner(self, node: Node) -> int:
        domains = self.store.domains
        perms = node.perms if domains.changes == self.began else domains.living(node.perms, node.generation)
        return perms.owner

    def _count(self, owner: int, more: int) -> None:
        self.changed[owner] = self.changed.get(owner, 0) + more

    def refused(self) -> None:
        """Take note that a change was refused for its size: this transaction cannot commit any more."""
        self.store.take_generation()
        self.failed = True

    def note_event(self, path: bytes, exact: bool) -> None:
        """Remember that watches are to be told of a change when it becomes one."""
        access = self._access(path)
        # Who was to be told because of an earlier change still is.
        access.exact = exact and (access.exact or not access.event)
        access.event = True

    @property
    def doomed(self) -> bool:
        """It would be refused at its end if that came now."""
        return self.failed or self._has_conflict()

    def _has_conflict(self) -> bool:
        if self.lost:
            return True
        for path, access in self.accessed.items():
            node = self.store.get(path)
            if (_MISSING if node is None else node.generation) != access.seen:
                return True
        return False

    def recount(self) -> None:
        """Work out anew what it pays for and whose nodes it has changed, from what it has done with each node."""
        self.domain.memory -= self.charged
        self.charged = 0
        for path, access in self.accessed.items():
            self._charge(self._cost(path, access.node))
            if access.modified and access.before is not None:
                self._count(self._owner(access.before), -1)
            if access.modified and access.node is not None:
                self._count(access.node.perms.owner, 1)
                self.created = self.created or access.before is None

    def end(self) -> None:
        """Give back what the open transaction took, committed or not."""
        self.domain.memory -= self.charged
        self.charged = 0
        self.domain.transactions -= 1

    def commit(self, node_limit: int | None, know: Callable[[int], Domain | None], fire: Fire) -> None:
        """Make the changes, all or none, and tell the watches.  `know(domid)`: the domain, if it exists.

        Raises StoreError: EAGAIN (somebody changed what this one looked at), ENOSPC (nodes were made, and a domain
        would own `node_limit` or more; None: no limit), ENOMEM (it failed before, or a domain whose nodes it made,
        removed or gave away is gone).
        """
        if self.failed:
            raise StoreError(ENOMEM)
        self._check_owners(node_limit if self.created else None, know)
        store = self.store
        if self._has_conflict():
            raise StoreError(EAGAIN)
        for path, access in self.accessed.items():
            before, node = access.before, access.node
            if not access.modified or (before is None and node is None):
                continue
            if node is not None:
                perms = node.perms
                if store.domains.changes != self.began:
                    # Whom it gives a node to may be gone by now.
                    perms = store.domains.living(perms, node.generation)
                store.put(path, before, node.value, node.children, perms)
            elif before is not None:
                generation = store.next_generation
                store.remove(path, before)
                store.next_generation = generation
            if access.event:
                fire(path, store.get(path), before, access.exact)

    def _check_owners(self, node_limit: int | None, know: Callable[[int], Domain | None]) -> None:
        for domid, more in self.changed.items():
            owner = know(domid)
            if owner is None:
                raise StoreError(ENOMEM)
            if domid and node_limit is not None and max(0, len(owner.nodes) + more) >= node_limit:
                raise StoreError(ENOSPC)
