"""The life of domains, from the control domain's side (libxl's part): create, wait for the end, obey on_*, tear down.

This is code of a program in dom0: it sees Xen through hypercalls (`Xc`) and everything else through xenstore. What the
simulator does for it behind its back is in `Platform`, and that is little.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import uuid5

import attrs

from guest_kernel.errors import XenError
from guest_kernel.kernel import Kernel
from guest_kernel.threads import Lock, Thread, WaitQueue
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.client import gather
from hypervisor.abi import device as machine_device
from hypervisor.abi import domctl, errno, tracepoints
from hypervisor.abi.io import xs_wire as xs
from toolstack import xc_cpuid
from toolstack.builder import PvBuilder, python_kernel
from toolstack.cpupools import find_pool
from toolstack.devices import Devices, put
from toolstack.domains import DESTROYED, REASONS, DomainPlan, LiveDomain
from toolstack.errors import ToolstackError
from toolstack.late_disks import LateDisks, without
from toolstack.machine_code import MachineCode
from toolstack.nodes import (
    DOM0,
    Connection,
    DeviceNodes,
    Node,
    console_backend,
    disk_nodes,
    domain_nodes,
    other_nodes,
    vif_nodes,
)
from toolstack.platform import Platform
from toolstack.xc import DomainState, Xc
from toolstack.xc_scheduling import Pool, XcScheduling
from toolstack.xl_config import DomainConfig

SECOND = 1_000_000_000
SHUTDOWN_TIMEOUT_NS = 30 * SECOND
"""How long a guest may take to shut down when it is asked to; then it is destroyed."""
FORGET_ATTEMPTS, FORGET_PAUSE_NS = 100, 1_000_000
QUICK_LIFE_NS = SECOND
MAX_QUICK_RESTARTS = 5
"""A domain that so many times in a row ended within `QUICK_LIFE_NS` is not restarted again: that might never end."""
MAXMEM_SLACK_KIB = 1024
ADDRESS_BITS = 64


class Lifecycle:
    """All unprivileged domains of the host."""

    def __init__(self, kernel: Kernel, platform: Platform) -> None:
        self.kernel = kernel
        self.platform = platform
        self.xc = Xc(kernel)
        self.builder = PvBuilder(self.xc)
        self.live: dict[int, LiveDomain] = {}
        self.devices = Devices(kernel, self.live.__contains__)
        self.late_disks = LateDisks(self)
        self.stopping = False
        self._waiting: dict[int, WaitQueue] = {}
        self._life_over = WaitQueue()
        """Whoever waits for some domain to end or go."""
        self._creating = Lock()

    # -- the whole ------------------------------------------------------------------------------------------------

    async def run(self, plans: Sequence[DomainPlan]) -> None:
        """Run all domains, and whatever their on_* settings start again; returns when none runs any more."""
        watch = await self.kernel.xenbus.watch("@releaseDomain")
        watcher = self.kernel.spawn(self._watch_ends(watch.get), "domain ends")
        guests: list[Thread] = []
        servers: list[Thread] = []
        for plan in plans:
            if self.stopping:
                break
            live = await self._start(plan)
            if live is not None:
                thread = self.kernel.spawn(self._supervise(live), f"supervise {plan.config.name}")
                (servers if plan.config.driver_domain else guests).append(thread)
        for thread in guests:
            await thread.join()
        # Driver domains serve until nobody is left to be served.
        self.stopping = True
        await self._ask_to_end([live for live in self.live.values() if live.plan.config.driver_domain])
        for thread in servers:
            await thread.join()
        await self._wait_forgotten()
        watcher.cancel()
        await watch.cancel()

    async def _wait_forgotten(self) -> None:
        """Wait until Xen has forgotten the destroyed domains: the daemons have to unmap their last pages first."""
        for _ in range(FORGET_ATTEMPTS):
            kept = {DOM0, *self.live}
            if all(info.domain in kept for info in self.xc.domain_states()):
                return
            await self.kernel.sleep(FORGET_PAUSE_NS)

    async def _start(self, plan: DomainPlan) -> LiveDomain | None:
        """Create and unpause a domain; None if that failed, and the platform has been told."""
        try:
            live = await self.create(plan)
        except ToolstackError as error:
            self.platform.failed(plan, str(error))
        except XenError as error:
            self.platform.failed(plan, f"{plan.config.source}: domain {plan.config.name!r} cannot be built: {error}")
        else:
            if self.stopping and not plan.config.driver_domain:
                # Who has asked all for their end has perhaps not seen this one.
                await self._ask_to_end([live])
            return live
        return None

    async def _supervise(self, live: LiveDomain) -> None:
        """See a domain through its lives."""
        quick = 0
        while True:
            reason = await self.wait_end(live)
            action = self._action(live, reason)
            lived = self.kernel.monotonic_ns() - live.started_ns
            quick = quick + 1 if lived < QUICK_LIFE_NS else 0
            restart = action.endswith("restart") and not self.stopping
            if restart and quick >= MAX_QUICK_RESTARTS:
                restart = False
                self.platform.failed(
                    live.plan, f"{live.name} has ended {quick} times within a second of its start; it is not restarted"
                )
            self.platform.account(live, reason)
            if action == "preserve":
                live.preserved = True
                return
            plan = live.plan
            if action == "rename-restart" and restart:
                await self._preserve_as(live, f"{live.name}-{live.domid}")
            else:
                await self.destroy(live)
                if not restart or self.stopping:
                    self._give_back(live)
                    return
            again = await self._start(plan)
            if again is None:
                return
            live = again

    def _give_back(self, live: LiveDomain) -> None:
        """Take what was set aside for a domain that does not come back out of the machine: others may want it."""
        disks = [device for device in live.devices if device.kind == "vbd"]
        for device, unit in zip(disks, live.plan.disk_units, strict=False):
            self.unplug_disk(device, unit)
        for mac in live.plan.macs:
            self.platform.hardware.unplug_vif(mac)
        for unit in live.plan.socket_units:
            self.platform.hardware.unplug_socket_card(unit)

    def forget_disk(self, live: LiveDomain, device: DeviceNodes) -> None:
        """A domain has one disk less, now and in its next life: take the controller out of the machine."""
        live.devices = tuple(other for other in live.devices if other != device)
        plan = live.plan
        index = [disk.devid for disk in plan.config.disks].index(device.devid)
        unit = plan.disk_units[index]
        config = attrs.evolve(plan.config, disks=without(plan.config.disks, index))
        live.plan = attrs.evolve(plan, config=config, disk_units=without(plan.disk_units, index))
        self.unplug_disk(device, unit)

    def unplug_disk(self, device: DeviceNodes, unit: int) -> None:
        """Take a disk's controller out of the machine; a driver domain keeps what it was given, for the next time."""
        mine = device.backend_domid == DOM0
        if mine:
            self.kernel.hw.release_disk(unit)
        self.platform.hardware.unplug_disk(unit, keep=not mine)

    def _action(self, live: LiveDomain, reason: str) -> str:
        config = live.plan.config
        actions = {
            "poweroff": config.on_poweroff,
            "reboot": config.on_reboot,
            "crash": config.on_crash,
            "watchdog": config.on_watchdog,
        }
        return actions.get(reason, "destroy")

    # -- creation -------------------------------------------------------------------------------------------------

    async def create(self, plan: DomainPlan) -> LiveDomain:
        """Build a domain, announce it and its devices, and let it run. Raises XenError, ToolstackError.

        Nothing of it is left behind when it fails.
        """
        async with self._creating:
            live = await self._build(plan)
            try:
                await self._backends_ready(live)
                self.late_disks.wait_for(live)
                self.xc.unpause(live.domid)
            except (ToolstackError, XenError):
                await self.destroy(live)
                raise
            return live

    async def _build(self, plan: DomainPlan) -> LiveDomain:
        config = plan.config
        backends = self._backends(config)
        pool = None
        if config.pool:
            # (Looked up each time: it may have been renamed, or given up, since the domain's last life.)
            pool, _ = await find_pool(self.kernel, XcScheduling(self.xc), config.pool)
        domid = self.xc.create_domain(
            plan.uuid.bytes,
            max_vcpus=config.maxvcpus,
            max_evtchn_port=config.max_event_channels,
            max_grant_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames,
        )
        try:
            store, console = self._load(domid, plan, pool)
        except ToolstackError:
            self.xc.destroy(domid)
            raise
        except XenError as error:
            self.xc.destroy(domid)
            if error.errno == errno.ENOMEM:
                free = self.xc.physinfo().free_pages >> 8
                raise ToolstackError(
                    str(
                        config.error("memory", f"domain {config.name!r} wants {config.memory} MiB, {free} MiB are free")
                    )
                ) from None
            raise
        live = LiveDomain(domid, plan, config.name, self._devices(domid, plan, backends), self.kernel.monotonic_ns())
        self.live[domid] = live
        self._tell_name(live)
        self._assign_disks(live)
        for unit in plan.socket_units:
            port = machine_device.socket_port(unit)
            self._pass_through(domid, port, machine_device.SOCKET_PORT_COUNT, machine_device.socket_irq(unit))
        for unit in plan.nic_units:
            port = machine_device.nic_port(unit)
            self._pass_through(domid, port, machine_device.NIC_PORT_COUNT, machine_device.nic_irq(unit))
        await self._announce(live, store, console)
        return live

    def _load(self, domid: int, plan: DomainPlan, pool: Pool | None) -> tuple[Connection, Connection]:
        """Give a new domain its vCPUs, memory and program; return its xenstore and console connections."""
        config, xc = plan.config, self.xc
        ramdisk = None
        if isinstance(plan.kernel, MachineCode):
            kernel, ramdisk = plan.kernel.kernel, plan.kernel.ramdisk
            self.platform.load_machine_code(domid, config.name)
        else:
            image = plan.kernel()
            kernel = python_kernel(image)
            self.platform.load(domid, image)
        xc.max_vcpus(domid, config.maxvcpus)
        self._schedule(domid, config, pool)
        if config.cpuid is not None:
            xc_cpuid.apply(xc, domid, config.cpuid)
        xc.set_address_size(domid, ADDRESS_BITS)
        xc.max_mem(domid, (config.maxmem << 10) + MAXMEM_SLACK_KIB)
        store_port = xc.alloc_unbound(domid, DOM0)
        console_port = xc.alloc_unbound(domid, DOM0)
        built = self.builder.build(
            domid, kernel, config, store_port=store_port, console_port=console_port, ramdisk=ramdisk
        )
        return Connection(built.store_mfn, store_port), Connection(built.console_mfn, console_port)

    def _tell_name(self, live: LiveDomain) -> None:
        """Have the trace know what people call a domain: Xen has numbers only."""
        trace = self.kernel.cpu.trace
        if trace is not None:
            trace(tracepoints.DOMAIN_NAME, live.domid, live.name)

    def _schedule(self, domid: int, config: DomainConfig, pool: Pool | None) -> None:
        """Tell Xen where a domain's vCPUs may run, and its weight and cap. (They have been checked.)"""
        scheduling = XcScheduling(self.xc)
        pool = pool or scheduling.pools()[0]
        if config.pool:
            scheduling.move_domain(domid, pool.pool_id)
        if config.cpus is not None:
            for vcpu in range(config.maxvcpus):
                scheduling.set_affinity(domid, vcpu, config.cpus)
        wanted = {"weight": config.cpu_weight, "cap": config.cap}
        values = {key: value for key, value in wanted.items() if value is not None}
        if values:
            scheduling.set_params(domid, pool.scheduler, **{**scheduling.params(domid, pool.scheduler), **values})

    def _backends(self, config: DomainConfig) -> dict[str, int]:
        """Return the numbers of the backend domains that a configuration names. Raises ToolstackError."""
        found: dict[str, int] = {}
        named = [("disk", index, disk.backend) for index, disk in enumerate(config.disks)]
        named += [("vif", index, vif.backend) for index, vif in enumerate(config.vifs)]
        named += [("device", index, other.backend) for index, other in enumerate(config.others)]
        for key, index, backend in named:
            domid = self.domid_of(backend)
            if domid is None:
                raise ToolstackError(str(config.error(key, f"the backend domain {backend!r} does not run", index)))
            found[backend] = domid
        return found

    def domid_of(self, name: str) -> int | None:
        """Return the number of a running domain by its name or number; None if there is none."""
        if name in ("0", "Domain-0"):
            return DOM0
        for domid, live in self.live.items():
            if not live.over and name in (live.name, str(domid)):
                return domid
        return None

    def _devices(self, domid: int, plan: DomainPlan, backends: dict[str, int]) -> tuple[DeviceNodes, ...]:
        config, is_late = plan.config, self.platform.hardware.is_late
        disks = [
            disk_nodes(domid, backends[disk.backend], disk, unit, late=is_late(unit))
            for disk, unit in zip(config.disks, plan.disk_units, strict=True)
        ]
        vifs = [
            vif_nodes(domid, backends[vif.backend], vif, vif.number(index), mac)
            for index, (vif, mac) in enumerate(zip(config.vifs, plan.macs, strict=True))
        ]
        others = [
            other_nodes(domid, backends[other.backend], other, index) for index, other in enumerate(config.others)
        ]
        return (*disks, *vifs, *others)

    def _assign_disks(self, live: LiveDomain) -> None:
        """Give driver domains the disk controllers that they are to serve the new domain from.

        A controller stays with its driver domain for as long as that lives, as hardware that is passed through does.
        """
        disks = [device for device in live.devices if device.kind == "vbd"]
        for device, unit in zip(disks, live.plan.disk_units, strict=True):
            if not self.platform.hardware.is_late(unit):
                self.assign_disk(device.backend_domid, unit)

    def assign_disk(self, domid: int, unit: int) -> None:
        """Give a driver domain a disk controller, unless it has it."""
        if domid == DOM0 or unit in self.live[domid].disk_units:
            return
        self.live[domid].disk_units.add(unit)
        port = machine_device.disk_port(unit)
        self._pass_through(domid, port, machine_device.DISK_PORT_COUNT, machine_device.disk_irq(unit))

    def _pass_through(self, domid: int, port: int, ports: int, line: int) -> None:
        """Give a device of the machine to a domain: its ports and its interrupt line, and with that its memory."""
        self.xc.ioport_permission(domid, port, ports, allow=True)
        self.xc.map_pirq(domid, line)
        self.xc.irq_permission(domid, line, allow=True)

    async def _announce(self, live: LiveDomain, store: Connection, console: Connection) -> None:
        """Write all nodes in one transaction, and introduce the domain to xenstored."""
        nodes = list(
            domain_nodes(
                live.domid,
                live.plan.config,
                live.plan.uuid,
                store=store,
                console=console,
                start_ns=self.kernel.wallclock_ns(),
            )
        )
        for device in live.devices:
            nodes += device.nodes()
        await put(self.kernel, nodes)
        await self.kernel.xenbus.introduce(live.domid, store.mfn, store.port)

    async def _backends_ready(self, live: LiveDomain) -> None:
        """Wait until the backends have taken the new devices. Raises ToolstackError."""
        late = self.late_disks.of(live)
        for device in live.devices:
            await self.devices.ready(device, f"{live.plan.config.source}: {live.name}", late=device in late)

    # -- the end --------------------------------------------------------------------------------------------------

    async def _watch_ends(self, next_event: Callable[[], Awaitable[object]]) -> None:
        """Look at all domains whenever xenstored says that one has ended, and wake those who wait for it."""
        while True:
            await next_event()
            self.check_ends()

    def check_ends(self) -> None:
        """Wake the supervisors of the domains that have ended."""
        if not self._waiting:
            return
        states = {info.domain: info for info in self.xc.domain_states()}
        for domid, queue in list(self._waiting.items()):
            if _end_reason(states.get(domid)) is not None:
                queue.wake_all()

    async def wait_end(self, live: LiveDomain) -> str:
        """Wait until a domain has shut down, crashed or vanished; return the reason."""
        queue = self._waiting.setdefault(live.domid, WaitQueue())
        while True:
            reason = _end_reason(self.xc.domain_state(live.domid))
            if reason is None and live.condemned:
                reason = DESTROYED
            if reason is not None:
                self._waiting.pop(live.domid, None)
                live.over = True
                self._life_over.wake_all()
                return reason
            await queue.wait()

    def has_ended(self, live: LiveDomain) -> bool:
        """Whether a domain's life is over, be it that nobody has taken note yet."""
        return live.over or _end_reason(self.xc.domain_state(live.domid)) is not None

    async def destroy(self, live: LiveDomain) -> None:
        """Take a domain's devices away, remove its nodes, and destroy it."""
        live.over = True
        if self.xc.domain_state(live.domid) is not None:
            self.xc.pause(live.domid)
        await self.devices.remove_all(live.devices)
        xenbus = self.kernel.xenbus
        console = console_backend(live.domid).rpartition("/")[0]
        removed = (f"/vm/{live.plan.uuid}", live.home, f"/libxl/{live.domid}", console)
        await gather([xenbus.submit(xs.XS_RM, wire.join(path), path) for path in removed])
        if self.xc.domain_state(live.domid) is not None:
            self.xc.destroy(live.domid)
        self.live.pop(live.domid, None)
        self._life_over.wake_all()

    async def _preserve_as(self, live: LiveDomain, name: str) -> None:
        """Keep an ended domain under another name and UUID, to be looked at: its successor gets the old ones."""
        uuid = uuid5(live.plan.uuid, name)
        old = f"/vm/{live.plan.uuid}"
        live.name = name
        self._tell_name(live)
        live.preserved = True
        live.plan = attrs.evolve(live.plan, uuid=uuid)
        self.xc.set_handle(live.domid, uuid.bytes)
        renamed = [Node(f"{live.home}/name", name), Node(f"{live.home}/vm", f"/vm/{uuid}")]
        moved = [Node(f"/vm/{uuid}", "", (f"n{DOM0}", f"r{live.domid}")), Node(f"/vm/{uuid}/name", name)]
        await put(self.kernel, [*renamed, *moved, Node(f"/vm/{uuid}/uuid", uuid)])
        await self.kernel.xenbus.rm(old)

    # -- requests from outside ------------------------------------------------------------------------------------

    async def shutdown_all(self) -> None:
        """Ask every running guest to shut down, and start none any more; destroy those that do not in time.

        Driver domains are asked when the others are done, by `run`.
        """
        self.stopping = True
        await self._ask_to_end([live for live in self.live.values() if not live.plan.config.driver_domain])

    async def _ask_to_end(self, which: Iterable[LiveDomain]) -> None:
        running = [live for live in which if not live.over]
        for live in running:
            await self.request_shutdown(live)
        if running:
            self.kernel.spawn(self._destroy_late(running), "destroy what does not shut down")

    async def _destroy_late(self, which: Sequence[LiveDomain]) -> None:
        await self.kernel.sleep(SHUTDOWN_TIMEOUT_NS)
        for live in which:
            if not live.over:
                self.kernel.console.printk(f"{live.name} has not shut down in time, destroying it")
        self.destroy_all(which)

    async def request_shutdown(self, live: LiveDomain, request: str = "poweroff") -> None:
        """Write the guest's control/shutdown node."""
        await self.kernel.xenbus.write(f"{live.home}/control/shutdown", request)

    async def ended(self, live: LiveDomain) -> None:
        """Wait until a domain's life is over: shut down, crashed or destroyed."""
        while not live.over:
            await self._life_over.wait()

    async def condemn(self, live: LiveDomain) -> None:
        """Destroy a domain, whether it runs or has been preserved; returns when that is done."""
        if live.over:
            if live.preserved:
                await self.destroy(live)
        else:
            live.condemned = True
            queue = self._waiting.get(live.domid)
            if queue is not None:
                queue.wake_all()
        while live.domid in self.live:
            await self._life_over.wait()

    def destroy_all(self, which: Iterable[LiveDomain] | None = None) -> None:
        """End guests at once, without asking: their supervisors take them apart."""
        self.stopping = True
        for live in list(self.live.values()) if which is None else which:
            live.condemned = True
            queue = self._waiting.get(live.domid)
            if queue is not None:
                queue.wake_all()


def _end_reason(state: DomainState | None) -> str | None:
    """Return why a domain has ended; None if it has not."""
    if state is None:
        return DESTROYED
    flags = state.flags
    if flags & domctl.XEN_DOMINF_shutdown:
        code = flags >> domctl.XEN_DOMINF_shutdownshift & domctl.XEN_DOMINF_shutdownmask
        return REASONS.get(code, f"shutdown reason {code}")
    return DESTROYED if flags & domctl.XEN_DOMINF_dying else None
