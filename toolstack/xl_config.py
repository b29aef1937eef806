"""Domain configurations: what an xl.cfg file says, checked and typed.

Names and meanings are those of xl.cfg(5). A setting that xl knows and this toolstack does not build is refused with a
sentence that says so, rather than ignored: a configuration that runs here means what it says.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import attrs

from toolstack.cpuid_spec import CpuidSpec, parse_cpuid
from toolstack.device_spec import DeviceSpec, parse_device
from toolstack.disk_spec import DiskSpec, parse_disk
from toolstack.errors import ConfigError, SpecError, UsageError, did_you_mean
from toolstack.vif_spec import VifSpec, parse_vif
from toolstack.xl_syntax import Setting, parse

ACTIONS = ("destroy", "restart", "rename-restart", "preserve")
"""What can be done with a domain that has ended (on_poweroff, on_reboot, on_crash)."""
_OTHER_ACTIONS = ("coredump-destroy", "coredump-restart", "soft-reset")

DEFAULT_MEMORY_MIB = 32
DOM0_NAME = "Domain-0"
DOM0_MEMORY_MIB = 64
DOM0_MIN_MEMORY_MIB = 8
MAX_CMDLINE = 1023
"""Bytes of a kernel's command line: start_info has room for them and a NUL."""
MAX_VCPUS = 32
_Spec = TypeVar("_Spec", DiskSpec, VifSpec, DeviceSpec)
_DOM0_KEYS = ("memory", "vcpus", "extra", "root", "cmdline")
_MAX_MEMORY_MIB = 1 << 20
_MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*")

_SUPPORTED = (
    "builder", "cap", "cmdline", "cpu_weight", "cpuid", "cpus", "device", "disk", "driver_domain", "extra", "kernel",
    "max_event_channels", "max_grant_frames", "max_maptrack_frames", "maxmem", "maxvcpus", "memory", "name", "on_crash",
    "on_poweroff", "on_reboot", "on_watchdog", "pool", "ramdisk", "root", "seed", "type", "uuid", "vcpus", "vif",
)  # fmt: skip
_XL_ONLY = (
    "acpi", "altp2m", "apic", "argo", "bios", "blkdev_start", "boot", "bootloader", "bootloader_args",
    "bootloader_restrict", "channel", "claim_mode", "console", "cpus_soft", "device_model_override",
    "device_model_version", "devtree", "dm_restrict", "dtdev", "e820_host", "event_channels", "firmware",
    "gfx_passthru", "hap", "hpet", "init_seclabel", "iomem", "ioports", "irqs", "keymap", "localtime",
    "memory_hotplug", "ms_vm_genid", "nestedhvm", "nographic", "nomigrate", "numa_placement", "on_soft_reset", "p9",
    "pae", "passthrough", "pci", "pci_msitranslate", "pci_permissive", "pci_power_mgmt", "pvcalls", "pvh",
    "rdm", "rtc_timeoffset", "sdl", "seclabel", "serial", "shadow_memory", "smbios_firmware", "soundhw", "spice",
    "static_shm", "stdvga", "suppress_spurious_page_faults", "timer_mode", "tsc_mode", "usb", "usbctrl", "usbdev",
    "vcpu_hard_affinity", "vdispl", "vfb", "vga", "videoram", "viommu", "viridian", "vkb", "vmtrace_buf_kb", "vnc",
    "vncdisplay", "vnclisten", "vncunused", "vncviewer", "vnuma", "vpmu", "vpt_align", "vsnd", "vtpm", "vuart",
    "xen_platform_pci", "xend_suspend_evtchn_compat",
)  # fmt: skip


@attrs.frozen
class DomainConfig:
    """One domain as its configuration file describes it. Paths are absolute; memory is in MiB."""

    source: str
    """The configuration file as the user named it; begins the error messages about it."""
    name: str
    kernel: Path
    kernel_class: str | None = None
    """The class behind the colon of `kernel = "file.py:Class"`."""
    memory: int = DEFAULT_MEMORY_MIB
    maxmem: int = DEFAULT_MEMORY_MIB
    vcpus: int = 1
    maxvcpus: int = 1
    cpus: tuple[int, ...] | None = None
    """Physical CPUs that the vCPUs may run on; None: all."""
    pool: str = ""
    """The cpupool that it is put into; empty: the first one."""
    cpu_weight: int | None = None
    cap: int | None = None
    cpuid: CpuidSpec | None = None
    """What CPUID is to tell a guest in machine code."""
    ramdisk: Path | None = None
    cmdline: str = ""
    disks: tuple[DiskSpec, ...] = ()
    vifs: tuple[VifSpec, ...] = ()
    others: tuple[DeviceSpec, ...] = ()
    """Devices of other classes."""
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_watchdog: str = "destroy"
    on_crash: str = "destroy"
    uuid: UUID | None = None
    driver_domain: bool = False
    max_grant_frames: int = 32
    max_maptrack_frames: int = 1024
    max_event_channels: int = 1023
    settings: Mapping[str, Setting] = attrs.field(factory=dict, eq=False, repr=False)
    """The settings as read, for the line numbers of later errors."""

    def error(self, key: str, message: str, index: int | None = None) -> ConfigError:
        """Make an error about one setting (or item `index` of it) that is only found when the host is put together."""
        setting = self.settings.get(key)
        if setting is None:
            return ConfigError(self.source, 1, message)
        return ConfigError(self.source, setting.line if index is None else setting.line_of(index), message)


