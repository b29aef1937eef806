"""PCI devices passed through (io/pciif.h): configuration space and MSI, by way of one shared page.

There is no ring: the frontend puts one operation into the page, sets a flag, and notifies; the backend clears the flag.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# io/pciif.h: version of the protocol; flags that say whose turn it is.
XEN_PCI_MAGIC = "7"
_XEN_PCIF_active = 0
XEN_PCIF_active = 1 << _XEN_PCIF_active
_XEN_PCIB_AERHANDLER = 1
XEN_PCIB_AERHANDLER = 1 << _XEN_PCIB_AERHANDLER
_XEN_PCIB_active = 2
XEN_PCIB_active = 1 << _XEN_PCIB_active

# Operations.
XEN_PCI_OP_conf_read = 0
XEN_PCI_OP_conf_write = 1
XEN_PCI_OP_enable_msi = 2
XEN_PCI_OP_disable_msi = 3
XEN_PCI_OP_enable_msix = 4
XEN_PCI_OP_disable_msix = 5
XEN_PCI_OP_aer_detected = 6
XEN_PCI_OP_aer_resume = 7
XEN_PCI_OP_aer_mmio = 8
XEN_PCI_OP_aer_slotreset = 9
XEN_PCI_OP_enable_multi_msi = 10

# Results.
XEN_PCI_ERR_success = 0
XEN_PCI_ERR_dev_not_found = -1
XEN_PCI_ERR_invalid_offset = -2
XEN_PCI_ERR_access_denied = -3
XEN_PCI_ERR_not_implemented = -4
XEN_PCI_ERR_op_failed = -5

# Most vectors of one operation.
SH_INFO_MAX_VEC = 128

# An operation with its result.
xen_msix_entry = Layout(
    "xen_msix_entry",
    ("uint16_t", "vector"),
    ("uint16_t", "entry"),
)


xen_pci_op = Layout(
    "xen_pci_op",
    ("uint32_t", "cmd"),
    ("int32_t", "err"),
    ("uint32_t", "domain"),
    ("uint32_t", "bus"),
    ("uint32_t", "devfn"),
    ("int32_t", "offset"),
    ("int32_t", "size"),
    ("uint32_t", "value"),
    ("uint32_t", "info"),
    (xen_msix_entry, "msix_entries", SH_INFO_MAX_VEC),
)


# An error that the device reports, on its way to the guest.
xen_pcie_aer_op = Layout(
    "xen_pcie_aer_op",
    ("uint32_t", "cmd"),
    ("int32_t", "err"),
    ("uint32_t", "domain"),
    ("uint32_t", "bus"),
    ("uint32_t", "devfn"),
)


# The shared page.
xen_pci_sharedinfo = Layout(
    "xen_pci_sharedinfo",
    ("uint32_t", "flags"),
    (xen_pci_op, "op"),
    (xen_pcie_aer_op, "aer_op"),
)


NAMES = names(globals(), r"XEN_PCI_OP_\w+")
"""Operations by number."""

ERR_NAMES = names(globals(), r"XEN_PCI_ERR_\w+")
"""Results by number."""
