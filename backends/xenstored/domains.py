"""The domains that the store knows, and what each of them uses.

A domain is known from the first time somebody names it (in a permission list, in INTRODUCE) until Xen says that it is
gone.  It is *introduced* while its ring is served.  Rights and usage belong to one life of a domain: `generation` is
the store's at the moment it became known, and an older node's entry for this id means somebody else (XSA-322, 417,
483).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from backends.xenstored.paths import home_of
from backends.xenstored.permissions import Permissions
from backends.xenstored.quota import Quotas

if TYPE_CHECKING:
    from backends.xenstored.connection import Connection

LARGEST_DOMID = 0x7FEF
"""One below DOMID_FIRST_RESERVED (xen.h)."""


@final
class Domain:
    """One life of a domain."""

    __slots__ = (
        "connection",
        "disturbances",
        "domid",
        "features",
        "generation",
        "home",
        "introduced",
        "memory",
        "mfn",
        "nodes",
        "outstanding",
        "port",
        "quotas",
        "shutdown",
        "target",
        "transactions",
        "watches",
    )

    def __init__(self, domid: int, generation: int) -> None:
        self.domid = domid
        self.generation = generation
        self.home = home_of(domid)
        self.introduced = False
        #: Quotas of its own, if it has some (SET_QUOTA).
        self.quotas: Quotas | None = None
        #: XENSTORE_SERVER_FEATURE_* that it may use (SET_FEATURE).
        self.features = 0
        #: Its shutdown has been told; RESUME takes this back.
        self.shutdown = False
        self.mfn = 0
        self.port = 0
        self.connection: Connection | None = None
        #: On whose behalf it may act as well (SET_TARGET).
        self.target: Domain | None = None
        #: Paths of the nodes that it owns, in the order it got them.
        self.nodes: dict[bytes, None] = {}
        #: Bytes of its nodes and watches. Messages not delivered are counted by the connection.
        self.memory = 0
        self.watches = 0
        self.transactions = 0
        #: Writes made while somebody else had a transaction open (see `fairness`).
        self.disturbances = 0
        #: Requests not fully answered (reply and every event they caused delivered).
        self.outstanding = 0

    @property
    def memory_used(self) -> int:
        """Bytes that count against its `memory` quota: nodes, watches, and messages that wait for it."""
        return self.memory + (self.connection.queued if self.connection is not None else 0)

    @property
    def given_up(self) -> bool:
        """It has broken the protocol: nobody listens to it."""
        return self.connection is not None and self.connection.error != 0

    def __repr__(self) -> str:
        return f"<Domain {self.domid}, {'' if self.introduced else 'not '}introduced, {len(self.nodes)} nodes>"


@final
class Domains:
    """The known domains by id."""

    __slots__ = ("by_id", "changes", "newest")

    def __init__(self) -> None:
        dom0 = Domain(0, 0)
        dom0.introduced = True
        self.by_id: dict[int, Domain] = {0: dom0}
        #: Generation at which the last domain became known.
        self.newest = 0
        #: How often a domain became known or was forgotten.
        self.changes = 0

    def get(self, domid: int) -> Domain | None:
        """Return a known domain."""
        return self.by_id.get(domid)

    def add(self, domain: Domain) -> None:
        """Make a domain known.  It must not be."""
        assert domain.domid not in self.by_id, f"{domain} is known"
        self.by_id[domain.domid] = domain
        self.newest = domain.generation
        self.changes += 1

    def current(self, perms: Permissions, generation: int) -> Permissions:
        """Return what a list, written at `generation`, means now: entries of earlier lives grant nothing."""
        return perms if generation >= self.newest else self.living(perms, generation)

    def living(self, perms: Permissions, generation: int) -> Permissions:
        """As `current`, also for a list whose domains may have been forgotten since."""

        def dead(domid: int) -> bool:
            domain = self.by_id.get(domid)
            return domain is None or domain.generation > generation

        return perms.without(dead)

    def forget(self, domain: Domain) -> None:
        """Drop a domain whose nodes are gone; nobody can act on its behalf any more."""
        del self.by_id[domain.domid]
        self.changes += 1
        for other in self.by_id.values():
            if other.target is domain:
                other.target = None

    def owner(self, domid: int) -> Domain:
        """Return who pays for a node with this owner: a domain that is not known is stood in for by dom0."""
        return self.by_id.get(domid) or self.by_id[0]

    def newest_first(self) -> Iterator[Domain]:
        """All known domains, those that became known last first; the set may change meanwhile."""
        return iter(list(self.by_id.values())[::-1])

    def __iter__(self) -> Iterator[Domain]:
        """All known domains by id; the set may change meanwhile."""
        return iter([self.by_id[domid] for domid in sorted(self.by_id)])

    def __len__(self) -> int:
        return len(self.by_id)
