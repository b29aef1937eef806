"""Version and build information (version.h): what a guest may ask about the Xen that it runs on."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

XENVER_version = 0

XENVER_extraversion = 1
XEN_EXTRAVERSION_LEN = 16

XENVER_compile_info = 2

xen_compile_info = Layout(
    "xen_compile_info",
    ("char", "compiler", 64),
    ("char", "compile_by", 16),
    ("char", "compile_domain", 32),
    ("char", "compile_date", 32),
)

XENVER_capabilities = 3
XEN_CAPABILITIES_INFO_LEN = 1024

XENVER_changeset = 4
XEN_CHANGESET_INFO_LEN = 64

XENVER_platform_parameters = 5

xen_platform_parameters = Layout("xen_platform_parameters", ("xen_ulong_t", "virt_start"))

XENVER_get_features = 6

xen_feature_info = Layout("xen_feature_info", ("unsigned int", "submap_idx"), ("uint32_t", "submap"))

XENVER_pagesize = 7

XENVER_guest_handle = 8

XENVER_commandline = 9

XENVER_build_id = 10

xen_build_id = Layout("xen_build_id", ("uint32_t", "len"), ("unsigned char", "buf", 0))

NAMES = names(globals(), r"XENVER_\w+")
"""Sub-commands by number."""
