"""Disks that are somewhere else: getting to their servers while the host goes on, and what to tell people of them."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hypervisor.errors import DeviceError
from hypervisor.machine.nbd_connector import Connector, NbdConnection
from toolstack.errors import ToolstackError

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from toolstack.disk_spec import DiskSpec
    from toolstack.xl_config import DomainConfig

LOOK_NS = 5_000_000
"""How often a toolstack that waits for a server looks whether it has answered."""
LOOK_MS = 100
"""How often a host that stands still for a server asks whether anybody still wants to wait."""
PROMPT = 0.25
"""Seconds that servers have to answer, all together, before guests are started without their disks: most do in a
hundredth of that, or refuse, which is then a mistake in the configuration like any other."""


def search(disk: DiskSpec) -> Connector | None:
    """Begin to connect to a disk's server; None if it has none."""
    return None if disk.nbd is None else Connector(disk.nbd, readonly=not disk.writable)


def stand_still(connector: Connector, give_up: Callable[[], bool]) -> None:
    """Wait, and do nothing else, until a server has answered (or not, which is known within seconds)."""
    poll = select.poll()
    poll.register(connector, select.POLLIN)
    while not connector.done and not give_up():
        poll.poll(LOOK_MS)


def wait_for_all(connectors: Sequence[Connector], seconds: float) -> None:
    """Wait, and do nothing else, until all these servers have answered (or will not), or so much time has gone by."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    for connector in connectors:
        poll.register(connector, select.POLLIN)
    for connector in connectors:
        while not connector.done and (left := deadline - time.monotonic()) > 0:
            for file, _ in poll.poll(min(1000 * left, 1e6)):
                poll.unregister(file)


async def reach(connector: Connector | None, kernel: Kernel) -> NbdConnection | None:
    """Wait in dom0 for a server while everybody else goes on; None if there is none to be waited for.

    Raises ToolstackError.
    """
    if connector is None:
        return None
    try:
        while not connector.done:
            await kernel.sleep(LOOK_NS)
        return connector.take()
    except DeviceError as error:
        raise ToolstackError(str(error)) from None
    finally:
        connector.abandon()


@contextmanager
def closed_on_failure(connection: NbdConnection | None) -> Iterator[None]:
    """Hang up if the block fails: nobody has taken the connection over."""
    try:
        yield
    except ToolstackError:
        if connection is not None:
            connection.socket.close()
        raise


def unrepeatable(configs: Iterable[DomainConfig]) -> list[str]:
    """Name the disks whose contents and failures no seed repeats: GUEST/VDEV."""
    return [f"{config.name}/{disk.vdev}" for config in configs for disk in config.disks if disk.nbd is not None]
