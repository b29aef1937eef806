"""kexec_op (kexec.h): load a kernel that runs after this one, or after a crash."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# kexec.h: pages that the code of the switch needs.
KEXEC_XEN_NO_PAGES = 17

# Which of the two images.
KEXEC_TYPE_DEFAULT = 0
KEXEC_TYPE_CRASH = 1

xen_kexec_image = Layout(
    "xen_kexec_image",
    ("unsigned long", "page_list", KEXEC_XEN_NO_PAGES),
    ("unsigned long", "indirection_page"),
    ("unsigned long", "start_address"),
)


# Operations, each with its argument. Boot an image now.
KEXEC_CMD_kexec = 0

xen_kexec_exec = Layout(
    "xen_kexec_exec",
    ("int", "type"),
)


# Load and unload, the old form.
KEXEC_CMD_kexec_load_v1 = 1
KEXEC_CMD_kexec_unload_v1 = 2

xen_kexec_load_v1 = Layout(
    "xen_kexec_load_v1",
    ("int", "type"),
    (xen_kexec_image, "image"),
)


# Where things are in machine memory.
KEXEC_RANGE_MA_CRASH = 0
KEXEC_RANGE_MA_XEN = 1
KEXEC_RANGE_MA_CPU = 2
KEXEC_RANGE_MA_XENHEAP = 3
KEXEC_RANGE_MA_BOOT_PARAM = 4
KEXEC_RANGE_MA_EFI_MEMMAP = 5
KEXEC_RANGE_MA_VMCOREINFO = 6
KEXEC_CMD_kexec_get_range = 3

xen_kexec_range = Layout(
    "xen_kexec_range",
    ("int", "range"),
    ("int", "nr"),
    ("unsigned long", "size"),
    ("unsigned long", "start"),
)


# Load, unload, ask: the present form.
xen_kexec_segment = Layout(
    "xen_kexec_segment",
    (Union("buf", ("XEN_GUEST_HANDLE(const_void)", "h"), ("uint64_t", "_pad")), "buf"),
    ("uint64_t", "buf_size"),
    ("uint64_t", "dest_maddr"),
    ("uint64_t", "dest_size"),
)

KEXEC_CMD_kexec_load = 4

xen_kexec_load = Layout(
    "xen_kexec_load",
    ("uint8_t", "type"),
    ("uint8_t", "_pad"),
    ("uint16_t", "arch"),
    ("uint32_t", "nr_segments"),
    (Union("segments", ("XEN_GUEST_HANDLE(xen_kexec_segment_t)", "h"), ("uint64_t", "_pad")), "segments"),
    ("uint64_t", "entry_maddr"),
)

KEXEC_CMD_kexec_unload = 5

xen_kexec_unload = Layout(
    "xen_kexec_unload",
    ("uint8_t", "type"),
)

KEXEC_CMD_kexec_status = 6

xen_kexec_status = Layout(
    "xen_kexec_status",
    ("uint8_t", "type"),
)


NAMES = names(globals(), r"KEXEC_CMD_\w+")
"""Operations by number."""
