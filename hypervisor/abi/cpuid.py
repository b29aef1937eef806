"""CPUID leaves of the hypervisor (arch-x86/cpuid.h): how a guest finds out that it runs on Xen.

The leaves begin at 0x40000000 (or a multiple of 0x100 above, if another hypervisor's interface is shown first).
"""

# arch-x86/cpuid.h, leaf 1: the greatest leaf in eax and "XenVMMXenVMM" in the other registers.
XEN_CPUID_FIRST_LEAF = 0x40000000

XEN_CPUID_SIGNATURE_EBX = 0x566E6558
XEN_CPUID_SIGNATURE_ECX = 0x65584D4D
XEN_CPUID_SIGNATURE_EDX = 0x4D4D566E

# Leaf 3: number of hypercall pages in eax, base of Xen's MSRs in ebx, features in ecx.
_XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 0
XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 << 0

# Leaf 5: features of HVM guests.
XEN_HVM_CPUID_APIC_ACCESS_VIRT = 1 << 0
XEN_HVM_CPUID_X2APIC_VIRT = 1 << 1
XEN_HVM_CPUID_IOMMU_MAPPINGS = 1 << 2
XEN_HVM_CPUID_VCPU_ID_PRESENT = 1 << 3
XEN_HVM_CPUID_DOMID_PRESENT = 1 << 4
XEN_HVM_CPUID_EXT_DEST_ID = 1 << 5
XEN_HVM_CPUID_UPCALL_VECTOR = 1 << 6

# Leaf 6: parameters of PV guests.
XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK = 0xFF << 0

# Number of the last leaf.
XEN_CPUID_MAX_NUM_LEAVES = 5


def XEN_CPUID_LEAF(index: int) -> int:
    """Return the CPUID leaf number of the n-th leaf of Xen's interface."""
    return XEN_CPUID_FIRST_LEAF + index