def load_config(path: str | Path) -> DomainConfig:
    """Read and check a configuration file. Relative paths in it are relative to its own directory.

    Raises `UsageError` when the file cannot be read and `ConfigError` for anything wrong in it.
    """
    return parse_config(read_text(path, "configuration"), str(path), Path(path).absolute().parent)


def read_text(path: str | Path, what: str) -> str:
    """Read a small UTF-8 file; failures become one sentence that names `what` it was to be."""
    try:
        return Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise UsageError(f"the {what} file {str(path)!r} does not exist") from None
    except IsADirectoryError:
        raise UsageError(f"the {what} file {str(path)!r} is a directory") from None
    except UnicodeDecodeError:
        raise UsageError(f"the {what} file {str(path)!r} is not text (UTF-8)") from None
    except OSError as error:
        raise UsageError(f"cannot read the {what} file {str(path)!r}: {error.strerror}") from None


def parse_config(text: str, source: str, directory: Path) -> DomainConfig:
    """Check the text of a configuration whose relative paths start at `directory`."""
    reader = _Reader(parse(text, source), source, directory)
    reader.refuse_unknown()
    reader.refuse_other_types()
    memory = reader.integer("memory", DEFAULT_MEMORY_MIB, 1, _MAX_MEMORY_MIB)
    vcpus = reader.integer("vcpus", 1, 1, MAX_VCPUS)
    kernel, kernel_class = reader.kernel()
    return DomainConfig(
        source=source,
        name=reader.name(),
        kernel=kernel,
        kernel_class=kernel_class,
        memory=memory,
        maxmem=reader.integer("maxmem", memory, memory, _MAX_MEMORY_MIB),
        vcpus=vcpus,
        maxvcpus=reader.integer("maxvcpus", vcpus, vcpus, MAX_VCPUS),
        cpus=reader.cpus(),
        pool=reader.text("pool", ""),
        cpu_weight=reader.optional_integer("cpu_weight", 1, 65535),
        cap=reader.optional_integer("cap", 0, 100 * MAX_VCPUS),
        cpuid=reader.cpuid(),
        ramdisk=reader.path("ramdisk"),
        cmdline=reader.cmdline(),
        disks=reader.disks(),
        vifs=reader.vifs(),
        others=reader.specs("device", parse_device),
        on_poweroff=reader.action("on_poweroff", "destroy"),
        on_reboot=reader.action("on_reboot", "restart"),
        on_watchdog=reader.action("on_watchdog", "destroy"),
        on_crash=reader.action("on_crash", "destroy"),
        uuid=reader.uuid(),
        driver_domain=bool(reader.integer("driver_domain", 0, 0, 1)),
        max_grant_frames=reader.integer("max_grant_frames", 32, 1, 256),
        max_maptrack_frames=reader.integer("max_maptrack_frames", 1024, 0, 4096),
        max_event_channels=reader.integer("max_event_channels", 1023, 32, 131071),
        settings=reader.settings,
    )


def load_dom0_config(path: str | Path) -> DomainConfig:
    """Read the configuration of dom0: an xl.cfg of which only `memory`, `vcpus`, `extra`, `root`, `cmdline` count.

    Raises as `load_config` does; any other setting is an error.
    """
    reader = _Reader(parse(read_text(path, "configuration"), str(path)), str(path), Path(path).absolute().parent)
    for key in reader.settings:
        if key not in _DOM0_KEYS:
            hint = did_you_mean(key, _DOM0_KEYS)
            raise reader.error(key, f"{key!r} is no setting of dom0{hint or '; there are ' + ', '.join(_DOM0_KEYS)}")
    vcpus = reader.integer("vcpus", 1, 1, MAX_VCPUS)
    memory = reader.integer("memory", DOM0_MEMORY_MIB, DOM0_MIN_MEMORY_MIB, _MAX_MEMORY_MIB)
    return DomainConfig(
        source=str(path),
        name=DOM0_NAME,
        kernel=Path(),
        memory=memory,
        maxmem=memory,
        vcpus=vcpus,
        maxvcpus=vcpus,
        cmdline=reader.cmdline(),
        settings=reader.settings,
    )


