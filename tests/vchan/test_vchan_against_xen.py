"""One end here, the other end Xen's own libxenvchan: the same page, the same rings, the same wish to be told."""

import mmap
import os
import shutil
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guest_kernel.vchan.channel import Vchan
from guest_kernel.vchan.ring import CLI_LIVE, GRANTS, LEFT, NOT_YET, RIGHT, SRV_LIVE, SRV_NOTIFY, Reader, Shape, Writer
from hypervisor.abi.io.libxenvchan import VCHAN_NOTIFY_WRITE, vchan_interface

PAGES = 1024
SIZES = [(1024, 2048), (2048, 1), (4096, 4096), (100_000, 1024), (1 << 20, 1 << 20)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    built = tmp_path_factory.mktemp("vchan") / "vchan_peer"
    source = Path(__file__).with_name("vchan_peer.c")
    command = [compiler or "cc", "-O1", "-w", "-rdynamic", "-o", str(built), str(source), "-lxenvchan"]
    if compiler is None or subprocess.run(command, capture_output=True, check=False).returncode:
        message = "libxenvchan cannot be linked here: a C compiler and the package libxen-dev are needed"
        if os.environ.get("PARAVIRT_REQUIRE_LIBXEN") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return built


class Meeting:
    """The other end in a process of its own, and what lies between: a file of pages, and pipes for events."""

    def __init__(self, program: Path, folder: Path, *arguments: str) -> None:
        path = folder / "pages"
        path.write_bytes(bytes(PAGES * 4096))
        with path.open("r+b") as file:
            self.memory = memoryview(mmap.mmap(file.fileno(), PAGES * 4096))
        self.command = [str(program), arguments[0], str(path), *arguments[1:]]

    def start(self) -> None:
        self.peer = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def page(self, ref: int) -> memoryview:
        return self.memory[ref * 4096 : (ref + 1) * 4096]

    def channel(self, shape: Shape, refs: list[int], *, server: bool) -> Vchan:
        shared = self.page(1)
        left, right = shape.pieces(shared, [self.page(ref) for ref in refs])
        words = shared.cast("I")
        reading, writing = ((LEFT, left), (RIGHT, right)) if server else ((RIGHT, right), (LEFT, left))
        kernel: Any = SimpleNamespace(events=SimpleNamespace(notify=self.notify))
        return Vchan(kernel, shared, (Reader(words, *reading), Writer(words, *writing)), server=server)

    def notify(self, _port: int) -> None:
        assert self.peer.stdin is not None
        self.peer.stdin.write(b"!")

    def wait(self) -> None:
        """Wait for an event of the other end's, or its end."""
        assert self.peer.stdout is not None
        self.peer.stdout.read(1)

    def run(self, *threads: Coroutine[Any, Any, Any]) -> list[Any]:
        """Run coroutines that wait for the channel to their ends; return their results."""
        results: dict[int, Any] = {}
        while len(results) < len(threads):
            for number, thread in enumerate(threads):
                if number not in results:
                    try:
                        thread.send(None)
                    except StopIteration as stop:
                        results[number] = stop.value
            if len(results) < len(threads):
                self.wait()
        return [results[number] for number in range(len(threads))]


def pattern(size: int) -> bytes:
    return bytes((index * 31 + index // 251) % 256 for index in range(size))


def echo(meeting: Meeting, channel: Vchan) -> None:
    """Send far more than a ring holds, and get it back."""
    data = pattern(300_000)
    _, back = meeting.run(channel.write(data), channel.read_exactly(len(data)))
    assert back == data


@pytest.fixture
def meet(program: Path, tmp_path: Path) -> Iterator[Any]:
    made: list[Meeting] = []

    def make(*arguments: str) -> Meeting:
        made.append(Meeting(program, tmp_path, *arguments))
        return made[-1]

    yield make
    for meeting in made:
        for pipe in (meeting.peer.stdin, meeting.peer.stdout):
            assert pipe is not None
            pipe.close()
        meeting.peer.kill()
        meeting.peer.wait()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_client_of_a_server_by_libxenvchan(meet: Any, sizes: tuple[int, int]) -> None:
    meeting = meet("server", *map(str, sizes))
    meeting.start()
    meeting.wait()
    header = bytes(meeting.page(1))
    shape = Shape.read(header)
    assert (1 << shape.left, 1 << shape.right) >= sizes
    refs = memoryview(header)[GRANTS : GRANTS + 4 * shape.pages].cast("I").tolist()
    channel = meeting.channel(shape, refs, server=False)
    assert meeting.page(1)[CLI_LIVE] == NOT_YET
    meeting.page(1)[CLI_LIVE] = 1
    meeting.page(1)[SRV_NOTIFY] = VCHAN_NOTIFY_WRITE
    meeting.notify(0)
    echo(meeting, channel)
    meeting.page(1)[CLI_LIVE] = 0
    meeting.notify(0)
    assert meeting.peer.wait(20) == 0
    assert not channel.is_open


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_server_of_a_client_by_libxenvchan(meet: Any, sizes: tuple[int, int]) -> None:
    meeting = meet("client")
    shape = Shape.of_sizes(*sizes)
    refs = list(range(2, 2 + shape.pages))
    page = meeting.page(1)
    vchan_interface.pack_into(
        page, 0, left_order=shape.left, right_order=shape.right, cli_live=NOT_YET, srv_live=1,
        cli_notify=VCHAN_NOTIFY_WRITE,
    )  # fmt: skip
    page[GRANTS : GRANTS + 4 * shape.pages] = b"".join(ref.to_bytes(4, "little") for ref in refs)
    channel = meeting.channel(shape, refs, server=True)
    meeting.start()
    meeting.run(channel.connected())
    echo(meeting, channel)
    page[SRV_LIVE] = 0
    meeting.notify(0)
    assert meeting.peer.wait(20) == 0
    assert not channel.is_open
