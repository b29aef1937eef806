"""A client of a running host's control socket: for the commands, and for programs in Python."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, final

from toolstack.control.protocol import VERSION, ControlError, Messages, ProtocolError, check_reply, pack
from toolstack.person import Screen, closing_screen, raw_terminal, until_escape

READ_SIZE = 4096
VARIABLE = "PARAVIRT_CONTROL"
"""The environment variable that names the socket."""

HOST_GONE = "the host has ended"


@final
class Control:
    """A connection. Everything raises ControlError or ProtocolError, with one sentence."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._messages = Messages()
        self._replies: Iterator[Any] = iter(())
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ControlError(f"no host listens at {str(path)!r}: {error.strerror or error}") from None
        try:
            greeting = self._receive()
            if not isinstance(greeting, dict) or greeting.get("paravirt") != VERSION:
                raise ProtocolError(f"what listens at {str(path)!r} is no host of this version")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, verb: str, **args: Any) -> Any:
        """Have a verb carried out; return its result."""
        try:
            self._socket.sendall(pack({"verb": verb, "args": args}))
        except OSError:
            raise ControlError(HOST_GONE) from None
        return check_reply(self._receive())

    def _receive(self) -> Any:
        while True:
            for message in self._replies:
                return message
            try:
                data = self._socket.recv(READ_SIZE)
            except OSError:
                data = b""
            if not data:
                raise ControlError(HOST_GONE)
            self._replies = self._messages.feed(data)

    def console(self, typed: int, shown: int) -> bool:
        """Join two descriptors to the console that `ask("console", …)` has attached to.

        Returns True when the person leaves with Ctrl-] or input ends, False when the console goes.
        """
        screen = Screen(shown)
        for data in self._replies:
            screen.show(data)
        host = self._socket.fileno()
        with raw_terminal(typed), closing_screen(screen):
            while True:
                readable, _, _ = select.select([typed, host], [], [])
                if host in readable:
                    data = self._socket.recv(READ_SIZE)
                    if not data:
                        return False
                    for message in self._messages.feed(data):
                        screen.show(message)
                if typed in readable:
                    keys, leave = until_escape(os.read(typed, READ_SIZE))
                    if keys:
                        self._socket.sendall(pack(keys))
                    if leave or not keys:
                        return True


def join(terminal: int, typed: int, shown: int) -> bool:
    """Join two descriptors to a pseudo-terminal, as xenconsole does; see `Control.console`."""
    screen = Screen(shown)
    with raw_terminal(typed), closing_screen(screen):
        while True:
            readable, _, _ = select.select([typed, terminal], [], [])
            if terminal in readable:
                try:
                    data = os.read(terminal, READ_SIZE)
                except OSError:
                    data = b""  # the console is closed
                if not data:
                    return False
                screen.show(data)
            if typed in readable:
                keys, leave = until_escape(os.read(typed, READ_SIZE))
                _write(terminal, keys)
                if leave or not keys:
                    return True


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
