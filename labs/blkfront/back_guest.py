"""The driver domain of lab 8: its backend is the check."""

from guest_kernel.guest import Guest
from labs.blkfront import world


class Back(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        assert world.current is not None
        await world.current.live(self.kernel)
        await self.kernel.never()
