"""A frontend driver and a backend driver on the faked machine, connected as the bus would do it."""

from typing import Any

from block_world import FakeDevice, FakeDisk, FakeKernel, World

from backends.block import BlockBack
from frontends.block import BlockFront


class Pair:
    """A frontend in domain 1 and a backend in domain 0 with one disk, connected as the bus would do it."""

    def __init__(self, *, sectors: int = 4096, seed: int = 0, mode: str = "w", **options: Any) -> None:
        self.world = World(options.pop("world_pages", 2048), seed=seed)
        self.back_kernel = FakeKernel(self.world, 0)
        self.front_kernel = FakeKernel(
            self.world, 1, pages=options.pop("guest_pages", 1000), vcpus=options.pop("vcpus", 1)
        )
        self.disk = FakeDisk(
            self.back_kernel,
            sectors,
            readonly=options.pop("readonly", False),
            shuffled=options.pop("shuffled", False),
            sector_size=options.pop("sector_size", 512),
            secure=options.pop("secure", False),
        )
        self.store: dict[str, str] = {"backend/physical-device": "8:0", "backend/mode": mode}
        self.back_driver = BlockBack(self.back_kernel, **options.pop("back", {}))  # type: ignore[arg-type]
        self.front_driver = BlockFront(self.front_kernel, **options.pop("front", {}))  # type: ignore[arg-type]
        self.back = FakeDevice(self.back_kernel, self.back_driver, self.store, "backend", 1)
        self.front = FakeDevice(self.front_kernel, self.front_driver, self.store, "frontend", 0)
        assert not options

    def hook(self, device: FakeDevice, name: str) -> None:
        self.world.do(device.kernel, getattr(device.driver, name)(device))

    def probe(self) -> None:
        self.hook(self.back, "probe")
        self.hook(self.front, "probe")

    def connect(self) -> "Pair":
        self.hook(self.back, "publish")
        self.hook(self.front, "publish")
        self.hook(self.back, "connect")
        self.hook(self.front, "connect")
        return self

    def up(self) -> "Pair":
        self.probe()
        return self.connect()

    def close(self) -> None:
        self.hook(self.front, "disconnect")
        self.hook(self.back, "disconnect")
        self.hook(self.back, "close")
        self.hook(self.front, "close")

    def down(self) -> None:
        """Close in order, and prove that nothing is left."""
        self.close()
        self.world.check_no_leaks(self.back_kernel, self.front_kernel)

    @property
    def mapper(self) -> Any:
        return self.back.data.queues[0].mapper

    @property
    def device(self) -> Any:
        return self.front_kernel.block.devices["xvda"]

    @property
    def server(self) -> Any:
        return self.back.data.queues[0].server

    @property
    def tables(self) -> Any:
        return self.back.data.queues[0].tables

    @property
    def queue(self) -> Any:
        return self.front.data.rings.queues[0]

    def guest(self, coro: Any) -> Any:
        return self.world.do(self.front_kernel, coro)
