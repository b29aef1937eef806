"""The host of lab 8: a guest with the submission for a block frontend, and the check for its backend, or a real one.

What a check gets has the shape of the conformance kit's scene for block frontends, so that its checks can be used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from backends.block import BlockBack
from conformance.block.world import disk as disk_line
from conformance.block_front.world import Job, Scene
from conformance.kit.bus_end import LOOK_NS
from conformance.kit.check import CHECKS, Failure
from conformance.kit.split_host import JudgedHost
from frontends.block import BlockFront
from guest_kernel.kernel import Kernel
from labs.kit.check import Miss
from toolstack.xl_config import parse_config

REAL_LIMIT_NS = 5_000_000_000
"""Virtual time in which a guest must be done with a real disk."""
Use = Callable[[Any], Awaitable[Any]]
PROGRAMS = Path(__file__).parent
__all__ = ["LOOK_NS", "LabScene", "current", "judge", "play"]


class LabScene(Scene):
    """What a check gets: the kit's scene, but for the guest, whose block layer the submission does not know."""

    def __init__(self, lab: Any, directory: Path) -> None:
        super().__init__(self.make_driver, directory)
        self._lab = lab
        self.driver: Any = None
        self.unwritten: NotImplementedError | None = None
        self.held = (0, 0, 0)
        """Of the guest, before `publish`."""
        self.closed = False
        self.left: list[int] = []
        """Pages, grants and ports that the guest has fewer at the end than before `publish`."""
        self.deadline_ns = 1 << 62
        """Virtual time at which the guest stops waiting for jobs and ends."""

    def make_driver(self, kernel: Kernel) -> Any:
        """Make the submission's driver: what the guest's bus calls."""
        scene = self

        class Heard(self._lab.BlkFront):  # type: ignore[name-defined,misc]
            """The submission's driver; that a hook is not written yet is the reason for all else."""

            async def publish(self, device: Any) -> None:
                scene.held = holdings(kernel)
                with heard(scene):
                    await super().publish(device)

            async def connect(self, device: Any) -> None:
                with heard(scene):
                    await super().connect(device)

            async def close(self, device: Any) -> None:
                with heard(scene):
                    await super().close(device)
                scene.closed = True

        self.driver = Heard(kernel)
        return self.driver

    def count(self, kernel: Kernel) -> None:
        """See what the guest has lost."""
        self.left = [held - now for held, now in zip(self.held, holdings(kernel), strict=True)]

    def use(self, use: Use) -> Job:
        """Have the guest do something with the submission's disk, once the submission says that it is connected."""

        async def work(_guest: Any) -> Any:
            await self.driver.connected.wait()
            return await use(self.driver.disk)

        return self.do(work)

    async def finish(self, job: Job) -> Any:
        """Wait until a job is done; return what it returned. Raises Failure, or what is not written yet."""
        if isinstance(await self.end(job), NotImplementedError):
            assert job.error is not None
            raise job.error
        return await super().finish(job)

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the driver domain. Raises what it raises, and Failure for what the frontend leaves behind."""
        host = JudgedHost(self.make_driver, replaced=BlockFront, left_out=BlockBack)
        try:
            self.run(host, check, PROGRAMS, disk_line(self.directory, bytes(1 << 20)), "frontend", present(self))
        except Exception:
            if self.unwritten is not None:
                raise self.unwritten from None
            raise

    def drive_real(self, image: Path, use: Use) -> Any:
        """Have the guest use a disk that dom0 serves from an image; return what `use` returns."""

        async def whole(disk: Any) -> Any:
            try:
                return await use(disk)
            finally:
                self.over = True

        job = self.use(whole)
        self.deadline_ns = REAL_LIMIT_NS
        text = (
            f'name = "guest"\nmemory = 8\nkernel = "front_guest.py"\ndisk = ["format=raw,vdev=xvda,target={image}"]\n'
        )
        host = JudgedHost(self.make_driver, replaced=BlockFront, left_out=_nobody)
        with present(self):
            trio.run(host.run, [parse_config(text, "guest.cfg", PROGRAMS)])
        if self.unwritten is not None:
            raise self.unwritten
        if job.error is not None:
            raise job.error
        if not job.done:
            raise Miss(f"the guest's work with its disk does not come to an end. {host.results['guest'].message}")
        left = host.leaks()
        if left:
            raise Miss(f"the guest leaves something behind: {left[0]}")
        return job.result


def _nobody(kernel: Kernel) -> Any:
    raise AssertionError("no driver is left out")


def holdings(kernel: Kernel) -> tuple[int, int, int]:
    """Return how many pages are free, and, as negative numbers, how many grants and ports a kernel has."""
    page = kernel.mm.alloc_page()  # The first grant of all costs a page: that is not the driver's.
    kernel.grants.end_access(kernel.grants.grant_access(0, page))
    kernel.mm.free_page(page)
    return kernel.mm.free_pages, -kernel.grants.granted, -len(kernel.events.bound())


@contextmanager
def heard(scene: LabScene) -> Iterator[None]:
    """Note a hook that is not written yet."""
    try:
        yield
    except NotImplementedError as error:
        scene.unwritten = scene.unwritten or error
        raise


current: LabScene | None = None
"""The scene that guests are in."""


@contextmanager
def present(scene: LabScene) -> Iterator[None]:
    """Have programs find a scene: they are loaded by file name."""
    global current
    current = scene
    try:
        yield
    finally:
        current = None


Function = Callable[[Any], Coroutine[Any, Any, None]]


def judge(lab: Any, *numbers: int) -> list[LabScene]:
    """Run checks of the kit's suite for block frontends. Raises Miss with the first failure."""
    kit = [CHECKS[f"BLKIF-FRONTEND-{number:03}"] for number in numbers]
    return [play(lab, one.function, f" ({one.id}; {one.source})") for one in kit]


def play(lab: Any, check: Function, source: str = "") -> LabScene:
    """Run a check against a submission; return what is known afterwards. Raises Miss, with a source behind it."""
    with tempfile.TemporaryDirectory() as name:
        scene = LabScene(lab, Path(name))
        try:
            scene.drive(check(scene))
        except Failure as failure:
            raise Miss(f"{failure}{source}") from None
        return scene
