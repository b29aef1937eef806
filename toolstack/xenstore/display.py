"""How Xen's xenstore tools show values and nodes, and what they take for one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from guest_kernel.xenbus.wire import to_text
from toolstack.xenstore.client import Refused, StoreClient

_NAMED: Final = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r", ord("\\"): "\\\\"}
_ESCAPE: Final = re.compile(rb"\\(?:([tnr\\])|x([0-9a-fA-F]{1,2})|([0-7]{1,3})|$)?")
_LETTERS: Final = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"\\": b"\\"}
_ELLIPSIS: Final = len(' = "..."')
DESIRED_WIDTH: Final = 60
"""Column in which permissions begin, if the value leaves that much room."""


def escape(value: bytes) -> str:
    """Return a value as one line of ASCII."""
    return "".join([_shown(byte) for byte in value])


def _shown(byte: int) -> str:
    if byte in _NAMED:
        return _NAMED[byte]
    if 0x20 <= byte <= 0x7E:
        return chr(byte)
    return f"\\{byte:03o}" if byte < 8 else f"\\x{byte:02x}"


def unescape(text: bytes) -> bytes:
    """Return the value that an escaped text means; a backslash before anything else is left out."""

    def value(match: re.Match[bytes]) -> bytes:
        letter, hexadecimal, octal = match.groups()
        if letter:
            return _LETTERS[letter]
        if hexadecimal or octal:
            return bytes([(int(hexadecimal, 16) if hexadecimal else int(octal, 8)) & 0xFF])
        # A lone backslash is left out; at the very end the tool takes the end of its text for the escaped character.
        return b"\0" if match.end() == len(text) else b""

    return _ESCAPE.sub(value, text)


def tree_lines(client: StoreClient, path: bytes, *, flat: bool, permissions: bool, width: int | None) -> Iterator[str]:
    """Yield a line for each node below `path`, as xenstore-ls does.

    `flat`: whole paths; else names, indented, cut to `width` columns (None: not cut). Raises `Refused` if `path` is not
    there; nodes that go away meanwhile are left out.
    """
    width = None if flat else width
    todo = [(path, name, 0) for name in reversed(client.directory(path))]
    while todo:
        above, name, depth = todo.pop()
        node = above + (b"" if above.endswith(b"/") else b"/") + name
        shown = to_text(node) if flat else " " * depth + _cut(to_text(name), width, depth)
        yield _line(client, node, shown, permissions=permissions, width=width, flat=flat)
        try:
            below = client.directory(node)
        except Refused as error:
            if error.name == "ENOENT":
                continue
            raise
        todo += [(node, child, depth + 1) for child in reversed(below)]


def _cut(name: str, width: int | None, depth: int) -> str:
    return name if width is None else name[: max(0, width - _ELLIPSIS - depth)]


def _line(client: StoreClient, node: bytes, shown: str, *, permissions: bool, width: int | None, flat: bool) -> str:
    try:
        value = client.read(node)
    except Refused:
        line = shown + ":\n"
    else:
        line = _with_value(shown, value, permissions=permissions, width=width, flat=flat)
    if permissions:
        try:
            line += "  (" + ",".join(client.permissions(node)) + ")"
        except Refused as error:
            line += f"  (no permissions: {error.name})"
    return line


def _with_value(shown: str, value: bytes, *, permissions: bool, width: int | None, flat: bool) -> str:
    indented = 0 if flat else len(shown)
    if width is not None and width < indented + len(value) + _ELLIPSIS:
        return f'{shown} = "{escape(value)[: max(0, width - _ELLIPSIS - indented)]}\\..."'
    text = f' = "{escape(value)}"'
    line = shown + text
    if permissions:
        column = indented + len(text) + 1
        end = column if flat else min(DESIRED_WIDTH, DESIRED_WIDTH if width is None else width)
        line += " " + "".join("." if at & 1 else " " for at in range(column, end))
    return line
