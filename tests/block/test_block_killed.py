"""What a guest was told is on its disk is there, even if the whole host is killed (SIGKILL) right afterwards."""

import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hypervisor.machine.overlay import Overlay

BLOCKS = 48
BLOCK = 4096
GUEST = """
import struct

from guest_kernel.guest import Guest


class Main(Guest):
    async def main(self):
        disk = await self.disk("xvda")
        number = 0

        async def write(block):
            await disk.write(8 * block, struct.pack("<QQ", number, block) * 256)

        while True:
            number += 1
            threads = [self.kernel.spawn(write(block)) for block in range({blocks})]
            for thread in threads:
                await thread.join()
            await disk.flush()
            self.print("safe:", number)
"""


@contextmanager
def nbd_server(directory: Path) -> Iterator[str]:
    if shutil.which("nbdkit") is None:
        pytest.skip("needs nbdkit, a real server")
    socket = directory / "s"
    with subprocess.Popen(["nbdkit", "-f", "-U", socket, "file", directory / "disk.img"]) as server:
        while not socket.exists():
            assert server.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
        yield f"nbd:unix:{socket}"
        server.terminate()


def run_and_kill(directory: Path, disk: str, rounds: int, clock: str) -> int:
    """Run the guest, kill the host after so many flushes; return how many it was told of."""
    (directory / "guest.py").write_text(GUEST.format(blocks=BLOCKS))
    config = directory / "guest.cfg"
    config.write_text(f'name = "guest"\nkernel = "guest.py"\nmemory = 32\ndisk = ["{disk}"]\n')
    paravirt = Path(sys.executable).with_name("paravirt")
    command = [paravirt, "run", "--time", clock, config]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        told = 0
        for line in host.stdout:
            _, safe, number = line.partition("safe: ")
            told = int(number) if safe else told
            if told >= rounds:
                break
        host.kill()
        rest = [line for line in host.stdout if "safe: " in line and line.endswith("\n")]
        assert host.wait() == -9
    return int(rest[-1].partition("safe: ")[2]) if rest else told


def check(disk: bytes, told: int) -> None:
    """Every block is of the last round that the guest knew to be safe, or newer; of a newer one a part may be there."""
    newest = 0
    for block in range(BLOCKS):
        found = list(struct.iter_unpack("<QQ", disk[block * BLOCK : (block + 1) * BLOCK]))
        assert {number for _, number in found} == {block}
        assert min(found)[0] >= told, f"block {block} has lost what was flushed in round {told}"
        newest = max(newest, *(number for number, _ in found))
    # Flushed once more without being told, and the round after it: more cannot be.
    assert newest <= told + 2


@pytest.mark.parametrize("clock", ["virtual", "real"])
@pytest.mark.parametrize("kind", ["raw", "overlay", "nbd"])
def test_a_killed_host_loses_nothing_that_was_flushed(tmp_path: Path, kind: str, clock: str) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(BLOCKS * BLOCK))
    rounds = random.Random(f"{kind} {clock}").randrange(3, 12)
    if kind == "raw":
        told = run_and_kill(tmp_path, f"format=raw,vdev=xvda,target={image}", rounds, clock)
        check(image.read_bytes(), told)
    elif kind == "nbd":
        with nbd_server(tmp_path) as place:
            told = run_and_kill(tmp_path, f"format=raw,vdev=xvda,target={place}", rounds, clock)
        check(image.read_bytes(), told)
    else:
        changes = tmp_path / "changes"
        told = run_and_kill(tmp_path, f"format=overlay,vdev=xvda,base={image},target={changes}", rounds, clock)
        overlay = Overlay(changes, image, readonly=True)
        found = bytearray(BLOCKS * BLOCK)
        assert overlay.readv([memoryview(found)], 0, len(found)) == 0
        overlay.close()
        check(found, told)
        assert not any(image.read_bytes())
    assert told >= rounds
