"""The PV domain builder (libxc's part): memory, program, page tables and registers of a new domain.

Everything is done from dom0 with the means that dom0 has: pages are given to the new domain by populate_physmap, mapped
as foreign pages, filled, unmapped, and the page tables pinned, so that Xen validates every entry before the domain
runs for the first time. All calls carry as much as they can; a domain of a few MiB takes less than 30 hypercalls.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

import attrs

from guest_kernel.image import PythonKernelImage
from guest_kernel.mm import PAGE_SHIFT, PAGE_SIZE, neighbours
from hypervisor.abi import pv_layout, xen
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from hypervisor.kernel_image import LoadSegment, PvKernel
from toolstack.errors import ToolstackError
from toolstack.guest_pages import GuestPages
from toolstack.nodes import DOM0
from toolstack.xc import Xc
from toolstack.xl_config import DomainConfig

PAGES_PER_MIB = 256
MAGIC = b"xen-3.0-x86_64"
RFLAGS_IF = 1 << 9
WINDOW_PAGES = 1024
"""How many pages of a new domain are mapped at a time, to be filled."""
UD2 = b"\x0f\x0b"
"""The instruction that is never valid: what a processor finds where the code of a Python kernel would be."""
STUB_BANNER = b"\0paravirt: the code of this kernel is Python: "

_ZERO = bytes(PAGE_SIZE)


@attrs.frozen
class Built:
    """A domain that is ready to run, but for devices."""

    layout: pv_layout.PvLayout
    store_mfn: int
    console_mfn: int


class PvBuilder:
    """Builds 64-bit PV domains."""

    def __init__(self, xc: Xc) -> None:
        self._xc = xc
        self._layouts: dict[tuple[object, ...], pv_layout.PvLayout] = {}

    def build(
        self,
        domid: int,
        kernel: PvKernel,
        config: DomainConfig,
        *,
        store_port: int,
        console_port: int,
        ramdisk: bytes | None = None,
    ) -> Built:
        """Fill a domain that has vCPUs and a memory limit, and nothing else yet.

        Raises XenError, and ToolstackError when the domain is too small for its kernel.
        """
        xc = self._xc
        layout = self._layout(kernel, config, len(ramdisk or b""))
        p2m = xc.populate_physmap(domid, 0, layout.nr_pages)
        assert layout.xenstore is not None
        assert layout.console is not None
        built = Built(layout, p2m[layout.xenstore], p2m[layout.console])
        info = xc.domain_info(domid)
        assert info is not None
        pages = GuestPages()
        self._fill(pages, layout, p2m, kernel, ramdisk)
        start_info = _start_info(
            layout, config, built, info.shared_info_frame << 12, store_port, console_port, len(ramdisk or b"")
        )
        pages.write(layout.start_info << PAGE_SHIFT, start_info)
        self._copy(domid, p2m, pages)
        if kernel.hypercall_page is not None:
            xc.hypercall_init(domid, p2m[kernel.hypercall_page - kernel.virt_base >> PAGE_SHIFT])
        root = p2m[layout.tables.pfn]
        xc.pin_l4(domid, root)
        xc.seed_grants(
            domid,
            (
                (GNTTAB_RESERVED_CONSOLE, DOM0, built.console_mfn),
                (GNTTAB_RESERVED_XENSTORE, DOM0, built.store_mfn),
            ),
        )
        xc.set_vcpu_context(domid, 0, boot_context(kernel.virt_entry, layout, root))
        return built

    def _layout(self, kernel: PvKernel, config: DomainConfig, module_size: int) -> pv_layout.PvLayout:
        start, end, base = kernel.start, kernel.end, kernel.virt_base
        key = (base, start, end, config.memory, module_size, kernel.unmapped_module, kernel.p2m_base)
        layout = self._layouts.get(key)
        if layout is None:
            try:
                layout = layout_of(kernel, config.memory, module_size)
            except pv_layout.LayoutError as error:
                raise ToolstackError(str(config.error("memory", f"too little memory: {error}"))) from None
            self._layouts[key] = layout
        page = kernel.hypercall_page
        if page is not None and not 0 <= page - base < layout.nr_pages << PAGE_SHIFT:
            message = f"the kernel wants its hypercall page at {page:#x}, outside of its domain"
            raise ToolstackError(str(config.error("kernel", message)))
        return layout

    @staticmethod
    def _fill(
        pages: GuestPages, layout: pv_layout.PvLayout, p2m: Sequence[int], kernel: PvKernel, ramdisk: bytes | None
    ) -> None:
        """Put what is loaded into the new domain's pages."""
        for segment in kernel.segments:
            offset = segment.address - layout.virt_base
            pages.write(offset, segment.contents)
            pages.clear(offset + len(segment.contents), segment.size - len(segment.contents))
        if layout.module is not None and ramdisk:
            pages.write(layout.module.pfn << PAGE_SHIFT, ramdisk)
        pages.write(layout.p2m.pfn << PAGE_SHIFT, memoryview(array("Q", p2m)).cast("B"))
        for page in (layout.xenstore, layout.console):
            assert page is not None
            pages.write(page << PAGE_SHIFT, _ZERO)
        for pfn, entries in pv_layout.build_tables(layout, p2m):
            pages.write(pfn << PAGE_SHIFT, memoryview(entries).cast("B"))

    def _copy(self, domid: int, p2m: Sequence[int], pages: GuestPages) -> None:
        """Write pages into the domain, a window at a time.

        All windows are gone before Xen looks at the page tables: a frame that somebody can write to is no page table.
        """
        pfns = pages.pfns()
        for first in range(0, len(pfns), WINDOW_PAGES):
            window = pfns[first : first + WINDOW_PAGES]
            mapping = self._xc.map_foreign(domid, [p2m[pfn] for pfn in window])
            try:
                at = 0
                for piece in mapping.pieces:
                    size = len(piece) >> PAGE_SHIFT
                    for index, count in neighbours(window[at : at + size]):
                        pages.fill(window[at + index], piece[index << PAGE_SHIFT : index + count << PAGE_SHIFT])
                    at += size
            finally:
                self._xc.unmap(mapping)


