"""The accounts of a run: what each configured domain has used, over all its lives, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable

from backends.net import NetBack
from guest_kernel.kernel import Kernel
from hypervisor.domain import Domain
from toolstack.console_log import ConsoleLog
from toolstack.domains import CRASH, NOT_STARTED, DomainPlan, LiveDomain
from toolstack.report import DomainResult, Usage


class Accounts:
    """All accounts of one host. `results` is what comes of it: dom0 first, then the guests as they were configured."""

    def __init__(self, consoles: ConsoleLog) -> None:
        self.results: dict[str, DomainResult] = {}
        self._consoles = consoles
        self._closed: set[int] = set()
        self._backends: list[NetBack] = []
        """All network backends that there have been: they keep the accounts of traffic."""

    def open(self, names: Iterable[str]) -> None:
        """Begin an account for each of these."""
        self.results |= {name: DomainResult(name) for name in names}

    def began(self, name: str) -> None:
        """A domain lives: what was wrong with a former life is over."""
        self.results[name].message = ""

    def follow(self, kernel: Kernel) -> None:
        """Ask the network backends of a kernel, as long as the host lives."""
        self._backends += [driver for driver in kernel.drivers if isinstance(driver, NetBack)]

    def say(self, name: str, message: str) -> None:
        """Note what is wrong with a domain, in a sentence."""
        self.results[name].message = message

    def close(self, live: LiveDomain, domain: Domain | None, kernel: Kernel | None, reason: str) -> None:
        """Add up what a life of a domain has used, once. `domain` and `kernel` are None if they are gone."""
        if live.domid in self._closed:
            return
        self._closed.add(live.domid)
        result = self.results[live.plan.config.name]
        result.domid = live.domid
        result.lives += 1
        result.reason = reason
        if domain is not None:
            result.usage.add(usage_of(domain))
            if domain.crash_reason and live.is_machine_code and not result.message:
                # The last line on its console need not say anything of that.
                result.message = f"{live.name} crashed: {domain.crash_reason}"
        result.usage.add(self.traffic(live.domid))
        if reason == CRASH and kernel is not None and kernel.power.cause:
            result.message = result.message or f"{live.name} crashed: {kernel.power.cause}"
        self._consoles.finish(live.name)

    def failed(self, plan: DomainPlan, message: str) -> None:
        """Note that a domain could not be started."""
        result = self.results[plan.config.name]
        result.reason = result.reason or NOT_STARTED
        result.message = message

    def finish(self) -> None:
        """The host is off: say of those that crashed without a word what their consoles said last."""
        for other in self.results.values():
            other.reason = other.reason or NOT_STARTED
        self._consoles.finish_all()
        for crashed in self.results.values():
            if crashed.reason == CRASH and not crashed.message:
                why = self._consoles.last.get(crashed.name)
                crashed.message = f"{crashed.name} crashed{f': {why}' if why else ''}"

    def traffic(self, domid: int) -> Usage:
        """Return what went over a domain's network interfaces, by the books of the backends that served them."""
        usage = Usage()
        for back in self._backends:
            for counters in back.traffic_of(domid):
                usage.packets += counters.tx_packets + counters.rx_packets
                usage.packet_bytes += counters.tx_bytes + counters.rx_bytes
                usage.dropped += counters.tx_dropped + counters.rx_dropped
        return usage


def usage_of(domain: Domain) -> Usage:
    """Return what a domain has used so far, by Xen's books."""
    vcpus = domain.online_vcpus()
    grants = domain.grant_table.stats
    return Usage(
        cpu_ns=sum(vcpu.time_running for vcpu in vcpus),
        hypercalls=sum(vcpu.hypercalls for vcpu in vcpus),
        events=domain.events_sent,
        grants_mapped=grants.maps,
        grants_copied=grants.copies,
    )
