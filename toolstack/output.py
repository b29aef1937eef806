"""Standard output as it is in life: closed, full, read by a `head` that has had enough, or of a narrow encoding."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class StandardOutput:
    """Writes text until that fails for the first time; then `on_loss` is called once, and the rest goes nowhere.

    Characters that the encoding of the output does not have are written as escapes.
    """

    def __init__(self) -> None:
        self.lost: OSError | None = None
        """Why the output takes no more."""
        self.on_loss: Callable[[], None] = lambda: None
        if sys.stdout is None:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it."""
        return sys.stdout.isatty()

    def write(self, text: str) -> None:
        """Write, and do not keep anything back."""
        self.attempt(lambda: sys.stdout.write(text))

    def write_bytes(self, data: bytes) -> None:
        """Write bytes as they are, and do not keep anything back."""
        self.attempt(lambda: sys.stdout.buffer.write(data))

    def attempt(self, write: Callable[[], object]) -> None:
        """Call what writes to `sys.stdout`, and flush that."""
        if self.lost is not None:
            return
        try:
            write()
            sys.stdout.flush()
        except OSError as error:
            self.lost = error
            # What is still buffered would fail again when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
            self.on_loss()
