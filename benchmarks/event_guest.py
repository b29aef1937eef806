"""The guests of `benchmarks/events.py`: two domains that notify each other, handler to handler, as fast as they can."""

import json
import time
from pathlib import Path

from guest_kernel.guest import Guest
from guest_kernel.threads import Event

PORT_NODE = "/local/domain/1/data/port"


class Ping(Guest):
    """Arguments: hops in one measurement, measurements, the file that the results (seconds per hop) are written to."""

    async def main(self) -> None:
        hops, repeats, results = int(self.args[0]), int(self.args[1]), Path(self.args[2])
        self.done = Event()
        self.left = 0
        self.port = self.kernel.events.alloc_unbound(2, self.handler)
        self.notify = self.kernel.events.notify
        xenbus = self.kernel.xenbus
        await xenbus.write("data/port", str(self.port))
        await xenbus.set_perms("data/port", ["n1", "r2"])
        await self.wait_for_peer()
        times = []
        for _ in range(repeats):
            self.left = hops // 2
            self.done.clear()
            start = time.process_time()
            self.notify(self.port)
            await self.done.wait()
            times.append((time.process_time() - start) / hops)
        results.write_text(json.dumps(times))  # noqa: ASYNC240 - a guest has no other way to tell its host

    async def wait_for_peer(self) -> None:
        """The other end notifies once when it has bound the port."""
        self.left = 0
        await self.done.wait()

    def handler(self) -> None:
        self.left -= 1
        if self.left > 0:
            self.notify(self.port)
        else:
            self.done.set()


class Pong(Guest):
    """Sends every notification back."""

    async def main(self) -> None:
        xenbus = self.kernel.xenbus
        while not await xenbus.exists(PORT_NODE):
            await self.sleep(0.001)
        events = self.kernel.events
        notify = events.notify
        first = True

        def handler() -> None:
            nonlocal first
            if first:
                # Binding raises the new port by itself: that is no notification.
                first = False
                return
            notify(port)

        port = events.bind_interdomain(1, int(await xenbus.read(PORT_NODE)), handler)
        await self.sleep(0.001)
        notify(port)
        await self.sleep(3600)
