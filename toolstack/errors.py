"""What a person got wrong, said in one sentence. The command line prints these and exits with code 2."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake of the person at the keyboard: a bad configuration, a missing file, too little memory.

    The text is one complete sentence that names what and where; it is shown as it is, without a traceback.
    """


class ConfigError(UsageError):
    """A mistake in a configuration file; the text begins with `file:line:`."""

    def __init__(self, source: str, line: int, message: str) -> None:
        super().__init__(f"{source}:{line}: {message}")
        self.source = source
        self.line = line
        self.message = message


class GuestHangError(SystemExit):
    """Raised in a guest that does not yield. Not an `Exception`: a guest's `except Exception` does not stop it."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class SpecError(ValueError):
    """A disk or vif specification does not parse. Carries no position: the configuration reader adds it."""


class ToolstackError(Exception):
    """An operation on a domain failed for a reason that is not the user's configuration (a guest misbehaved)."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or the empty string."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
