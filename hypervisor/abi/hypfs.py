"""The hypervisor filesystem (hypfs.h): runtime parameters and build configuration as a small tree of nodes."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# hypfs.h: version of the interface, longest path.
XEN_HYPFS_VERSION = 1
XEN_HYPFS_MAX_PATHLEN = 1024

# An entry: kind of node, encoding of its content.
XEN_HYPFS_TYPE_DIR = 0
XEN_HYPFS_TYPE_BLOB = 1
XEN_HYPFS_TYPE_STRING = 2
XEN_HYPFS_TYPE_UINT = 3
XEN_HYPFS_TYPE_INT = 4
XEN_HYPFS_TYPE_BOOL = 5
XEN_HYPFS_ENC_PLAIN = 0
XEN_HYPFS_ENC_GZIP = 1

xen_hypfs_direntry = Layout(
    "xen_hypfs_direntry",
    ("uint8_t", "type"),
    ("uint8_t", "encoding"),
    ("uint16_t", "pad"),
    ("uint32_t", "content_len"),
    ("uint32_t", "max_write_len"),
)

# A directory's content is a list of these.
xen_hypfs_dirlistentry = Layout(
    "xen_hypfs_dirlistentry",
    (xen_hypfs_direntry, "e"),
    ("uint16_t", "off_next"),
    ("char", "name", 0),
)

# Operations.
XEN_HYPFS_OP_get_version = 0
XEN_HYPFS_OP_read = 1
XEN_HYPFS_OP_write_contents = 2

NAMES = names(globals(), r"XEN_HYPFS_OP_\w+")
"""Operations by number."""
