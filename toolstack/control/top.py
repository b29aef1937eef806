"""What `paravirt top` shows, as xentop gathers it: Xen's books of domains and memory, dom0's books of their devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.block import BlockBack
from backends.net import NetBack
from hypervisor.abi import domctl, sched

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from hypervisor.abi.layout import Value
    from toolstack.lifecycle import Lifecycle

PAGE_KIB = 4
NO_LIMIT = 0xFFFFFFFF
"""`max_pages` of a domain that may have all there is: dom0, where nobody has said otherwise."""


def sample(kernel: Kernel, lifecycle: Lifecycle, names: dict[int, str]) -> dict[str, Any]:
    """Return one look at the host: `now_ns`, memory, processors, `version`, and `domains`, one plain mapping each."""
    physical = lifecycle.xc.physinfo()
    major, minor, extra = lifecycle.xc.xen_version()
    domains = []
    for state in lifecycle.xc.domain_states():
        info = lifecycle.xc.domain_info(state.domain)
        if info is not None:
            domains.append(_domain(kernel, info, names.get(state.domain, "(null)")))
    return {
        "now_ns": kernel.monotonic_ns(),
        "total_kib": physical.total_pages * PAGE_KIB,
        "free_kib": physical.free_pages * PAGE_KIB,
        "cpus": physical.nr_cpus,
        "mhz": physical.cpu_khz // 1000,
        "version": f"{major}.{minor}{extra}",
        "domains": domains,
    }


def _domain(kernel: Kernel, info: Value, name: str) -> dict[str, Any]:
    domid = info.domain
    limit = info.max_pages & NO_LIMIT
    flags = info.flags
    down = bool(flags & domctl.XEN_DOMINF_shutdown)
    code = flags >> domctl.XEN_DOMINF_shutdownshift & domctl.XEN_DOMINF_shutdownmask
    crashed = down and code == sched.SHUTDOWN_crash
    return {
        "name": name,
        "id": domid,
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
        "ssid": info.ssidref,
        **_devices(kernel, domid),
    }


def _devices(kernel: Kernel, domid: int) -> dict[str, int]:
    """Return what dom0's own backends have moved for a domain; other driver domains keep books of their own."""
    found = dict.fromkeys(("nets", "tx_bytes", "rx_bytes", "vbds", "rd", "wr", "rsect", "wsect"), 0)
    for driver in kernel.drivers:
        if isinstance(driver, NetBack):
            for counters in driver.traffic_of(domid):
                found["tx_bytes"] += counters.tx_bytes
                found["rx_bytes"] += counters.rx_bytes
            found["nets"] += driver.vifs_of(domid)
        elif isinstance(driver, BlockBack):
            for statistics in driver.statistics_of(domid):
                found["vbds"] += 1
                found["rd"] += statistics.reads
                found["wr"] += statistics.writes + statistics.flushes + statistics.barriers
                found["rsect"] += statistics.sectors_read
                found["wsect"] += statistics.sectors_written
    return found
