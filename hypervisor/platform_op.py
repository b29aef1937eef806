"""HYPERVISOR_platform_op (platform.h): the hardware domain's door to the firmware and the processors.

This machine has no ACPI, no EFI, no memory type ranges and no microcode to load; what asks for those is answered as Xen
does on such a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, xen
from hypervisor.abi import platform as abi
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_platform_op
PLATFORM_OP = abi.xen_platform_op
NS_PER_S = 1_000_000_000
U64 = (1 << 64) - 1
NO_ACPI_ID = 0xFFFFFFFF
MAX_RESOURCES = 3
"""How many model-specific registers one XENPF_resource_op names (RESOURCE_ACCESS_MAX_ENTRIES)."""

Handler = Callable[[Any], Any]
"""`handler(u member) -> the u member to copy back, or None`. Raises HypercallError."""

ANSWERS = {
    abi.XENPF_add_memtype: errno.ENXIO,
    abi.XENPF_read_memtype: errno.EINVAL,
    abi.XENPF_microcode_update: errno.EINVAL,
    abi.XENPF_efi_runtime_call: errno.EOPNOTSUPP,
    abi.XENPF_enter_acpi_sleep: errno.EPERM,
}
"""Operations that have one answer on this machine. Others that are not built are -ENOSYS, as those that do not exist.

(XENPF_change_freq and _getidletime are -ENOSYS in Xen too, unless its command line leaves frequencies to dom0.)
"""


class PlatformOps:
    """Operations on the machine, by number."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._handlers: dict[int, tuple[str, Handler]] = {
            abi.XENPF_settime32: ("settime32", self._settime),
            abi.XENPF_settime64: ("settime64", self._settime64),
            abi.XENPF_del_memtype: ("del_memtype", self._del_memtype),
            abi.XENPF_platform_quirk: ("platform_quirk", self._platform_quirk),
            abi.XENPF_firmware_info: ("firmware_info", self._firmware_info),
            abi.XENPF_set_processor_pminfo: ("set_pminfo", self._set_pminfo),
            abi.XENPF_get_cpuinfo: ("pcpu_info", self._get_cpuinfo),
            abi.XENPF_cpu_online: ("cpu_ol", self._cpu_online),
            abi.XENPF_cpu_offline: ("cpu_ol", self._cpu_offline),
            abi.XENPF_core_parking: ("core_parking", self._core_parking),
            abi.XENPF_resource_op: ("resource_op", self._resource_op),
        }
        self.hypercalls = {HYPERCALL: self._platform_op}

    def _platform_op(self, vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Check in Xen's order: the pointer, the interface version, the caller's privilege."""
        op = PLATFORM_OP.unpack_from(copy_from_guest(vcpu, arg, PLATFORM_OP.size))
        if op.interface_version != abi.XENPF_INTERFACE_VERSION:
            return -errno.EACCES
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        member, handler = self._handlers.get(op.cmd, ("", None))
        if handler is None:
            return -ANSWERS.get(op.cmd, errno.ENOSYS)
        result = handler(getattr(op.u, member))
        if result is not None:
            op.u = {member: result}
            copy_to_guest(vcpu, arg, PLATFORM_OP.pack(op))
        return 0

    @property
    def _pcpus(self) -> int:
        return len(self.hv.sched.pcpus)

    # -- time -------------------------------------------------------------------------------------------------------

    def _settime(self, value: Any) -> None:
        """Set the wall clock: it was `secs`, `nsecs` when the system time was `system_time` (do_settime)."""
        time = self.hv.time
        time.wallclock = (value.secs * NS_PER_S + value.nsecs - value.system_time) & U64
        for domain in self.hv.domains.values():
            time.update_wallclock(domain)

    def _settime64(self, value: Any) -> None:
        if value.mbz:
            raise HypercallError(errno.EINVAL)
        self._settime(value)

    # -- firmware ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _del_memtype(value: Any) -> None:
        raise HypercallError(errno.EINVAL if value.handle or value.reg >> 31 else errno.ENXIO)

    @staticmethod
    def _platform_quirk(value: Any) -> None:
        """Take note of a quirk: interrupts are not balanced here, and the I/O APIC is none."""
        if value.quirk_id not in (
            abi.QUIRK_NOIRQBALANCING,
            abi.QUIRK_IOAPIC_BAD_REGSEL,
            abi.QUIRK_IOAPIC_GOOD_REGSEL,
        ):
            raise HypercallError(errno.EINVAL)

    @staticmethod
    def _firmware_info(value: Any) -> Any:
        """Tell what the firmware left: no shift key is held down, and nothing else is known."""
        kind = value.type
        if kind == abi.XEN_FW_EFI_INFO:
            raise HypercallError(errno.ENOSYS)
        if kind not in (
            abi.XEN_FW_DISK_INFO,
            abi.XEN_FW_DISK_MBR_SIGNATURE,
            abi.XEN_FW_VBEDDC_INFO,
            abi.XEN_FW_KBD_SHIFT_FLAGS,
        ):
            raise HypercallError(errno.EINVAL)
        if kind != abi.XEN_FW_KBD_SHIFT_FLAGS or value.index:
            raise HypercallError(errno.ESRCH)
        value.u = {"kbd_shift_flags": 0}
        return value

    @staticmethod
    def _set_pminfo(value: Any) -> None:
        """Refuse what dom0 read of processors in ACPI tables: there are none. Throttling Xen never takes."""
        raise HypercallError(errno.ENOSYS if value.type == abi.XEN_PM_TX else errno.EINVAL)

    # -- processors -------------------------------------------------------------------------------------------------

    def _get_cpuinfo(self, value: Any) -> Any:
        """Tell of a pCPU: whether it is on line; their APICs are numbered as they are."""
        cpu = value.xen_cpuid
        if cpu < self._pcpus:
            flags = abi.XEN_PCPU_FLAGS_ONLINE if self.hv.sched.pcpus[cpu].online else 0
            value.apic_id, value.acpi_id, value.flags = cpu, NO_ACPI_ID, flags
        else:
            value.flags = abi.XEN_PCPU_FLAGS_INVALID
        value.max_present = self._pcpus - 1
        return value

    def _cpu_online(self, value: Any) -> None:
        if value.cpuid >= self._pcpus:
            raise HypercallError(errno.EINVAL)
        if not self.hv.sched.pcpus[value.cpuid].online:
            self.hv.sched.pools.bring_online(value.cpuid)

    def _cpu_offline(self, value: Any) -> None:
        """The first one Xen always keeps."""
        if not value.cpuid:
            raise HypercallError(errno.EOPNOTSUPP)
        if value.cpuid >= self._pcpus:
            raise HypercallError(errno.EINVAL)
        if self.hv.sched.pcpus[value.cpuid].online:
            self.hv.sched.pools.take_offline(value.cpuid)

    def _core_parking(self, value: Any) -> Any:
        """Tell how many pCPUs are parked, which is none; parking some is not built."""
        if value.type == abi.XEN_CORE_PARKING_GET:
            value.idle_nums = 0
            return value
        if value.type != abi.XEN_CORE_PARKING_SET:
            raise HypercallError(errno.EINVAL)
        if min(value.idle_nums, self._pcpus - 1):
            raise HypercallError(errno.ENOSYS)
        return None

    @staticmethod
    def _resource_op(value: Any) -> None:
        """Read and write model-specific registers: of none it is none, and more is not built."""
        if value.nr_entries:
            raise HypercallError(errno.EINVAL if value.nr_entries > MAX_RESOURCES else errno.ENOSYS)
