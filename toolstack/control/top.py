"""What `paravirt top` shows, as xentop gathers it: Xen's books of domains and memory, dom0's books of their devices.

A sample is plain data: `now_ns`, memory, processors, `version`, and `domains`, one mapping each with what `describe`
returns. dom0 takes one with hypercalls. Who stands outside of the host and only looks on (`toolstack.live_view`) reads
Xen's books themselves, for hypercalls would change what happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backends.block import BlockBack
from backends.net import NetBack
from hypervisor.abi import domctl, sched
from toolstack.xc_scheduling import XcScheduling

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.xenbus.driver import XenbusDriver
    from hypervisor.abi.layout import Value
    from toolstack.lifecycle import Lifecycle

PAGE_KIB = 4
NO_LIMIT = 0xFFFFFFFF
"""`max_pages` of a domain that may have all there is: dom0, where nobody has said otherwise."""


def sample(kernel: Kernel, lifecycle: Lifecycle, names: Mapping[int, str]) -> dict[str, Any]:
    """Return one look at the host by dom0's toolstack."""
    xc = lifecycle.xc
    scheduling = XcScheduling(xc)
    physical = xc.physinfo()
    major, minor, extra = xc.xen_version()
    domains = []
    for state in xc.domain_states():
        info = xc.domain_info(state.domain)
        if info is not None:
            told = [scheduling.vcpu_info(info.domain, vcpu) for vcpu in range(info.max_vcpu_id + 1)]
            vcpus = [(vcpu, one.cpu_time) for vcpu, one in enumerate(told) if one is not None and one.online]
            domains.append(describe(kernel.drivers, info, names.get(info.domain, "(null)"), vcpus))
    return {
        "now_ns": kernel.monotonic_ns(),
        "total_kib": physical.total_pages * PAGE_KIB,
        "free_kib": physical.free_pages * PAGE_KIB,
        "cpus": physical.nr_cpus,
        "mhz": physical.cpu_khz // 1000,
        "version": f"{major}.{minor}{extra}",
        "domains": domains,
    }


def describe(
    drivers: Sequence[XenbusDriver], info: Value, name: str, vcpus: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return what is known of a domain, given its `xen_domctl_getdomaininfo` and how long its vCPUs have run."""
    limit = info.max_pages & NO_LIMIT
    flags = info.flags
    down = bool(flags & domctl.XEN_DOMINF_shutdown)
    code = flags >> domctl.XEN_DOMINF_shutdownshift & domctl.XEN_DOMINF_shutdownmask
    crashed = down and code == sched.SHUTDOWN_crash
    return {
        "name": name,
        "id": info.domain,
        "dying": bool(flags & domctl.XEN_DOMINF_dying),
        "shutdown": down and not crashed,
        "blocked": bool(flags & domctl.XEN_DOMINF_blocked),
        "crashed": crashed,
        "paused": bool(flags & domctl.XEN_DOMINF_paused),
        "running": bool(flags & domctl.XEN_DOMINF_running),
        "cpu_ns": info.cpu_time,
        "mem_kib": info.tot_pages * PAGE_KIB,
        "max_kib": None if limit == NO_LIMIT else limit * PAGE_KIB,
        "vcpus": info.nr_online_vcpus,
        "vcpu_ns": [list(pair) for pair in vcpus],
        "ssid": info.ssidref,
        **_devices(drivers, info.domain),
    }


def _devices(drivers: Sequence[XenbusDriver], domid: int) -> dict[str, Any]:
    """Return what dom0's own backends have moved for a domain; other driver domains keep books of their own."""
    found: dict[str, Any] = dict.fromkeys(("nets", "tx_bytes", "rx_bytes", "vbds", "rd", "wr", "rsect", "wsect"), 0)
    found["interfaces"], found["disks"] = [], []
    for driver in drivers:
        if isinstance(driver, NetBack):
            for counters in driver.traffic_of(domid):
                found["tx_bytes"] += counters.tx_bytes
                found["rx_bytes"] += counters.rx_bytes
            found["nets"] += driver.vifs_of(domid)
            for devid, counters in driver.interfaces_of(domid):
                names = ("rx_bytes", "rx_packets", "rx_dropped", "tx_bytes", "tx_packets", "tx_dropped")
                found["interfaces"].append({"id": devid, **{name: getattr(counters, name) for name in names}})
        elif isinstance(driver, BlockBack):
            for number, statistics in driver.disks_of(domid):
                disk = {
                    "id": int(number),
                    "rd": statistics.reads,
                    "wr": statistics.writes + statistics.flushes + statistics.barriers,
                    "rsect": statistics.sectors_read,
                    "wsect": statistics.sectors_written,
                }
                found["disks"].append(disk)
                found["vbds"] += 1
                for key in ("rd", "wr", "rsect", "wsect"):
                    found[key] += disk[key]
    return found
