"""Driver of the simulated machine's serial card (abi.device)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from guest_kernel.hw.errors import NoDeviceError
from guest_kernel.hw.irq import free_irq, request_irq
from guest_kernel.mm import PAGE_SIZE
from hypervisor.abi import device as sheet
from hypervisor.abi.cpu import GeneralProtectionFault

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

LOG, TERMINAL, MANAGEMENT, STORE = sheet.SERIAL_LOG, sheet.SERIAL_TERMINAL, sheet.SERIAL_MANAGEMENT, sheet.SERIAL_STORE

_BASE = sheet.SERIAL_PORT
_NONE = 0xFFFFFFFF


def _ignore() -> None:
    return


@final
class SerialLine:
    """One open line of the card."""

    def __init__(self, card: PhysicalSerial, number: int, name: str) -> None:
        self._card = card
        self.number = number
        self.name = name
        """Name of the terminal behind it, or ""."""
        self.on_news: Callable[[], None] = _ignore
        """Called in upcall context when there is input, or room again for output."""

    def send(self, data: bytes) -> int:
        """Send; return how many bytes were taken. What was not has to be sent again after news."""
        return self._card.send(self.number, data)

    def receive(self, limit: int) -> bytes:
        """Return at most `limit` bytes of input, b"" if there is none."""
        return self._card.receive(self.number, limit)

    def close(self) -> None:
        """Hang up."""
        self._card.close_line(self.number)


@final
class PhysicalSerial:
    """The card."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._inl, self._outl = kernel.cpu.inl, kernel.cpu.outl
        try:
            identity = self._inl(_BASE + sheet.SERIAL_ID)
        except GeneralProtectionFault:
            raise NoDeviceError("this domain may not use the serial card") from None
        if identity != sheet.SERIAL_MAGIC:
            raise NoDeviceError("there is no serial card")
        self.lines: dict[int, SerialLine] = {}
        self._page = kernel.mm.alloc_page()
        self._outl(_BASE + sheet.SERIAL_PAGE, self._page.mfn)
        self._port = request_irq(kernel, sheet.SERIAL_IRQ, self._interrupt)

    def open(self, kind: int, name: str) -> SerialLine | None:
        """Open a line of a kind (LOG, TERMINAL, MANAGEMENT, STORE) by name; None if nothing is plugged in there."""
        view = self._page.view
        text = name.encode()[:255] + b"\0"
        view[: len(text)] = text
        number = self._command(sheet.SERIAL_OPEN, kind)
        if number < 0:
            return None
        line = SerialLine(self, number, bytes(view[:256]).partition(b"\0")[0].decode("utf-8", "replace"))
        self.lines[number] = line
        return line

    def send(self, number: int, data: bytes) -> int:
        """Send bytes on a line; see `SerialLine.send`."""
        sent = 0
        self._outl(_BASE + sheet.SERIAL_LINE, number)
        while sent < len(data):
            part = data[sent : sent + PAGE_SIZE]
            self._page.view[: len(part)] = part
            taken = self._command(sheet.SERIAL_SEND, len(part))
            sent += max(0, taken)
            if taken < len(part):
                break
        return sent

    def receive(self, number: int, limit: int) -> bytes:
        """Receive bytes from a line; see `SerialLine.receive`."""
        self._outl(_BASE + sheet.SERIAL_LINE, number)
        count = self._command(sheet.SERIAL_RECEIVE, min(limit, PAGE_SIZE))
        return bytes(self._page.view[: max(0, count)])

    def close_line(self, number: int) -> None:
        """Close a line."""
        if self.lines.pop(number, None) is not None:
            self._outl(_BASE + sheet.SERIAL_LINE, number)
            self._outl(_BASE + sheet.SERIAL_CLOSE, 0)

    def _command(self, register: int, value: int) -> int:
        """Give a command; return its signed result."""
        self._outl(_BASE + register, value)
        result = self._inl(_BASE + sheet.SERIAL_RESULT)
        return result - (1 << 32) if result >> 31 else result

    def _interrupt(self) -> None:
        while (number := self._inl(_BASE + sheet.SERIAL_NEWS)) != _NONE:
            line = self.lines.get(number)
            if line is not None:
                line.on_news()

    def close(self) -> None:
        """Close all lines; give back the interrupt and the memory."""
        for number in list(self.lines):
            self.close_line(number)
        self._outl(_BASE + sheet.SERIAL_PAGE, _NONE)
        free_irq(self._kernel, self._port)
        self._kernel.mm.free_page(self._page)
