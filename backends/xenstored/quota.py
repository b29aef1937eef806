"""What an unprivileged domain may use of the store.

Names, defaults and descriptions are those of the C daemon (`xenstore-control quota`).  dom0 is bound by `path-max`
alone.  Each limit is of its own kind: some bind at the number, some let one more through, as noted.
"""

from collections.abc import Mapping
from typing import Final

import attrs

HARD_LIMITS: Final = {
    "nodes": (1000, "Nodes per domain"),
    "watches": (128, "Watches per domain"),
    "transactions": (10, "Transactions per domain"),
    "outstanding": (20, "Outstanding requests per domain"),
    "transaction-nodes": (1024, "Max. number of accessed nodes per transaction"),
    "memory": (2621440, "Total Xenstore memory per domain (error level)"),
    "node-size": (2048, "Max. size of a node"),
    "path-max": (2048, "Max. length of a node path"),
    "permissions": (5, "Max. number of permissions per node"),
}
SOFT_LIMITS: Final = {"memory": (2097152, "Total Xenstore memory per domain (warning level)")}

UNLIMITED: Final = 2**31 - 1
"""More than anybody can have."""
NODE_HEADER: Final = 24
"""Bytes that a node costs beside its permissions, value and names of children."""
ENTRY_SIZE: Final = 8
"""Bytes that an entry of a permission list costs."""


@attrs.define
class Quotas:
    """The limits in force; 0 means no limit for `memory` and `outstanding`."""

    nodes: int = 1000  #: a domain may own this many
    watches: int = 128  #: one more is let through
    transactions: int = 10  #: one more is let through
    outstanding: int = 20  #: requests not fully answered; input stops here
    transaction_nodes: int = 1024  #: nodes that one transaction may touch
    memory: int = 2621440  #: bytes of nodes, watches and undelivered messages of a domain
    node_size: int = 2048  #: bytes of value, names of children and permissions of a node that a guest writes
    path_max: int = 2048  #: bytes of a path without the domain's own prefix; binds dom0 too
    permissions: int = 5  #: entries in a list that a guest sets
    soft_memory: int = 2097152  #: above this a domain is only reported

    @classmethod
    def named(cls, limits: Mapping[str, int]) -> "Quotas":
        """Make quotas from the daemon's own names (`transaction-nodes`).  Raises KeyError for an unknown one."""
        quotas = cls()
        for name, value in limits.items():
            quotas[name] = value
        return quotas

    @staticmethod
    def names() -> list[str]:
        """Return the daemon's names of the limits."""
        return list(HARD_LIMITS)

    def __getitem__(self, name: str) -> int:
        if name not in HARD_LIMITS:
            raise KeyError(name)
        value: int = getattr(self, name.replace("-", "_"))
        return value

    def __setitem__(self, name: str, value: int) -> None:
        if name not in HARD_LIMITS:
            raise KeyError(name)
        setattr(self, name.replace("-", "_"), value)

    def limit(self, name: str) -> int:
        """Return a limit as GET_QUOTA says it: 0 is none.  Raises KeyError."""
        value = self[name]
        return 0 if value == UNLIMITED else value

    def set_limit(self, name: str, value: int) -> None:
        """Set a limit as SET_QUOTA means it: 0 is none.  Raises KeyError."""
        self[name] = value or UNLIMITED

    def describe(self) -> str:
        """Return the table that `CONTROL quota` shows."""
        rows = [f"{name:<17}: {self[name]:8d} {text}\n" for name, (_, text) in HARD_LIMITS.items()]
        return "Quota settings:\n" + "".join(rows)

    def describe_soft(self) -> str:
        """Return the table that `CONTROL quota-soft` shows."""
        return f"Quota settings:\nmemory           : {self.soft_memory:8d} {SOFT_LIMITS['memory'][1]}\n"
