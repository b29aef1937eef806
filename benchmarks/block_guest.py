"""The guest of `benchmarks/block.py`: reads its disk from front to back, in several ways, as fast as it can."""

import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from guest_kernel.block import READ, BlockBuffer, BlockDevice, Transfer
from guest_kernel.guest import Guest
from guest_kernel.kernel import Kernel

LOADS: dict[str, tuple[int, int]] = {
    "qd1": (1, 8),
    "qd32": (32, 8),
    "waiting": (128, 8),
    "large": (32, 88),
    "indirect": (4, 2048),
}
"""How many requests are kept going, and sectors of each."""

SLICE_NS = 20_000_000


def write_results(path: str, found: dict[str, tuple[int, int]]) -> None:
    """Leave the results outside of the simulated host, where the benchmark waits for them."""
    Path(path).write_text(json.dumps(found))


class LentPages:
    """Pages that one thread reads into, again and again, without a copy."""

    def __init__(self, kernel: Kernel, disk: BlockDevice, sectors: int) -> None:
        self.kernel = kernel
        self.disk = disk
        self.buffer = BlockBuffer(kernel.mm.alloc_pages(sectors // 8))

    async def read(self, sector: int, count: int) -> None:
        transfer = Transfer(0)
        self.disk.submit(transfer, READ, sector, count, self.buffer)
        self.disk.restart()
        if transfer.left:
            await transfer.waiters.wait()
        if transfer.error:
            raise OSError("a read has failed")

    def release(self) -> None:
        self.buffer.release()
        self.kernel.mm.free_pages_of(self.buffer.kept())


class BlockReader(Guest):
    """Arguments (`extra`): how many slices of 20 ms for each load, and the file that the results are written to."""

    async def main(self) -> None:
        slices = int(self.args[0])
        disk = await self.disk("xvda")
        found = {}
        for name, (depth, count) in LOADS.items():
            if count > disk.max_sectors:
                raise ValueError(f"a request carries only {disk.max_sectors} sectors")
            found[name] = await self.load(disk, depth, count, slices)
        found["lent"] = await self.load(disk, *LOADS["indirect"], slices, lent=True)
        write_results(self.args[1], found)

    async def load(
        self, disk: BlockDevice, depth: int, count: int, slices: int, *, lent: bool = False
    ) -> tuple[int, int]:
        """Keep `depth` reads of `count` sectors going; returns requests and nanoseconds of the best slice.

        `lent`: each into pages of its own, without a copy.
        """
        last = disk.sectors - count
        sector = requests = 0
        now = time.thread_time_ns
        best = (0, 1)
        running = True

        async def reader(read: Callable[[int, int], Awaitable[object]]) -> None:
            nonlocal sector, requests
            while running:
                at = sector if sector <= last else 0
                sector = at + count
                await read(at, count)
                requests += 1

        async def watch() -> None:
            nonlocal best, running
            for _ in range(slices):
                before, start = requests, now()
                while now() - start < SLICE_NS:
                    await self.kernel.sleep(5_000_000)
                slice_ = (requests - before, now() - start)
                if slice_[0] * best[1] > best[0] * slice_[1]:
                    best = slice_
            running = False

        pages = [LentPages(self.kernel, disk, count) for _ in range(depth if lent else 0)]
        reads = [page.read for page in pages] or [disk.read] * depth
        threads = [self.kernel.spawn(reader(read), f"reader {n}") for n, read in enumerate(reads)]
        threads.append(self.kernel.spawn(watch(), "watch"))
        for thread in threads:
            await thread.join()
        for page in pages:
            page.release()
        return best
