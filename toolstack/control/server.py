"""dom0's end of the management line: takes requests, has verbs carried out, sends replies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from guest_kernel.errors import XenError
from guest_kernel.hw.serial import MANAGEMENT, SerialLine
from guest_kernel.threads import Thread, WaitQueue
from guest_kernel.xenbus.client import XenstoreError
from toolstack.control.host_verbs import HOST_VERBS
from toolstack.control.protocol import Messages, ProtocolError, check_request, pack
from toolstack.control.scheduling import SCHEDULING_VERBS
from toolstack.control.verbs import VERBS, ArgumentError, Arguments, Toolstack
from toolstack.errors import SpecError, ToolstackError, did_you_mean

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

READ_SIZE = 4096
_VERBS = {**VERBS, **SCHEDULING_VERBS, **HOST_VERBS}


@final
class ControlServer:
    """A thread of dom0 for as long as the host runs, and one more for each request."""

    def __init__(self, kernel: Kernel, toolstack: Toolstack) -> None:
        self._kernel = kernel
        self._toolstack = toolstack
        self._line: SerialLine | None = kernel.hw.serial.open(MANAGEMENT, "control")
        self._news = WaitQueue()
        self._messages = Messages()
        self._threads: list[Thread] = []
        if self._line is not None:
            self._line.on_news = self._on_news
            self._threads.append(kernel.spawn(self._serve(self._line), "control"))

    def _on_news(self) -> None:
        self._news.wake()

    def stop(self) -> None:
        """End all threads: the host is about to be switched off."""
        for thread in self._threads:
            thread.cancel()

    async def _serve(self, line: SerialLine) -> None:
        while True:
            while data := line.receive(READ_SIZE):
                for client, message in self._messages.feed(data):
                    self._threads = [thread for thread in self._threads if not thread.done]
                    self._threads.append(self._kernel.spawn(self._answer(line, client, message), "control request"))
            await self._news.wait()

    async def _answer(self, line: SerialLine, client: int, message: object) -> None:
        line.send(pack([client, await self._reply(message)]))

    async def _reply(self, message: object) -> dict[str, Any]:
        try:
            verb, args = check_request(message)
            handler = _VERBS.get(verb)
            if handler is None:
                return {"error": f"this host knows no verb {verb!r}{did_you_mean(verb, _VERBS)}"}
            return {"result": await handler(self._toolstack, Arguments(verb, args))}
        except (ProtocolError, ArgumentError, ToolstackError, SpecError) as error:
            return {"error": str(error)}
        except (XenError, XenstoreError) as error:
            return {"error": f"{verb}: {error}"}
