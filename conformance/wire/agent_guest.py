"""The program of a domain whose driver is a process outside."""

from conformance.wire import agent
from guest_kernel.guest import Guest


class Driver(Guest):
    """Does what the process asks for; when that has failed the domain stays, and does nothing."""

    async def main(self) -> None:
        """Run."""
        await agent.place.scene.live(self.kernel)
        await self.kernel.never()
