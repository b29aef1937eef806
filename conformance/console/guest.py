"""The guest in which a console and its daemon are."""

from conformance.console import world
from guest_kernel.guest import Guest


class Both(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        await world.place.scene.live(self.kernel)
