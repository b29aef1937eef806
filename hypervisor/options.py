"""Xen's own command line (docs/misc/xen-command-line.pandoc): what this hypervisor obeys of it.

Words are separated by blanks. What Xen knows and has no effect here (devices, mitigations, …) is passed over in
silence; other words and bad values get the line that Xen prints for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

LOG_NONE, LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG = range(5)
"""Log thresholds: a message of level n (0 = error … 3 = debug) is shown if n is below the threshold."""
_LEVELS = {
    "none": LOG_NONE,
    "error": LOG_ERROR,
    "warning": LOG_WARNING,
    "info": LOG_INFO,
    "debug": LOG_DEBUG,
    "all": LOG_DEBUG,
}
_BOOLEANS = dict.fromkeys(("1", "on", "yes", "true", "enable"), True)
_BOOLEANS |= dict.fromkeys(("0", "off", "no", "false", "disable"), False)
RATELIMIT_MIN, RATELIMIT_MAX = 100, 500_000
_UNITS = {"t": 40, "g": 30, "m": 20, "k": 10, "b": 0, "": 10}
"""Powers of two by the letter behind a size. Without one it is in KiB."""
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([tgmkbTGMKB]?)")
_EINVAL = 22
_DIVISOR, _MOST_RESERVED = 16, 128 << 20 >> 12

_OTHERS = frozenset(
    """acpi acpi_apic_instance acpi_pstate_strict acpi_skip_timer_override acpi_sleep allow_unsafe altp2m apic
    apic_verbosity apicv arat argo asid async-show-all ats availmem badpage bootscrub bootscrub_chunk cet
    cmci-threshold cmos-rtc-probe com1 com2 conring_size console console_timestamps console_to_ring conswitch
    core_parking cpu_type cpufreq cpuid cpuid_mask_cpu cpuid_mask_ecx cpuid_mask_edx cpuid_mask_ext_ecx
    cpuid_mask_ext_edx cpuid_mask_l7s0_eax cpuid_mask_l7s0_ebx cpuid_mask_thermal_ecx cpuid_mask_xsave_eax cpuidle
    cpuinfo crash-debug-debugkey crash-debug-hwdom crash-debug-kexeccmd crash-debug-panic crash-debug-watchdog
    crashinfo_maxaddr crashkernel credit2_balance_over credit2_balance_under credit2_cap_period_ms
    credit2_load_precision_shift credit2_load_window_shift credit2_runqueue dbgp debug_stack_lines debugtrace dit
    dma_bits dom0 dom0-cpuid dom0-iommu dom0_ioports_disable dom0_nodes dom0_vcpus_pin dtuart e820-mtrr-clip
    e820-verbose edd edid efi ept extra_guest_irqs font force-ept gdb global-pages gnttab gnttab_max_frames
    gnttab_max_maptrack_frames hap hap_1gb hap_2mb hardware_dom hest_disable highmem-start hpet hpetbroadcast hvm_debug
    hvm_fep hvm_port80 idle_latency_factor invpcid ioapic_ack iommu iommu_dev_iotlb_timeout iommu_inclusive_mapping
    irq-max-guests irq_ratelimit irq_vector_map ivmd lapic lapic_timer_c2_ok ler low_crashinfo low_mem_virq_limit
    max_cstate max_gsi_irqs maxcpus mce mce_fb mce_verbosity mem memop-max-order mmcfg mmio-relax msi mtrr.show
    mwait-idle nmi noapic noirqbalance nolapic nosmp nr_irqs numa pci pci-phantom pcid pku placeholder ple_gap
    ple_window preferred-cstates psr pv pv-l1tf pv-linear-pt pv-shim rcu-idle-timer-period-ms real-mode reboot rmrr
    ro-hpet sched-gran sched_credit2_max_cpus_runqueue sched_credit2_migrate_resist sched_credit_tslice_ms
    sched_smt_power_savings scrub-domheap serial_tx_buffer shim_mem smap smep smt snb_igd_quirk
    spec-ctrl sync_console tboot tbuf_size tdt tevt_mask tickle_one_idle_cpu timer_slop tsc tsx ucode
    unrestricted_guest vcpu_migration_delay vesa-ram vga viridian-spinlock-retry-count viridian-version
    vm-notify-window vpid vpmu watchdog watchdog_timeout x2apic x2apic-mode x2apic_phys xpti xsave""".split()  # noqa: SIM905  # a table of words
)
"""Names that Xen 4.17 knows on x86, and that change nothing here."""


@attrs.frozen
class MemorySize:
    """An amount of memory: pages plus a share of what there is; `minus`: everything but that."""

    pages: int = 0
    percent: int = 0
    minus: bool = False

    def of(self, available: int) -> int:
        """Return the amount, in pages, on a host where so many are available."""
        pages = self.pages + self.percent * available // 100
        return available - pages if self.minus else pages


@attrs.define
class XenOptions:
    """What the command line says."""

    text: str = ""
    """The line itself, as dom0 reads it by XENVER_commandline."""
    loglvl: tuple[int, int] = (LOG_WARNING, LOG_WARNING)
    """Messages below the first threshold are always shown, those below the second not too often."""
    guest_loglvl: tuple[int, int] = (LOG_NONE, LOG_WARNING)
    noreboot: bool = False
    clocksource: str = ""
    """What Xen keeps its time by; empty: it chooses."""
    scheduler: str = ""
    """The scheduler of pool 0, by its name; empty, or one that there is not: the default."""
    ratelimit_us: int = 1000
    """For so long a vCPU keeps its pCPU (credit and credit2); 0: no limit."""
    dom0_mem: MemorySize | None = None
    dom0_mem_min: MemorySize | None = None
    dom0_mem_max: MemorySize | None = None
    dom0_max_vcpus: tuple[int, int] | None = None
    complaints: list[str] = attrs.field(factory=list)
    """What Xen says of words that it does not understand."""

    def dom0_pages(self, available: int) -> int:
        """Return how many pages dom0 gets on a host where so many are available (dom0_mem)."""
        wanted = self.dom0_mem.of(available) if self.dom0_mem is not None else 0
        pages = wanted or available - min(available // _DIVISOR, _MOST_RESERVED)
        if self.dom0_mem_min is not None:
            pages = max(pages, self.dom0_mem_min.of(available))
        if self.dom0_mem_max is not None:
            pages = min(pages, self.dom0_mem_max.of(available))
        return min(pages, available)

    def dom0_vcpus(self, pcpus: int) -> int:
        """Return how many vCPUs dom0 gets on a host of so many processors (dom0_max_vcpus)."""
        if self.dom0_max_vcpus is None:
            return pcpus
        low, high = self.dom0_max_vcpus
        return min(max(pcpus, low), high)


class _BadValueError(ValueError):
    """A value that the parameter cannot have."""


def parse_options(text: str) -> XenOptions:
    """Parse a command line; later words win. Never fails: what is wrong becomes a complaint, as in Xen."""
    options = XenOptions(text)
    for word in text.split(" "):
        if word:
            _parse_word(options, word)
    return options


def _parse_word(options: XenOptions, word: str) -> None:
    key, equals, value = word.partition("=")
    name = key.removeprefix("no-")
    parser = _PARSERS.get(name)
    if parser is None:
        if name not in _OTHERS and not re.match(r"ivrs_(hpet|ioapic)\[", key):
            options.complaints.append(f'parameter "{key}" unknown!')
        return
    try:
        if name != key and (equals or name not in _SWITCHES):
            raise _BadValueError
        parser(options, "no" if name != key else value)
    except _BadValueError:
        options.complaints.append(f'parameter "{key}" has invalid value "{value}", rc={-_EINVAL}!')


def _switch(value: str) -> bool:
    try:
        return _BOOLEANS[value] if value else True
    except KeyError:
        raise _BadValueError from None


def _set_noreboot(options: XenOptions, value: str) -> None:
    options.noreboot = _switch(value)


def _set_clocksource(options: XenOptions, value: str) -> None:
    options.clocksource = value


def _set_sched(options: XenOptions, value: str) -> None:
    # Xen keeps nine characters of it.
    options.scheduler = value[:9]


def _set_ratelimit(options: XenOptions, value: str) -> None:
    if not re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9]+", value):
        raise _BadValueError
    number = int(value, 0 if value[:2].lower() == "0x" else 10)
    # Out of range is the default: Xen says so, and goes on.
    options.ratelimit_us = number if number == 0 or RATELIMIT_MIN <= number <= RATELIMIT_MAX else 1000


def _levels(value: str) -> tuple[int, int]:
    words = value.split("/")
    if len(words) > 2 or any(word not in _LEVELS for word in words):
        raise _BadValueError
    low = _LEVELS[words[0]]
    return low, max(low, _LEVELS[words[-1]])


def _set_loglvl(options: XenOptions, value: str) -> None:
    options.loglvl = _levels(value)


def _set_guest_loglvl(options: XenOptions, value: str) -> None:
    options.guest_loglvl = _levels(value)


def parse_size(text: str) -> int:
    """Return the bytes of `64M` and the like; without a unit they are KiB. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise _BadValueError
    return int(match[1], 16 if match[1][1:2] in ("x", "X") else 10) << _UNITS[match[2].lower()]


