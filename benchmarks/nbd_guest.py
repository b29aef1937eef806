"""The guest of `benchmarks/nbd.py`: it has a disk, and others use it."""

from guest_kernel.guest import Guest


class Storage(Guest):
    async def main(self) -> None:
        await self.disk("xvda")
