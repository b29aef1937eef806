r"""The syntax of xl.cfg files: assignments of strings, numbers and lists. Nothing is ever executed.

As xl.cfg(5) describes it: `name = value` (or `name += value`) ended by a line end or `;`, `#` comments, strings in
either kind of quotes with the escapes \\ \" \' \a \b \f \n \r \t \v, octal and \xHH, numbers in decimal, hex or
octal, and lists in square brackets that may span lines and end with a comma. It looks like Python and is none.

    file  := { [ name ("=" | "+=") value ] (NEWLINE | ";") }
    value := STRING | NUMBER | "[" { NEWLINE } [ value { "," value } [ "," ] ] "]"
"""

import re
from collections.abc import Iterator

import attrs

from toolstack.errors import ConfigError

Value = str | int | list["Value"]

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\f]+ | \\\n | \#[^\n]*)
  | (?P<newline>\n)
  | (?P<string>'(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*")
  | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+)(?![A-Za-z_0-9]))
  | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
  | (?P<punct>\+=|[=;\[\],])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'"}
_END = "end of file"
_MAX_DEPTH = 8  # of nested lists; xl knows one level, and a hostile file must not exhaust the stack
_MAX_DIGITS = 64  # of a number: no setting needs more, and Python refuses to read thousands


@attrs.frozen
class Setting:
    """One assignment: its value and, for error messages, the line of its name and those of the items of a list."""

    value: Value
    line: int
    item_lines: tuple[int, ...] = ()

    def line_of(self, index: int) -> int:
        """Return the line of item `index` of a list."""
        return self.item_lines[index] if index < len(self.item_lines) else self.line


@attrs.frozen
class _Token:
    kind: str
    text: str
    line: int


def parse(text: str, source: str) -> dict[str, Setting]:
    """Parse a whole file. Returns the settings by name, in the order of their first assignment.

    A name that is assigned twice takes the later value, as with xl. Raises `ConfigError` naming `source` and the line.
    """
    return _Parser(text, source).settings()


def _tokens(text: str, source: str) -> Iterator[_Token]:
    line, at = 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ConfigError(source, line, _lexical_message(text[at]))
        kind = str(match.lastgroup)
        if kind != "space":
            yield _Token(kind, match.group(), line)
        line += match.group().count("\n")
        at = match.end()
    yield _Token("newline", _END, line)


def _lexical_message(char: str) -> str:
    if char in "'\"":
        return "this string has no closing quote on its line"
    return f"unexpected character {char!r}"


class _Parser:
    """Recursive descent over the token list; `_at` is the token looked at."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._tokens = list(_tokens(text, source))
        self._at = 0
        self._item_lines: list[int] = []

    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        while self._at < len(self._tokens):
            token = self._take()
            if token.kind == "newline" or token.text == ";":
                continue
            self._assignment(token, found)
        return found

    def _assignment(self, name: _Token, found: dict[str, Setting]) -> None:
        if name.kind != "name":
            raise self._error(name, f"a setting starts with its name, not with {name.text!r}")
        operator = self._take()
        if operator.text not in ("=", "+="):
            raise self._error(operator, f"expected '=' after {name.text!r}, got {_show(operator)}")
        self._item_lines = []
        setting = Setting(self._value(0), name.line, tuple(self._item_lines))
        if operator.text == "+=":
            setting = self._appended(name, found.get(name.text), setting)
        found[name.text] = setting
        if not self._done():
            end = self._take()
            if end.kind != "newline" and end.text != ";":
                raise self._error(
                    end, f"expected the end of the line after the value of {name.text!r}, got {_show(end)}"
                )

    def _appended(self, name: _Token, before: Setting | None, new: Setting) -> Setting:
        if before is None:
            return new
        old, value = before.value, new.value
        if isinstance(old, list) and isinstance(value, list):
            return Setting(old + value, new.line, before.item_lines + new.item_lines)
        if isinstance(old, str) and isinstance(value, str):
            return Setting(old + value, new.line)
        raise self._error(name, f"'+=' needs two lists or two strings, and {name.text!r} is not that")

    def _value(self, depth: int) -> Value:
        token = self._take()
        if token.kind == "string":
            return self._string(token)
        if token.kind == "number":
            if len(token.text) > _MAX_DIGITS:
                raise self._error(token, f"this number has {len(token.text)} digits; {_MAX_DIGITS} are possible")
            return _number(token.text)
        if token.text == "[":
            return self._list(token, depth + 1)
        if token.kind == "name":
            raise self._error(token, f"a value is a string, a number or a list; put {token.text!r} in quotes")
        raise self._error(token, f"expected a value, got {_show(token)}")

    def _list(self, start: _Token, depth: int) -> list[Value]:
        if depth > _MAX_DEPTH:
            raise self._error(start, "lists are nested too deeply")
        items: list[Value] = []
        while True:
            self._skip_newlines(start)
            if self._tokens[self._at].text == "]":
                self._at += 1
                return items
            if depth == 1:
                self._item_lines.append(self._tokens[self._at].line)
            items.append(self._value(depth))
            self._skip_newlines(start)
            token = self._take()
            if token.text == "]":
                return items
            if token.text != ",":
                raise self._error(token, f"expected ',' or ']' in the list that starts in line {start.line}, "
                                         f"got {_show(token)}")  # fmt: skip

    def _string(self, token: _Token) -> str:
        def replace(match: re.Match[str]) -> str:
            code = match.group(1)
            if code[0] == "x" and len(code) > 1:
                return chr(int(code[1:], 16))
            if code[0] in "01234567":
                return chr(int(code, 8) & 0xFF)
            if code in _SIMPLE:
                return _SIMPLE[code]
            raise self._error(token, f"unknown escape '\\{code}' in a string")

        return _ESCAPE.sub(replace, token.text[1:-1])

    def _skip_newlines(self, start: _Token) -> None:
        while not self._done() and self._tokens[self._at].kind == "newline":
            self._at += 1
        if self._done():
            raise self._error(start, "this list has no closing ']'")

    def _done(self) -> bool:
        return self._at >= len(self._tokens)

    def _take(self) -> _Token:
        token = self._tokens[min(self._at, len(self._tokens) - 1)]
        self._at += 1
        return token

    def _error(self, token: _Token, message: str) -> ConfigError:
        return ConfigError(self._source, token.line, message)


def _number(text: str) -> int:
    digits = text.lstrip("+-")
    base = 16 if digits[:2].lower() == "0x" else 8 if len(digits) > 1 and digits[0] == "0" else 10
    try:
        value = int(digits, base)
    except ValueError:  # "08": C's strtoul would stop at the 8; a person meant ten's digits
        value = int(digits, 10)
    return -value if text[0] == "-" else value


def _show(token: _Token) -> str:
    if token.kind == "newline":
        return "the end of the file" if token.text == _END else "the end of the line"
    return repr(token.text)
