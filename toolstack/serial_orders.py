"""What a person, or the simulator, types on the host's serial console: one order a line, for dom0 to carry out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, final

from backends.xenstored.daemon import XenStored
from guest_kernel.kernel import Kernel
from guest_kernel.xenbus import XenstoreError
from toolstack.domains import LiveDomain
from toolstack.lifecycle import Lifecycle

_QUOTA_DIRECTORY: Final = "data/quota"
"""Below a guest's home: where nodes are that it is made to own."""
_BATCH: Final = 64
"""Nodes that are made at one go."""


@final
class SerialOrders:
    """dom0's side of the line."""

    def __init__(self, kernel: Kernel, lifecycle: Lifecycle, xenstored: XenStored) -> None:
        self._kernel = kernel
        self._lifecycle = lifecycle
        self._xenstored = xenstored
        self._saved: bytes | None = None
        """What the store saved when it was stopped."""
        self._orders: Mapping[str, tuple[int, Callable[..., Coroutine[Any, Any, None]]]] = {
            "shutdown": (0, self._shutdown),
            "destroy": (0, self._destroy_all),
            "destroy-domain": (1, self._destroy),
            "fail-backend": (2, self._fail_backend),
            "stop-xenstored": (0, self._stop_xenstored),
            "start-xenstored": (0, self._start_xenstored),
            "fill-quota": (1, self._fill_quota),
            "free-quota": (1, self._free_quota),
        }

    async def obey(self) -> None:
        """Carry out what is typed."""
        printk = self._kernel.console.printk
        while True:
            words = (await self._kernel.console.readline()).split()
            if not words:
                continue
            count, order = self._orders.get(words[0], (0, None))
            if order is None:
                printk(f"{words[0]!r} is none of {', '.join(self._orders)}")
            elif len(words) != 1 + count:
                printk(f"{words[0]!r} takes {count} words")
            else:
                self._kernel.spawn(order(*words[1:]), words[0])

    # -- ends of domains ------------------------------------------------------------------------------------------

    async def _shutdown(self) -> None:
        """Ask all guests to shut down."""
        await self._lifecycle.shutdown_all()

    async def _destroy_all(self) -> None:
        """End all guests at once."""
        self._lifecycle.destroy_all()

    async def _destroy(self, name: str) -> None:
        """Destroy one guest, as `xl destroy`."""
        live = self._live(name)
        if live is not None:
            await self._lifecycle.condemn(live)

    def _live(self, name: str) -> LiveDomain | None:
        domid = self._lifecycle.domid_of(name)
        return None if domid is None else self._lifecycle.live.get(domid)

    # -- faults ---------------------------------------------------------------------------------------------------

    async def _fail_backend(self, name: str, kind: str) -> None:
        """Have the backends of a guest's devices of one class give up."""
        domid, bus = self._lifecycle.domid_of(name), self._kernel.bus
        if domid is None or bus is None:
            return
        for device in list(bus.devices.values()):
            if (device.side, device.type, device.otherend_id) == ("backend", kind, domid):
                await device.fatal("the backend has failed")

    async def _stop_xenstored(self) -> None:
        if self._saved is None:
            self._saved = await self._xenstored.stop()

    async def _start_xenstored(self) -> None:
        saved, self._saved = self._saved, None
        if saved is not None:
            self._xenstored.go_on(saved)

    async def _fill_quota(self, name: str) -> None:
        """Have a guest own as many nodes as it may: new ones, in a directory below its home."""
        live = self._live(name)
        if live is None:
            return
        # (What dom0 makes below a guest's directory is the guest's, and dom0 is bound by no quota.)
        directory = f"{live.home}/{_QUOTA_DIRECTORY}"
        paths = [f"{directory}/{number}" for number in range(self._xenstored.server.quotas.nodes)]
        try:
            for at in range(0, len(paths), _BATCH):
                await self._kernel.xenbus.write_many(dict.fromkeys(paths[at : at + _BATCH], ""))
        except XenstoreError as error:
            self._kernel.console.printk(f"the quota of {name} cannot be filled: {error}")  # it has gone meanwhile

    async def _free_quota(self, name: str) -> None:
        """Take those nodes away again."""
        live = self._live(name)
        if live is None:
            return
        try:
            await self._kernel.xenbus.rm(f"{live.home}/{_QUOTA_DIRECTORY}")
        except XenstoreError as error:
            self._kernel.console.printk(f"the quota of {name} cannot be freed: {error}")
