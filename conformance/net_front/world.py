"""A host with the frontend in a guest, and the check as the only program of the driver domain that has its bridge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

from backends.net import NetBack
from conformance.kit.bus_end import LOOK_NS
from conformance.kit.check import Failure, Skip
from conformance.kit.front_stage import FrontStage, Job
from conformance.kit.hands import Hands
from conformance.kit.machine_guest import MachineGuest, open_config
from conformance.kit.place import Place
from conformance.kit.runner import World
from conformance.kit.split_host import JudgedHost
from conformance.net.frames import MACS
from conformance.net_front.back import Back
from conformance.net_front.remote import RemoteInterface
from conformance.subjects import load_class
from conformance.wire.hands import hands_of
from frontends.net import NetFront
from guest_kernel.guest import Guest
from guest_kernel.net.device import NetDevice
from guest_kernel.net.offload import NONE, Offload

Use = Callable[[NetDevice], Awaitable[Any]]
DEVICES: Final = f'vif = ["backend=backend,mac={MACS[0].hex(":")}"]'
BEATS_AFTER_DEATH: Final = 100
__all__ = ["LOOK_NS", "Job", "Scene", "open_subject", "place", "scene"]


@final
class Scene(FrontStage):
    """What a check gets."""

    make_back = Back
    back: Back
    use_fails = "The guest's use of its interface fails"
    use_hangs = "The guest's program does not come to an end with its interface."

    def __init__(self, subject: Any) -> None:
        super().__init__(subject, hands_of(subject))
        self.beats = 0
        """How often the guest's program has come around."""
        self.last_beat = 0
        self.heard: list[bytes] = []
        """What the guest's program has received."""
        self.remote: RemoteInterface | None = None
        """The interface, if the guest is no Python program."""

    # -- what checks do -----------------------------------------------------------------------------------------------

    def use(self, use: Use) -> Job:
        """Have the guest do something with its interface, once that is there."""

        async def work(guest: Guest) -> Any:
            interface = await guest.net.interface("eth0")
            return await use(interface.device)

        return self.do(work)

    async def transmit(self, frame: bytes, offload: Offload = NONE) -> bool:
        """Have the guest send a frame; whether its interface takes it. Raises Failure."""
        remote = self.remote
        if remote is not None:
            return bool(await self.finish(self.do_from_afar(lambda: remote.transmit(frame, offload))))

        async def send(device: NetDevice) -> bool:
            return device.transmit(frame, offload)

        return bool(await self.finish(self.use(send)))

    def send_many(self, frames: list[bytes]) -> Job:
        """Have the guest send frames, one after the other, as there is room."""
        remote = self.remote
        if remote is not None:
            return self.do_from_afar(lambda: remote.transmit_all(frames))

        async def send(device: NetDevice) -> int:
            for frame in frames:
                await device.wait_for_room()
                if not device.transmit(frame):
                    raise RuntimeError("there was room, and the frame is not taken")
            return len(frames)

        return self.use(send)

    async def listen(self) -> None:
        """Have the guest note down what it receives, as a wire would have brought it. Raises Failure."""
        if self.remote is not None:
            await self.finish(self.do_from_afar(self.remote.listen))
            return

        async def hear(device: NetDevice) -> None:
            device.received = lambda frame, validated: self.heard.append(bytes(frame))

        await self.finish(self.use(hear))

    async def hears(self, count: int) -> list[bytes]:
        """Return so many frames that the guest has received. Raises Failure if they are fewer."""
        for _ in range(self.back.patience_ns // LOOK_NS):
            if len(self.heard) >= count:
                break
            await self.back.kernel.sleep(LOOK_NS)
        else:
            raise Failure(f"Of {count} frames {len(self.heard)} reach the guest.")
        heard, self.heard[:] = list(self.heard), []
        return heard

    async def is_alive(self) -> None:
        """Raise Failure unless the guest's program goes on."""
        if self.remote is not None:
            await self.finish(self.do_from_afar(self.remote.nothing))
            return
        before = self.beats
        await self.back.kernel.sleep(10 * LOOK_NS)
        if self.beats < before + 5:
            raise Failure("The guest does not run any more.")

    def depart(self) -> None:
        """Have the driver domain end as it is; the guest is to live on."""
        if self.remote is not None:
            raise Skip("Without its backend's domain nobody would see what becomes of the guest.")
        self.departs = True
        self.last_beat = self.beats + BEATS_AFTER_DEATH

    # -- the machinery ------------------------------------------------------------------------------------------------

    def employ(self, hands: Hands) -> None:
        """Get ready for a guest that is no Python program."""
        self.remote = RemoteInterface(hands, self.heard)
        self.back.is_ready = lambda: hands.ready

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the driver domain. Raises what it raises, and Failure for what the frontend leaves behind."""
        host = JudgedHost(self.subject, replaced=NetFront, left_out=NetBack)
        self.run(host, check, Path(__file__).parent, DEVICES, "frontend", place.taken_by(self))
        if self.beats < self.last_beat:
            raise Failure("The guest has not lived on without its backend.")


place: Final[Place[Scene]] = Place()
"""Where programs find it."""


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    config = open_config(text)
    if config is not None:
        return lambda: scene(MachineGuest(config, "frontend"))
    subject = load_class(text)
    return lambda: scene(subject)


@contextmanager
def scene(subject: Any) -> Iterator[Scene]:
    """Make a scene."""
    yield Scene(subject)
