"""The domain of the other end: its program is the check."""

from conformance.xenbus import world
from guest_kernel.guest import Guest


class Peer(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        assert world.current is not None
        await world.current.live(self.kernel)
