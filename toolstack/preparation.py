"""Everything that is checked and set aside before a host is switched on.

What can be wrong with configurations, guest files, images and bridges is found here, before anything runs, and comes
out as one sentence (`UsageError`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from uuid import UUID, uuid5

import attrs

from backends.block import BlockBack
from backends.net import NetBack
from backends.net.bridge import Watch
from frontends.block import BlockFront
from frontends.net import NetFront
from guest_kernel.guest import Guest
from guest_kernel.image import DriverFactory, PythonKernelImage
from guest_kernel.kernel import Kernel
from guest_kernel.nbd import NbdExport
from hypervisor.errors import DeviceError
from hypervisor.machine.backing import Backing, MemoryDisk, NoMedium, RawFile
from hypervisor.machine.failing_disk import FailingDisk
from hypervisor.machine.nbd import NbdDisk
from hypervisor.machine.nbd_connector import Connector, NbdConnection
from hypervisor.machine.nic import NoWire, PcapWire, Wire
from hypervisor.machine.overlay import Overlay
from toolstack.builder import check_size, python_kernel
from toolstack.capture import Capture
from toolstack.cpupools import PoolSpec, check_pools, pool_of
from toolstack.disk_spec import MEMORY_FORMAT, OVERLAY_FORMAT, DiskSpec, parse_size
from toolstack.domains import DomainPlan
from toolstack.errors import UsageError, did_you_mean
from toolstack.guest_loader import GuestProgram, compile_guest
from toolstack.machine_code import MachineCode, is_machine_code, read_file, read_kernel, require_emulator
from toolstack.nbd_export import ExportDoor, ExportSpec, check_exports
from toolstack.remote_disks import PROMPT, search, wait_for_all
from toolstack.tap import MAX_NAME, TapWire
from toolstack.vif_spec import DEFAULT_BRIDGE, generate_mac
from toolstack.watchdog import DEFAULT_LIMIT, Watchdog
from toolstack.xl_config import DomainConfig, check_together

SECTOR = 512
MAX_DISKS = 256
"""Disk controllers that the machine has room for (abi.device)."""
UUID_SPACE = UUID("8f0e3f2c-5a1b-5c38-9d0e-70617261766d")
"""The name space of domain UUIDs."""


@attrs.frozen
class NicSpec:
    """A bridge of the host and what its network card is plugged into: a capture file, a TAP interface, or nothing."""

    bridge: str
    capture: Path | None = None
    tap: str = ""
    domain: str = ""
    """The driver domain whose bridge it is, and who drives the card; none: dom0."""

    @property
    def of_bridge(self) -> Path | None:
        """The capture if it is one of all ports of the bridge (pcapng): a file called .pcap has the wire alone."""
        return None if self.capture is None or self.capture.suffix == ".pcap" else self.capture

    def open(self) -> Wire:
        """Plug the cable in. Raises `UsageError`."""
        if self.tap:
            try:
                return TapWire(self.tap)
            except UsageError as error:
                raise UsageError(f"--nic {self.bridge}: {error}") from None
        if self.capture is None or self.of_bridge is not None:
            return NoWire()
        try:
            return PcapWire(self.capture)
        except DeviceError as error:
            raise UsageError(f"--nic {self.bridge}: {error}") from None

    def open_capture(self) -> Capture | None:
        """Open the capture of the bridge, if it is to have one. Raises `UsageError`."""
        if self.of_bridge is None:
            return None
        try:
            return Capture(self.of_bridge)
        except UsageError as error:
            raise UsageError(f"--nic {self.bridge}: {error}") from None


def parse_nic(text: str) -> NicSpec:
    """Parse `BRIDGE=pcap:FILE`, `BRIDGE=tap:NAME` or `BRIDGE=none`, with `DOMAIN/` before it. Raises `UsageError`."""
    place, equals, wire = text.partition("=")
    domain, slash, bridge = place.rpartition("/")
    kind, _, file = wire.partition(":")
    if not equals or not bridge or bool(slash) != bool(domain) or any(char.isspace() for char in place):
        raise UsageError(f"--nic {text!r} is not of the form [DOMAIN/]BRIDGE=pcap:FILE, =tap:NAME or =none")
    if "." in bridge or ":" in bridge:
        raise UsageError(f"--nic {text!r}: the name of a bridge has no '.' and no ':', as VLANs stand behind these")
    if wire == "none":
        return NicSpec(bridge, domain=domain)
    if kind == "pcap" and file:
        return NicSpec(bridge, Path(file), domain=domain)
    if kind == "tap" and file:
        if len(file.encode()) > MAX_NAME or "/" in file or any(char.isspace() for char in file):
            raise UsageError(f"--nic {text!r}: {file!r} is no name of an interface (at most {MAX_NAME} bytes)")
        return NicSpec(bridge, tap=file, domain=domain)
    raise UsageError(f"--nic {text!r}: a network card is plugged into pcap:FILE, tap:NAME or none, not {wire!r}")


ImageKey = tuple[int, int]


@attrs.define
class Preparation:
    """What a run needs: the domains in the order of their creation, and the machine's devices by unit."""

    plans: list[DomainPlan]
    disks: list[Backing]
    bridges: list[str]
    wires: list[tuple[NicSpec, Wire]]
    """Of each network card, by unit."""
    captures: list[tuple[tuple[str, str] | None, Capture]] = attrs.field(factory=list)
    """Captures of bridges: of that with a name in a domain (none: dom0), or of all that there are (None)."""
    users: dict[ImageKey, dict[str, DiskSpec]] = attrs.field(factory=dict)
    """Who uses which image: name and disk of each, by device and inode."""
    macs: set[str] = attrs.field(factory=set)
    """Addresses of interfaces that are taken."""
    exports: list[ExportDoor] = attrs.field(factory=list)
    """Disks that clients outside are served, by the unit of the socket card."""
    late: dict[int, Connector] = attrs.field(factory=dict)
    """Searches for the servers of disks that are not there yet, by the unit that is set aside for the disk."""

    def close(self) -> None:
        """Let go of image files and captures; for runs that never got to plug them in."""
        for backing in self.disks:
            backing.close()
        for connector in self.late.values():
            connector.abandon()
        for _, wire in self.wires:
            wire.close()
        for _, capture in self.captures:
            capture.close()
        for door in self.exports:
            door.close()

    def nics(self, domain: str = "") -> dict[str, int]:
        """Return the cards that a driver domain has, or dom0: units by bridge."""
        return {nic.bridge: unit for unit, (nic, _) in enumerate(self.wires) if nic.domain == domain}

    def watches(self, domain: str = "") -> dict[str, Watch]:
        """Return who watches the bridges of a driver domain, or of dom0: by bridge."""
        watches: dict[str, Watch] = {}
        for bridge in self.bridges:
            of_this = [
                capture.watcher(bridge) for wanted, capture in self.captures if wanted in (None, (domain, bridge))
            ]
            if of_this:
                watches[bridge] = partial(_tell_all, of_this)
        return watches


