"""The guest whose frontend is judged: its program does with the disk what the check asks for."""

from conformance.block_front import world
from guest_kernel.guest import Guest


class User(Guest):
    """Uses its disk."""

    async def main(self) -> None:
        """Run."""
        scene = world.place.scene
        scene.user = self.kernel
        while not scene.over:
            if scene.jobs:
                job = scene.jobs.popleft()
                self.kernel.spawn(job.run(self), "job")
            await self.kernel.sleep(world.LOOK_NS)
