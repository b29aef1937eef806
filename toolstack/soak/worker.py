"""A guest of a soak run: writes, flushes, reads, computes and pings, and keeps an account of what it was told."""

from __future__ import annotations

from typing import Final

from guest_kernel.block import BlockDevice, BlockError
from guest_kernel.guest import Guest
from guest_kernel.net.errors import NetError
from toolstack.soak import journal
from toolstack.soak.journal import SLOT_SECTORS, SLOTS, Journal

WORK_NS: Final = 60_000_000
"""How long a guest works (virtual time since power-on)."""
END_NS: Final = 400_000_000
"""When it goes: the others may still want to ping it."""
PING_NS: Final = 60_000_000
"""Longer than the longest pause that the dice give."""
BURST_NS: Final = 200_000


class Worker(Guest):
    """`args`: its own number, and how many guests there are."""

    async def main(self) -> None:
        """Work, and stay a while."""
        self.number, self.count = (int(word) for word in self.args[:2])
        self.account: Journal = journal.current[self.kernel.image.name]
        self.version = 0
        eth0 = await self.net.interface("eth0")
        eth0.configure(f"10.0.0.{1 + self.number}/24")
        self.account.is_up = True
        pinger = self.kernel.spawn(self._ping_others(), "pings")
        await self._use_disk(await self.disk("xvda"))
        await pinger.join()
        self.account.finished = True
        await self.kernel.sleep(max(1, END_NS - self.kernel.monotonic_ns()))

    # -- the disk -------------------------------------------------------------------------------------------------

    async def _use_disk(self, disk: BlockDevice) -> None:
        rng = self.kernel.rng
        while self.kernel.monotonic_ns() < WORK_NS:
            dice = rng.random()
            try:
                if dice < 0.5:
                    await self._write(disk, rng.randrange(SLOTS))
                elif dice < 0.75:
                    await self._flush(disk)
                else:
                    await self._read(disk, rng.randrange(SLOTS))
            except BlockError:
                self.account.failed += 1
                await self.kernel.sleep(1_000_000)
            await self.cpu(ns=rng.randrange(BURST_NS))

    async def _write(self, disk: BlockDevice, number: int) -> None:
        self.version += 1
        version = self.version
        slot = self.account.slots[number]
        slot.attempts.append(version)
        await disk.write(number * SLOT_SECTORS, journal.content(self.number, number, version))
        slot.acknowledged = version
        self.account.writes += 1

    async def _flush(self, disk: BlockDevice) -> None:
        promised = [slot.acknowledged for slot in self.account.slots]
        await disk.flush()
        self.account.flushed(promised)
        self.account.flushes += 1

    async def _read(self, disk: BlockDevice, number: int) -> None:
        data = await disk.read(number * SLOT_SECTORS, SLOT_SECTORS)
        self.account.reads += 1
        why = self.account.judge(number, data, allow_torn=True)
        if why:
            self.account.wrong.append(f"a read says: {why}")

    # -- the network ----------------------------------------------------------------------------------------------

    async def _ping_others(self) -> None:
        while self.kernel.monotonic_ns() < WORK_NS:
            up = [one.owner for one in journal.current.values() if one.is_up and one is not self.account]
            if not up:
                await self.kernel.sleep(1_000_000)
                continue
            other = self.kernel.rng.choice(up)
            try:
                await self.net.ping(f"10.0.0.{1 + other}", PING_NS)
            except NetError:
                self.account.lost_pings[other] = self.account.lost_pings.get(other, 0) + 1
            self.account.pings += 1
            await self.kernel.sleep(2_000_000)
