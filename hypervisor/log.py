"""What Xen has to say: its lines on the host's console, filtered by level, and the ring that remembers them.

A message has a level, 0 (error) to 3 (debug), and may be provoked by a guest; the command line says up to which level
each kind is always shown, and up to which it is shown as long as it does not come too often: ten at once, and one more
every five seconds (printk_ratelimit). The ring is what `xl dmesg` reads.
"""

from __future__ import annotations

from collections.abc import Callable

from hypervisor.options import XenOptions

ERROR, WARNING, INFO, DEBUG = range(4)
PREFIX = "(XEN) "

RING_SIZE = 16384
_INTERVAL_NS = 5_000_000_000
_BURST = 10


class XenLog:
    """Writes lines of Xen to the host's console, and keeps the last 16 KiB of them."""

    def __init__(self, write: Callable[[bytes], None], now: Callable[[], int], options: XenOptions) -> None:
        self._write = write
        self._now = now
        self._options = options
        self.ring = bytearray()
        self.total = 0
        """How many bytes have ever gone into the ring."""
        self._read_up_to = 0
        """What comes before was read and cleared."""
        self._tokens = _BURST * _INTERVAL_NS
        self._last = 0
        self._suppressed = 0

    def printk(self, text: str, level: int = WARNING, *, guest: bool = False, prefix: str = PREFIX) -> None:
        """Show lines of a level, if that is wanted; `guest`: a guest has provoked them."""
        always, seldom = self._options.guest_loglvl if guest else self._options.loglvl
        for line in text.split("\n"):
            if level < always or (level < seldom and self._may_print()):
                self._put(prefix, line)

    def read(self, start: int | None, count: int) -> tuple[int, bytes]:
        """Return up to `count` bytes of the ring and the place of the first, as its number among all bytes ever put in.

        They begin at `start` if that is still there, else with the oldest that were not cleared.
        """
        oldest = max(self._read_up_to, self.total - len(self.ring))
        first = oldest if start is None or not oldest < start <= self.total else start
        at = first - (self.total - len(self.ring))
        return first, bytes(self.ring[at : at + count])

    def clear(self, until: int) -> None:
        """Forget what comes before a place in the ring."""
        self._read_up_to = until

    def _may_print(self) -> bool:
        """Take part in the rate limit: a bucket that holds ten messages and gets one every five seconds."""
        now = self._now()
        self._tokens = min(self._tokens + now - self._last, _BURST * _INTERVAL_NS)
        self._last = now
        if self._tokens < _INTERVAL_NS:
            self._suppressed += 1
            return False
        self._tokens -= _INTERVAL_NS
        lost, self._suppressed = self._suppressed, 0
        if lost:
            self._put(PREFIX, f"printk: {lost} messages suppressed.")
        return True

    def _put(self, prefix: str, line: str) -> None:
        data = f"{prefix}{line}\n".encode("utf-8", "backslashreplace")
        self.ring += data
        self.total += len(data)
        if len(self.ring) > RING_SIZE:
            del self.ring[:-RING_SIZE]
        self._write(data)
