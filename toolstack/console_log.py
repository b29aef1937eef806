"""The live view of all consoles: one line at a time, each tagged with its domain.

    dom0   | xenstored: ready
    guest1 | hello
    (XEN)  | domain_crash called for d2

Guests are hostile, and a terminal obeys escape sequences: control characters are shown, not executed. Lines are
bounded, and so is what is kept of an unfinished one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

MAX_LINE = 400
"""Characters of one line; a longer one goes on in the next, marked with a `\\`."""
XEN_TAG = "(XEN)"
_XEN_PREFIX = b"(XEN) "
_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_SHOWN |= {code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))}
"""What a terminal would obey: control characters, and those that turn the direction of the text around."""
_SHOWN[ord("\r")] = ""
_SHOWN[ord("\t")] = "    "


PANIC = "Kernel panic - not syncing"
"""How Linux begins to say why it ends."""


def printable(text: str) -> str:
    """Return a text of a guest's as it may be shown to a person: nothing in it that a terminal would obey."""
    return text.translate(_SHOWN)


class ConsoleLog:
    """Splits console bytes into tagged lines and hands those to `write` (with their line end).

    `width` is the width of the tags' column. `colour` paints the tags, each domain in a colour of its own.
    """

    def __init__(self, write: Callable[[str], None], *, width: int = 0, colour: bool = False) -> None:
        self._write = write
        self._width = width
        self._colour = colour
        self._partial: dict[str, bytes] = {}
        self.last: dict[str, str] = {}
        """The last line of each domain that was not empty: of a crash, that is what it was.

        Linux says more after what it was; so the line with its panic stays, until the domain is gone.
        """
        self._panicked: set[str] = set()

    def feed(self, tag: str, data: bytes) -> None:
        """Take bytes that a domain printed."""
        pending = self._partial.get(tag, b"") + data
        lines = pending.split(b"\n")
        rest = lines.pop()
        for line in lines:
            self._line(tag, line)
        while len(rest) > MAX_LINE:
            self._line(tag, rest[:MAX_LINE], more=True)
            rest = rest[MAX_LINE:]
        self._partial[tag] = rest

    def feed_host(self, tag: str, data: bytes) -> None:
        """Take bytes of the host's serial line, which Xen and dom0 (`tag`) share."""
        pending = self._partial.get(tag, b"") + data
        lines = pending.split(b"\n")
        self._partial[tag] = lines.pop()[-MAX_LINE:]
        for line in lines:
            if line.startswith(_XEN_PREFIX):
                self._line(XEN_TAG, line.removeprefix(_XEN_PREFIX))
            else:
                self._line(tag, line)

    def finish(self, tag: str) -> None:
        """Show what a domain printed behind its last line end: it is gone."""
        rest = self._partial.pop(tag, b"")
        if rest:
            self._line(tag, rest)
        self._panicked.discard(tag)

    def finish_all(self) -> None:
        """Show every unfinished line."""
        for tag in list(self._partial):
            self.finish(tag)

    def _line(self, tag: str, line: bytes, *, more: bool = False) -> None:
        text = printable(line.decode("utf-8", "backslashreplace"))
        if text and tag not in self._panicked:
            self.last[tag] = text[:MAX_LINE]
            if PANIC in text:
                self._panicked.add(tag)
        for start in range(0, max(len(text), 1), MAX_LINE):
            mark = "\\" if more or start + MAX_LINE < len(text) else ""
            self._write(f"{self._tag(tag)} | {text[start : start + MAX_LINE]}{mark}\n")

    def _tag(self, tag: str) -> str:
        padded = tag.ljust(self._width)
        if not self._colour:
            return padded
        colour = 90 if tag == XEN_TAG else _COLOURS[zlib.crc32(tag.encode()) % len(_COLOURS)]
        return f"\x1b[{colour}m{padded}\x1b[0m"
