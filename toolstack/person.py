"""A person at a keyboard who is attached to a guest's console: raw terminal, and Ctrl-] to leave, as `xl console`."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from toolstack.outside import AttachPlug, Outside

if TYPE_CHECKING:
    from toolstack.host import Host

ESCAPE = b"\x1d"
"""Ctrl-]: what leaves the console."""
READ_SIZE = 1024


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Give every key to the guest, Ctrl-C too, if this is a terminal. Guests may end lines with a bare newline."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    attributes = termios.tcgetattr(descriptor)
    attributes[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
    attributes[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    termios.tcsetattr(descriptor, termios.TCSADRAIN, attributes)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Screen:
    """What a guest's console is shown on: a terminal, or whatever else a descriptor leads to, which gets it as it is.

    A terminal makes carriage return and newline of a newline. So does that of a guest like Linux; of its pairs only the
    newline is passed on, or there would be two carriage returns.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = b""
        """A carriage return, as long as it is not known what follows."""
        try:
            output = termios.tcgetattr(descriptor)[1]
        except termios.error:
            output = 0  # no terminal
        self._adds_returns = bool(output & termios.OPOST and output & termios.ONLCR)

    def show(self, data: bytes) -> None:
        """Show what the guest has written."""
        if self._adds_returns:
            data = (self._held + data).replace(b"\r\n", b"\n")
            self._held = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(self._held)]
        self._write(data)

    def finish(self) -> None:
        """Show what has been held back: nothing follows."""
        self._write(self._held)
        self._held = b""

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


@contextmanager
def closing_screen(screen: Screen) -> Iterator[None]:
    """Show, in the end, what has been held back."""
    try:
        yield
    finally:
        screen.finish()


def until_escape(data: bytes) -> tuple[bytes, bool]:
    """Return what was typed before Ctrl-], and whether that was typed."""
    before, escape, _ = data.partition(ESCAPE)
    return before, bool(escape)


class ConsolePerson:
    """Standard input and output as the console of one guest of this process's own host (`run --console`).

    Input that is no terminal works too: it is typed as fast as the guest reads. At its end, or after Ctrl-], the person
    only looks on.
    """

    def __init__(self, name: str, outside: Outside) -> None:
        self.name = name
        self.attached = True
        """Whether the person sees this one console only, byte for byte."""
        self._outside = outside
        self._left = False
        self._screen: Screen | None = None
        outside.listeners += 1
        outside.by_hand.add(name)
        outside.tasks.append(self.run)

    async def run(self, host: Host) -> None:
        """Type and show until the host is switched off."""
        descriptor = sys.stdin.fileno()
        self._screen = Screen(sys.stdout.fileno())
        with raw_terminal(descriptor):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await self._type(descriptor)
                self._outside.listeners -= 1
                # A host that waits for the person has to look whether there is anything left to wait for.
                host.wake()
                if self._left:
                    self.attached = False
                    nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        """Attach to the guest's terminal whenever one is opened."""
        try:
            while True:
                plug = self._plug()
                opened = self._outside.opened
                if plug is not None and plug.attached is None:
                    plug.attach(self._show, lambda: None)
                await opened.wait()
        finally:
            plug = self._plug()
            if plug is not None:
                plug.detach()
            if self._screen is not None:
                self._screen.finish()

    def _show(self, data: bytes) -> None:
        sys.stdout.flush()
        assert self._screen is not None
        self._screen.show(data)

    def _plug(self) -> AttachPlug | None:
        plug = self._outside.terminals.get(self.name)
        return plug if isinstance(plug, AttachPlug) else None

    async def _type(self, descriptor: int) -> None:
        """Type what is read from standard input; returns at its end, or when the person leaves."""
        while True:
            data = await trio.to_thread.run_sync(os.read, descriptor, READ_SIZE, abandon_on_cancel=True)
            typed, self._left = until_escape(data)
            while typed:
                plug = self._plug()
                if plug is None:
                    await self._outside.opened.wait()
                    continue
                room = plug.room
                typed = typed[plug.type(typed) :]
                if typed:
                    await room.wait()
            if self._left or not data:
                return
