"""Hearing from outside without the event loop, while there is a lively conversation.

A turn of trio's loop costs as much as dozens of requests of a client. So a host that has nothing to do first waits here
for a moment, at the descriptors of the devices whose clients may go on at once, and only then goes to sleep under trio.
Everybody else outside has to wait that much longer: at most `TURN_NS` goes by between two turns of the loop.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

if TYPE_CHECKING:
    from toolstack.host import Host

WAIT_NS: Final = 1_000_000
"""How long to wait for the next word: the shortest time that epoll knows."""
TURN_NS: Final = 10_000_000
"""After this time without a turn of the event loop there has to be one."""


class Speaker(Protocol):
    """A device at the end of a conversation."""

    @property
    def busy(self) -> bool:
        """Whether somebody is there to say something."""
        ...

    def fileno(self) -> int:
        """Return what is readable when `poll` has something to do."""
        ...

    def poll(self) -> bool:
        """Take what has been said."""
        ...

    def catch_up(self) -> bool:
        """Take what was said before anybody listened; return whether there was something."""
        ...

    def patience(self) -> float:
        """Give up what has taken too long; return in how many seconds to ask again."""
        ...


@final
class QuickEar:
    """Listens to some devices."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._speakers: dict[int, Speaker] = {}
        self._turn = 0

    def add(self, speaker: Speaker) -> None:
        """Listen to one more."""
        self._speakers[speaker.fileno()] = speaker
        self._epoll.register(speaker.fileno(), select.EPOLLIN)

    def remove(self, speaker: Speaker) -> None:
        """Do not listen any more; to be called before its descriptor is closed."""
        if self._speakers.pop(speaker.fileno(), None) is not None:
            self._epoll.unregister(speaker.fileno())

    def catch_up(self) -> bool:
        """Take what has been said already, without waiting; return whether there was something."""
        caught = False
        for speaker in self._speakers.values():
            caught |= speaker.catch_up()
        return caught

    def hear(self, spare_ns: int) -> bool:
        """Wait for a moment, if there are so many nanoseconds to spare; return whether something was said.

        False when it is the event loop's turn, too, and when nobody is there.
        """
        speakers = self._speakers
        if spare_ns < WAIT_NS or not any(speaker.busy for speaker in speakers.values()):
            return False
        now = time.monotonic_ns()
        if now - self._turn > TURN_NS:
            self._turn = now
            return False
        heard = self._epoll.poll(WAIT_NS / 1e9)
        for file, _ in heard:
            speakers[file].poll()
        return bool(heard)

    def close(self) -> None:
        """Let go of the descriptor."""
        self._epoll.close()


async def follow(speaker: Speaker, host: Host) -> None:
    """Tell a device whenever it has something to do, for as long as its descriptor is open: under the event loop."""
    file = speaker.fileno()
    # (It may have been closed before this task has had its first turn.)
    while file >= 0 and speaker.fileno() == file:
        with trio.move_on_after(speaker.patience()):
            try:
                await trio.lowlevel.wait_readable(file)
            except trio.ClosedResourceError:
                return
        speaker.poll()
        host.wake()
        await trio.lowlevel.checkpoint()
