"""A guest whose disk is served by another guest: it cannot tell the difference."""

from guest_kernel.guest import Guest

CHUNK = 256
CHUNKS = 16


class Worker(Guest):
    async def main(self) -> None:
        disk = await self.disk("xvda")
        backend = await self.kernel.xenbus.read(f"device/vbd/{51712}/backend-id")
        self.print(f"{disk.name} is served by domain {backend}")
        for number in range(CHUNKS):
            await disk.write(number * CHUNK, bytes([number]) * (CHUNK * disk.sector_size))
        await disk.flush()
        for number in range(CHUNKS):
            data = await disk.read(number * CHUNK, CHUNK)
            if set(data) != {number}:
                raise RuntimeError(f"chunk {number} is damaged")
        self.print(f"{CHUNKS * CHUNK * disk.sector_size >> 10} KiB written and verified")
