"""A domain: what Xen knows of one virtual machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hypervisor.abi import xen
from hypervisor.abi.cpu import Image
from hypervisor.cpu_policy import DOMAIN, CpuPolicy
from hypervisor.rangeset import Ranges
from hypervisor.sched.params import SchedulingParams

if TYPE_CHECKING:
    from hypervisor.event_channel.channel import Channel
    from hypervisor.event_channel.fifo import Fifo
    from hypervisor.event_channel.port_ops import PortOps
    from hypervisor.grant_table import GrantTable
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.machine.timers import Timer
    from hypervisor.mm.paging import Paging
    from hypervisor.pirq import Pirq
    from hypervisor.vcpu import VCpu
    from hypervisor.vnuma import VirtualTopology

NO_SHUTDOWN = -1

DYING_NO, DYING_DYING, DYING_DEAD = range(3)
"""`Domain.is_dying`: alive; being torn down; torn down, but some page of it is still mapped by another domain."""


class Domain:
    """Xen's `struct domain`, as far as a PV guest can tell.

    Memory accounting (`tot_pages`, the page list) is moved by `hypervisor.mm`, `ports` by `hypervisor.event_channel`,
    `grant_table` by `hypervisor.grant_table`; scheduling state is in the vCPUs.
    """

    __slots__ = (
        "active_ports",
        "auto_unmask",
        "cpu_policy",
        "crash_reason",
        "creation_finished",
        "debugger_attached",
        "denied_irqs",
        "domid",
        "emulation_flags",
        "events_sent",
        "fifo",
        "grant_table",
        "handle",
        "hv",
        "image",
        "iomem",
        "ioports",
        "irqs",
        "is_dying",
        "is_privileged",
        "is_xenstore",
        "max_evtchn_port",
        "max_pages",
        "max_vcpus",
        "memory_map",
        "next_evtchn",
        "page_list",
        "paging",
        "pause_count",
        "pci_address",
        "pirq_eoi_frame",
        "pirqs",
        "pollers",
        "port_hint",
        "port_ops",
        "ports",
        "scheduling",
        "set_pending",
        "shared_info_mfn",
        "shutdown_code",
        "shutting_down",
        "suspend_evtchn",
        "target",
        "teardown",
        "text",
        "time_offset",
        "tot_pages",
        "tsc_incarnation",
        "tsc_mode",
        "vcpus",
        "virtual_topology",
        "vm_assist",
        "watchdogs",
    )

    def __init__(self, hv: Hypervisor, domid: int, *, max_vcpus: int, is_privileged: bool = False) -> None:
        self.hv = hv
        self.domid = domid
        self.is_privileged = is_privileged
        self.is_xenstore = False
        """XEN_DOMCTL_CDF_xs_domain: serves xenstore, and may ask about all domains."""
        self.handle = bytes(16)
        self.max_vcpus = max_vcpus
        self.vcpus: list[VCpu | None] = [None] * max_vcpus
        self.image: Image | None = None
        """What the vCPUs execute, if the guest is written in Python."""
        self.text: dict[int, Callable[..., Any]] = {}
        self.pause_count = 0
        self.shutdown_code = NO_SHUTDOWN
        self.shutting_down = False
        self.cpu_policy: CpuPolicy = DOMAIN
        """What CPUID tells its guest. Not to be changed: another one can take its place."""
        self.creation_finished = False
        """It has been unpaused once: some of what it is cannot be changed any more."""
        self.crash_reason = ""
        """What Xen crashed it for."""
        self.is_dying = DYING_NO
        self.teardown: Iterator[bool] | None = None
        """What is left to do of its destruction, step by step (`DomainOps.kill`)."""

        self.max_pages = 0
        self.tot_pages = 0
        self.page_list = 0
        self.shared_info_mfn = 0
        self.paging: Paging
        """Log-dirty mode, and memory for it."""
        self.memory_map: list[tuple[int, int, int]] | None = None
        self.vm_assist = 0
        self.time_offset = 0

        self.max_evtchn_port = 0x7FFF_FFFF
        self.ports: list[Channel] = []
        self.active_ports = 0
        self.port_hint = 1
        """No port below this one is free."""
        self.events_sent = 0
        self.port_ops: PortOps
        """The event ABI that the domain uses: two-level at first."""
        self.set_pending: Callable[[Channel], None]
        """`port_ops.set_pending`, for those who are in a hurry."""
        self.fifo: Fifo | None = None
        """The FIFO event ABI, if the domain has chosen it."""
        self.next_evtchn = 0
        """Where an EVTCHNOP_reset that was preempted goes on; 0 when none is under way."""
        self.pollers = 0
        """How many vCPUs sit in SCHEDOP_poll."""
        self.grant_table: GrantTable
        self.ioports: Ranges = []
        self.iomem: Ranges = []
        """Frames that are no memory of the host, which the domain may map: registers of devices."""
        self.virtual_topology: VirtualTopology | None = None
        """The NUMA nodes that it is told of."""
        self.pci_address = 0
        """What was last written to I/O port 0xcf8."""
        self.irqs: set[int] = set()
        """Interrupt lines that the domain may use."""
        self.denied_irqs: set[int] = set()
        """Those that have been taken from dom0, which may use all others."""
        self.pirqs: dict[int, Pirq] = {}
        """The domain's numbers for lines (`hypervisor.pirq`)."""
        self.pirq_eoi_frame = 0
        """PHYSDEVOP_pirq_eoi_gmfn: the frame with a bit for each PIRQ that wants an end of interrupt; 0 = none."""
        self.auto_unmask = False
        """PHYSDEVOP_pirq_eoi_gmfn_v1: the end of an interrupt unmasks its port."""
        self.scheduling = SchedulingParams()
        self.debugger_attached = False
        self.suspend_evtchn = 0
        """A port of the domain to signal when it suspends (XEN_DOMCTL_subscribe); 0 for none."""
        self.emulation_flags = 0
        self.tsc_mode = 0
        self.tsc_incarnation = 1
        self.target: Domain | None = None
        self.watchdogs: list[Timer | None] = [None, None]
        """SCHEDOP_watchdog: a timer that has fired stays, as Xen's stays in use."""

    @property
    def has_hardware(self) -> bool:
        """Whether it may reach a device: it has I/O memory or I/O ports (Xen: cache_flush_permitted)."""
        return bool(self.ioports or self.iomem)

    def may_use_iomem(self, mfn: int) -> bool:
        """Whether the domain may map a frame behind which there is no memory (iomem_access_permitted)."""
        return any(mfn in frames for frames in self.iomem)

    @property
    def kernel_ring(self) -> int:
        """As what ring the kernel counts when its I/O privilege is looked at."""
        return 0 if self.vm_assist >> xen.VMASST_TYPE_architectural_iopl & 1 else 1

    def may_use_port(self, port: int) -> bool:
        """Whether the domain may execute `in` and `out` on an I/O port."""
        return any(port in ports for ports in self.ioports)

    def online_vcpus(self) -> list[VCpu]:
        """Return the vCPUs that exist, in order."""
        return [vcpu for vcpu in self.vcpus if vcpu is not None]

    def vcpu(self, vcpu_id: int) -> VCpu | None:
        """Return vCPU `vcpu_id`, or None if there is none."""
        return self.vcpus[vcpu_id] if 0 <= vcpu_id < len(self.vcpus) else None

    def __repr__(self) -> str:
        return f"<domain {self.domid}>"
