"""The interface of a machine-code guest: what a check wants of it is typed on the guest's console."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, final

from conformance.kit.machine_guest import MachineGuest
from guest_kernel.net.offload import Offload

TCP, UDP = 6, 17
CHECKSUM_AT: Final = {TCP: 16, UDP: 6}
"""Where the checksum lies in a transport header."""


@final
class RemoteInterface:
    """What a check's guest can do with its interface."""

    def __init__(self, guest: MachineGuest, pause: Callable[[], Awaitable[None]], heard: list[bytes]) -> None:
        self._guest = guest
        self._pause = pause
        self._results: dict[int, bool] = {}
        self._next = 1
        guest.on_done = lambda number, good, data: self._results.update({number: good})
        guest.on_told = lambda what, data: heard.append(data) if what == "frame" else None

    async def transmit(self, frame: bytes, offload: Offload) -> bool:
        """Send a frame; whether the guest's kernel has taken it."""
        return await self._done(self._ask(frame, offload))

    async def transmit_all(self, frames: list[bytes]) -> int:
        """Send frames, one after the other; return how many were taken."""
        numbers = [self._ask(frame, Offload()) for frame in frames]
        return sum([await self._done(number) for number in numbers])

    async def listen(self) -> None:
        """Have the guest tell of what it receives, as of a wire."""
        await self._done(self._type("listen"))

    async def nothing(self) -> None:
        """Show a sign of life."""
        await self._done(self._type("nothing"))

    def _ask(self, frame: bytes, offload: Offload) -> int:
        """Have a frame sent; where its checksum is blank: where that is, and where it begins to count."""
        start, at = checksum_place(frame) if offload.blank else (0, 0)
        kind = 0 if not offload.gso_size else 4 if offload.gso_type == 2 else 1
        return self._type("send", start, at, offload.gso_size, kind, frame.hex())

    def _type(self, *words: object) -> int:
        number = self._next
        self._next += 1
        self._guest.ask(number, *words)
        return number

    async def _done(self, number: int) -> bool:
        while number not in self._results:
            await self._pause()
            self._guest.look()
        return self._results.pop(number)


def checksum_place(frame: bytes) -> tuple[int, int]:
    """Return where the transport header of an IP packet begins, and where in it the checksum lies."""
    network = 14
    if frame[network] >> 4 == 6:
        return network + 40, CHECKSUM_AT[frame[network + 6]]
    return network + (frame[network] & 15) * 4, CHECKSUM_AT[frame[network + 9]]
