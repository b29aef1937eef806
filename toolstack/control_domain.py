"""The program of dom0: start the daemons, run the domains, power off.

What init scripts, xenstored, xenconsoled and `xl create` do on a real host happens here in order. A person (or the
simulator) outside speaks to it over the host's serial line, one order a line (`toolstack.serial_orders`): `shutdown`
asks all guests to shut down, `destroy` does not ask. Everything else is asked for over a line of the serial card
(`toolstack.control`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import attrs

from backends.xenconsoled import XenConsoled
from backends.xenstored.daemon import XenStored
from guest_kernel.hw.serial import STORE
from guest_kernel.kernel import Kernel
from toolstack.control.server import ControlServer
from toolstack.control.verbs import Toolstack
from toolstack.cpupools import PoolSpec, make_pools
from toolstack.devices import put
from toolstack.domains import DomainPlan
from toolstack.hotplug import Hotplug
from toolstack.lifecycle import Lifecycle
from toolstack.nodes import dom0_nodes
from toolstack.platform import Platform
from toolstack.serial_orders import SerialOrders
from toolstack.xc_scheduling import XcScheduling
from toolstack.xl_config import DomainConfig


class Host(Platform, Protocol):
    """What the simulator does for dom0 beyond the domains."""

    def started(self, lifecycle: Lifecycle, xenstored: XenStored) -> None:
        """Take note of the toolstack and the store: they are up."""
        ...


@attrs.frozen(kw_only=True)
class ControlDomain:
    """What runs in dom0; the fields behind `kernel` are its configuration files, so to speak."""

    kernel: Kernel
    config: DomainConfig
    uuid: UUID
    pools: Sequence[PoolSpec]
    plans: Sequence[DomainPlan]
    host: Host

    async def main(self) -> None:
        """Run the host's domains; returns when the last of them is gone."""
        kernel = self.kernel
        lifecycle = Lifecycle(kernel, self.host)
        xenstored = XenStored(kernel, lifecycle.xc.domain_state, domain_infos=lifecycle.xc.domain_states)
        xenstored.start()
        if (clients := kernel.hw.serial.open(STORE, "xenstored")) is not None:
            xenstored.listen(clients)
        await kernel.xenbus.connected()
        await put(kernel, list(dom0_nodes(self.config.name, self.uuid, self.config.memory, self.config.vcpus)))
        await make_pools(kernel, XcScheduling(lifecycle.xc), self.pools)
        consoled = XenConsoled(kernel, kernel.hw.serial)
        consoled.start()
        keyboard = kernel.spawn(SerialOrders(kernel, lifecycle, xenstored).obey(), "serial line")
        control = ControlServer(kernel, Toolstack(kernel, lifecycle, Hotplug(lifecycle), consoled.terminal_of))
        self.host.started(lifecycle, xenstored)
        await lifecycle.run(self.plans)
        control.stop()
        keyboard.cancel()
