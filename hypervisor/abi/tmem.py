"""Transcendent memory (tmem.h): an interface that Xen no longer implements; the hypercall answers -ENOSYS."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# tmem.h: the version of the specification; commands.
TMEM_SPEC_VERSION = 1
TMEM_NEW_POOL = 1
TMEM_DESTROY_POOL = 2
TMEM_PUT_PAGE = 4
TMEM_GET_PAGE = 5
TMEM_FLUSH_PAGE = 6
TMEM_FLUSH_OBJECT = 7
TMEM_AUTH = 101
TMEM_RESTORE_NEW = 102

# Flags of a pool.
TMEM_POOL_PERSIST = 1
TMEM_POOL_SHARED = 2
TMEM_POOL_PRECOMPRESSED = 4
TMEM_POOL_PAGESIZE_SHIFT = 4
TMEM_POOL_PAGESIZE_MASK = 0xF
TMEM_POOL_VERSION_SHIFT = 24
TMEM_POOL_VERSION_MASK = 0xFF
TMEM_POOL_RESERVED_BITS = 0x00FFFF00

# Flags of a client.
TMEM_CLIENT_COMPRESS = 1
TMEM_CLIENT_FROZEN = 2

# Error numbers outside of errno.h.
EFROZEN = 1000

EEMPTY = 1001

# An object's id, and the argument of the hypercall.
xen_tmem_oid = Layout("xen_tmem_oid", ("uint64_t", "oid", 3))

tmem_op = Layout(
    "tmem_op",
    ("uint32_t", "cmd"),
    ("int32_t", "pool_id"),
    (
        Union(
            "u",
            (
                Layout(
                    "creat",
                    ("uint64_t", "uuid", 2),
                    ("uint32_t", "flags"),
                    ("uint32_t", "arg1"),
                ),
                "creat",
            ),
            (
                Layout(
                    "gen",
                    (xen_tmem_oid, "oid"),
                    ("uint32_t", "index"),
                    ("uint32_t", "tmem_offset"),
                    ("uint32_t", "pfn_offset"),
                    ("uint32_t", "len"),
                    ("xen_pfn_t", "cmfn"),
                ),
                "gen",
            ),
        ),
        "u",
    ),
)

NAMES = names(globals(), r"TMEM_(?:NEW_POOL|DESTROY_POOL|PUT_PAGE|GET_PAGE|FLUSH_\w+|AUTH|RESTORE_NEW)")
"""Operations by number."""
