"""The checks of lab 8: those of the conformance kit for block frontends, in groups, and a disk image in dom0."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from conformance.block_front import checks as _front  # noqa: F401 - registers them
from labs.blkfront.world import LabScene, judge, play
from labs.kit.check import Checks, Work, expect, expect_equal

CHECKS = Checks()
check = CHECKS.check


@check(15, "handshake")
def handshake(work: Work) -> None:
    """Ring and event channel are there when the state says so; nothing is sent before the backend is Connected."""
    judge(work.load("blkfront"), 1, 2, 3)


@check(10, "read")
def read(work: Work) -> None:
    """A read asks for just these sectors, and brings what the backend gives."""
    judge(work.load("blkfront"), 10)


@check(10, "write")
def write(work: Work) -> None:
    """A write brings the guest's data to these sectors."""
    judge(work.load("blkfront"), 11)


@check(10, "segments")
def segments(work: Work) -> None:
    """Large transfers are several requests of at most eleven segments, none empty."""
    judge(work.load("blkfront"), 12, 17)


@check(10, "many")
def many(work: Work) -> None:
    """Requests under way are told apart, and never more than the ring has slots."""
    judge(work.load("blkfront"), 13, 22)


@check(10, "ring")
def ring(work: Work) -> None:
    """The backend is notified when it has asked for it, and asked to notify in turn."""
    judge(work.load("blkfront"), 20, 21)


@check(5, "errors")
def errors(work: Work) -> None:
    """An error of the backend's is an OSError of the one read that it belongs to."""
    judge(work.load("blkfront"), 16)


@check(10, "hostile")
def hostile(work: Work) -> None:
    """A backend that answers what nobody has asked does no harm."""
    judge(work.load("blkfront"), 6, 30, 31, 32)


@check(10, "closing")
def closing(work: Work) -> None:
    """When the backend closes the frontend follows, and everything comes back."""
    lab = work.load("blkfront")

    async def under_way(scene: LabScene) -> None:
        await scene.back.connect()
        job = scene.use(lambda disk: disk.read(0, 8))
        await scene.back.requests()
        await scene.back.close()
        error = await scene.end(job)
        expect(isinstance(error, OSError), f"a read under way when the backend closes ends with {error!r}, no OSError")

    for scene in (*judge(lab, 4, 5), play(lab, under_way)):
        expect(scene.closed, "close() is never called: the guest still has its device")
        for number, what in zip(scene.left, ("pages", "grants", "ports"), strict=True):
            expect(number <= 0, f"once the device is closed, the guest is short of {number} {what}")


@check(10, "a real disk")
def a_real_disk(work: Work) -> None:
    """A file system's work on a disk image in dom0: what is written is there, and nothing else has changed."""
    lab = work.load("blkfront")
    sectors = work.rng.randrange(1000, 3000)
    wanted = bytearray(work.rng.randbytes(sectors * 512))

    async def use(disk: Any) -> None:
        expect_equal(disk.sectors, sectors, "the number of sectors of the disk")
        for _ in range(20):
            count = work.rng.randrange(1, 200)
            at = work.rng.randrange(sectors - count)
            if work.rng.random() < 0.5:
                data = work.rng.randbytes(count * 512)
                await disk.write(at, data)
                wanted[at * 512 : (at + count) * 512] = data
            found = await disk.read(at, count)
            expect(found == wanted[at * 512 : (at + count) * 512], f"reading {count} sectors at {at} brings other data")

    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "disk.img"
        image.write_bytes(wanted)
        LabScene(lab, Path(name)).drive_real(image, use)
        expect(image.read_bytes() == wanted, "the image in dom0 does not hold what the guest has written")