def default_dom0_config() -> DomainConfig:
    """Return the configuration of dom0 when nobody gave one."""
    return DomainConfig("dom0", DOM0_NAME, Path(), memory=DOM0_MEMORY_MIB, maxmem=DOM0_MEMORY_MIB)


class _Reader:
    """Typed access to the settings of one file."""

    def __init__(self, settings: dict[str, Setting], source: str, directory: Path) -> None:
        self.settings = settings
        self._source = source
        self._directory = directory

    def error(self, key: str, message: str) -> ConfigError:
        setting = self.settings.get(key)
        return ConfigError(self._source, setting.line if setting else 1, message)

    def refuse_unknown(self) -> None:
        for key in self.settings:
            if key in _XL_ONLY:
                raise self.error(key, f"the setting {key!r} of xl is not supported here")
            if key not in _SUPPORTED:
                raise self.error(key, f"unknown setting {key!r}{did_you_mean(key, _SUPPORTED)}")

    def refuse_other_types(self) -> None:
        kind = self.text("type", "pv")
        if kind != "pv":
            raise self.error("type", f"only domains of type 'pv' are supported, not {kind!r}")
        builder = self.text("builder", "generic")
        if builder not in ("generic", "linux"):
            raise self.error("builder", f"only PV domains are supported, not builder {builder!r}")

    def text(self, key: str, default: str) -> str:
        setting = self.settings.get(key)
        if setting is None:
            return default
        if not isinstance(setting.value, str):
            raise self.error(key, f"{key!r} is a string")
        if "\0" in setting.value:
            raise self.error(key, f"{key!r} holds a NUL character")
        return setting.value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return self.integer(key, low, low, high) if key in self.settings else None

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        setting = self.settings.get(key)
        if setting is None:
            return default
        value = setting.value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value):
            value = int(value)
        if not isinstance(value, int):
            raise self.error(key, f"{key!r} is a whole number")
        if not low <= value <= high:
            raise self.error(key, f"{key!r} is between {low} and {high}, not {value}")
        return value

    def name(self) -> str:
        if "name" not in self.settings:
            raise ConfigError(self._source, 1, 'the domain has no name (name = "…")')
        name = self.text("name", "")
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
            raise self.error("name", f"{name!r} is no domain name (letters, digits, and -._:+ behind the first)")
        if name.isdecimal():
            raise self.error("name", f"the domain name {name!r} looks like a domain number")
        return name

    def kernel(self) -> tuple[Path, str | None]:
        if "kernel" not in self.settings:
            raise ConfigError(self._source, 1, 'the domain has no kernel (kernel = "guest.py")')
        text = self.text("kernel", "")
        file, colon, name = text.rpartition(":")
        if colon and file.endswith(".py"):
            if not name.isidentifier():
                raise self.error("kernel", f"{name!r} behind the colon of the kernel is no class name")
            return self._directory / file, name
        if not text:
            raise self.error("kernel", "the kernel is empty")
        return self._directory / text, None

    def path(self, key: str) -> Path | None:
        return self._directory / self.text(key, "") if self.text(key, "") else None

    def cmdline(self) -> str:
        """`cmdline` wins over `root` and `extra`, which are joined, as with xl; `seed` becomes a word of it."""
        key = "cmdline" if "cmdline" in self.settings else "extra"
        words = [self.text(key, "")]
        if key == "extra" and self.text("root", ""):
            words.insert(0, f"root={self.text('root', '')}")
        seed = self.optional_integer("seed", 0, (1 << 64) - 1)
        if seed is not None:
            words.append(f"seed={seed}")
        cmdline = " ".join(word for word in words if word)
        size = len(cmdline.encode())
        if size > MAX_CMDLINE:
            raise self.error(key, f"the kernel's command line has {size} bytes; {MAX_CMDLINE} are possible")
        return cmdline

    def action(self, key: str, default: str) -> str:
        action = self.text(key, default).replace("_", "-")
        if action in _OTHER_ACTIONS:
            raise self.error(key, f"the action {action!r} is not supported; there are {', '.join(ACTIONS)}")
        if action not in ACTIONS:
            raise self.error(key, f"unknown action {action!r}{did_you_mean(action, ACTIONS) or _list_actions()}")
        return action

    def uuid(self) -> UUID | None:
        text = self.text("uuid", "")
        if not text:
            return None
        try:
            return UUID(text)
        except ValueError:
            raise self.error("uuid", f"{text!r} is no UUID") from None

    def specs(self, key: str, parse_one: Callable[[str], _Spec]) -> tuple[_Spec, ...]:
        setting = self.settings.get(key)
        if setting is None:
            return ()
        if not isinstance(setting.value, list):
            raise self.error(key, f"{key!r} is a list of strings")
        return tuple(self._spec(key, setting, index, parse_one) for index in range(len(setting.value)))

    def _spec(self, key: str, setting: Setting, index: int, parse_one: Callable[[str], _Spec]) -> _Spec:
        assert isinstance(setting.value, list)
        item, line = setting.value[index], setting.line_of(index)
        if not isinstance(item, str):
            raise ConfigError(self._source, line, f"{key!r} is a list of strings")
        try:
            return parse_one(item)
        except SpecError as error:
            raise ConfigError(self._source, line, str(error)) from None

    def disks(self) -> tuple[DiskSpec, ...]:
        disks = self.specs("disk", parse_disk)
        setting = self.settings.get("disk")
        seen: set[int] = set()
        for index, disk in enumerate(disks):
            assert setting is not None
            if disk.devid in seen:
                raise ConfigError(self._source, setting.line_of(index), f"two disks are {disk.vdev!r}")
            seen.add(disk.devid)
        return tuple(disk.resolved(self._directory) for disk in disks)

    def vifs(self) -> tuple[VifSpec, ...]:
        vifs = self.specs("vif", parse_vif)
        setting = self.settings.get("vif")
        seen: set[int] = set()
        for index, vif in enumerate(vifs):
            assert setting is not None
            number = vif.number(index)
            if number in seen:
                message = f"two interfaces have the number {number} (devid)"
                raise ConfigError(self._source, setting.line_of(index), message)
            seen.add(number)
        return vifs

    def cpuid(self) -> CpuidSpec | None:
        setting = self.settings.get("cpuid")
        if setting is None:
            return None
        if isinstance(setting.value, list):
            raise self.error("cpuid", 'lists of leaves are not supported here: cpuid = "host,feature=0,..." is')
        try:
            return parse_cpuid(str(setting.value))
        except SpecError as error:
            raise self.error("cpuid", str(error)) from None

    def cpus(self) -> tuple[int, ...] | None:
        setting = self.settings.get("cpus")
        if setting is None:
            return None
        words = setting.value if isinstance(setting.value, list) else str(setting.value).split(",")
        try:
            return parse_cpus(str(word) for word in words)
        except SpecError as error:
            raise self.error("cpus", str(error)) from None


