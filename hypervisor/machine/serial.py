"""The serial card: any number of lines to the outside, opened by name (abi.device).

What is behind a line is a `Plug`. Who assembles the machine gives the card a `panel` that finds one for a kind and a
name; the card itself knows nothing of terminals, files or sockets.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable

from hypervisor.abi import device as sheet
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_SIZE

NAME_SIZE = 256
ALL_ONES = 0xFFFFFFFF


class Plug(ABC):
    """The outside's end of one line. All calls come from, and are to be made, between two stretches of guest code."""

    name = ""
    """Name of the terminal, for people to open; "" if it has none."""
    news: Callable[[], None] = staticmethod(lambda: None)
    """To be called when there is input, when there is room again after `send` has not taken all, at the end."""

    @abstractmethod
    def send(self, data: bytes) -> int:
        """Take bytes from the host; return how many there was room for."""

    def receive(self, limit: int) -> bytes:
        """Return, and forget, at most `limit` bytes of input."""
        return b""

    def close(self) -> None:
        """The host has closed the line."""
        return


Panel = Callable[[int, str], Plug | None]
"""`panel(kind, name)` returns what to plug into a new line; None if nothing is to be had."""


class SerialCard:
    """The card. Its page is not confined by the IOMMU: only the initial domain has its ports."""

    def __init__(self, machine: Machine, panel: Panel) -> None:
        self.machine = machine
        machine.interrupts.plug_in(sheet.SERIAL_IRQ)
        self.panel = panel
        self.rouse: Callable[[], None] = lambda: None
        """Called after an interrupt: news come from outside of the pCPU loop, which may be asleep."""
        self.lines: dict[int, Plug] = {}
        self._next = 0
        self._line = 0
        self._result = 0
        self._base = -1
        self._news: dict[int, None] = {}
        commands = {
            sheet.SERIAL_OPEN: self._open,
            sheet.SERIAL_CLOSE: self._close,
            sheet.SERIAL_SEND: self._send,
            sheet.SERIAL_RECEIVE: self._receive,
        }
        self._commands: dict[int, Callable[[int], int]] = commands
        machine.ports.map(sheet.SERIAL_PORT, sheet.SERIAL_PORT_COUNT, self._read_register, self._write_register)

    def unplug_all(self) -> None:
        """Take everything out of the lines: the host is switched off."""
        while self.lines:
            self._drop(next(iter(self.lines)))

    # -- registers ------------------------------------------------------------------------------------------------

    def _read_register(self, port: int) -> int:
        register = port - sheet.SERIAL_PORT
        if register == sheet.SERIAL_ID:
            return sheet.SERIAL_MAGIC
        if register == sheet.SERIAL_RESULT:
            return self._result & ALL_ONES
        if register == sheet.SERIAL_NEWS:
            if not self._news:
                return ALL_ONES
            number = next(iter(self._news))
            del self._news[number]
            return number
        return 0

    def _write_register(self, port: int, value: int) -> None:
        register = port - sheet.SERIAL_PORT
        if register == sheet.SERIAL_PAGE:
            self._base = value * PAGE_SIZE if value < self.machine.memory.frames else -1
        elif register == sheet.SERIAL_LINE:
            self._line = value
        elif register in self._commands:
            self._result = self._commands[register](value) if self._base >= 0 else -errno.EFAULT

    # -- commands -------------------------------------------------------------------------------------------------

    def _open(self, kind: int) -> int:
        memory = self.machine.memory
        text = bytes(memory.b[self._base : self._base + NAME_SIZE]).partition(b"\0")[0].decode("utf-8", "replace")
        if len(self.lines) >= sheet.SERIAL_LINES:
            return -errno.ENFILE
        plug = self.panel(kind, text)
        if plug is None:
            return -errno.ENODEV
        while self._next in self.lines:
            self._next = (self._next + 1) % sheet.SERIAL_LINES
        number = self._next
        self._next = (number + 1) % sheet.SERIAL_LINES
        self.lines[number] = plug
        plug.news = lambda: self._tell(number)
        memory.write(self._base, plug.name.encode()[: NAME_SIZE - 1] + b"\0")
        return number

    def _close(self, _value: int) -> int:
        if self._line not in self.lines:
            return -errno.EBADF
        self._drop(self._line)
        return 0

    def _send(self, size: int) -> int:
        plug = self.lines.get(self._line)
        if plug is None:
            return -errno.EBADF
        return plug.send(bytes(self.machine.memory.b[self._base : self._base + min(size, PAGE_SIZE)]))

    def _receive(self, limit: int) -> int:
        plug = self.lines.get(self._line)
        if plug is None:
            return -errno.EBADF
        data = plug.receive(min(limit, PAGE_SIZE))
        if data:
            self.machine.memory.write(self._base, data)
        return len(data)

    # -- the outside ----------------------------------------------------------------------------------------------

    def _tell(self, number: int) -> None:
        """Put a line on the list of those with news; interrupt for the first."""
        if number in self.lines and number not in self._news:
            self._news[number] = None
            if len(self._news) == 1:
                self.machine.interrupts.raise_line(sheet.SERIAL_IRQ)
                self.rouse()

    def _drop(self, number: int) -> None:
        plug = self.lines.pop(number)
        self._news.pop(number, None)
        plug.news = lambda: None
        plug.close()
