"""A registered watch and the queue of its events.

A watch event says "look again at this path" and nothing more.  So an event that is already waiting need not wait twice,
and a queue that has grown past a limit can be replaced by one event for the watched path itself ("look at everything
below").  Whoever writes nodes faster than a callback reads them costs a bounded amount of memory (XSA-349).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, final

from guest_kernel.threads import WaitQueue

if TYPE_CHECKING:
    from guest_kernel.xenbus.client import XenbusClient

Callback = Callable[[str, str], Awaitable[Any] | None]
"""Called with (path, token); may be a coroutine function."""

QUEUE_LIMIT = 256
"""Distinct paths that may wait in one watch."""


@final
class Watch:
    """A watch of one client: `get` its events, or let its callback have them.  Made by `XenbusClient.watch`.

    Paths are spelled as the watch was: a watch of `device` reports `device/vbd/51712/state`.
    The first event comes by itself right after registration, with the watched path.
    """

    __slots__ = ("_callback", "_client", "_direct", "_events", "_getters", "_running", "active", "path", "token")

    def __init__(self, client: XenbusClient, path: str, token: str, callback: Callback | None, direct: bool) -> None:
        self._client = client
        self.path = path
        self.token = token
        #: False after `cancel` (and if the server refused the watch).
        self.active = True
        self._callback = callback
        self._direct = direct
        self._events: dict[str, None] = {}
        self._getters = WaitQueue()
        self._running = False

    async def get(self) -> tuple[str, str]:
        """Wait for the next event; return (path, token).  Only for watches without a callback."""
        while not self._events:
            await self._getters.wait()
        return self._next(), self.token

    async def cancel(self) -> None:
        """End the watch: no event is delivered after this returns.  Does nothing the second time."""
        if self.active:
            self.active = False
            self._events.clear()
            await self._client.unwatch(self)

    def deliver(self, path: str) -> None:
        """Take an event from the wire.  Runs in upcall context; called by the client."""
        if not self.active:
            return
        if self._direct:
            assert self._callback is not None
            self._callback(path, self.token)
            return
        events = self._events
        if path in events:
            return
        if len(events) >= QUEUE_LIMIT:
            events.clear()
            path = self.path
        events[path] = None
        if self._callback is None:
            self._getters.wake()
        elif not self._running:
            self._running = True
            self._client.spawn(self._run_callback(), f"watch {self.path}")

    def _next(self) -> str:
        path = next(iter(self._events))
        del self._events[path]
        return path

    async def _run_callback(self) -> None:
        """Give the waiting events to the callback, one after the other; the thread ends when there are none left."""
        assert self._callback is not None
        try:
            while self._events:
                outcome = self._callback(self._next(), self.token)
                if inspect.isawaitable(outcome):
                    await outcome
        finally:
            self._running = False

    def __repr__(self) -> str:
        return f"<Watch {self.path} {self.token}, {len(self._events)} waiting>"
