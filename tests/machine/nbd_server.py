"""An NBD server in the test's hands that has a cache, and loses it when it dies."""

import random
import select
import socket
import struct
import threading
import time
from pathlib import Path

from hypervisor.machine.nbd import NbdDisk
from hypervisor.machine.nbd_address import NbdAddress

FLUSHES = 1 | 4 | 64
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6
Request = tuple[int, int, int, int, bytes]
"""Cookie, command, offset, size, data."""


def take(connection: socket.socket, size: int) -> bytes:
    """Receive so many bytes, or none if that is the end."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


class MortalServer:
    """It shakes hands with whoever comes, in a thread, and executes requests when the test says `serve`.

    What was written is in `cache`, and in `image` after a flush; `crash` hangs up and throws the cache away, but for
    some sectors that were written back by chance.
    """

    def __init__(self, path: Path, size: int, rng: random.Random, *, flags: int = FLUSHES) -> None:
        self.path = path
        self.size = size
        self.flags = flags
        self.rng = rng
        self.image = bytearray(size)
        self.cache = bytearray(size)
        self.waiting: list[Request] = []
        self.handshakes = self.deaths = 0
        self.socket: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._heard: socket.socket | None = None
        self._lock = threading.Lock()
        self.listen()

    @property
    def address(self) -> NbdAddress:
        return NbdAddress(path=str(self.path))

    def connect(self, **options: float) -> NbdDisk:
        """Connect to it, and return when it has noticed."""
        disk = NbdDisk(self.address, readonly=False, **options)  # type: ignore[arg-type]
        while not self.handshakes:
            time.sleep(0.001)
        return disk

    def listen(self) -> None:
        """Be there for whoever connects."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(4)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                self._shake_hands(connection)
            except OSError:
                connection.close()
                continue
            with self._lock:
                if self._listener is not listener:
                    connection.close()
                    return
                self.hang_up()
                self.socket = connection
                self.handshakes += 1

    def _shake_hands(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        take(connection, 4 + 24)
        for kind, data in ((3, struct.pack(">HQH", 0, self.size, self.flags)), (1, b"")):
            connection.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, kind, len(data)) + data)

    def crash(self) -> None:
        """Die: nobody answers any more, until `listen`."""
        self.deaths += 1
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()
            self.hang_up()
        self.waiting.clear()
        for at in range(0, self.size, 512):
            if self.rng.random() < 0.3:
                self.image[at : at + 512] = self.cache[at : at + 512]
        self.cache[:] = self.image

    def hang_up(self) -> None:
        """End the connection that there is."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def read_requests(self) -> None:
        """Take what is on the wire; what an earlier connection brought is nobody's any more."""
        if self.socket is not self._heard:
            self._heard = self.socket
            self.waiting.clear()
        while self.socket is not None and select.select([self.socket], [], [], 0)[0]:
            header = take(self.socket, 28)
            if not header:
                return
            _, _, command, cookie, offset, size = struct.unpack(">IHHQQI", header)
            data = take(self.socket, size) if command == WRITE else b""
            if command != DISCONNECT:
                self.waiting.append((cookie, command, offset, size, data))

    def serve(self, *, answer: bool = True, error: int = 0) -> Request | None:
        """Execute one of the requests that are here, chosen by chance, and answer it (or not)."""
        self.read_requests()
        if not self.waiting:
            return None
        request = self.waiting.pop(self.rng.randrange(len(self.waiting)))
        cookie, command, offset, size, data = request
        reply = b""
        if not error:
            if command == READ:
                reply = bytes(self.cache[offset : offset + size])
            elif command == FLUSH:
                self.image[:] = self.cache
            else:
                self.cache[offset : offset + size] = data or bytes(size)
        if answer and self.socket is not None:
            self.socket.sendall(struct.pack(">IIQ", 0x67446698, error, cookie) + reply)
        return request

    def close(self) -> None:
        """Be gone."""
        self.crash()
