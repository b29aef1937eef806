"""A host for either suite: a domain with the judged driver, one in which the check is the other end, and a toolstack.

The toolstack of the host makes the device, with whatever stands behind it (a disk, a bridge). It would then wait for
the backend, and the backend for its domain; so that the check decides who is first, the driver is given to its kernel
only when the check says so, and both ends' nodes are made anew, as they were at first, when both domains run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import attrs

from backends.xenstored.daemon import XenStored
from conformance.kit.check import Failure, Skip
from conformance.kit.machine_guest import MachineGuest, open_config
from conformance.kit.place import Place
from conformance.kit.recording import host_options, note_failure
from conformance.kit.runner import World
from conformance.kit.split_host import Stage
from conformance.kit.telling import watch
from conformance.subjects import SubjectError, load_class
from conformance.xenbus import books
from conformance.xenbus.books import NOTHING, Books
from conformance.xenbus.classes import USUAL
from conformance.xenbus.desk import LOOK_NS, Desk, Work
from conformance.xenbus.ends import BackEnd, End, FrontEnd
from conformance.xenbus.eye import Eye
from conformance.xenbus.judged import Judged, Machine, judged
from guest_kernel.errors import OutOfMemory
from guest_kernel.image import DriverFactory, PythonKernelImage
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from guest_kernel.xenbus.client import Permission, Transaction
from guest_kernel.xenbus.driver import Side
from hypervisor.abi.io.xenbus import XenbusStateInitWait
from toolstack.devices import put
from toolstack.domains import LiveDomain
from toolstack.host import Host
from toolstack.lifecycle import Lifecycle
from toolstack.nodes import DeviceNodes, Node
from toolstack.xl_config import DomainConfig, parse_config

__all__ = ["LOOK_NS", "Scene", "open_backend", "open_frontend", "place", "scene"]

HANG_LIMIT: Final = 20.0
"""Seconds after which a subject that does not yield is ended."""
DISK_SIZE: Final = 1 << 20


@final
class _Host(Host):
    """A host whose kernels come without a driver of the judged kind, and whose dom0 has a desk."""

    def __init__(self, scene: Scene) -> None:
        occupant = scene.judged.occupant
        thinks = occupant.thinks if occupant is not None else 0.0
        super().__init__(hang_limit=HANG_LIMIT + thinks, **host_options())
        self._scene = scene

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Have a domain execute an image without these drivers."""
        if self._scene.judged.occupant is not None:
            self._scene.judged.occupant.settle(self)
        kind = self._scene.judged.type
        kept = [driver for driver in image.drivers if _type_of(driver) != kind]
        super().load(domid, attrs.evolve(image, drivers=kept))

    def started(self, lifecycle: Lifecycle, xenstored: XenStored) -> None:
        """Open the toolstack's desk, too."""
        super().started(lifecycle, xenstored)
        kernel = self.kernels[0]
        kernel.spawn(self._scene.toolstack.serve(kernel), "the check's toolstack")
        kernel.spawn(self._scene.set_up(kernel), "the check begins")


def _type_of(driver: DriverFactory) -> object:
    made = driver.func if isinstance(driver, partial) else driver
    return getattr(made, "type", None)


