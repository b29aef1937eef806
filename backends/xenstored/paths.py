"""Names of nodes: what may be one, and what a relative one means (docs/misc/xenstore.txt; C daemon, path quota)."""

import re
from typing import Final

_ALLOWED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"
# A domain's own prefix does not count against the limit. As sscanf("%5u"): five characters, one may be a sign.
_HOME: Final = re.compile(rb"/local/domain/(?:\d{1,5}|-\d{1,4})/")

WATCH_SPECIAL_MAX: Final = 2048
"""Longest `@name` that may be watched (io/xs_wire.h, XENSTORE_REL_PATH_MAX)."""


def is_valid(path: bytes, limit: int) -> bool:
    """Tell whether `path`, absolute, may name a node.  `limit`: bytes, without the prefix `/local/domain/N/`."""
    if path[:1] != b"/" or b"//" in path or path.translate(None, _ALLOWED):
        return False
    if path[-1:] == b"/":
        return path == b"/"
    if len(path) <= limit:
        return True
    home = _HOME.match(path)
    return home is not None and len(path) <= limit + home.end()


def home_of(domid: int) -> bytes:
    """Return the directory that a domain's relative paths start from."""
    return b"/local/domain/%d" % domid
