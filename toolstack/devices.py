"""Split devices from the toolstack's side: made, waited for, taken away, as libxl does (libxl_device.c).

    add      both ends' nodes and the toolstack's own in one transaction, then wait for the backend's InitWait
    remove   online = 0 and state = Closing in the backend's directory, wait for its Closed, remove all nodes

A guest need not answer, nor a backend. How long that is put up with, and what is done then, is the `Force` of a
removal. Everything here is xenstore and time; what stands behind a device (a controller, a bridge) is somebody else's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from guest_kernel.kernel import Kernel
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.client import Operations, Reply, Transaction, gather
from hypervisor.abi.io import xs_wire as xs
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateInitialising,
    XenbusStateInitWait,
)
from toolstack.console_log import printable
from toolstack.errors import ToolstackError
from toolstack.nodes import DOM0, DeviceNodes, Node

TIMEOUT_NS = 10_000_000_000
"""How long a backend may take for a new device, or to close one (LIBXL_INIT_TIMEOUT, LIBXL_DESTROY_TIMEOUT)."""
MAX_ERROR = 200
"""Characters of a domain's complaint that a person is shown."""

INITIALISING, INITWAIT = str(int(XenbusStateInitialising)), str(int(XenbusStateInitWait))
CLOSING, CLOSED = str(int(XenbusStateClosing)), str(int(XenbusStateClosed))


class Force(Enum):
    """What to do with a device that does not close in time (LIBXL__FORCE_*)."""

    OFF = "off"
    """Leave it: the guest uses it."""
    AUTO = "auto"
    """Take the frontend's nodes away, and try once more."""
    ON = "on"
    """Take the frontend's nodes away at once, and everything in the end."""


async def put(kernel: Kernel, nodes: Sequence[Node]) -> None:
    """Write nodes in one transaction, pipelined; again if somebody else changed what it touched."""
    await kernel.xenbus.transact(lambda transaction: _put(transaction, nodes))


async def _put(operations: Operations, nodes: Sequence[Node]) -> None:
    replies: list[Reply] = []
    for node in nodes:
        path = node.path
        replies.append(operations.submit(xs.XS_WRITE, wire.join(path) + wire.to_bytes(node.value), path))
        if node.permissions is not None:
            replies.append(operations.submit(xs.XS_SET_PERMS, wire.join(path, *node.permissions), path))
    await gather(replies)


