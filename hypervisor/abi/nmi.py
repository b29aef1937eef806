"""Non-maskable interrupts (nmi.h): callback registration and the reason bits in arch_shared_info."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# nmi.h: bits of arch_shared_info.nmi_reason (dom0).
_XEN_NMIREASON_io_error = 0
XEN_NMIREASON_io_error = 1 << _XEN_NMIREASON_io_error
_XEN_NMIREASON_pci_serr = 1
XEN_NMIREASON_pci_serr = 1 << _XEN_NMIREASON_pci_serr
_XEN_NMIREASON_unknown = 2
XEN_NMIREASON_unknown = 1 << _XEN_NMIREASON_unknown

# Operations.
XENNMI_register_callback = 0

xennmi_callback = Layout(
    "xennmi_callback",
    ("unsigned long", "handler_address"),
    ("unsigned long", "pad"),
)

XENNMI_unregister_callback = 1

NAMES = names(globals(), r"XENNMI_\w+")
"""Operations by number."""
