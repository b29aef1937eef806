"""What the covered public headers define stands in hypervisor.abi, or below with the reason why not."""

import re

import pytest
from xen_headers import HEADERS, INCLUDE, constants, layouts, load, require_headers

COMPAT = "what callers of an older interface version call it"
C_ONLY = "means something to a C compiler only"
INTERNAL = "for the hypervisor's own source, not part of the interface"

TYPE = "is a type, which layouts know by name"

OMITTED: dict[str, dict[str, str]] = {
    "argo.h": {"XEN_ARGO_REGISTER_FLAG_MASK": INTERNAL},
    "arch-x86/cpufeatureset.h": {
        "XEN_CPUFEATURE": "is how the header makes its list, of which updates have more or less",
    },
    "arch-x86/xen-mca.h": {
        "__MC_NMSRS": COMPAT,
        "x86_mcinfo_first": "walks entries through pointers",
        "x86_mcinfo_lookup": "walks entries through pointers",
        "x86_mcinfo_nentries": "walks entries through pointers",
        "x86_mcinfo_next": "walks entries through pointers",
    },
    "arch-x86/xen.h": {
        "DEFINE_XEN_GUEST_HANDLE": C_ONLY,
        "__DEFINE_XEN_GUEST_HANDLE": C_ONLY,
        "___DEFINE_XEN_GUEST_HANDLE": C_ONLY,
        "XEN_GUEST_HANDLE": TYPE,
        "__XEN_GUEST_HANDLE": TYPE,
        "XEN_GUEST_HANDLE_PARAM": TYPE,
        "set_xen_guest_handle": C_ONLY,
        "set_xen_guest_handle_raw": C_ONLY,
        "TI_GET_DPL": "reads a member of a trap_info through a pointer",
        "TI_GET_IF": "reads a member of a trap_info through a pointer",
        "TI_SET_DPL": "writes a member of a trap_info through a pointer",
        "TI_SET_IF": "writes a member of a trap_info through a pointer",
    },
    "arch-x86/xen-x86_64.h": {
        "__DECL_REG": C_ONLY,
        "__DECL_REG_HI": C_ONLY,
        "__DECL_REG_LO16": C_ONLY,
        "__DECL_REG_LO8": C_ONLY,
        "__DECL_REG_LOHI": C_ONLY,
        "machine_to_phys_mapping": "is MACH2PHYS_VIRT_START as a C pointer",
    },
    "domctl.h": {"XEN_DOMCTL_soft_reset_cont": INTERNAL},
    "errno.h": {"EINTR": INTERNAL, "ERESTART": INTERNAL, "XEN_ERRNO": C_ONLY, "value": "is the macro's own text"},
    "event_channel.h": {"EVTCHNOP_reset_cont": INTERNAL},
    "grant_table.h": {
        "GNTTABOP_error_msgs": "are sentences for logs; STATUS_NAMES has the names",
        "grant_entry_v1_t": COMPAT,
    },
    "io/blkif.h": {"blkif_sector_t": TYPE, "blkif_vdev_t": TYPE},
    "io/cameraif.h": {
        "XENCAMERA_IN_RING": "is a pointer at XENCAMERA_IN_RING_OFFS",
        "XENCAMERA_IN_RING_REF": "is a pointer at XENCAMERA_IN_RING_OFFS",
    },
    "io/displif.h": {
        "XENDISPL_IN_RING": "is a pointer at XENDISPL_IN_RING_OFFS",
        "XENDISPL_IN_RING_REF": "is a pointer at XENDISPL_IN_RING_OFFS",
    },
    "io/fbif.h": {
        "XENFB_DEPTH": "is for Linux kernels only",
        "XENFB_HEIGHT": "is for Linux kernels only",
        "XENFB_WIDTH": "is for Linux kernels only",
        "XENFB_IN_RING": "is a pointer at XENFB_IN_RING_OFFS",
        "XENFB_IN_RING_REF": "is a pointer at XENFB_IN_RING_OFFS",
        "XENFB_OUT_RING": "is a pointer at XENFB_OUT_RING_OFFS",
        "XENFB_OUT_RING_REF": "is a pointer at XENFB_OUT_RING_OFFS",
    },
    "io/kbdif.h": {
        "XENKBD_IN_RING": "is a pointer at XENKBD_IN_RING_OFFS",
        "XENKBD_IN_RING_REF": "is a pointer at XENKBD_IN_RING_OFFS",
        "XENKBD_OUT_RING": "is a pointer at XENKBD_OUT_RING_OFFS",
        "XENKBD_OUT_RING_REF": "is a pointer at XENKBD_OUT_RING_OFFS",
    },
    "io/sndif.h": {
        "XENSND_IN_RING": "is a pointer at XENSND_IN_RING_OFFS",
        "XENSND_IN_RING_REF": "is a pointer at XENSND_IN_RING_OFFS",
    },
    "io/xs_wire.h": {"XSD_ERROR": C_ONLY, "xsd_errors": "is the table that XSD_ERRORS stands for"},
    "kexec.h": {"xen_kexec_load_t": COMPAT},
    "memory.h": {
        "XENMEM_SHARING_OP_FIELD_MAKE_GREF": "writes a member through a pointer",
        "XENMEM_add_to_physmap_range": COMPAT,
        "xen_add_to_physmap_range": COMPAT,
        "uint64_aligned_t": TYPE,
    },
    "nmi.h": {"XEN_NMIREASON_parity_error": COMPAT, "_XEN_NMIREASON_parity_error": COMPAT},
    "physdev.h": {
        "PHYSDEVOP_APIC_READ": COMPAT,
        "PHYSDEVOP_APIC_WRITE": COMPAT,
        "PHYSDEVOP_ASSIGN_VECTOR": COMPAT,
        "PHYSDEVOP_FREE_VECTOR": COMPAT,
        "PHYSDEVOP_IRQ_NEEDS_UNMASK_NOTIFY": COMPAT,
        "PHYSDEVOP_IRQ_SHARED": COMPAT,
        "PHYSDEVOP_IRQ_STATUS_QUERY": COMPAT,
        "PHYSDEVOP_SET_IOBITMAP": COMPAT,
        "PHYSDEVOP_SET_IOPL": COMPAT,
    },
    "platform.h": {"xenpf_settime": "is another name of xenpf_settime64"},
    "sysctl.h": {
        "LIVEPATCH_FUNC_APPLIED": INTERNAL,
        "LIVEPATCH_FUNC_NOT_APPLIED": INTERNAL,
        "LIVEPATCH_OPAQUE_SIZE": INTERNAL,
        "livepatch_expectation": INTERNAL,
        "livepatch_func": INTERNAL,
    },
    "tmem.h": {"TMEM_NEW_PAGE": COMPAT, "TMEM_READ": COMPAT, "TMEM_WRITE": COMPAT, "TMEM_XCHG": COMPAT},
    "trace.h": {"TRC_SCHED_CLASS_EVT": "pastes C tokens together"},
    "xsm/flask_op.h": {"xen_flask_userlist": COMPAT},
    "xen-compat.h": {"COMPAT_FLEX_ARRAY_DIM": C_ONLY},
    "xen.h": {
        "MAX_VMASST_TYPE": COMPAT,
        "NR_EVENT_CHANNELS": COMPAT,
        "__HYPERVISOR_dom0_op": COMPAT,
        "console_evtchn": COMPAT,
        "console_mfn": COMPAT,
        "XEN_DEFINE_UUID": "is uuid.UUID(...).bytes",
        "XEN_DEFINE_UUID_": "is uuid.UUID(...).bytes",
        "XEN_FLEX_ARRAY_DIM": C_ONLY,
        "XEN_GUEST_HANDLE_64": TYPE,
        "__xen_mk_uint": C_ONLY,
        "__xen_mk_ulong": C_ONLY,
        "__xen_mk_ullong": C_ONLY,
        "xen_mk_uint": C_ONLY,
        "xen_mk_ulong": C_ONLY,
        "xen_mk_ullong": C_ONLY,
        "int64_aligned_t": TYPE,
        "uint64_aligned_t": TYPE,
        "xen_vga_console_info": "is another name of dom0_vga_console_info",
        "xen_vga_console_info_t": "is another name of dom0_vga_console_info",
        "xen_wc_sec_hi": "is another name of the member wc_sec_hi",
    },
}
"""Header → what of it is left out, and why."""