def _tell_all(watchers: Sequence[Watch], port: str, inbound: bool, frame: bytes) -> None:
    for watch in watchers:
        watch(port, inbound, frame)


def prepare(
    configs: Sequence[DomainConfig],
    nics: Sequence[NicSpec],
    seed: int,
    *,
    capture: Path | None = None,
    exports: Sequence[ExportSpec] = (),
    hang_limit: float = DEFAULT_LIMIT,
    heartbeat: Callable[[], None] = lambda: None,
    real_time: bool = False,
) -> Preparation:
    """Check everything and open what has to be opened. Raises `UsageError`; nothing stays open then.

    In real time that does not wait for NBD servers that are slow: `Preparation.late`. In virtual time it does, as for
    every answer of a server: no guest may see how long it takes.

    `capture` is a file that gets every frame at every port of every bridge; `exports` are disks to be served.

    A guest file may execute for `hang_limit` seconds when it is loaded (see `Watchdog`).
    """
    check_together(configs)
    bridges = _bridges(nics)
    _check_bridges(configs, bridges)
    _check_backends(configs)
    _check_nics(configs, nics)
    macs = _assign_macs(configs, seed)
    kernels = {id(config): _kernel(config, hang_limit, heartbeat) for config in configs}
    _check_sizes(configs, kernels)
    check_exports(exports, configs, lambda config: kernels[id(config)])
    prepared = Preparation([], [], bridges, [])
    try:
        units = _open_disks(configs, prepared, PROMPT if real_time else math.inf)
        prepared.macs |= {mac for assigned in macs.values() for mac in assigned}
        _check_captures(nics, capture)
        for nic in nics:
            prepared.wires.append((nic, nic.open()))
            of_bridge = nic.open_capture()
            if of_bridge is not None:
                prepared.captures.append(((nic.domain, nic.bridge), of_bridge))
        if capture is not None:
            prepared.captures.append((None, Capture(capture)))
        for export in exports:
            prepared.exports.append(ExportDoor(export))
    except UsageError:
        prepared.close()
        raise
    # Driver domains come first: the others need them.
    for config in sorted(configs, key=lambda config: not config.driver_domain):
        kernel = kernels[id(config)]
        prepared.plans.append(
            DomainPlan(
                config=config,
                uuid=config.uuid or uuid5(UUID_SPACE, f"{seed}/{config.name}"),
                kernel=kernel if isinstance(kernel, MachineCode) else partial(make_image, config, kernel, prepared),
                disk_units=units[config.name],
                macs=macs[config.name],
                nic_units=tuple(unit for unit, nic in enumerate(nics) if nic.domain == config.name),
                socket_units=tuple(unit for unit, export in enumerate(exports) if export.guest == config.name),
            )
        )
    return prepared


