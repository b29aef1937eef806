"""The domain of the other end: its program is the check."""

from conformance.xenbus import world
from guest_kernel.guest import Guest


class Peer(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        await world.place.scene.live(self.kernel)