class Scene(Stage):
    """What a check gets."""

    def __init__(self, judged: Judged, side: Side, directory: Path) -> None:
        super().__init__()
        self.judged = judged
        self.subject = judged.subject
        self.side = side
        self.kind = judged.kind
        self.directory = directory
        self.driver = Desk("driver's domain")
        self.toolstack = Desk("toolstack")
        self.host: _Host
        self.device: DeviceNodes
        self.end: Any
        """The other end: a `BackEnd` or a `FrontEnd`."""
        self.eye: Eye
        self.judged_domid = 0
        self.peer_domid = 0
        self.left = False
        self.plugged = False
        """The driver has been given to its kernel."""
        self._ready = False
        judged.enter(self)

    # -- what checks do -----------------------------------------------------------------------------------------------

    async def plug(self) -> None:
        """Have the driver and the device meet."""
        self.plugged = True
        await self.judged.plug(self)

    async def shut_down(self) -> None:
        """Have the driver's domain shut down."""
        await self.judged.shut_down(self)

    async def in_driver(self, work: Work) -> Any:
        """Have work done in the driver's domain. Raises Skip if that is no Python program."""
        if isinstance(self.judged, Machine):
            raise Skip("It takes a guest in Python.")
        return await self.driver.ask(self.end.kernel, work)

    async def in_toolstack(self, work: Work) -> Any:
        """Have work done in dom0."""
        return await self.toolstack.ask(self.end.kernel, work)

    async def unplug(self) -> None:
        """Ask the backend to give the device up, as libxl does: `online` and `state` in one transaction."""
        backend = self.device.backend

        async def ask(kernel: Kernel) -> None:
            async def write(transaction: Transaction) -> None:
                await transaction.write(f"{backend}/online", "0")
                await transaction.write(f"{backend}/state", "5")

            await kernel.xenbus.transact(write)

        await self.in_toolstack(ask)

    async def remove(self, *directories: str) -> None:
        """Remove directories, whatever those who live there think of it."""

        async def work(kernel: Kernel) -> None:
            for path in directories:
                if await kernel.xenbus.exists(path):
                    await kernel.xenbus.rm(path)

        await self.in_toolstack(work)

    async def own_above(self) -> None:
        """Let the judged domain own the directory above, as some toolstacks do: it could make its own anew there."""
        above = self.judged_path.rpartition("/")[0]
        owner = Permission("n", self.judged_domid)
        await self.in_toolstack(lambda kernel: kernel.xenbus.set_perms(above, [owner]))

    def stays_away(self) -> None:
        """Raise Failure if the judged end's directory is there."""
        sight = self.eye.judged[-1]
        if sight.state is not None:
            raise Failure(f"The directory that was removed is back, with {', '.join(sorted(sight.keys)) or 'nothing'}.")

    async def make(self) -> None:
        """Make both directories anew, in one transaction: nobody sees that they were gone."""
        device = self.device

        async def write(transaction: Transaction) -> None:
            for path in (device.frontend, device.backend):
                if await transaction.exists(path):
                    await transaction.rm(path)
            for node in device.nodes():
                await transaction.write(node.path, node.value)
                if node.permissions is not None:
                    await transaction.set_perms(node.path, node.permissions)

        await self.in_toolstack(lambda kernel: kernel.xenbus.transact(write))

    async def put_judged(self, kernel: Kernel) -> None:
        """In dom0: make the directory of the judged end, if it is not there."""
        if not await kernel.xenbus.exists(self.judged_path):
            await put(kernel, self._nodes(judged=True))

    def _nodes(self, *, judged: bool) -> list[Node]:
        """Return the nodes of the judged end's directory, or all the others."""
        below = f"{self.judged_path}/"
        return [node for node in self.device.nodes() if f"{node.path}/".startswith(below) == judged]

    async def rewrite(self, path: str, value: object) -> None:
        """Write any node, by dom0's right."""
        await self.in_toolstack(lambda kernel: kernel.xenbus.write(path, value))

    def leave(self) -> None:
        """Do not tidy up: have this end's domain die as it is."""
        self.left = True

    # -- what checks see ----------------------------------------------------------------------------------------------

    @property
    def judged_path(self) -> str:
        """The directory of the judged end."""
        return self.device.frontend if self.side == "frontend" else self.device.backend

    @property
    def peer_path(self) -> str:
        """The directory of the other end."""
        return self.device.backend if self.side == "frontend" else self.device.frontend

    @property
    def books(self) -> Books:
        """What the judged domain holds now."""
        return books.look(self.host.hv, self.judged_domid, self.peer_domid)

    @property
    def mapped_frames(self) -> list[int]:
        """The frames of the other end that the judged domain has mapped."""
        return books.mapped_frames(self.host.hv, self.judged_domid, self.peer_domid)

    @property
    def watches(self) -> int:
        """How many watches the judged domain has on nodes of this kind of device."""
        for connection in self.host.xenstored.server.connections:
            if connection.id == self.judged_domid:
                return sum(f"/{self.device.kind}/".encode() in path for path, _ in connection.watches)
        return 0

    async def gives_back(self) -> None:
        """Raise Failure unless the judged end comes to hold nothing of the device."""
        for _ in range(self.judged.patience_ns // LOOK_NS):
            if self.books == NOTHING:
                return
            await self.end.kernel.sleep(LOOK_NS)
        raise Failure(f"The {self.side} has closed and still holds {self.books}.")

    async def complaint(self) -> str | None:
        """Return what the judged end's `error` node says."""
        home, _, place = self.judged_path.partition(f"/{'device' if self.side == 'frontend' else 'backend'}/")
        top = self.judged_path.removeprefix(home).removesuffix(f"/{place}")
        path = f"{home}/error{top}/{place}/error"
        return await self.in_toolstack(lambda kernel: kernel.xenbus.read_or_none(path))  # type: ignore[no-any-return]

    async def free_frames(self) -> set[int]:
        """Return the frames that the judged domain's kernel would give to somebody else now."""

        async def work(kernel: Kernel) -> set[int]:
            pages: list[Page] = []
            try:
                while True:
                    pages.append(kernel.mm.alloc_page())
            except OutOfMemory:
                found = {page.mfn for page in pages}
            kernel.mm.free_pages_of(pages)
            return found

        return await self.in_driver(work)  # type: ignore[no-any-return]

    async def is_alive(self) -> None:
        """Raise Failure unless the driver's domain still runs."""
        await self.judged.is_alive(self)

    # -- the machinery ------------------------------------------------------------------------------------------------

    async def set_up(self, kernel: Kernel) -> None:
        """In dom0: stand in for the backend until both domains run, and then let the check begin."""
        lifecycle = self.host.lifecycle
        assert lifecycle is not None
        live = await _domain(kernel, lifecycle, "frontend")
        back = await _domain(kernel, lifecycle, "backend")
        (self.device,) = live.devices
        domids = {"frontend": live.domid, "backend": back.domid}
        self.judged_domid = domids[self.side]
        self.peer_domid = sum(domids.values()) - self.judged_domid
        while not await kernel.xenbus.exists(self.device.backend):
            await kernel.sleep(LOOK_NS)
        await kernel.xenbus.write(f"{self.device.backend}/state", int(XenbusStateInitWait))
        await self.judged.starts(kernel, self)
        await kernel.xenbus.rm(self.device.frontend)
        await kernel.xenbus.rm(self.device.backend)
        if not await self.judged.comes_up(kernel, self):
            self.failure = Failure("The guest does not come up.")
        is_driver = self.judged.occupant is None
        await put(kernel, list(self.device.nodes()) if is_driver else self._nodes(judged=False))
        server = self.host.xenstored.server
        self.eye = Eye(server, self.judged_path, self.peer_path, self.judged_domid)
        self._ready = True

    async def live(self, kernel: Kernel) -> None:
        """Be the program of the other end's domain."""
        hands = self.judged.hands
        if hands is not None:
            hands.serve(kernel, LOOK_NS, lambda: self.over)
        while not self._ready:
            await kernel.sleep(self.judged.look_ns)
        make: type[End] = BackEnd if self.side == "frontend" else FrontEnd
        self.end = make(kernel, self.kind, self.peer_path, self.judged_path, self.judged_domid)
        self.end.patience_ns = self.judged.patience_ns
        self.end.refuses = self.judged.occupant is not None
        try:
            if self.failure is not None:
                raise self.failure
            await self.begin()
            if not self.left:
                await self._tidy_up()
        except Exception as error:
            self.failure = error
            note_failure(kernel, error)
            self.end.let_go()
        self.over = True
        self.driver.closed = self.toolstack.closed = True
        if self.side == "frontend" and self.judged.occupant is not None:
            self.judged.occupant.end()

    async def _tidy_up(self) -> None:
        """Take the device away in order, as a toolstack does at last. Raises Failure for what is still held then."""
        if self.side == "frontend":
            self.end.let_go()
            await self.remove(self.device.backend, self.device.frontend)
            await self.gives_back()
        else:
            await self.remove(self.device.frontend, self.device.backend)
            await self.end.released()
            await self.gives_back()
            self.end.let_go()

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check. Raises what it raises, and Failure for what the driver leaves behind."""
        self.check = check
        self.host = host = _Host(self)
        watch(host)
        self.play(host, self._configs(), self.side, self.judged.occupant, place.taken_by(self))

    def _configs(self) -> list[DomainConfig]:
        disk = self.directory / "disk.img"
        disk.write_bytes(bytes(DISK_SIZE))
        setting = self.kind.setting.format(backend="backend", disk=disk)
        more = {"backend": "driver_domain = 1\n", "frontend": f"{setting}\n"}
        found = []
        for name, text in more.items():
            occupant = self.judged.occupant if name == self.side else None
            program = "judged_guest.py" if name == self.side else "peer_guest.py"
            settings = f'memory = 8\nkernel = "{program}"' if occupant is None else occupant.settings
            whole = f'name = "{name}"\n{settings}\n{text}'
            config = parse_config(whole, f"{name}.cfg", Path(__file__).parent)
            found.append(config if occupant is None else occupant.configure(config))
        return found


async def _domain(kernel: Kernel, lifecycle: Lifecycle, name: str) -> LiveDomain:
    """Wait for a domain."""
    while True:
        for live in lifecycle.live.values():
            if live.name == name:
                return live
        await kernel.sleep(LOOK_NS)


place: Final[Place[Scene]] = Place()
"""Where programs find it."""


def open_frontend(text: str, type: str = USUAL) -> World:
    """Return what makes the world of each check of a frontend. Raises SubjectError.

    `type` is the class of devices with which a machine-code guest is judged.
    """
    config = open_config(text)
    if config is not None:
        return lambda: scene(MachineGuest(config, "frontend"), "frontend", type)
    return _open(text, "frontend")


def open_backend(text: str, type: str = USUAL) -> World:
    """Return what makes the world of each check of a backend, which says itself of what class. Raises SubjectError."""
    return _open(text, "backend")


def _open(text: str, side: Side) -> World:
    subject = load_class(text)
    if getattr(subject, "side", None) != side or not isinstance(getattr(subject, "type", None), str):
        raise SubjectError(f"{text!r} is no {side} driver: it says side = {getattr(subject, 'side', None)!r}")
    return lambda: scene(subject, side)


@contextmanager
def scene(subject: Any, side: Side, type: str = "") -> Iterator[Scene]:
    """Make a place for a disk. `type` is the class of devices of a subject that is no Python driver."""
    with tempfile.TemporaryDirectory() as name:
        yield Scene(judged(subject, type), side, Path(name))
