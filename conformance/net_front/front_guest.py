"""The guest whose frontend is judged: its program does with the interface what the check asks for."""

from conformance.net_front import world
from guest_kernel.guest import Guest


class User(Guest):
    """Uses its interface."""

    async def main(self) -> None:
        """Run."""
        scene = world.place.scene
        scene.user = self.kernel
        while not scene.over or scene.beats < scene.last_beat:
            scene.beats += 1
            while scene.jobs:
                self.kernel.spawn(scene.jobs.popleft().run(self), "job")
            await self.kernel.sleep(world.LOOK_NS)