def _amount(text: str) -> MemorySize:
    """Parse `[-]SIZE`, `[-]N%` or `[-]SIZE+N%`."""
    minus = text.startswith("-")
    size, plus, share = text.removeprefix("-").partition("+")
    if not plus and size.endswith("%"):
        size, share = "", size
    pages = parse_size(size) >> 12 if size else 0
    percent = 0
    if share:
        if not re.fullmatch(r"[0-9]{1,2}%", share):
            raise _BadValueError
        percent = int(share[:-1])
    elif plus or not size:
        raise _BadValueError
    return MemorySize(pages, percent, minus)


def _set_dom0_mem(options: XenOptions, value: str) -> None:
    for item in value.split(","):
        if item.startswith("min:"):
            options.dom0_mem_min = _amount(item[4:])
        elif item.startswith("max:"):
            options.dom0_mem_max = _amount(item[4:])
        else:
            options.dom0_mem = _amount(item)


def _set_dom0_max_vcpus(options: XenOptions, value: str) -> None:
    """Parse `N` (exactly so many), `N-`, `-M` or `N-M` (as many as processors, within these bounds)."""
    match = re.fullmatch(r"([0-9]{0,5})(-?)([0-9]{0,5})", value)
    if match is None or not value or (not match[1] and not match[3]):
        raise _BadValueError
    low = int(match[1] or 1)
    high = int(match[3] or 8192) if match[2] else low
    if low > high or not high:
        raise _BadValueError
    options.dom0_max_vcpus = low, high


_PARSERS: dict[str, Callable[[XenOptions, str], None]] = {
    "noreboot": _set_noreboot,
    "clocksource": _set_clocksource,
    "sched": _set_sched,
    "sched_ratelimit_us": _set_ratelimit,
    "loglvl": _set_loglvl,
    "guest_loglvl": _set_guest_loglvl,
    "dom0_mem": _set_dom0_mem,
    "dom0_max_vcpus": _set_dom0_max_vcpus,
}
_SWITCHES = ("noreboot",)
"""Those that are on or off; `no-` in front of one turns it off."""