def _kernel(config: DomainConfig, hang_limit: float, heartbeat: Callable[[], None]) -> GuestProgram | MachineCode:
    """Return what a domain is to run: a guest file, or a kernel of machine code."""
    if config.kernel_class is None and is_machine_code(config.kernel):
        return _machine_code(config)
    if config.ramdisk is not None:
        raise config.error("ramdisk", "a guest written in Python has no use for a ramdisk")
    if config.cpuid is not None:
        raise config.error("cpuid", "a guest written in Python executes no CPUID")
    with Watchdog(lambda: 0, lambda: config.name, lambda _name, _where: None, limit=hang_limit, heartbeat=heartbeat):
        return _program(config)


def _check_sizes(configs: Sequence[DomainConfig], kernels: Mapping[int, GuestProgram | MachineCode]) -> None:
    """Refuse domains that are too large for their kernels to map themselves."""
    # Kernels in Python are all of one size, whatever they run.
    in_python = python_kernel(PythonKernelImage(name="", main=_no_program, drivers=[]))
    for config in configs:
        kernel = kernels[id(config)]
        if isinstance(kernel, MachineCode):
            check_size(kernel.kernel, config, len(kernel.ramdisk or b""))
        else:
            check_size(in_python, config)


def _no_program(_kernel: Kernel) -> Guest:
    raise AssertionError("this image is only measured")


def _machine_code(config: DomainConfig) -> MachineCode:
    """Read the kernel and the ramdisk."""
    try:
        require_emulator()
        kernel = read_kernel(config.kernel)
    except UsageError as error:
        raise config.error("kernel", str(error)) from None
    if config.driver_domain:
        message = "the machine's disks and network cards are driven by kernels in Python only, so no driver_domain here"
        raise config.error("driver_domain", message)
    try:
        return MachineCode(kernel, None if config.ramdisk is None else read_file(config.ramdisk, "ramdisk"))
    except UsageError as error:
        raise config.error("ramdisk", str(error)) from None


def _program(config: DomainConfig) -> GuestProgram:
    """Compile the guest file, and load it once to see whether that works."""
    try:
        program = compile_guest(config.kernel, config.kernel_class)
        program.load()
    except UsageError as error:
        raise config.error("kernel", str(error)) from None
    return program


def make_image(config: DomainConfig, program: GuestProgram, prepared: Preparation) -> PythonKernelImage:
    """Return a fresh image of a domain's program with the drivers that it gets."""
    drivers: list[DriverFactory] = [BlockFront, NetFront]
    if config.driver_domain:
        nics, watches = prepared.nics(config.name), prepared.watches(config.name)
        drivers += [BlockBack, partial(NetBack, bridges=tuple(prepared.bridges), nics=nics, watches=watches)]
    services = [
        partial(_serve_export, door.spec.vdev, unit)
        for unit, door in enumerate(prepared.exports)
        if door.spec.guest == config.name
    ]
    guest: Callable[[Kernel], Guest] = program.load()
    return PythonKernelImage(name=config.name, main=guest, drivers=drivers, services=services)


async def _serve_export(vdev: str, unit: int, kernel: Kernel) -> None:
    """Run the server of one disk in a guest."""
    await NbdExport(kernel, vdev, unit).serve()


def _bridges(nics: Sequence[NicSpec]) -> list[str]:
    """Return the names of all bridges; dom0 and each driver domain have one of each name."""
    names = [f"{nic.domain}/{nic.bridge}" if nic.domain else nic.bridge for nic in nics]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--nic names the bridge {name!r} twice")
    return list(dict.fromkeys([DEFAULT_BRIDGE, *(nic.bridge for nic in nics)]))


def _check_nics(configs: Sequence[DomainConfig], nics: Sequence[NicSpec]) -> None:
    """Each domain that is to drive a card must be a driver domain of this run."""
    drivers = [config.name for config in configs if config.driver_domain]
    for nic in nics:
        if nic.domain and nic.domain not in drivers:
            hint = did_you_mean(nic.domain, drivers)
            raise UsageError(f"--nic {nic.domain}/{nic.bridge}: there is no driver domain {nic.domain!r}{hint}")


