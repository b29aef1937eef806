"""Who does jobs in a guest that is no Python program, and how that is said to him: in lines, or in messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, final

from conformance.kit.machine_guest import MachineGuest
from guest_kernel.kernel import Kernel

BOOT_LOOK_NS: Final = 10_000_000
"""Virtual time between two looks at a guest that is still coming up."""


class Errand(Protocol):
    """What is to be done."""

    def typed(self) -> tuple[object, ...]:
        """Return it as words on a console. Raises Skip if it cannot be typed."""

    def packed(self, number: int) -> bytes:
        """Return it as news on the wire."""


class Hands(ABC):
    """Who does errands."""

    def __init__(self) -> None:
        self.results: dict[int, tuple[bool, bytes]] = {}
        """By the errand's number: whether it went well, and what it brought."""
        self.told: Callable[[str, bytes], None] = lambda what, data: None
        """Called when something has happened in the guest."""
        self._pause: Callable[[], Awaitable[None]]
        self._next = 1

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether anybody is there yet."""

    @abstractmethod
    def ask(self, number: int, errand: Errand) -> None:
        """Have something done."""

    def look(self) -> None:
        """Find out what is new."""
        return

    def serve(self, kernel: Kernel, look_ns: int, is_over: Callable[[], bool]) -> None:
        """Work for a check in this kernel's domain, until it is over."""

        async def pause() -> None:
            await kernel.sleep(look_ns)

        async def look() -> None:
            while not is_over():
                self.look()
                await kernel.sleep(look_ns if self.ready else BOOT_LOOK_NS)

        self._pause = pause
        kernel.spawn(look(), "looks")

    async def begin(self, errand: Errand) -> int:
        """Have something done, as soon as somebody is there; return its number."""
        number = self._next
        self._next += 1
        while not self.ready:
            await self._pause()
        self.ask(number, errand)
        return number

    async def end(self, number: int) -> tuple[bool, bytes]:
        """Wait until something has been done; return whether it went well, and what it brought."""
        while number not in self.results:
            await self._pause()
            self.look()
        return self.results.pop(number)

    async def do(self, errand: Errand) -> tuple[bool, bytes]:
        """Have something done, and wait."""
        return await self.end(await self.begin(errand))


@final
class ConsoleHands(Hands):
    """A program of a machine-code guest."""

    def __init__(self, guest: MachineGuest) -> None:
        super().__init__()
        self._guest = guest
        guest.on_done = lambda number, good, data: self.results.update({number: (good, data)})
        guest.on_told = lambda what, data: self.told(what, data)

    @property
    def ready(self) -> bool:
        """Whether the program has said that it is."""
        return self._guest.is_ready

    def look(self) -> None:
        """Take what the guest has printed, and type what it has room for."""
        self._guest.look()

    def ask(self, number: int, errand: Errand) -> None:
        """Type it."""
        self._guest.ask(number, *errand.typed())
