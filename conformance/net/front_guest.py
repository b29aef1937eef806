"""The guest in which the checks of network backends run: it has no network frontend but the check itself."""

from conformance.net import world
from guest_kernel.guest import Guest


class Front(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        await world.place.scene.live(self.kernel)
