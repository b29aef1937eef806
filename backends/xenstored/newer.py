"""What Xen 4.22 has on top of 4.17, for clients that ask for it (docs/misc/xenstore.txt of that version).

WATCH with a depth, GET_FEATURE and SET_FEATURE, GET_QUOTA and SET_QUOTA. dom0 may use all of it. A guest may give its
watches a depth if dom0 has said so with SET_FEATURE before INTRODUCE. A request that is not well-formed there is what
it is in 4.17: an unknown one.
"""

from typing import TYPE_CHECKING, Final

import attrs

from backends.xenstored.connection import Connection
from backends.xenstored.domains import LARGEST_DOMID, Domain
from backends.xenstored.errors import EACCES, EBUSY, EINVAL, ENOENT, ENOSYS, StoreError
from backends.xenstored.numbers import leading_number
from backends.xenstored.quota import Quotas
from backends.xenstored.transactions import Transaction

if TYPE_CHECKING:
    from backends.xenstored.server import Server

XS_GET_FEATURE, XS_SET_FEATURE, XS_GET_QUOTA, XS_SET_QUOTA = 23, 24, 25, 26
XENSTORE_SERVER_FEATURE_WATCHDEPTH: Final = 4
_OK: Final = b"OK\0"


def features_of(server: "Server", connection: Connection) -> int:
    """Return the XENSTORE_SERVER_FEATURE_* that a client may use."""
    return server.features if connection.privileged else connection.domain.features


def _known_by_number(server: "Server", text: bytes) -> Domain:
    if not text.isdigit() or int(text) > LARGEST_DOMID:
        raise StoreError(EINVAL)
    domain = server.know(int(text))
    if domain is None:
        raise StoreError(ENOENT)
    return domain


def _whole_strings(payload: bytes, fewest: int, most: int) -> list[bytes]:
    strings = payload.split(b"\0")
    if strings.pop() or not fewest <= len(strings) <= most or not all(strings):
        raise StoreError(ENOSYS)
    return strings


def get_feature(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    """Return what a domain, or who asks, may use."""
    strings = _whole_strings(payload, 0, 1)
    if not all(text.isdigit() for text in strings):
        raise StoreError(ENOSYS)
    if not strings:
        return b"%d\0" % features_of(server, connection)
    if not connection.privileged:
        raise StoreError(EACCES)
    domain = _known_by_number(server, strings[0])
    return b"%d\0" % (domain.features if domain.domid else server.features)


def set_feature(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    """Say what a domain may use that is not introduced yet."""
    text, value = _whole_strings(payload, 2, 2)
    domain = _known_by_number(server, text)
    features = leading_number(value)
    if domain.introduced:
        raise StoreError(EBUSY)
    if features & ~server.features:
        raise StoreError(EINVAL)
    domain.features = features
    return _OK


def get_quota(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    """Return the names of all limits, one that is everybody's, or one of a domain."""
    strings = _whole_strings(payload, 0, 2)
    if not strings:
        return " ".join(Quotas.names()).encode() + b"\0"
    quotas = server.quotas if len(strings) == 1 else server.limits(_known_by_number(server, strings[0]))
    try:
        return b"%d\0" % quotas.limit(strings[-1].decode("latin-1"))
    except KeyError:
        raise StoreError(EINVAL) from None


def set_quota(server: "Server", connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    """Set a limit that is everybody's, or of a domain alone; 0: none."""
    *domids, name, text = _whole_strings(payload, 2, 3)
    value = leading_number(text)
    if name.decode("latin-1") not in Quotas.names() or value < 0:
        raise StoreError(EINVAL)
    quotas = server.quotas
    if domids:
        domain = _known_by_number(server, domids[0])
        domain.quotas = quotas = domain.quotas or attrs.evolve(quotas)
    quotas.set_limit(name.decode("latin-1"), value)
    return _OK
