"""The outside's end of the management line: a Unix socket, and a plug of the serial card.

Clients are served one question at a time each, and their bytes are only carried: what they mean is decided in dom0. The
one thing that is understood here is a console to be attached to, for a console is another line of the same card.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import trio

from hypervisor.machine.serial import Plug
from toolstack.control.protocol import GREETING, MAX_MESSAGE, Messages, ProtocolError, pack
from toolstack.errors import UsageError
from toolstack.outside import AttachPlug, Outside

if TYPE_CHECKING:
    from toolstack.host import Host

READ_SIZE = 4096
UNSENT = 256 * 1024
"""Bytes of a console that may wait for a client that does not read; then it is let go of."""


@final
class ManagementPlug(Plug):
    """Requests wait here for dom0 to read them; replies go to whoever asked."""

    def __init__(self) -> None:
        self._input = bytearray()
        self._replies = Messages()
        self._waiting: dict[int, trio.MemorySendChannel[Any]] = {}
        self._next = 0
        self.closed = False

    def send(self, data: bytes) -> int:
        """Hand replies out."""
        for client, reply in self._replies.feed(data):
            channel = self._waiting.pop(client, None)
            if channel is not None:
                channel.send_nowait(reply)
        return len(data)

    def receive(self, limit: int) -> bytes:
        """Return requests."""
        data = bytes(self._input[:limit])
        del self._input[: len(data)]
        return data

    def close(self) -> None:
        """dom0 has hung up: nobody gets an answer any more."""
        self.closed = True
        for channel in self._waiting.values():
            channel.close()
        self._waiting.clear()

    async def ask(self, message: object) -> Any:
        """Send a request to dom0; return its reply. Raises trio.EndOfChannel when the host ends first."""
        if self.closed:
            raise trio.EndOfChannel
        number = self._next = self._next + 1
        channel, replies = trio.open_memory_channel[Any](1)
        self._waiting[number] = channel
        self._input += pack([number, message])
        self.news()
        try:
            return await replies.receive()
        finally:
            self._waiting.pop(number, None)


@final
class ControlEndpoint:
    """The socket at `path`, for as long as the host runs."""

    def __init__(self, path: Path, outside: Outside) -> None:
        self.path = path
        self._outside = outside
        self._plug = ManagementPlug()
        self._socket: socket.socket | None = None
        outside.management = self._plug
        outside.attachable = True
        outside.listeners += 1
        outside.tasks.append(self.run)

    def open(self) -> None:
        """Listen. Raises `UsageError`: the place is taken, or cannot be written to."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale()
            listener.bind(str(self.path))
            listener.listen(16)
        except OSError as error:
            listener.close()
            raise UsageError(f"--control {str(self.path)!r}: {error.strerror or error}") from None
        self._socket = listener

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def _remove_stale(self) -> None:
        """Remove a socket that nobody listens on any more. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise OSError(None, "there is something else in this place")
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                os.unlink(self.path)
            else:
                raise OSError(None, "another host listens there")
            finally:
                probe.close()

    # -- clients --------------------------------------------------------------------------------------------------

    async def run(self, host: Host) -> None:
        """Serve clients until cancelled."""
        assert self._socket is not None
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket.dup()))

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                with contextlib.suppress(trio.BrokenResourceError, trio.EndOfChannel, trio.ClosedResourceError):
                    await self._serve(host, stream)

        await trio.serve_listeners(serve, [listener])

    async def _serve(self, host: Host, stream: trio.SocketStream) -> None:
        messages = Messages()
        await stream.send_all(pack(GREETING))
        async for data in stream:
            try:
                for message in messages.feed(data):
                    with self._outside.at_work():
                        reply = await self._plug.ask(message)
                        await stream.send_all(pack(reply))
                        result = reply.get("result")
                        if isinstance(result, dict) and result.get("attached"):
                            await self._attach(host, stream, messages, result["line"])
                            return
            except ProtocolError as error:
                await stream.send_all(pack({"error": str(error)}))
                return

    async def _attach(self, host: Host, stream: trio.SocketStream, messages: Messages, line: int) -> None:
        """Join a client to a line of the card, until one of both goes."""
        plug = host.card.lines.get(line)
        if not isinstance(plug, AttachPlug):
            return
        send, receive = trio.open_memory_channel[bytes](float("inf"))
        unsent = 0
        async with trio.open_nursery() as nursery:

            def take(data: bytes) -> None:
                nonlocal unsent
                unsent += len(data)
                if unsent > UNSENT:
                    nursery.cancel_scope.cancel()
                else:
                    send.send_nowait(data)

            plug.attach(take, send.close)

            async def show() -> None:
                nonlocal unsent
                async for data in receive:
                    await stream.send_all(pack(data))
                    unsent -= len(data)

            nursery.start_soon(_then_cancel, nursery, show)
            try:
                await _then_cancel(nursery, lambda: _type(plug, stream, messages))
            finally:
                if plug.attached is take:
                    plug.detach()


async def _then_cancel(nursery: trio.Nursery, work: Callable[[], Awaitable[None]]) -> None:
    """Do one half of an attachment; when it is over, so is the other."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
        await work()
    nursery.cancel_scope.cancel()


async def _type(plug: AttachPlug, stream: trio.SocketStream, messages: Messages) -> None:
    """Type what a client sends, as fast as the guest reads. Raises ProtocolError."""
    async for data in stream:
        for typed in messages.feed(data):
            if not isinstance(typed, bytes):
                raise ProtocolError("what is typed at a console is bytes")
            while typed and not plug.closed:
                room = plug.room
                typed = typed[plug.type(typed) :]
                if typed:
                    await room.wait()


assert READ_SIZE < MAX_MESSAGE
