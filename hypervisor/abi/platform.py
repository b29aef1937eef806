"""Control of the platform (platform.h): the hardware domain's door to firmware, clock, microcode and CPU hotplug."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# platform.h: the version that `xen_platform_op.interface_version` must be.
XENPF_INTERFACE_VERSION = 0x03000001

# Set the wall clock that shared_info shows to every domain.
XENPF_settime32 = 17

xenpf_settime32 = Layout(
    "xenpf_settime32",
    ("uint32_t", "secs"),
    ("uint32_t", "nsecs"),
    ("uint64_t", "system_time"),
)

XENPF_settime64 = 62

xenpf_settime64 = Layout(
    "xenpf_settime64",
    ("uint64_t", "secs"),
    ("uint32_t", "nsecs"),
    ("uint32_t", "mbz"),
    ("uint64_t", "system_time"),
)

XENPF_settime = XENPF_settime64

# Memory type ranges (MTRR): add, remove, read.
XENPF_add_memtype = 31

xenpf_add_memtype = Layout(
    "xenpf_add_memtype",
    ("xen_pfn_t", "mfn"),
    ("uint64_t", "nr_mfns"),
    ("uint32_t", "type"),
    ("uint32_t", "handle"),
    ("uint32_t", "reg"),
)

XENPF_del_memtype = 32

xenpf_del_memtype = Layout(
    "xenpf_del_memtype",
    ("uint32_t", "handle"),
    ("uint32_t", "reg"),
)

XENPF_read_memtype = 33

xenpf_read_memtype = Layout(
    "xenpf_read_memtype",
    ("uint32_t", "reg"),
    ("xen_pfn_t", "mfn"),
    ("uint64_t", "nr_mfns"),
    ("uint32_t", "type"),
)

# Load microcode.
XENPF_microcode_update = 35

xenpf_microcode_update = Layout(
    "xenpf_microcode_update",
    ("XEN_GUEST_HANDLE(const_void)", "data"),
    ("uint32_t", "length"),
)

# Tell Xen of a quirk that dom0 knows of.
XENPF_platform_quirk = 39

QUIRK_NOIRQBALANCING = 1
QUIRK_IOAPIC_BAD_REGSEL = 2
QUIRK_IOAPIC_GOOD_REGSEL = 3

xenpf_platform_quirk = Layout("xenpf_platform_quirk", ("uint32_t", "quirk_id"))

# Call an EFI runtime service, which runs in Xen's hands.
XENPF_efi_runtime_call = 49

XEN_EFI_get_time = 1
XEN_EFI_set_time = 2
XEN_EFI_get_wakeup_time = 3
XEN_EFI_set_wakeup_time = 4
XEN_EFI_get_next_high_monotonic_count = 5
XEN_EFI_get_variable = 6
XEN_EFI_set_variable = 7
XEN_EFI_get_next_variable_name = 8
XEN_EFI_query_variable_info = 9
XEN_EFI_query_capsule_capabilities = 10
XEN_EFI_update_capsule = 11

xenpf_efi_time = Layout(
    "xenpf_efi_time",
    ("uint16_t", "year"),
    ("uint8_t", "month"),
    ("uint8_t", "day"),
    ("uint8_t", "hour"),
    ("uint8_t", "min"),
    ("uint8_t", "sec"),
    ("uint32_t", "ns"),
    ("int16_t", "tz"),
    ("uint8_t", "daylight"),
)

xenpf_efi_guid = Layout(
    "xenpf_efi_guid",
    ("uint32_t", "data1"),
    ("uint16_t", "data2"),
    ("uint16_t", "data3"),
    ("uint8_t", "data4", 8),
)

XEN_EFI_GET_TIME_SET_CLEARS_NS = 0x00000001
XEN_EFI_GET_WAKEUP_TIME_ENABLED = 0x00000001
XEN_EFI_GET_WAKEUP_TIME_PENDING = 0x00000002
XEN_EFI_SET_WAKEUP_TIME_ENABLE = 0x00000001
XEN_EFI_SET_WAKEUP_TIME_ENABLE_ONLY = 0x00000002
XEN_EFI_VARIABLE_NON_VOLATILE = 0x00000001
XEN_EFI_VARIABLE_BOOTSERVICE_ACCESS = 0x00000002
XEN_EFI_VARIABLE_RUNTIME_ACCESS = 0x00000004
XEN_EFI_VARINFO_BOOT_SNAPSHOT = 0x00000001

xenpf_efi_runtime_call = Layout(
    "xenpf_efi_runtime_call",
    ("uint32_t", "function"),
    ("uint32_t", "misc"),
    ("xen_ulong_t", "status"),
    (
        Union(
            "u",
            (
                Layout(
                    "get_time",
                    (xenpf_efi_time, "time"),
                    ("uint32_t", "resolution"),
                    ("uint32_t", "accuracy"),
                ),
                "get_time",
            ),
            (xenpf_efi_time, "set_time"),
            (xenpf_efi_time, "get_wakeup_time"),
            (xenpf_efi_time, "set_wakeup_time"),
            (
                Layout(
                    "get_variable",
                    ("XEN_GUEST_HANDLE(void)", "name"),
                    ("xen_ulong_t", "size"),
                    ("XEN_GUEST_HANDLE(void)", "data"),
                    (xenpf_efi_guid, "vendor_guid"),
                ),
                "get_variable",
            ),
            (
                Layout(
                    "set_variable",
                    ("XEN_GUEST_HANDLE(void)", "name"),
                    ("xen_ulong_t", "size"),
                    ("XEN_GUEST_HANDLE(void)", "data"),
                    (xenpf_efi_guid, "vendor_guid"),
                ),
                "set_variable",
            ),
            (
                Layout(
                    "get_next_variable_name",
                    ("xen_ulong_t", "size"),
                    ("XEN_GUEST_HANDLE(void)", "name"),
                    (xenpf_efi_guid, "vendor_guid"),
                ),
                "get_next_variable_name",
            ),
            (
                Layout(
                    "query_variable_info",
                    ("uint32_t", "attr"),
                    ("uint64_t", "max_store_size"),
                    ("uint64_t", "remain_store_size"),
                    ("uint64_t", "max_size"),
                ),
                "query_variable_info",
            ),
            (
                Layout(
                    "query_capsule_capabilities",
                    ("XEN_GUEST_HANDLE(void)", "capsule_header_array"),
                    ("xen_ulong_t", "capsule_count"),
                    ("uint64_t", "max_capsule_size"),
                    ("uint32_t", "reset_type"),
                ),
                "query_capsule_capabilities",
            ),
            (
                Layout(
                    "update_capsule",
                    ("XEN_GUEST_HANDLE(void)", "capsule_header_array"),
                    ("xen_ulong_t", "capsule_count"),
                    ("uint64_t", "sg_list"),
                ),
                "update_capsule",
            ),
        ),
        "u",
    ),
)

# What the boot loader's firmware told: disks, video, EFI tables.
XENPF_firmware_info = 50

XEN_FW_DISK_INFO = 1
XEN_FW_DISK_MBR_SIGNATURE = 2
XEN_FW_VBEDDC_INFO = 3
XEN_FW_EFI_INFO = 4
XEN_FW_EFI_VERSION = 0
XEN_FW_EFI_CONFIG_TABLE = 1
XEN_FW_EFI_VENDOR = 2
XEN_FW_EFI_MEM_INFO = 3
XEN_FW_EFI_RT_VERSION = 4
XEN_FW_EFI_PCI_ROM = 5
XEN_FW_EFI_APPLE_PROPERTIES = 6
XEN_FW_KBD_SHIFT_FLAGS = 5

xenpf_efi_info = Union(
    "xenpf_efi_info",
    ("uint32_t", "version"),
    (
        Layout(
            "cfg",
            ("uint64_t", "addr"),
            ("uint32_t", "nent"),
        ),
        "cfg",
    ),
    (
        Layout(
            "vendor",
            ("uint32_t", "revision"),
            ("uint32_t", "bufsz"),
            ("XEN_GUEST_HANDLE(void)", "name"),
        ),
        "vendor",
    ),
    (
        Layout(
            "mem",
            ("uint64_t", "addr"),
            ("uint64_t", "size"),
            ("uint64_t", "attr"),
            ("uint32_t", "type"),
        ),
        "mem",
    ),
    (
        Layout(
            "pci_rom",
            ("uint16_t", "segment"),
            ("uint8_t", "bus"),
            ("uint8_t", "devfn"),
            ("uint16_t", "vendor"),
            ("uint16_t", "devid"),
            ("uint64_t", "address"),
            ("xen_ulong_t", "size"),
        ),
        "pci_rom",
    ),
    (
        Layout(
            "apple_properties",
            ("uint64_t", "address"),
            ("xen_ulong_t", "size"),
        ),
        "apple_properties",
    ),
)

xenpf_firmware_info = Layout(
    "xenpf_firmware_info",
    ("uint32_t", "type"),
    ("uint32_t", "index"),
    (
        Union(
            "u",
            (
                Layout(
                    "disk_info",
                    ("uint8_t", "device"),
                    ("uint8_t", "version"),
                    ("uint16_t", "interface_support"),
                    ("uint16_t", "legacy_max_cylinder"),
                    ("uint8_t", "legacy_max_head"),
                    ("uint8_t", "legacy_sectors_per_track"),
                    ("XEN_GUEST_HANDLE(void)", "edd_params"),
                ),
                "disk_info",
            ),
            (
                Layout(
                    "disk_mbr_signature",
                    ("uint8_t", "device"),
                    ("uint32_t", "mbr_signature"),
                ),
                "disk_mbr_signature",
            ),
            (
                Layout(
                    "vbeddc_info",
                    ("uint8_t", "capabilities"),
                    ("uint8_t", "edid_transfer_time"),
                    ("XEN_GUEST_HANDLE(uint8)", "edid"),
                ),
                "vbeddc_info",
            ),
            (xenpf_efi_info, "efi_info"),
            ("uint8_t", "kbd_shift_flags"),
        ),
        "u",
    ),
)

# Enter a sleep state.
XENPF_enter_acpi_sleep = 51
XENPF_ACPI_SLEEP_EXTENDED = 0x00000001

xenpf_enter_acpi_sleep = Layout(
    "xenpf_enter_acpi_sleep",
    ("uint16_t", "val_a"),
    ("uint16_t", "val_b"),
    ("uint32_t", "sleep_state"),
    ("uint32_t", "flags"),
)

# Tell Xen that a pCPU's frequency changed.
XENPF_change_freq = 52

xenpf_change_freq = Layout(
    "xenpf_change_freq",
    ("uint32_t", "flags"),
    ("uint32_t", "cpu"),
    ("uint64_t", "freq"),
)

# Idle time of pCPUs.
XENPF_getidletime = 53

xenpf_getidletime = Layout(
    "xenpf_getidletime",
    ("XEN_GUEST_HANDLE(uint8)", "cpumap_bitmap"),
    ("uint32_t", "cpumap_nr_cpus"),
    ("XEN_GUEST_HANDLE(uint64)", "idletime"),
    ("uint64_t", "now"),
)

# Processor power and performance states that dom0 read from ACPI.
XENPF_set_processor_pminfo = 54

XEN_PROCESSOR_PM_CX = 1
XEN_PROCESSOR_PM_PX = 2
XEN_PROCESSOR_PM_TX = 4

XEN_PM_CX = 0
XEN_PM_PX = 1
XEN_PM_TX = 2
XEN_PM_PDC = 3

XEN_PX_PCT = 1
XEN_PX_PSS = 2
XEN_PX_PPC = 4
XEN_PX_PSD = 8

xen_power_register = Layout(
    "xen_power_register",
    ("uint32_t", "space_id"),
    ("uint32_t", "bit_width"),
    ("uint32_t", "bit_offset"),
    ("uint32_t", "access_size"),
    ("uint64_t", "address"),
)

xen_processor_csd = Layout(
    "xen_processor_csd",
    ("uint32_t", "domain"),
    ("uint32_t", "coord_type"),
    ("uint32_t", "num"),
)

xen_processor_cx = Layout(
    "xen_processor_cx",
    (xen_power_register, "reg"),
    ("uint8_t", "type"),
    ("uint32_t", "latency"),
    ("uint32_t", "power"),
    ("uint32_t", "dpcnt"),
    ("XEN_GUEST_HANDLE(xen_processor_csd_t)", "dp"),
)

xen_processor_flags = Layout(
    "xen_processor_flags",
    ("uint32_t:1", "bm_control"),
    ("uint32_t:1", "bm_check"),
    ("uint32_t:1", "has_cst"),
    ("uint32_t:1", "power_setup_done"),
    ("uint32_t:1", "bm_rld_set"),
)

xen_processor_power = Layout(
    "xen_processor_power",
    ("uint32_t", "count"),
    (xen_processor_flags, "flags"),
    ("XEN_GUEST_HANDLE(xen_processor_cx_t)", "states"),
)

xen_pct_register = Layout(
    "xen_pct_register",
    ("uint8_t", "descriptor"),
    ("uint16_t", "length"),
    ("uint8_t", "space_id"),
    ("uint8_t", "bit_width"),
    ("uint8_t", "bit_offset"),
    ("uint8_t", "reserved"),
    ("uint64_t", "address"),
)

xen_processor_px = Layout(
    "xen_processor_px",
    ("uint64_t", "core_frequency"),
    ("uint64_t", "power"),
    ("uint64_t", "transition_latency"),
    ("uint64_t", "bus_master_latency"),
    ("uint64_t", "control"),
    ("uint64_t", "status"),
)

xen_psd_package = Layout(
    "xen_psd_package",
    ("uint64_t", "num_entries"),
    ("uint64_t", "revision"),
    ("uint64_t", "domain"),
    ("uint64_t", "coord_type"),
    ("uint64_t", "num_processors"),
)

XEN_CPUPERF_SHARED_TYPE_HW = 1
XEN_CPUPERF_SHARED_TYPE_ALL = 2
XEN_CPUPERF_SHARED_TYPE_ANY = 3

xen_processor_performance = Layout(
    "xen_processor_performance",
    ("uint32_t", "flags"),
    ("uint32_t", "platform_limit"),
    (xen_pct_register, "control_register"),
    (xen_pct_register, "status_register"),
    ("uint32_t", "state_count"),
    ("XEN_GUEST_HANDLE(xen_processor_px_t)", "states"),
    (xen_psd_package, "domain_info"),
    ("uint32_t", "shared_type"),
)

xenpf_set_processor_pminfo = Layout(
    "xenpf_set_processor_pminfo",
    ("uint32_t", "id"),
    ("uint32_t", "type"),
    (
        Union(
            "u",
            (xen_processor_power, "power"),
            (xen_processor_performance, "perf"),
            ("XEN_GUEST_HANDLE(uint32)", "pdc"),
        ),
        "u",
    ),
)

# A physical processor: its ids, its version, on and off line, plugged in.
XENPF_get_cpuinfo = 55

XEN_PCPU_FLAGS_ONLINE = 1
XEN_PCPU_FLAGS_INVALID = 2

xenpf_pcpuinfo = Layout(
    "xenpf_pcpuinfo",
    ("uint32_t", "xen_cpuid"),
    ("uint32_t", "max_present"),
    ("uint32_t", "flags"),
    ("uint32_t", "apic_id"),
    ("uint32_t", "acpi_id"),
)

XENPF_get_cpu_version = 48

xenpf_pcpu_version = Layout(
    "xenpf_pcpu_version",
    ("uint32_t", "xen_cpuid"),
    ("uint32_t", "max_present"),
    ("char", "vendor_id", 12),
    ("uint32_t", "family"),
    ("uint32_t", "model"),
    ("uint32_t", "stepping"),
)

XENPF_cpu_online = 56
XENPF_cpu_offline = 57

xenpf_cpu_ol = Layout("xenpf_cpu_ol", ("uint32_t", "cpuid"))

XENPF_cpu_hotadd = 58

xenpf_cpu_hotadd = Layout(
    "xenpf_cpu_hotadd",
    ("uint32_t", "apic_id"),
    ("uint32_t", "acpi_id"),
    ("uint32_t", "pxm"),
)

# Memory plugged in.
XENPF_mem_hotadd = 59

xenpf_mem_hotadd = Layout(
    "xenpf_mem_hotadd",
    ("uint64_t", "spfn"),
    ("uint64_t", "epfn"),
    ("uint32_t", "pxm"),
    ("uint32_t", "flags"),
)

# Park idle cores.
XENPF_core_parking = 60

XEN_CORE_PARKING_SET = 1
XEN_CORE_PARKING_GET = 2

xenpf_core_parking = Layout(
    "xenpf_core_parking",
    ("uint32_t", "type"),
    ("uint32_t", "idle_nums"),
)

# Read and write model-specific registers on a given pCPU.
XENPF_resource_op = 61

XEN_RESOURCE_OP_MSR_READ = 0
XEN_RESOURCE_OP_MSR_WRITE = 1

xenpf_resource_entry = Layout(
    "xenpf_resource_entry",
    (
        Union(
            "u",
            ("uint32_t", "cmd"),
            ("int32_t", "ret"),
        ),
        "u",
    ),
    ("uint32_t", "rsvd"),
    ("uint64_t", "idx"),
    ("uint64_t", "val"),
)

xenpf_resource_op = Layout(
    "xenpf_resource_op",
    ("uint32_t", "nr_entries"),
    ("uint32_t", "cpu"),
    ("XEN_GUEST_HANDLE(xenpf_resource_entry_t)", "entries"),
)

# Symbols of the hypervisor, one at a time.
XENPF_get_symbol = 63

xenpf_symdata = Layout(
    "xenpf_symdata",
    ("uint32_t", "namelen"),
    ("uint32_t", "symnum"),
    ("XEN_GUEST_HANDLE(char)", "name"),
    ("uint64_t", "address"),
    ("char", "type"),
)

# The argument of the hypercall.
xen_platform_op = Layout(
    "xen_platform_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "interface_version"),
    (
        Union(
            "u",
            (xenpf_settime64, "settime"),
            (xenpf_settime32, "settime32"),
            (xenpf_settime64, "settime64"),
            (xenpf_add_memtype, "add_memtype"),
            (xenpf_del_memtype, "del_memtype"),
            (xenpf_read_memtype, "read_memtype"),
            (xenpf_microcode_update, "microcode"),
            (xenpf_platform_quirk, "platform_quirk"),
            (xenpf_efi_runtime_call, "efi_runtime_call"),
            (xenpf_firmware_info, "firmware_info"),
            (xenpf_enter_acpi_sleep, "enter_acpi_sleep"),
            (xenpf_change_freq, "change_freq"),
            (xenpf_getidletime, "getidletime"),
            (xenpf_set_processor_pminfo, "set_pminfo"),
            (xenpf_pcpuinfo, "pcpu_info"),
            (xenpf_pcpu_version, "pcpu_version"),
            (xenpf_cpu_ol, "cpu_ol"),
            (xenpf_cpu_hotadd, "cpu_add"),
            (xenpf_mem_hotadd, "mem_add"),
            (xenpf_core_parking, "core_parking"),
            (xenpf_resource_op, "resource_op"),
            (xenpf_symdata, "symdata"),
            ("uint8_t", "pad", 128),
        ),
        "u",
    ),
)

NAMES = names(globals(), r"XENPF_(?!settime$)[a-z]\w*")
"""Commands by number."""
