"""Version and build information (version.h): what a guest may ask about the Xen that it runs on."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# version.h: major version in the high half of the result, minor in the low one.
XENVER_version = 0

# What follows them, as a string such as ".1".
XENVER_extraversion = 1

XEN_EXTRAVERSION_LEN = 16

# Who compiled it, where, when and with what.
XENVER_compile_info = 2

xen_compile_info = Layout(
    "xen_compile_info",
    ("char", "compiler", 64),
    ("char", "compile_by", 16),
    ("char", "compile_domain", 32),
    ("char", "compile_date", 32),
)

# The kinds of guest that this Xen runs, such as "xen-3.0-x86_64".
XENVER_capabilities = 3

XEN_CAPABILITIES_INFO_LEN = 1024

# The source that it was built from.
XENVER_changeset = 4

XEN_CHANGESET_INFO_LEN = 64

# Where the hypervisor's part of the address space begins.
XENVER_platform_parameters = 5

xen_platform_parameters = Layout("xen_platform_parameters", ("xen_ulong_t", "virt_start"))

# Feature bits of features.h, 32 at a time.
XENVER_get_features = 6

xen_feature_info = Layout(
    "xen_feature_info",
    ("unsigned int", "submap_idx"),
    ("uint32_t", "submap"),
)

# Page size; the domain's handle; Xen's command line; the build id.
XENVER_pagesize = 7

XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10

xen_build_id = Layout(
    "xen_build_id",
    ("uint32_t", "len"),
    ("unsigned char", "buf", 0),
)

NAMES = names(globals(), r"XENVER_\w+")
"""Sub-commands by number."""
