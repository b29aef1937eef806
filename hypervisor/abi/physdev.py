"""Physical devices (physdev.h): how dom0 and driver domains get at interrupts, I/O ports and PCI devices.

A physical interrupt line is first mapped to a PIRQ, then bound to an event channel with EVTCHNOP_bind_pirq; the
guest says PHYSDEVOP_eoi when Xen's answer to PHYSDEVOP_irq_status_query demands it.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# physdev.h: acknowledge a physical interrupt.
PHYSDEVOP_eoi = 12

physdev_eoi = Layout("physdev_eoi", ("uint32_t", "irq"))

# Share a bitmap that tells which PIRQs need PHYSDEVOP_eoi. Version 2 does not imply an unmask.
PHYSDEVOP_pirq_eoi_gmfn_v1 = 17
PHYSDEVOP_pirq_eoi_gmfn_v2 = 28

physdev_pirq_eoi_gmfn = Layout("physdev_pirq_eoi_gmfn", ("xen_pfn_t", "gmfn"))

# Whether a PIRQ needs PHYSDEVOP_eoi, and whether it is shared.
PHYSDEVOP_irq_status_query = 5

physdev_irq_status_query = Layout(
    "physdev_irq_status_query",
    ("uint32_t", "irq"),
    ("uint32_t", "flags"),
)

_XENIRQSTAT_needs_eoi = 0
XENIRQSTAT_needs_eoi = 1 << _XENIRQSTAT_needs_eoi
_XENIRQSTAT_shared = 1
XENIRQSTAT_shared = 1 << _XENIRQSTAT_shared

# Set the I/O privilege level of the calling vCPU.
PHYSDEVOP_set_iopl = 6

physdev_set_iopl = Layout("physdev_set_iopl", ("uint32_t", "iopl"))

# Give the calling vCPU a bitmap of permitted I/O ports.
PHYSDEVOP_set_iobitmap = 7

physdev_set_iobitmap = Layout(
    "physdev_set_iobitmap",
    ("XEN_GUEST_HANDLE(uint8)", "bitmap"),
    ("uint32_t", "nr_ports"),
)

# Read and write an I/O APIC's registers.
PHYSDEVOP_apic_read = 8
PHYSDEVOP_apic_write = 9

physdev_apic = Layout(
    "physdev_apic",
    ("unsigned long", "apic_physbase"),
    ("uint32_t", "reg"),
    ("uint32_t", "value"),
)

# Allocate an interrupt vector (without effect today).
PHYSDEVOP_alloc_irq_vector = 10
PHYSDEVOP_free_irq_vector = 11

physdev_irq = Layout(
    "physdev_irq",
    ("uint32_t", "irq"),
    ("uint32_t", "vector"),
)

# Map a line or a message-signalled interrupt of a device to a PIRQ.
MAP_PIRQ_TYPE_MSI = 0x0
MAP_PIRQ_TYPE_GSI = 0x1
MAP_PIRQ_TYPE_UNKNOWN = 0x2
MAP_PIRQ_TYPE_MSI_SEG = 0x3
MAP_PIRQ_TYPE_MULTI_MSI = 0x4

PHYSDEVOP_map_pirq = 13

physdev_map_pirq = Layout(
    "physdev_map_pirq",
    ("domid_t", "domid"),
    ("int", "type"),
    ("int", "index"),
    ("int", "pirq"),
    ("int", "bus"),
    ("int", "devfn"),
    ("int", "entry_nr"),
    ("uint64_t", "table_base"),
)

# Undo that.
PHYSDEVOP_unmap_pirq = 14

physdev_unmap_pirq = Layout(
    "physdev_unmap_pirq",
    ("domid_t", "domid"),
    ("int", "pirq"),
)

# Tell Xen of PCI devices, the old way: without a segment.
PHYSDEVOP_manage_pci_add = 15
PHYSDEVOP_manage_pci_remove = 16

physdev_manage_pci = Layout(
    "physdev_manage_pci",
    ("uint8_t", "bus"),
    ("uint8_t", "devfn"),
)

# Restore message-signalled interrupts after a resume.
PHYSDEVOP_restore_msi = 19

physdev_restore_msi = Layout(
    "physdev_restore_msi",
    ("uint8_t", "bus"),
    ("uint8_t", "devfn"),
)

# The same with functions of extended and virtual devices.
PHYSDEVOP_manage_pci_add_ext = 20

physdev_manage_pci_ext = Layout(
    "physdev_manage_pci_ext",
    ("uint8_t", "bus"),
    ("uint8_t", "devfn"),
    ("uint32_t", "is_extfn"),
    ("uint32_t", "is_virtfn"),
    (
        Layout(
            "physfn",
            ("uint8_t", "bus"),
            ("uint8_t", "devfn"),
        ),
        "physfn",
    ),
)

# The argument of the old hypercall (physdev_op_compat).
physdev_op = Layout(
    "physdev_op",
    ("uint32_t", "cmd"),
    (
        Union(
            "u",
            (physdev_irq_status_query, "irq_status_query"),
            (physdev_set_iopl, "set_iopl"),
            (physdev_set_iobitmap, "set_iobitmap"),
            (physdev_apic, "apic_op"),
            (physdev_irq, "irq_op"),
        ),
        "u",
    ),
)

# Set trigger and polarity of a global system interrupt.
PHYSDEVOP_setup_gsi = 21

physdev_setup_gsi = Layout(
    "physdev_setup_gsi",
    ("int", "gsi"),
    ("uint8_t", "triggering"),
    ("uint8_t", "polarity"),
)

# Reserve a PIRQ.
PHYSDEVOP_get_free_pirq = 23

physdev_get_free_pirq = Layout(
    "physdev_get_free_pirq",
    ("int", "type"),
    ("uint32_t", "pirq"),
)

# Tell Xen that firmware reserves a PCI configuration window.
XEN_PCI_MMCFG_RESERVED = 0x1

PHYSDEVOP_pci_mmcfg_reserved = 24

physdev_pci_mmcfg_reserved = Layout(
    "physdev_pci_mmcfg_reserved",
    ("uint64_t", "address"),
    ("uint16_t", "segment"),
    ("uint8_t", "start_bus"),
    ("uint8_t", "end_bus"),
    ("uint32_t", "flags"),
)

# Tell Xen of PCI devices, the new way.
XEN_PCI_DEV_EXTFN = 0x1
XEN_PCI_DEV_VIRTFN = 0x2
XEN_PCI_DEV_PXM = 0x4

PHYSDEVOP_pci_device_add = 25

physdev_pci_device_add = Layout(
    "physdev_pci_device_add",
    ("uint16_t", "seg"),
    ("uint8_t", "bus"),
    ("uint8_t", "devfn"),
    ("uint32_t", "flags"),
    (
        Layout(
            "physfn",
            ("uint8_t", "bus"),
            ("uint8_t", "devfn"),
        ),
        "physfn",
    ),
    ("uint32_t", "optarr", 0),
)

# Operations on a device by its address alone.
PHYSDEVOP_pci_device_remove = 26
PHYSDEVOP_restore_msi_ext = 27
PHYSDEVOP_prepare_msix = 30
PHYSDEVOP_release_msix = 31

physdev_pci_device = Layout(
    "physdev_pci_device",
    ("uint16_t", "seg"),
    ("uint8_t", "bus"),
    ("uint8_t", "devfn"),
)

# The USB debug port is about to be reset, or was.
PHYSDEVOP_DBGP_RESET_PREPARE = 1
PHYSDEVOP_DBGP_RESET_DONE = 2
PHYSDEVOP_DBGP_BUS_UNKNOWN = 0
PHYSDEVOP_DBGP_BUS_PCI = 1
PHYSDEVOP_dbgp_op = 29

physdev_dbgp_op = Layout(
    "physdev_dbgp_op",
    ("uint8_t", "op"),
    ("uint8_t", "bus"),
    (Union("u", (physdev_pci_device, "pci")), "u"),
)

# Old flag, and the current name of the EOI bitmap's call.
PHYSDEVOP_IRQ_UNMASK_NOTIFY = 4
PHYSDEVOP_pirq_eoi_gmfn = PHYSDEVOP_pirq_eoi_gmfn_v2

NAMES = names(globals(), r"PHYSDEVOP_(?!IRQ_|DBGP_)\w+(?<!gmfn)")
"""Operations by number."""
