"""The guest of lab 8, whose frontend is the submission: its program does with the disk what the check asks for."""

from guest_kernel.guest import Guest
from labs.blkfront import world


class User(Guest):
    """Uses its disk."""

    async def main(self) -> None:
        """Run."""
        scene = world.current
        assert scene is not None
        scene.user = self.kernel
        while not scene.over and self.kernel.monotonic_ns() < scene.deadline_ns:
            if scene.jobs:
                self.kernel.spawn(scene.jobs.popleft().run(self), "job")
            await self.kernel.sleep(world.LOOK_NS)
        await self.kernel.sleep(40 * world.LOOK_NS)
        scene.count(self.kernel)
