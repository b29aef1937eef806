"""Domains as the toolstack keeps them: what is planned, what lives, and the words for how a life ends."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import attrs

from guest_kernel.image import PythonKernelImage
from hypervisor.abi import sched
from toolstack.machine_code import MachineCode
from toolstack.nodes import DeviceNodes
from toolstack.xl_config import DomainConfig

REASONS = {
    sched.SHUTDOWN_poweroff: "poweroff",
    sched.SHUTDOWN_reboot: "reboot",
    sched.SHUTDOWN_suspend: "suspend",
    sched.SHUTDOWN_crash: "crash",
    sched.SHUTDOWN_watchdog: "watchdog",
    sched.SHUTDOWN_soft_reset: "soft reset",
}
"""Names of the shutdown reasons (sched.h)."""
CRASH = REASONS[sched.SHUTDOWN_crash]
DESTROYED = "destroyed"
NOT_STARTED = "not started"


@attrs.frozen
class DomainPlan:
    """A domain that this host is to run: its configuration, and what the host has set aside for it."""

    config: DomainConfig
    uuid: UUID
    kernel: MachineCode | Callable[[], PythonKernelImage]
    """What runs in it: machine code, or what makes a fresh image of a kernel in Python."""
    disk_units: tuple[int, ...] = ()
    """Disk controllers of the machine, in the order of `config.disks`."""
    macs: tuple[str, ...] = ()
    """Addresses, in the order of `config.vifs`."""
    socket_units: tuple[int, ...] = ()
    """Socket cards of the machine that the domain drives."""
    nic_units: tuple[int, ...] = ()
    """Its network cards."""


@attrs.define(eq=False)
class LiveDomain:
    """A domain that exists."""

    domid: int
    plan: DomainPlan
    name: str
    devices: tuple[DeviceNodes, ...]
    started_ns: int
    over: bool = False
    """It has ended, and nobody is to ask anything of it any more."""
    preserved: bool = False
    """It is kept though it has ended, for somebody to look at."""
    condemned: bool = False
    """It is to be destroyed, whether it has ended or not."""
    disk_units: set[int] = attrs.field(factory=set)
    """Disk controllers of the machine that it drives."""

    @property
    def is_machine_code(self) -> bool:
        """Whether its kernel is not written in Python."""
        return isinstance(self.plan.kernel, MachineCode)

    @property
    def home(self) -> str:
        """Its xenstore directory."""
        return f"/local/domain/{self.domid}"
