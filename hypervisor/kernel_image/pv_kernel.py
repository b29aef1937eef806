"""From an ELF file and its notes to a kernel that can be loaded: addresses, contents, wishes.

Virtual addresses come from the physical ones of the program headers: vaddr = paddr - PADDR_OFFSET + VIRT_BASE.
"""

from __future__ import annotations

import attrs

from hypervisor.abi.features import XENFEAT_dom0
from hypervisor.kernel_image.elf import Elf, ImageError
from hypervisor.kernel_image.notes import GuestInfo, guest_info

_LOADER, _GUEST_OS, _XEN_VERSION = "generic", "linux", "xen-3.0"
"""How LOADER or GUEST_OS, and XEN_VERSION, begin of a kernel that Xen loads."""


@attrs.frozen
class LoadSegment:
    """A part of a kernel: `contents` at `address`, then zeros up to `size` bytes."""

    address: int
    contents: bytes | memoryview = attrs.field(repr=False)
    size: int

    @property
    def end(self) -> int:
        """Return the address behind it."""
        return self.address + self.size


@attrs.frozen(kw_only=True)
class PvKernel:
    """A 64-bit PV kernel, ready to be put into a domain. Addresses are virtual."""

    virt_base: int
    """Where pseudo-physical frame 0 is mapped."""
    virt_entry: int
    segments: tuple[LoadSegment, ...]
    """In the order in which they are loaded."""
    hypercall_page: int | None = None
    """Where it wants the hypercall stubs."""
    p2m_base: int | None = None
    """Where it wants the p2m list, if not behind itself (INIT_P2M)."""
    unmapped_module: bool = False
    """It finds its ramdisk by frame number, and does not need it mapped (MOD_START_PFN)."""
    pae: bool = False
    """It says PAE_MODE: Xen shows it pae_pgdir_above_4gb, and a `p` in start_info's magic."""
    features_required: int = 0
    can_be_dom0: bool = True
    info: GuestInfo = attrs.field(factory=GuestInfo, repr=False)

    @property
    def start(self) -> int:
        """Return the lowest address that is loaded."""
        return min((segment.address for segment in self.segments), default=self.virt_base)

    @property
    def end(self) -> int:
        """Return the address behind everything that is loaded; a kernel without segments has one page."""
        return max((segment.end for segment in self.segments), default=self.virt_base + 4096)


def pv_kernel(elf: Elf) -> PvKernel:
    """Return what is to be loaded of an ELF file, and where. Raises ImageError."""
    info = guest_info(elf)
    _check_kind(info)
    if info.paddr_offset is not None and info.virt_base is None:
        raise ImageError("says PADDR_OFFSET in its notes, but not VIRT_BASE")
    virt_base = info.virt_base or 0
    paddr_offset = info.paddr_offset if info.paddr_offset is not None else (virt_base if info.is_legacy else 0)
    shift = virt_base - paddr_offset
    segments = tuple(
        LoadSegment(part.paddr + shift, elf.view(part), part.memory_size) for part in elf.segments if part.is_loadable
    )
    kernel = PvKernel(
        virt_base=virt_base,
        virt_entry=info.entry if info.entry is not None else elf.entry,
        segments=segments,
        hypercall_page=info.hypercall_page,
        p2m_base=info.init_p2m,
        unmapped_module=bool(info.mod_start_pfn),
        pae=info.pae,
        features_required=info.required,
        can_be_dom0=not info.says_supported or bool(info.supported >> XENFEAT_dom0 & 1),
        info=info,
    )
    _check_addresses(kernel)
    return kernel


def _check_kind(info: GuestInfo) -> None:
    if not info.loader.startswith(_LOADER) and not info.guest_os.startswith(_GUEST_OS):
        raise ImageError(
            f"is for the loader {info.loader!r} (guest OS {info.guest_os!r}); Xen loads what is for 'generic'"
        )
    if not info.xen_version.startswith(_XEN_VERSION):
        raise ImageError(f"is for Xen {info.xen_version!r}, not for 'xen-3.0'")


def _check_addresses(kernel: PvKernel) -> None:
    start, end = kernel.start, kernel.end
    if start < kernel.virt_base or end > 1 << 64:
        raise ImageError(f"has its kernel at {start:#x}-{end:#x}, outside of its base {kernel.virt_base:#x}")
    if sum(segment.size for segment in kernel.segments) > 2 * (end - start):
        # They are loaded one over the other; ten thousand of them would keep a builder busy for hours.
        raise ImageError("has program segments that, taken together, are more than twice as large as the kernel")
    if not start <= kernel.virt_entry <= end:
        raise ImageError(f"has its entry at {kernel.virt_entry:#x}, outside of the kernel at {start:#x}-{end:#x}")
    if kernel.p2m_base is not None and start <= kernel.p2m_base < end:
        raise ImageError(f"wants its p2m list at {kernel.p2m_base:#x}, in the midst of the kernel itself")
