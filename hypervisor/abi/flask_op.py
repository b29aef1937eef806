"""xsm_op of the Flask security module (xsm/flask_op.h): its policy, labels and decisions."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# xsm/flask_op.h: version of the interface.
XEN_FLASK_INTERFACE_VERSION = 1

# Arguments of the operations.
xen_flask_load = Layout(
    "xen_flask_load",
    ("XEN_GUEST_HANDLE(char)", "buffer"),
    ("uint32_t", "size"),
)


xen_flask_setenforce = Layout(
    "xen_flask_setenforce",
    ("uint32_t", "enforcing"),
)


xen_flask_sid_context = Layout(
    "xen_flask_sid_context",
    ("uint32_t", "sid"),
    ("uint32_t", "size"),
    ("XEN_GUEST_HANDLE(char)", "context"),
)


xen_flask_access = Layout(
    "xen_flask_access",
    ("uint32_t", "ssid"),
    ("uint32_t", "tsid"),
    ("uint32_t", "tclass"),
    ("uint32_t", "req"),
    ("uint32_t", "allowed"),
    ("uint32_t", "audit_allow"),
    ("uint32_t", "audit_deny"),
    ("uint32_t", "seqno"),
)


xen_flask_transition = Layout(
    "xen_flask_transition",
    ("uint32_t", "ssid"),
    ("uint32_t", "tsid"),
    ("uint32_t", "tclass"),
    ("uint32_t", "newsid"),
)


xen_flask_boolean = Layout(
    "xen_flask_boolean",
    ("uint32_t", "bool_id"),
    ("uint8_t", "enforcing"),
    ("uint8_t", "pending"),
    ("uint8_t", "new_value"),
    ("uint8_t", "commit"),
    ("uint32_t", "size"),
    ("XEN_GUEST_HANDLE(char)", "name"),
)


xen_flask_setavc_threshold = Layout(
    "xen_flask_setavc_threshold",
    ("uint32_t", "threshold"),
)


xen_flask_hash_stats = Layout(
    "xen_flask_hash_stats",
    ("uint32_t", "entries"),
    ("uint32_t", "buckets_used"),
    ("uint32_t", "buckets_total"),
    ("uint32_t", "max_chain_len"),
)


xen_flask_cache_stats = Layout(
    "xen_flask_cache_stats",
    ("uint32_t", "cpu"),
    ("uint32_t", "lookups"),
    ("uint32_t", "hits"),
    ("uint32_t", "misses"),
    ("uint32_t", "allocations"),
    ("uint32_t", "reclaims"),
    ("uint32_t", "frees"),
)


xen_flask_ocontext = Layout(
    "xen_flask_ocontext",
    ("uint32_t", "ocon"),
    ("uint32_t", "sid"),
    ("uint64_t", "low"),
    ("uint64_t", "high"),
)


xen_flask_peersid = Layout(
    "xen_flask_peersid",
    ("evtchn_port_t", "evtchn"),
    ("uint32_t", "sid"),
)


xen_flask_relabel = Layout(
    "xen_flask_relabel",
    ("uint32_t", "domid"),
    ("uint32_t", "sid"),
)


xen_flask_devicetree_label = Layout(
    "xen_flask_devicetree_label",
    ("uint32_t", "sid"),
    ("uint32_t", "length"),
    ("XEN_GUEST_HANDLE(char)", "path"),
)


# Operations.
FLASK_LOAD = 1
FLASK_GETENFORCE = 2
FLASK_SETENFORCE = 3
FLASK_CONTEXT_TO_SID = 4
FLASK_SID_TO_CONTEXT = 5
FLASK_ACCESS = 6
FLASK_CREATE = 7
FLASK_RELABEL = 8
FLASK_USER = 9
FLASK_POLICYVERS = 10
FLASK_GETBOOL = 11
FLASK_SETBOOL = 12
FLASK_COMMITBOOLS = 13
FLASK_MLS = 14
FLASK_DISABLE = 15
FLASK_GETAVC_THRESHOLD = 16
FLASK_SETAVC_THRESHOLD = 17
FLASK_AVC_HASHSTATS = 18
FLASK_AVC_CACHESTATS = 19
FLASK_MEMBER = 20
FLASK_ADD_OCONTEXT = 21
FLASK_DEL_OCONTEXT = 22
FLASK_GET_PEER_SID = 23
FLASK_RELABEL_DOMAIN = 24
FLASK_DEVICETREE_LABEL = 25

# The argument of the hypercall.
xen_flask_op = Layout(
    "xen_flask_op",
    ("uint32_t", "cmd"),
    ("uint32_t", "interface_version"),
    (
        Union(
            "u",
            (xen_flask_load, "load"),
            (xen_flask_setenforce, "enforce"),
            (xen_flask_sid_context, "sid_context"),
            (xen_flask_access, "access"),
            (xen_flask_transition, "transition"),
            (xen_flask_boolean, "boolean"),
            (xen_flask_setavc_threshold, "setavc_threshold"),
            (xen_flask_hash_stats, "hash_stats"),
            (xen_flask_cache_stats, "cache_stats"),
            (xen_flask_ocontext, "ocontext"),
            (xen_flask_peersid, "peersid"),
            (xen_flask_relabel, "relabel"),
            (xen_flask_devicetree_label, "devicetree_label"),
        ),
        "u",
    ),
)


NAMES = names(globals(), r"FLASK_\w+")
"""Operations by number."""