_CPU_RANGE = re.compile(r"(\^?)([0-9]{1,3})(?:-([0-9]{1,3}))?")


def parse_cpus(words: Iterable[str]) -> tuple[int, ...] | None:
    """Return the physical CPUs of `0-3`, `^1`, `5` …, in order; None for `all`. Raises `SpecError`."""
    chosen: set[int] = set()
    for word in words:
        word = word.strip()
        if word == "all":
            return None
        match = _CPU_RANGE.fullmatch(word)
        if match is None:
            raise SpecError(f"{word!r} is no range of CPUs (such as 0-3 or ^1)")
        span = range(int(match[2]), int(match[3] or match[2]) + 1)
        if match[1]:
            chosen.difference_update(span)
        else:
            chosen.update(span)
    if not chosen:
        raise SpecError("the list of CPUs is empty")
    return tuple(sorted(chosen))


def _list_actions() -> str:
    return f"; there are {', '.join(ACTIONS)}"


def check_together(configs: Iterable[DomainConfig]) -> None:
    """Check what only several configurations can get wrong: two domains of one name, or interfaces of one MAC."""
    names: dict[str, DomainConfig] = {"Domain-0": DomainConfig("the host", DOM0_NAME, Path())}
    macs: dict[str, str] = {}
    for config in configs:
        other = names.setdefault(config.name, config)
        if other is not config:
            raise config.error("name", f"the domain name {config.name!r} is already taken by {other.source}")
        for index, vif in enumerate(config.vifs):
            if vif.mac is None:
                continue
            if vif.mac in macs:
                raise config.error("vif", f"the MAC address {vif.mac} is already taken by {macs[vif.mac]!r}", index)
            macs[vif.mac] = config.name