def source(header: str) -> str:
    """Return the text of a header without comments and continuation lines."""
    text = (INCLUDE / header).read_text()
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    return text.replace("\\\n", " ")


def macros(text: str) -> set[str]:
    """Return the names of the macros without parameters that stand for something."""
    return set(re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+\S", text, flags=re.MULTILINE))


def function_macros(text: str) -> set[str]:
    return set(re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)\(", text, flags=re.MULTILINE))


def enumerators(text: str) -> set[str]:
    found = set()
    for body in re.findall(r"\benum\b[^;{]*\{([^}]*)\}", text):
        found |= set(re.findall(r"^\s*(\w+)", "\n".join(body.split(",")), flags=re.MULTILINE))
    return found


def tags(text: str) -> set[str]:
    """Return the names of the structures and unions that are defined, at any depth."""
    return set(re.findall(r"\b(?:struct|union)\s+(\w+)\s*\{", text))


@pytest.mark.parametrize(("module", "header"), [(m, header) for m, headers in HEADERS.items() for header in headers])
def test_nothing_of_a_header_is_missing(module: str, header: str) -> None:
    require_headers()
    text = source(header)
    assert len(text) > 100
    there = set(constants(module)) | set(layouts(module))
    there |= {name for name in vars(load(module)) if callable(getattr(load(module), name))}
    if header == "errno.h":
        text = re.sub(r"^\s*XEN_ERRNO\((\w+),.*", r"#define \1 0", text, flags=re.MULTILINE)
    if header == "arch-x86/cpufeatureset.h":
        # Which features there are, updates decide: see `xen_headers.constants`.
        text = text[: text.index("enum {")]
    defined = macros(text) | function_macros(text) | enumerators(text) | tags(text)
    omitted = set(OMITTED.get(header, {}))
    assert sorted(defined - there - omitted) == []
    assert sorted(omitted - defined) == [], "these are not in the header at all"
    assert sorted(omitted & there) == [], "these are not left out"
