"""A person at a terminal of the real machine: who reads what comes, and types."""

from __future__ import annotations

import os
import re
import select
import time

SECONDS = 600


class Terminal:
    """One end of a pseudo-terminal; the guest, or the command that shows its console, is at the other."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.seen = ""

    def expect(self, pattern: str) -> str:
        """Wait for a text (a regular expression), and return what came up to its end."""
        deadline = time.monotonic() + SECONDS
        while (match := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{pattern!r} does not come after:\n{self.seen[-3000:]}"
            try:
                data = os.read(self._fd, 4096)
            except OSError:
                # EIO: the other end has been closed.
                data = b""
            assert data, f"the host has ended, and {pattern!r} did not come after:\n{self.seen[-3000:]}"
            # (Lines end in carriage return and newline, and there are colours.)
            self.seen = re.sub(r"\r|\x1b\[[\d;]*m", "", self.seen + data.decode(errors="replace"))
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        os.close(self._fd)
