"""Output on its way to a terminal that is read slowly, or never: what xenconsoled keeps of it.

As in the C daemon (`--overflow-data=discard`, its default): when a quarter more than the console's limit waits, the
middle is thrown away. What stays is how it began, and how it ends.
"""

from typing import Final, final

LIMIT: Final = 1 << 20
"""Bytes, where the toolstack's `limit` node does not say another number. 0 means as many as there are."""


@final
class OutputBuffer:
    """Bytes in order, in bounded memory."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.data = bytearray()
        #: Bytes that were thrown away.
        self.lost = 0

    def append(self, data: bytes) -> None:
        """Keep bytes; throw away the middle if that makes too many."""
        self.data += data
        limit, size = self.limit, len(self.data)
        if limit and size > limit + limit // 4:
            self.lost += size - limit
            del self.data[limit // 2 : limit // 2 + size - limit]

    def advance(self, count: int) -> None:
        """Forget the first bytes: they have been sent."""
        del self.data[:count]

    @property
    def full(self) -> bool:
        """Whether there are as many as there may be."""
        return bool(self.limit) and len(self.data) >= self.limit


def parse_limit(text: str | None) -> int:
    """Return the number in a `limit` node, as C's strtoul(…, 0) would read it; `LIMIT` if there is none."""
    if text is None:
        return LIMIT
    digits = text.strip()
    try:
        return max(0, int(digits, 0))
    except ValueError:
        return int(digits, 10) if digits.isascii() and digits.isdigit() else 0