def _check_captures(nics: Sequence[NicSpec], capture: Path | None) -> None:
    """Refuse two captures in one file."""
    files = [path.resolve() for path in (*(nic.capture for nic in nics), capture) if path is not None]
    for file in files:
        if files.count(file) > 1:
            raise UsageError(f"the capture file {str(file)!r} is named twice")


def _check_bridges(configs: Sequence[DomainConfig], bridges: Sequence[str]) -> None:
    for config in configs:
        for index, vif in enumerate(config.vifs):
            if vif.bridge not in bridges:
                hint = did_you_mean(vif.bridge, bridges) or f"; there is {', '.join(bridges)}"
                message = f"this host has no bridge {vif.bridge!r}{hint} (--nic {vif.bridge}=none makes it)"
                raise config.error("vif", message, index)


def _check_backends(configs: Sequence[DomainConfig]) -> None:
    """Each backend that is named must be dom0 or a driver domain of this run."""
    drivers = {config.name for config in configs if config.driver_domain}
    for config in configs:
        named = [("disk", index, disk.backend) for index, disk in enumerate(config.disks)]
        named += [("vif", index, vif.backend) for index, vif in enumerate(config.vifs)]
        named += [("device", index, other.backend) for index, other in enumerate(config.others)]
        for key, index, backend in named:
            if backend in ("0", "Domain-0") or (backend in drivers and backend != config.name):
                continue
            if any(other.name == backend for other in configs):
                message = f"the backend domain {backend!r} is no driver domain (driver_domain = 1)"
            else:
                message = f"there is no backend domain {backend!r}{did_you_mean(backend, drivers)}"
            raise config.error(key, message, index)


def _assign_macs(configs: Sequence[DomainConfig], seed: int) -> dict[str, tuple[str, ...]]:
    """Return the addresses of each domain's interfaces, made up where the configuration has none."""
    taken = {vif.mac for config in configs for vif in config.vifs if vif.mac is not None}
    found: dict[str, tuple[str, ...]] = {}
    for config in configs:
        macs = []
        for index, vif in enumerate(config.vifs):
            mac = vif.mac or generate_mac(seed, config.name, index, taken)
            taken.add(mac)
            macs.append(mac)
        found[config.name] = tuple(macs)
    return found


def _open_disks(
    configs: Sequence[DomainConfig], prepared: Preparation, patience: float
) -> Mapping[str, tuple[int, ...]]:
    """Open every disk's image; return the units by domain. What was opened is in `prepared`, also on failure.

    Servers are looked for all at once, for `patience` seconds at most.
    """
    units: dict[str, tuple[int, ...]] = {}
    disks = [(config, index, disk) for config in configs for index, disk in enumerate(config.disks)]
    for config, index, _ in disks[MAX_DISKS:]:
        raise config.error("disk", f"the machine has room for {MAX_DISKS} disks", index)
    for unit, (_, _, disk) in enumerate(disks):
        connector = search(disk)
        if connector is not None:
            prepared.late[unit] = connector
    wait_for_all(list(prepared.late.values()), patience)
    for unit, (config, index, disk) in enumerate(disks):
        units[config.name] = (*units.get(config.name, ()), unit)
        try:
            prepared.disks.append(_open_unit(config.name, disk, unit, prepared))
        except ImageError as error:
            raise config.error("disk", str(error), index) from None
    return {config.name: units.get(config.name, ()) for config in configs}


def _open_unit(owner: str, disk: DiskSpec, unit: int, prepared: Preparation) -> Backing:
    """Open the image of a disk; of one whose server has not answered nothing is there. Raises ImageError."""
    connector = prepared.late.get(unit)
    if connector is None:
        return open_image(owner, disk, prepared.users)
    if not connector.done:
        return NoMedium()
    del prepared.late[unit]
    return open_image(owner, disk, prepared.users, take_connection(connector))


def take_connection(connector: Connector) -> NbdConnection:
    """Return what a search has found. Raises ImageError."""
    try:
        return connector.take()
    except DeviceError as error:
        raise ImageError(str(error)) from None


class ImageError(Exception):
    """A disk's image cannot be used; the text is one sentence."""


