"""The driver domain: its kernel carries the block backend; the program has nothing to do but to be there.

The toolstack gives this domain the I/O ports and the interrupt of the disk controller, and shuts it down when no guest
is left to serve.
"""

from guest_kernel.guest import Guest


class Storage(Guest):
    async def main(self) -> None:
        self.print("serving disks")
        await self.kernel.never()
