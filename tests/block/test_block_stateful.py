"""Both drivers against a model, through whatever can happen to them: slow disks, other backends, lack of memory."""

from __future__ import annotations

import errno
import random
from typing import Any

from block_pair import Pair
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from guest_kernel.block import READ, WRITE, BlockBuffer, BlockError, Transfer

ROOM = 160
"""Sectors of a region: one operation at a time uses it, as the order of those that overlap is not defined."""
REGIONS = 24
BAD_REGION = 5
BAD = BAD_REGION * ROOM + 70
"""The sector that the disk cannot transfer."""
FLAGS = st.booleans()


class Disks(RuleBasedStateMachine):
    """A frontend and a backend; `model` is what the disk must hold, but for regions in use."""

    @initialize(vcpus=st.sampled_from([1, 1, 2, 4]), seed=st.integers(0, 1000), shuffled=FLAGS, front=FLAGS, back=FLAGS)
    def connect_first(self, vcpus: int, seed: int, shuffled: bool, front: bool, back: bool) -> None:
        self.rng = random.Random(seed)
        self.pair = Pair(
            sectors=REGIONS * ROOM,
            seed=seed,
            vcpus=vcpus,
            shuffled=shuffled,
            front={"max_ring_page_order": 2, "max_indirect_segments": 64, "persistent": front},
            back={"persistent": back, "max_persistent_grants": self.rng.choice([5, 300, 1056])},
        ).up()
        self.vcpus = vcpus
        self.kernel = self.pair.front_kernel
        self.plenty = self.kernel.mm.limit
        self.pair.disk.bad_sectors.add(BAD)
        self.model = bytearray(self.rng.randbytes(len(self.pair.disk.image)))
        self.pair.disk.image[:] = self.model
        self.idle = set(range(REGIONS))
        self.threads: list[Any] = []
        self.buffers = [BlockBuffer(self.kernel.mm.alloc_pages(20)) for _ in range(2)]
        self.device = self.pair.device

    def begin(self, region: int, at: int, count: int, coro: Any, alone: bool = True) -> None:
        """Run an operation in a thread, on any of the vCPUs; its region is busy meanwhile, if it is `alone` there."""
        if alone:
            self.idle.remove(region)
        first = region * ROOM + at
        fails = first <= BAD < first + count
        place = slice(first * 512, (first + count) * 512)

        async def operation() -> None:
            failed = 0
            try:
                await coro
            except BlockError as failure:
                failed = failure.errno
            if failed:
                assert failed in ((errno.EIO, errno.ENOMEM) if fails else (errno.ENOMEM,))
                self.model[place] = self.pair.disk.image[place]
            else:
                assert not fails
            if alone:
                self.idle.add(region)

        self.kernel.cpu.vcpu_id = self.rng.randrange(self.vcpus)
        self.threads.append(self.kernel.spawn(operation(), f"sectors {first} to {first + count - 1}"))
        self.kernel.run_ready()
        self.kernel.cpu.vcpu_id = 0

    def choose(self) -> tuple[int, int, int]:
        region = self.rng.choice(sorted(self.idle))
        count = self.rng.choice([1, 2, 8, 8, 8, 30, 88, 100, ROOM])
        at = self.rng.randrange(ROOM - count + 1)
        return region, at, count

    @precondition(lambda self: self.idle)
    @rule(n=st.integers(1, 12), write=FLAGS)
    def transfer(self, n: int, write: bool) -> None:
        for _ in range(min(n, len(self.idle))):
            region, at, count = self.choose()
            first = region * ROOM + at
            place = slice(first * 512, (first + count) * 512)
            if write:
                self.model[place] = data = self.rng.randbytes(count * 512)
                self.begin(region, at, count, self.device.write(first, data))
            else:
                self.begin(region, at, count, self.read(first, bytes(self.model[place])))

    async def read(self, first: int, expected: bytes) -> None:
        assert await self.device.read(first, len(expected) // 512) == expected

    @precondition(lambda self: len(self.idle) > 12)
    @rule(region=st.integers(0, REGIONS - 1), size=st.sampled_from([1, 3, 8]), write=FLAGS)
    def many_small_neighbours(self, region: int, size: int, write: bool) -> None:
        """More than a ring has room for, so that they are merged."""
        if region not in self.idle:
            return
        self.idle.remove(region)
        starts = list(range(0, ROOM - size + 1, size))
        if self.rng.random() < 0.5:
            self.rng.shuffle(starts)
        place = region * ROOM * 512
        data = self.rng.randbytes(ROOM * 512) if write else bytes(self.model[place : place + ROOM * 512])
        for at in starts:
            part = data[at * 512 : (at + size) * 512]
            first = region * ROOM + at
            if write:
                self.model[first * 512 : first * 512 + len(part)] = part
            transfer = self.device.write(first, part) if write else self.read(first, part)
            self.begin(region, at, size, transfer, alone=False)
        group = self.threads[-len(starts) :]

        async def last() -> None:
            for thread in group:
                await thread.join()
            self.idle.add(region)

        self.threads.append(self.kernel.spawn(last(), "last"))

    @precondition(lambda self: self.idle and self.buffers)
    @rule(write=FLAGS)
    def through_a_buffer(self, write: bool) -> None:
        region, at, count = self.choose()
        buffer = self.buffers.pop()
        first = region * ROOM + at
        place = slice(first * 512, (first + count) * 512)
        skip = self.rng.randrange(20 - (count + 7) // 8 + 1)
        if write:
            self.model[place] = data = self.rng.randbytes(count * 512)
            for n in range(-(-count // 8)):
                part = data[n * 4096 : (n + 1) * 4096]
                buffer.pages[skip + n].view[: len(part)] = part
        self.begin(region, at, count, self.lend(WRITE if write else READ, first, count, buffer, skip))

    async def lend(self, op: int, first: int, count: int, buffer: BlockBuffer, skip: int) -> None:
        transfer = Transfer(0)
        self.device.submit(transfer, op, first, count, buffer, skip)
        self.device.restart()
        if transfer.left:
            await transfer.waiters.wait()
        if buffer.lost:
            # The connection ended in between, and the backend still had some pages: this buffer is of no use.
            buffer.release()
            self.kernel.mm.free_pages_of(buffer.kept())
            raise BlockError(errno.EIO if first <= BAD < first + count else errno.ENOMEM, "lost")
        self.buffers.append(buffer)
        if transfer.error:
            raise BlockError(transfer.error, "lent")
        if op == READ:
            found = b"".join(bytes(page.view) for page in buffer.pages[skip:])[: count * 512]
            assert found == self.model[first * 512 : (first + count) * 512]

    @precondition(lambda self: self.idle)
    @rule()
    def discard(self) -> None:
        region, at, count = self.choose()
        first = region * ROOM + at
        if not first <= BAD < first + count:
            self.model[first * 512 : (first + count) * 512] = bytes(count * 512)
        self.begin(region, at, count, self.device.discard(first, count))

    @rule()
    def flush(self) -> None:
        self.threads.append(self.kernel.spawn(self.device.flush(), "flush"))

    @rule(stuck=FLAGS)
    def disk(self, stuck: bool) -> None:
        self.pair.disk.stuck = stuck

    @rule(n=st.integers(1, 30))
    def steps(self, n: int) -> None:
        for _ in range(n):
            self.pair.world.step()

    @rule(left=st.integers(0, 40))
    def little_memory(self, left: int) -> None:
        self.kernel.mm.limit = self.kernel.mm.used + left

    @rule()
    def much_memory(self) -> None:
        self.kernel.mm.limit = self.plenty

    @rule(
        queues=st.integers(1, 4),
        order=st.integers(0, 2),
        indirect=st.sampled_from([None, 0, 5, 16, 64, 256]),
        persistent=FLAGS,
    )
    def another_backend(self, queues: int, order: int, indirect: int | None, persistent: bool) -> None:
        pair = self.pair
        self.kernel.mm.limit = self.plenty
        pair.hook(pair.front, "close")
        pair.disk.stuck = False
        pair.hook(pair.back, "close")
        pair.hook(pair.back, "publish")
        pair.store["backend/multi-queue-max-queues"] = str(queues)
        pair.store["backend/max-ring-page-order"] = str(order)
        pair.store["backend/feature-persistent"] = str(int(persistent))
        if indirect is None:
            del pair.store["backend/feature-max-indirect-segments"]
        else:
            pair.store["backend/feature-max-indirect-segments"] = str(indirect)
        pair.hook(pair.front, "publish")
        pair.hook(pair.back, "connect")
        pair.hook(pair.front, "connect")

    @rule()
    def settle(self) -> None:
        """Whatever was asked for comes to an end, and the disk holds what it should."""
        self.pair.disk.stuck = False
        self.pair.world.run()
        for thread in self.threads:
            assert thread.done, thread
            assert thread.exception is None
        self.threads.clear()
        assert len(self.idle) == REGIONS
        assert self.pair.disk.image == self.model
        assert not self.device.pending

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        self.settle()
        self.kernel.mm.limit = self.plenty
        self.pair.close()
        for buffer in self.buffers:
            buffer.release()
            self.kernel.mm.free_pages_of(buffer.kept())
        self.pair.world.check_no_leaks(self.pair.back_kernel, self.kernel)


TestDisks = Disks.TestCase
TestDisks.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