def open_image(
    owner: str, disk: DiskSpec, users: dict[ImageKey, dict[str, DiskSpec]], connection: NbdConnection | None = None
) -> Backing:
    """Open the image of a domain's disk and note its user; a disk at a server may be connected already.

    Raises ImageError.
    """
    if not disk.target:
        return _as_wanted(NoMedium(), disk)
    if disk.nbd is not None:
        # Who else writes there is the server's business.
        try:
            backing: Backing = NbdDisk(
                disk.nbd, readonly=not disk.writable, reconnect_delay=disk.reconnect_delay, connection=connection
            )
        except DeviceError as error:
            raise ImageError(str(error)) from None
        if backing.size % max(disk.physical_sector_size, backing.sector_size):
            backing.close()
            raise ImageError(f"{disk.nbd}: an export of {backing.size} bytes has no whole sectors of that size")
        return _as_wanted(backing, disk)
    if disk.format == MEMORY_FORMAT:
        try:
            memory = MemoryDisk(parse_size(disk.target), readonly=not disk.writable)
            memory.discards_securely = disk.discard_secure
            return _as_wanted(memory, disk)
        except OSError as error:
            raise ImageError(f"a disk of {disk.target} in memory: {error.strerror}") from None
    path = Path(disk.target)
    uses = {path: disk.writable}
    if disk.format == OVERLAY_FORMAT:
        uses[Path(disk.base)] = False
    _check_image(Path(disk.base) if disk.base else path, disk.physical_sector_size)
    for file, writes in uses.items():
        _refuse_conflict(file, writes, users)
    try:
        if disk.base:
            backing = Overlay(path, Path(disk.base), readonly=not disk.writable)
        else:
            backing = RawFile(path, readonly=not disk.writable, overwrites=disk.discard_secure)
    except DeviceError as error:
        raise ImageError(str(error)) from None
    for file, writes in uses.items():
        users.setdefault(_image_key(file), {})[f"{owner}/{disk.vdev}"] = attrs.evolve(disk, writable=writes)
    return _as_wanted(backing, disk)


def _as_wanted(backing: Backing, disk: DiskSpec) -> Backing:
    """Give a disk the sectors and the faults that the configuration has for it."""
    backing.sector_size = max(backing.sector_size, disk.sector_size)
    backing.physical_sector_size = max(backing.physical_sector_size, disk.physical_sector_size)
    return backing if disk.faults is None else FailingDisk(backing, disk.faults)


def _image_key(path: Path) -> ImageKey:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_image(path: Path, sector_size: int) -> None:
    """Refuse what cannot be the image of a disk."""
    if path.is_dir():
        raise ImageError(f"the disk image '{path}' is a directory")
    if not path.exists():
        raise ImageError(f"the disk image '{path}' does not exist")
    size = path.stat().st_size
    if path.is_file() and (not size or size % sector_size):
        raise ImageError(
            f"the disk image '{path}' is too short: {size} bytes, and a disk has whole sectors "
            f"of {sector_size} (truncate -s 16M makes one of 16 MiB)"
        )


def _refuse_conflict(path: Path, writes: bool, users: dict[ImageKey, dict[str, DiskSpec]]) -> None:
    """Refuse an image that one uses and another writes to."""
    if not path.exists():
        return
    for other, used in users.get(_image_key(path), {}).items():
        if writes or used.writable:
            name = other.partition("/")[0]
            raise ImageError(f"the disk image '{path}' is used by {name!r} already, and one of the two writes to it")


def forget_image(owner: str, disk: DiskSpec, users: dict[ImageKey, dict[str, DiskSpec]]) -> None:
    """Note that a domain's disk has gone: its image may be used by others."""
    for others in users.values():
        others.pop(f"{owner}/{disk.vdev}", None)


def check_processors(
    configs: Iterable[DomainConfig], pcpus: int, scheduler: str, pools: Sequence[PoolSpec] = ()
) -> None:
    """Check what the domains want of the host's processors, pools and schedulers. Raises `UsageError`."""
    check_pools(pools, pcpus)
    for config in configs:
        pool = pool_of(config, pools, scheduler, pcpus)
        if config.cpus is not None and config.cpus[0] >= pcpus:
            raise config.error("cpus", f"none of these CPUs is there: the host has {pcpus}, and the first is number 0")
        if config.cpus is not None and not set(config.cpus) & set(pool.cpus):
            raise config.error("cpus", f"none of these CPUs is in the cpupool {pool.name}")
        for key in ("cpu_weight", "cap"):
            if getattr(config, key) is not None and not pool.scheduler.startswith("credit"):
                raise config.error(key, f"the scheduler {pool.scheduler!r} knows no weights and caps")
        if config.cap is not None and config.cap > 100 * config.maxvcpus:
            most = 100 * config.maxvcpus
            raise config.error("cap", f"{config.maxvcpus} vCPUs can use {most} % of a CPU at most, not {config.cap}")
