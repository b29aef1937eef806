"""The xenstore nodes of a domain and of its devices, as data.

Paths and values are those of docs/misc/xenstore-paths.pandoc and of io/xenbus.h, io/blkif.h, io/netif.h. Nodes are
listed parents first: a new node takes the permissions of its parent, so that only the roots name theirs. The first
permission names the owner and what everybody else may do.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import attrs

from hypervisor.abi.io.protocols import XEN_IO_PROTO_ABI_X86_64
from hypervisor.abi.io.xenbus import XenbusStateInitialising
from toolstack.device_spec import DeviceSpec
from toolstack.disk_spec import DiskSpec
from toolstack.vif_spec import VifSpec
from toolstack.xl_config import DomainConfig

CONSOLE_LIMIT = 1 << 20
SCRIPTS = "/etc/xen/scripts"
"""Where libxl has its hotplug scripts. Here the toolstack does what they do (`Devices.ready`)."""
DOM0 = 0


@attrs.frozen
class Node:
    """One node to write; `permissions` is None to leave them as inherited."""

    path: str
    value: object = ""
    permissions: tuple[str, ...] | None = None


@attrs.frozen
class DeviceNodes:
    """Where the two ends of a split device have their nodes, and where the toolstack keeps its own copy."""

    kind: str
    devid: int
    domid: int
    backend_domid: int
    frontend_values: tuple[tuple[str, object], ...]
    backend_values: tuple[tuple[str, object], ...]

    @property
    def frontend(self) -> str:
        """The frontend's directory."""
        return f"/local/domain/{self.domid}/device/{self.kind}/{self.devid}"

    @property
    def backend(self) -> str:
        """The backend's directory."""
        return f"/local/domain/{self.backend_domid}/backend/{self.kind}/{self.domid}/{self.devid}"

    @property
    def private(self) -> str:
        """The toolstack's directory, which no guest can change."""
        return f"/libxl/{self.domid}/device/{self.kind}/{self.devid}"

    def nodes(self) -> Iterator[Node]:
        """Yield all nodes of the device. Each end owns its directory and the other end may read it."""
        state = int(XenbusStateInitialising)
        front = {
            "backend": self.backend,
            "backend-id": self.backend_domid,
            "state": state,
            **dict(self.frontend_values),
        }
        back = {"frontend-id": self.domid, "online": 1, "state": state, **dict(self.backend_values)}
        yield Node(f"{self.private}/frontend", self.frontend)
        yield Node(f"{self.private}/backend", self.backend)
        # A copy that can be trusted: the backend's directory may be a driver domain's.
        for key, value in back.items():
            yield Node(f"{self.private}/{key}", value)
        yield Node(self.backend, "", (f"n{self.backend_domid}", f"r{self.domid}"))
        yield Node(f"{self.backend}/frontend", self.frontend)
        for key, value in back.items():
            yield Node(f"{self.backend}/{key}", value)
        yield Node(self.frontend, "", (f"n{self.domid}", f"r{self.backend_domid}"))
        for key, value in front.items():
            yield Node(f"{self.frontend}/{key}", value)


def physical_device(unit: int) -> str:
    """Return what a backend knows disk controller `unit` of the machine by: block device 8:unit."""
    return f"8:{unit:x}"


def disk_nodes(domid: int, backend_domid: int, disk: DiskSpec, unit: int, *, late: bool = False) -> DeviceNodes:
    """Return the nodes of a virtual disk on disk controller `unit` of the machine.

    `late`: it is not there yet, so its backend is not told which it is.
    """
    place = () if late else (("physical-device", physical_device(unit)),)
    return DeviceNodes(
        "vbd",
        disk.devid,
        domid,
        backend_domid,
        (
            ("virtual-device", disk.devid),
            ("device-type", "cdrom" if disk.removable else "disk"),
            ("trusted", int(disk.trusted)),
            ("protocol", XEN_IO_PROTO_ABI_X86_64),
        ),
        (
            ("removable", int(disk.removable)),
            ("bootable", 1),
            ("dev", disk.vdev),
            ("type", "phy"),
            ("mode", "w" if disk.writable else "r"),
            ("device-type", "cdrom" if disk.removable else "disk"),
            *((("direct-io-safe", 1),) if disk.direct_io_safe else ()),
            ("discard-enable", int(disk.discard)),
            ("specification", "xen"),
            ("params", disk.target),
            ("script", f"{SCRIPTS}/block"),
            *place,
        ),
    )


def vif_nodes(domid: int, backend_domid: int, vif: VifSpec, devid: int, mac: str) -> DeviceNodes:
    """Return the nodes of a virtual network interface."""
    backend: list[tuple[str, object]] = [
        ("mac", mac),
        ("bridge", vif.bridge + vif.vlans),
        ("handle", devid),
        ("type", "vif"),
        ("script", f"{SCRIPTS}/{vif.script}"),
        ("hotplug-status", ""),
    ]
    if vif.mirror:
        backend.append(("mirror", 1))
    if vif.vifname:
        backend.append(("vifname", vif.vifname))
    if vif.ip:
        backend.append(("ip", " ".join(vif.ip)))
    if vif.rate:
        backend.append(("rate", vif.rate.node))
    frontend: list[tuple[str, object]] = [("handle", devid), ("mac", mac), ("trusted", int(vif.trusted))]
    if vif.mtu:
        frontend.append(("mtu", vif.mtu))
        backend.append(("mtu", vif.mtu))
    return DeviceNodes("vif", devid, domid, backend_domid, tuple(frontend), tuple(backend))


