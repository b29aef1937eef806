"""The driver domain in which the checks of block frontends run: it has no block backend but the check itself."""

from conformance.block_front import world
from guest_kernel.guest import Guest


class Back(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        await world.place.scene.live(self.kernel)
        await self.kernel.never()
