"""One end of a device by hand, as far as the bus goes: what it says, and what it hears of the end that is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final

from conformance.kit.check import Failure
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from guest_kernel.xenbus.client import XenstoreError
from hypervisor.abi.io.xenbus import XenbusStateClosed, XenbusStateClosing, XenbusStateInitWait

PATIENCE_NS: Final = 2_000_000_000
"""Virtual time after which something counts as not happening."""
LOOK_NS: Final = 500_000
RELEASE_LOOKS: Final = 100
"""How often it is looked whether a backend that has closed still maps something."""


class BusEnd(ABC):
    """The check's end. `home` is its directory, `far` that of the other end, once the device has been found."""

    judged: ClassVar[str]
    """What the other end is."""
    look_ns: ClassVar[int] = LOOK_NS

    def __init__(self, kernel: Kernel, home: str = "") -> None:
        self.kernel = kernel
        self.patience_ns = PATIENCE_NS
        self.home = home
        self.far = ""
        self.domid = 0
        """The domain of the other end."""

    async def write_nodes(self, values: Mapping[str, object]) -> None:
        """Write nodes of this end, one after the other."""
        await self.kernel.xenbus.write_many({f"{self.home}/{key}": value for key, value in values.items()})

    async def say(self, **nodes: object) -> None:
        """Write nodes of this end; `_` stands for `-`."""
        await self.write_nodes({key.replace("_", "-"): value for key, value in nodes.items()})

    async def told(self, key: str) -> str | None:
        """Return what the other end has written."""
        return await self.kernel.xenbus.read_or_none(f"{self.far}/{key}")

    async def state(self) -> int:
        """Return the other end's state; Closed once its directory is gone."""
        try:
            return int(await self.kernel.xenbus.read(f"{self.far}/state"))
        except XenstoreError:
            return XenbusStateClosed

    async def wait_for(self, *states: int) -> int:
        """Wait until the other end is in one of these states. Raises Failure."""
        for _ in range(self.patience_ns // self.look_ns):
            state = await self.state()
            if state in states:
                return state
            await self.kernel.sleep(self.look_ns)
        raise Failure(f"The {self.judged} stays in state {state}; it should come to {' or '.join(map(str, states))}.")


class FrontEnd(BusEnd):
    """A frontend, and the pages that it grants to the backend that is judged."""

    judged = "backend"

    def __init__(self, kernel: Kernel, home: str) -> None:
        super().__init__(kernel, home)
        self.pages: dict[int, Page] = {}
        """By grant reference."""

    async def find(self) -> None:
        """Find the backend, and wait until it has said what it offers."""
        await self.kernel.xenbus.connected()
        self.far = await self.kernel.xenbus.read(f"{self.home}/backend")
        self.domid = int(await self.kernel.xenbus.read(f"{self.home}/backend-id"))
        await self.wait_for(XenbusStateInitWait)

    def grant(self, fill: bytes = b"", *, readonly: bool = False) -> int:
        """Grant a fresh page to the backend; return its reference."""
        page = self.kernel.mm.alloc_page()
        page.view[:] = bytes(4096)
        page.view[: len(fill)] = fill
        ref = self.kernel.grants.grant_access(self.domid, page, readonly)
        self.pages[ref] = page
        return ref

    def ungrant(self, ref: int) -> None:
        """Take a page back."""
        self.kernel.grants.end_access(ref)
        self.kernel.mm.free_page(self.pages.pop(ref))

    def data(self, ref: int) -> bytes:
        """Return what is in a granted page."""
        return bytes(self.pages[ref].view)

    async def close(self) -> None:
        """Close the device from this end, and take everything back. Raises Failure if the backend holds on to it."""
        await self.say(state=XenbusStateClosing)
        await self.wait_for(XenbusStateClosing, XenbusStateClosed)
        await self.say(state=XenbusStateClosed)
        await self.wait_for(XenbusStateClosed, XenbusStateInitWait)
        await self.take_back()

    @abstractmethod
    async def take_back(self) -> None:
        """End all grants and event channels. Raises Failure if the backend still maps a page."""

    async def released(self) -> None:
        """Wait until the backend, which has closed, maps no page any more. Raises Failure."""
        for _ in range(RELEASE_LOOKS):
            held = [ref for ref in self.pages if self.kernel.grants.is_in_use(ref)]
            if not held:
                return
            await self.kernel.sleep(self.look_ns)
        raise Failure(f"The backend has closed and still maps {len(held)} pages of the frontend.")


class BackEnd(BusEnd):
    """A backend, for the device that the toolstack has made of a class: `kind`, with number `device`."""

    judged = "frontend"
    kind: ClassVar[str]
    device: ClassVar[str]

    async def find(self) -> None:
        """Find the device."""
        store = self.kernel.xenbus
        await store.connected()
        for _ in range(self.patience_ns // self.look_ns):
            try:
                self.domid = int((await store.directory(f"backend/{self.kind}"))[0])
                break
            except (XenstoreError, IndexError):
                await self.kernel.sleep(self.look_ns)
        else:
            raise RuntimeError("the toolstack has made no device")
        self.home = f"backend/{self.kind}/{self.domid}/{self.device}"
        self.far = await store.read(f"{self.home}/frontend")

    async def close(self) -> None:
        """Close the device from this end, and give everything back. Raises Failure if the frontend does not follow."""
        await self.say(state=XenbusStateClosing)
        await self.wait_for(XenbusStateClosing, XenbusStateClosed)
        self.detach()
        await self.say(state=XenbusStateClosed)

    @property
    @abstractmethod
    def is_attached(self) -> bool:
        """Whether anything of the frontend is mapped or bound."""

    @abstractmethod
    def detach(self) -> None:
        """Unmap and unbind."""