def other_nodes(domid: int, backend_domid: int, device: DeviceSpec, devid: int) -> DeviceNodes:
    """Return the nodes of a device whose class only its drivers know."""
    return DeviceNodes(device.kind, devid, domid, backend_domid, (), ())


@attrs.frozen
class Connection:
    """A shared page of a new domain and its port there: xenstore's, or the console's."""

    mfn: int
    port: int


def domain_nodes(
    domid: int,
    config: DomainConfig,
    uuid: UUID,
    *,
    store: Connection,
    console: Connection,
    start_ns: int,
) -> Iterator[Node]:
    """Yield the nodes of a new unprivileged domain, its devices apart.

    The guest reads its own directory and writes where the protocol lets it (`data`, `control/shutdown`, `device` of
    its frontends …). `/vm` it reads; `/libxl` is dom0's alone.
    """
    home, vm, private = f"/local/domain/{domid}", f"/vm/{uuid}", f"/libxl/{domid}"
    readable, own, hidden = (f"n{DOM0}", f"r{domid}"), (f"n{domid}",), (f"n{DOM0}",)
    yield Node(home, "", readable)
    yield Node(vm, "", readable)
    yield Node(private, "", hidden)
    yield from (
        Node(f"{home}/vm", vm),
        Node(f"{home}/name", config.name),
        Node(f"{home}/domid", domid),
        Node(f"{home}/memory/static-max", config.maxmem << 10),
        Node(f"{home}/memory/target", config.memory << 10),
        Node(f"{home}/memory/videoram", 0),
        Node(f"{home}/device"),
        Node(f"{home}/device/suspend/event-channel", "", own),
        Node(f"{home}/control"),
        Node(f"{home}/control/shutdown", "", own),
        Node(f"{home}/control/feature-poweroff", "", own),
        Node(f"{home}/control/feature-reboot", "", own),
        Node(f"{home}/control/feature-suspend", "", own),
        Node(f"{home}/control/sysrq", "", own),
        Node(f"{home}/control/platform-feature-multiprocessor-suspend", 1),
        Node(f"{home}/control/platform-feature-xs_reset_watches", 1),
        Node(f"{home}/data", "", own),
        Node(f"{home}/drivers", "", own),
        Node(f"{home}/feature", "", own),
        Node(f"{home}/attr", "", own),
        Node(f"{home}/error", "", own),
        Node(f"{home}/store/ring-ref", store.mfn),
        Node(f"{home}/store/port", store.port),
    )
    if config.driver_domain:
        yield Node(f"{home}/backend", "", own)
        yield Node(f"{home}/libxl", "", own)
    for vcpu_id in range(config.maxvcpus):
        yield Node(f"{home}/cpu/{vcpu_id}/availability", "online" if vcpu_id < config.vcpus else "offline")
    yield from _console_nodes(domid, console)
    yield from (
        Node(f"{vm}/uuid", uuid),
        Node(f"{vm}/name", config.name),
        Node(f"{vm}/image/ostype", "linux"),
        Node(f"{vm}/image/kernel", config.kernel),
        Node(f"{vm}/image/cmdline", config.cmdline),
        Node(f"{vm}/start_time", f"{start_ns // 10**9}.{start_ns // 10**7 % 100:02}"),
        Node(f"{private}/type", "pv"),
        Node(f"{private}/device"),
    )


def _console_nodes(domid: int, console: Connection) -> Iterator[Node]:
    """Yield the nodes of the first console: no xenbus device, though it looks like one (libxl__device_console_add).

    The guest may not write to it: what xenconsoled and people trust stands there (XSA-57).
    """
    home, backend = f"/local/domain/{domid}/console", console_backend(domid)
    yield Node(backend, "", (f"n{DOM0}", f"r{domid}"))
    yield from (
        Node(f"{backend}/frontend", home),
        Node(f"{backend}/frontend-id", domid),
        Node(f"{backend}/online", 1),
        Node(f"{backend}/state", int(XenbusStateInitialising)),
        Node(f"{backend}/protocol", "vt100"),
        Node(f"{home}/backend", backend),
        Node(f"{home}/backend-id", DOM0, (f"n{domid}", f"r{DOM0}")),
        Node(f"{home}/limit", CONSOLE_LIMIT),
        Node(f"{home}/type", "xenconsoled"),
        Node(f"{home}/output", "pty"),
        Node(f"{home}/tty"),
        Node(f"{home}/port", console.port),
        Node(f"{home}/ring-ref", console.mfn),
    )


def console_backend(domid: int) -> str:
    """Return the directory that the first console of a domain has in dom0."""
    return f"/local/domain/{DOM0}/backend/console/{domid}/0"


def dom0_nodes(name: str, uuid: UUID, memory_mib: int, vcpus: int) -> Iterator[Node]:
    """Yield the nodes that describe the control domain itself, as xen-init-dom0 makes them."""
    home = f"/local/domain/{DOM0}"
    yield from (
        Node(home),
        Node(f"{home}/name", name),
        Node(f"{home}/domid", DOM0),
        Node(f"{home}/vm", f"/vm/{uuid}"),
        Node(f"{home}/memory/static-max", memory_mib << 10),
        Node(f"{home}/memory/target", memory_mib << 10),
        Node(f"{home}/control"),
        Node(f"{home}/backend"),
        Node(f"/vm/{uuid}/name", name),
        Node(f"/vm/{uuid}/uuid", uuid),
        Node("/libxl/0/type", "pv"),
    )
    for vcpu_id in range(vcpus):
        yield Node(f"{home}/cpu/{vcpu_id}/availability", "online")
