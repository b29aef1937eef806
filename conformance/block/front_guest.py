"""The guest in which the checks of block backends run: it has no block frontend but the check itself."""

from conformance.block import world
from guest_kernel.guest import Guest


class Front(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        await world.place.scene.live(self.kernel)
