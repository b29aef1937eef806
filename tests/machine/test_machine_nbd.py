"""Disks at NBD servers: real ones where they are installed, and one in the test that breaks the protocol."""

import errno
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import pack

import pytest

import hypervisor.machine.nbd_connector as nbd_connector
from hypervisor.errors import DeviceError
from hypervisor.machine.nbd import NbdDisk
from hypervisor.machine.nbd_address import NbdAddress

SIZE = 4 << 20
Server = Callable[..., subprocess.Popen[bytes]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def serve() -> Iterator[Server]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str | Path) -> subprocess.Popen[bytes]:
        if shutil.which(str(command[0])) is None:
            pytest.skip(f"{command[0]} is not installed, so no real server can be tried")
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def connect(address: NbdAddress, *, readonly: bool = False) -> NbdDisk:
    """Connect as soon as the server listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return NbdDisk(address, readonly=readonly)
        except DeviceError as error:
            if time.monotonic() > deadline or not ("refused" in str(error) or "No such file" in str(error)):
                raise
            time.sleep(0.01)


def write(disk: NbdDisk, offset: int, data: bytes) -> int:
    return disk.writev([memoryview(data)[at : at + 4096] for at in range(0, len(data), 4096)], offset, len(data))


def read(disk: NbdDisk, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    assert disk.readv([memoryview(buffer)[at : at + 1536] for at in range(0, size, 1536)], offset, size) == 0
    return bytes(buffer)


@pytest.mark.parametrize("kind", ["nbdkit, unix", "nbdkit, tcp", "qemu-nbd"])
def test_a_real_server(serve: Server, tmp_path: Path, kind: str) -> None:
    path, image = tmp_path / "s", tmp_path / "disk.img"
    address = NbdAddress(path=str(path))
    image.write_bytes(b"i" * SIZE)
    if kind == "nbdkit, unix":
        serve("nbdkit", "-f", "-U", path, "file", image)
    elif kind == "nbdkit, tcp":
        address = NbdAddress(host="127.0.0.1", port=free_port())
        serve("nbdkit", "-f", "-i", "127.0.0.1", "-p", str(address.port), "file", image)
    else:
        address = NbdAddress(path=str(path), export="disk one")
        serve("qemu-nbd", "-t", "-f", "raw", "-k", path, "-x", "disk one", image)
    disk = connect(address)
    assert (disk.size, disk.discards, disk.readonly) == (SIZE, True, False)
    model = bytearray(b"i" * SIZE)
    rng = random.Random(5)
    for _ in range(40):
        sectors = rng.choice([1, 8, 88, 2048])
        at = rng.randrange(SIZE // 512 - sectors) * 512
        size = sectors * 512
        if rng.random() < 0.2:
            assert disk.discard(at, size) == 0
            model[at : at + size] = bytes(size)
        elif rng.random() < 0.6:
            data = rng.randbytes(size)
            assert write(disk, at, data) == 0
            model[at : at + size] = data
        assert read(disk, at, size) == model[at : at + size]
    assert disk.flush() == 0
    disk.close()
    assert image.read_bytes() == model


def test_a_server_that_refuses(serve: Server, tmp_path: Path) -> None:
    path = tmp_path / "s"
    serve("nbdkit", "-f", "-r", "-U", path, "memory", "1M")
    address = NbdAddress(path=str(path))
    disk = connect(address, readonly=True)
    assert not disk.discards
    assert read(disk, 0, 512) == bytes(512)
    disk.close()
    with pytest.raises(DeviceError, match="the export is read-only, and the disk is to be written"):
        NbdDisk(address, readonly=False)


def test_a_server_that_is_killed(serve: Server, tmp_path: Path) -> None:
    server = serve("nbdkit", "-f", "-U", tmp_path / "s", "memory", "1M")
    disk = connect(NbdAddress(path=str(tmp_path / "s")))
    assert write(disk, 0, b"x" * 512) == 0
    server.kill()
    server.wait()
    for _ in range(2):
        assert write(disk, 0, b"x" * 512) == errno.EIO
        assert disk.flush() == errno.EIO
    disk.close()


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="none: No such file or directory"):
        NbdDisk(NbdAddress(path=str(tmp_path / "none")), readonly=False)


GREETING = b"NBDMAGICIHAVEOPT" + pack(">H", 3)
OPTION = 0x3E889045565A9


def answer(kind: int, data: bytes = b"", option: int = 7) -> bytes:
    return pack(">QIII", OPTION, option, kind, len(data)) + data


EXPORT = answer(3, pack(">HQH", 0, 1 << 20, 1 | 4 | 64)) + answer(1)


def scripted(tmp_path: Path, *parts: bytes) -> NbdAddress:
    """Serve one client: each part goes out when something has come in, the first one at once; then the end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "bad"))
    listener.listen(1)

    def run() -> None:
        connection, _ = listener.accept()
        with connection, listener, suppress(OSError):  # the client may hang up at any time, and rightly
            connection.sendall(parts[0])
            if len(parts) == 1:
                return
            connection.recv(4, socket.MSG_WAITALL)
            connection.recv(24, socket.MSG_WAITALL)
            for part in parts[1:-1]:
                connection.sendall(part)
                connection.recv(28)
            connection.sendall(parts[-1])

    threading.Thread(target=run, daemon=True).start()
    return NbdAddress(path=str(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([b"SSH-2.0-OpenSSH_9.2p1"], "that is no NBD server"),
        ([b"NBDMAGICIHAVEOPT\0\0"], "too old a one"),
        ([b"NBD"], "the server has closed the connection"),
        ([GREETING, answer(1 << 31 | 6, b"no\x1b such")], "the server refuses the export '': no\\? such"),
        ([GREETING, answer(1)], "does not say how large the export is"),
        ([GREETING, answer(3, pack(">HQH", 0, 511, 1)) + answer(1)], "it has no whole sector"),
        ([GREETING, answer(1, option=3)], "breaks the protocol in the handshake"),
        ([GREETING, pack(">QIII", OPTION, 7, 3, 1 << 30)], "breaks the protocol in the handshake"),
    ],
)
def test_handshakes_that_fail(tmp_path: Path, parts: list[bytes], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        NbdDisk(scripted(tmp_path, *parts), readonly=False)


def test_a_server_that_hangs_up_without_listening(tmp_path: Path) -> None:
    """What the system says of it is said in words, not in numbers."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "deaf"))
    listener.listen(1)

    def run() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.sendall(GREETING)
            connection.recv(1, socket.MSG_PEEK)

    server = threading.Thread(target=run)
    server.start()
    with pytest.raises(DeviceError, match=r"deaf: (Connection reset by peer|Broken pipe)$"):
        NbdDisk(NbdAddress(path=str(tmp_path / "deaf")), readonly=False)
    server.join()


@pytest.mark.parametrize(
    "words",
    [[bytes([byte]) for byte in GREETING], [GREETING, *[answer(3, pack(">HIII", 3, 1, 4096, 1 << 20))] * 999]],
)
def test_a_server_that_comes_to_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[bytes]) -> None:
    """It says a word now and then, each before the client's patience is over, and nothing that leads anywhere."""
    monkeypatch.setattr(nbd_connector, "PATIENCE", 0.4)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "slow"))
    listener.listen(1)

    def run() -> None:
        connection, _ = listener.accept()
        with connection, listener, suppress(OSError):
            for word in words:
                connection.sendall(word)
                time.sleep(0.05)

    server = threading.Thread(target=run)
    server.start()
    began = time.monotonic()
    with pytest.raises(DeviceError, match="timed out"):
        NbdDisk(NbdAddress(path=str(tmp_path / "slow")), readonly=False)
    assert time.monotonic() - began < 5
    server.join()


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (pack(">IIQ", 0x67446698, 28, 1), errno.ENOSPC),
        (pack(">IIQ", 0x67446698, 108, 1), errno.EIO),
        (pack(">IIQ", 0x67446698, 0, 2), errno.EIO),
        (pack(">IIQ", 0x67446699, 0, 1), errno.EIO),
        (pack(">IIQ", 0x67446698, 0, 1) + b"short", errno.EIO),
        (b"x", errno.EIO),
    ],
)
def test_replies_that_are_none(tmp_path: Path, reply: bytes, status: int) -> None:
    disk = NbdDisk(scripted(tmp_path, GREETING, EXPORT, reply), readonly=False)
    assert disk.size == 1 << 20
    assert disk.readv([memoryview(bytearray(512))], 0, 512) == status
    assert disk.readv([memoryview(bytearray(512))], 0, 512) == errno.EIO  # the server has gone meanwhile
    disk.close()
