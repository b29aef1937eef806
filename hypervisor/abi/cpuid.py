"""CPUID leaves of the hypervisor (arch-x86/cpuid.h): how a guest finds out that it runs on Xen.

The leaves begin at 0x40000000 (or a multiple of 0x100 above, if another hypervisor's interface is shown first).
"""

XEN_CPUID_FIRST_LEAF = 0x40000000

XEN_CPUID_SIGNATURE_EBX = 0x566E6558
XEN_CPUID_SIGNATURE_ECX = 0x65584D4D
XEN_CPUID_SIGNATURE_EDX = 0x4D4D566E

_XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 0
XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 << 0

XEN_HVM_CPUID_APIC_ACCESS_VIRT = 1 << 0
XEN_HVM_CPUID_X2APIC_VIRT = 1 << 1

XEN_HVM_CPUID_IOMMU_MAPPINGS = 1 << 2
XEN_HVM_CPUID_VCPU_ID_PRESENT = 1 << 3
XEN_HVM_CPUID_DOMID_PRESENT = 1 << 4

XEN_HVM_CPUID_EXT_DEST_ID = 1 << 5

XEN_HVM_CPUID_UPCALL_VECTOR = 1 << 6

XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK = 0xFF << 0

XEN_CPUID_MAX_NUM_LEAVES = 5


def XEN_CPUID_LEAF(index: int) -> int:
    """Return the CPUID leaf number of the n-th leaf of Xen's interface."""
    return XEN_CPUID_FIRST_LEAF + index