class Devices:
    """The devices of all domains, as one toolstack sees them."""

    def __init__(self, kernel: Kernel, is_there: Callable[[int], bool]) -> None:
        self.kernel = kernel
        self._is_there = is_there
        """Whether a domain exists: nodes for one that does not have made its home anew."""

    # -- adding ---------------------------------------------------------------------------------------------------

    async def add(self, device: DeviceNodes, who: str) -> None:
        """Plug a device into a running guest. Raises ToolstackError, and then nothing of it is left behind."""

        async def write(transaction: Transaction) -> bool:
            if await transaction.exists(device.private):
                return False
            # What a former device of this number has left behind is not to be mistaken for this one's.
            for path in (device.frontend, device.backend):
                if await transaction.exists(path):
                    await transaction.rm(path)
            await _put(transaction, list(device.nodes()))
            return True

        if not await self.kernel.xenbus.transact(write):
            raise ToolstackError(f"{who} has a device {device.kind} {device.devid} already")
        try:
            await self.ready(device, who)
        except ToolstackError:
            await self.remove(device, who, Force.ON)
            raise

    async def ready(self, device: DeviceNodes, who: str, *, late: bool = False) -> None:
        """Wait until the backend has taken a new device, and plug its hot end in, unless that is `late`.

        Raises ToolstackError.
        """
        state = await self._wait_state(device, lambda state: state not in (None, INITIALISING))
        if state != INITWAIT:
            error = await self._error(device.backend_domid, device.backend)
            raise ToolstackError(
                f"{who}: the backend of {device.kind} {device.devid} "
                f"{f'failed: {error}' if error else 'did not take the device'}"
            )
        if not late:
            await self._connected(device)

    async def _connected(self, device: DeviceNodes) -> None:
        """Say what the scripts `block` and `vif-bridge` say when they are done; in a driver domain they run there."""
        if device.backend_domid == DOM0:
            await self.kernel.xenbus.write(f"{device.backend}/hotplug-status", "connected")

    async def plug(self, device: DeviceNodes, who: str) -> None:
        """Tell a backend which disk it is that was late. Raises ToolstackError: the device has gone."""
        await self.say(device, who, "physical-device")
        await self._connected(device)

    async def say(self, device: DeviceNodes, who: str, *keys: str) -> None:
        """Write some of the backend's values anew, for all that read them. Raises ToolstackError: it has gone."""

        async def write(transaction: Transaction) -> bool:
            if not await transaction.exists(f"{device.private}/frontend"):
                return False
            values = dict(device.backend_values)
            homes = (device.backend, device.private)
            await _put(transaction, [Node(f"{home}/{key}", values[key]) for home in homes for key in keys])
            return True

        if not await self.kernel.xenbus.transact(write):
            raise ToolstackError(f"{who} has no device {device.kind} {device.devid} any more")

    async def _error(self, domid: int, directory: str) -> str:
        """Return what one end says is wrong with its device, if it says something. The text is that domain's."""
        home = f"/local/domain/{domid}"
        text = await self.kernel.xenbus.read_or_none(f"{home}/error{directory.removeprefix(home)}/error")
        return printable((text or "")[:MAX_ERROR])

    # -- removing -------------------------------------------------------------------------------------------------

    async def remove(self, device: DeviceNodes, who: str, force: Force) -> None:
        """Unplug a device from a guest. Raises ToolstackError: it does not close, and is not to be forced."""
        closed = await self._close(device, force is Force.ON)
        if not closed and force is Force.AUTO:
            force = Force.ON
            closed = await self._close(device, True)
        if not closed and force is not Force.ON:
            error = await self._error(device.domid, device.frontend)
            said = f"; the guest says: {error}" if error else ""
            raise ToolstackError(
                f"{who} has not let go of {device.kind} {device.devid} within {TIMEOUT_NS // 10**9} s{said}"
            )
        await self.kernel.xenbus.transact(lambda transaction: _clean_up(transaction, device))

    async def _close(self, device: DeviceNodes, drop_frontend: bool) -> bool:
        """Ask the backend to close, and wait until it has; return whether it has, or is gone."""
        await self.kernel.xenbus.transact(lambda t: _ask_to_close(t, (device,), drop_frontend=drop_frontend))
        return await self._wait_state(device, lambda state: state in (None, CLOSED)) in (None, CLOSED)

    async def remove_all(self, devices: Sequence[DeviceNodes]) -> None:
        """Take away the devices of a domain that is over: all at once, and whatever their backends say to it."""
        xenbus = self.kernel.xenbus
        await xenbus.transact(lambda t: _ask_to_close(t, devices, drop_frontend=True))
        for device in devices:
            await self._wait_state(device, lambda state: state in (None, CLOSED))
        removed: dict[str, None] = {}
        for device in devices:
            home = f"/local/domain/{device.backend_domid}"
            # Nodes for a driver domain that died meanwhile have made its home anew: nobody else is left to remove it.
            dead = device.backend_domid != DOM0 and not self._is_there(device.backend_domid)
            removed[home if dead else f"{home}/backend/{device.kind}/{device.domid}"] = None
        found = await xenbus.read_many(list(removed))
        present = [path for path, value in zip(removed, found, strict=True) if value is not None]
        await gather([xenbus.submit(xs.XS_RM, wire.join(path), path) for path in present])

    async def _wait_state(self, device: DeviceNodes, condition: Callable[[str | None], bool]) -> str | None:
        """Wait for a backend's state, at most TIMEOUT_NS; return the last one seen."""
        path = f"{device.backend}/state"
        try:
            return await self.kernel.wait_for(self.kernel.xenbus.wait_until(path, condition), TIMEOUT_NS)
        except TimeoutError:
            return await self.kernel.xenbus.read_or_none(path)


async def _ask_to_close(transaction: Transaction, devices: Iterable[DeviceNodes], *, drop_frontend: bool) -> None:
    """Set online to 0 and the state to Closing in the backends that are still there and not Closed.

    The frontend's directory goes if its guest will not answer: the backend takes the missing node for its end.
    """
    for device in devices:
        state = await transaction.read_or_none(f"{device.backend}/state")
        if state is not None:
            await transaction.write(f"{device.backend}/online", "0")
            if state != CLOSED:
                await transaction.write(f"{device.backend}/state", CLOSING)
        if drop_frontend and await transaction.exists(device.frontend):
            await transaction.rm(device.frontend)


async def _clean_up(transaction: Transaction, device: DeviceNodes) -> None:
    """Remove the nodes of a device, and the directories above them that are empty then (libxl__xs_path_cleanup)."""
    for path, floor in ((device.frontend, 5), (device.backend, 5), (device.private, 4)):
        if await transaction.exists(path):
            await transaction.rm(path)
        parent = path.rpartition("/")[0]
        while parent.count("/") >= floor:
            if await transaction.exists(parent):
                if await transaction.directory(parent):
                    break
                await transaction.rm(parent)
            parent = parent.rpartition("/")[0]