def _start_info(
    layout: pv_layout.PvLayout,
    config: DomainConfig,
    built: Built,
    shared_info: int,
    store_port: int,
    console_port: int,
    ramdisk_size: int,
) -> bytes:
    flags = mod_start = mod_len = 0
    if layout.module is not None:
        mod_start, mod_len = layout.va(layout.module.pfn), ramdisk_size
        if not layout.module_is_mapped:
            # The kernel finds it by frame number, and is told whole pages.
            flags = xen.SIF_MOD_START_PFN
            mod_start, mod_len = layout.module.pfn, layout.module.pages << PAGE_SHIFT
    return xen.start_info.pack(
        magic=MAGIC,
        nr_pages=layout.nr_pages,
        shared_info=shared_info,
        flags=flags,
        store_mfn=built.store_mfn,
        store_evtchn=store_port,
        console={"domU": {"mfn": built.console_mfn, "evtchn": console_port}},
        pt_base=layout.va(layout.tables.pfn),
        nr_pt_frames=layout.tables.pages,
        mfn_list=layout.p2m_address,
        mod_start=mod_start,
        mod_len=mod_len,
        cmd_line=config.cmdline.encode(),
        first_p2m_pfn=layout.p2m.pfn if layout.p2m_is_elsewhere else 0,
        nr_p2m_frames=layout.p2m.pages + layout.p2m_tables.pages if layout.p2m_is_elsewhere else 0,
    )


def layout_of(kernel: PvKernel, memory: int, module_size: int = 0) -> pv_layout.PvLayout:
    """Lay a domain of `memory` MiB out. Raises LayoutError."""
    return pv_layout.compute(
        kernel.virt_base,
        kernel.start,
        kernel.end,
        memory * PAGES_PER_MIB,
        module_size=module_size,
        module_is_mapped=not kernel.unmapped_module,
        p2m_base=kernel.p2m_base,
    )


def check_size(kernel: PvKernel, config: DomainConfig, module_size: int = 0) -> None:
    """Raise `ConfigError` if a domain has so much memory that its kernel could not begin to map the list of it."""

    def is_too_large(memory: int) -> bool:
        try:
            layout_of(kernel, memory, module_size)
        except pv_layout.AddressSpaceError:
            return True
        except pv_layout.LayoutError:
            return False  # too small, or the kernel is at fault: said when it is built
        return False

    if is_too_large(config.memory):
        room = bisect_left(range(config.memory), True, key=is_too_large) - 1
        message = (
            "too much memory: the list of its pages must lie in what a guest maps at first, and there this kernel has "
            f"room for that of {room} MiB"
        )
        raise config.error("memory", message)


def python_kernel(image: PythonKernelImage) -> PvKernel:
    """Return what a Python kernel is to a domain builder: addresses, and a few pages to load."""
    segments = tuple(LoadSegment(address, data, len(data)) for address, data in kernel_segments(image))
    return PvKernel(virt_base=image.virt_base, virt_entry=image.virt_entry, segments=segments)


def kernel_segments(image: PythonKernelImage) -> list[tuple[int, bytes]]:
    """Return what of a Python kernel lies in memory, as (address, contents) in whole pages.

    The pages cover all addresses at which the processor enters the kernel. There is no machine code in them; they say
    so to whoever looks, and to a processor that would execute them.
    """
    size = PAGE_SIZE * pv_layout.pages_of(max(image.symbols.values()) + 1 - image.virt_base)
    contents = bytearray(size)
    stub = UD2 + STUB_BANNER + image.name.encode("utf-8", "replace")[:128]
    offset = image.virt_entry - image.virt_base
    contents[offset : offset + len(stub)] = stub
    return [(image.virt_base, bytes(contents))]


def boot_context(entry: int, layout: pv_layout.PvLayout, root: int) -> bytes:
    """Return the vcpu_guest_context with which the boot vCPU starts: rsi points to start_info (xen.h)."""
    context = bytearray(_context_without_root(entry, layout.stack_pointer, layout.va(layout.start_info)))
    struct.pack_into("<Q", context, _CR3, root << PAGE_SHIFT)
    return bytes(context)


_CR3 = xen.vcpu_guest_context.offset("ctrlreg[3]")


@lru_cache(maxsize=64)
def _context_without_root(entry: int, stack_pointer: int, start_info: int) -> bytes:
    return xen.vcpu_guest_context.pack(
        flags=xen.VGCF_in_kernel | xen.VGCF_online,
        user_regs={
            "rip": entry,
            "rsp": stack_pointer,
            "rsi": start_info,
            "rflags": RFLAGS_IF,
            "cs": xen.FLAT_KERNEL_CS,
            "ss": xen.FLAT_KERNEL_SS,
            "ds": xen.FLAT_KERNEL_DS,
            "es": xen.FLAT_KERNEL_DS,
            "fs": xen.FLAT_KERNEL_DS,
            "gs": xen.FLAT_KERNEL_DS,
        },
        kernel_ss=xen.FLAT_KERNEL_SS,
        kernel_sp=stack_pointer,
    )
