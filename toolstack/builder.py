"""The PV domain builder (libxc's part): memory, program, page tables and registers of a new domain.

Everything is done from dom0 with the means that dom0 has: pages are given to the new domain by populate_physmap, mapped
as foreign pages, filled, unmapped, and the page tables pinned, so that Xen validates every entry before the domain
runs for the first time. All calls carry as much as they can; a domain of a few MiB takes less than 30 hypercalls.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from functools import lru_cache

import attrs

from guest_kernel.image import PythonKernelImage
from guest_kernel.mm import PAGE_SHIFT, PAGE_SIZE, ForeignMapping
from hypervisor.abi import pv_layout, xen
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from toolstack.errors import ToolstackError
from toolstack.nodes import DOM0
from toolstack.xc import Xc
from toolstack.xl_config import DomainConfig

PAGES_PER_MIB = 256
MAGIC = b"xen-3.0-x86_64"
RFLAGS_IF = 1 << 9
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
        self._layouts: dict[tuple[int, int, int], pv_layout.PvLayout] = {}

    def build(
        self, domid: int, image: PythonKernelImage, config: DomainConfig, *, store_port: int, console_port: int
    ) -> Built:
        """Fill a domain that has vCPUs and a memory limit, and nothing else yet.

        Raises XenError, and ToolstackError when the domain is too small for its kernel.
        """
        xc = self._xc
        layout = self._layout(image, config)
        p2m = xc.populate_physmap(domid, 0, layout.nr_pages)
        assert layout.xenstore is not None
        assert layout.console is not None
        built = Built(layout, p2m[layout.xenstore], p2m[layout.console])
        info = xc.domain_info(domid)
        assert info is not None
        start_info = self._start_info(layout, config, built, info.shared_info_frame << 12, store_port, console_port)
        # One window over everything that is loaded, and gone before Xen looks at the page tables: a frame that
        # somebody can write to is no page table.
        mapping = xc.map_foreign(domid, p2m[: layout.tables.end])
        try:
            self._fill(mapping, layout, p2m, image, start_info)
        finally:
            xc.unmap(mapping)
        root = p2m[layout.tables.pfn]
        xc.pin_l4(domid, root)
        xc.seed_grants(
            domid,
            (
                (GNTTAB_RESERVED_CONSOLE, DOM0, built.console_mfn),
                (GNTTAB_RESERVED_XENSTORE, DOM0, built.store_mfn),
            ),
        )
        xc.set_vcpu_context(domid, 0, boot_context(image.virt_entry, layout, root))
        return built

    def _layout(self, image: PythonKernelImage, config: DomainConfig) -> pv_layout.PvLayout:
        ((start, contents),) = kernel_segments(image)
        end = start + len(contents)
        key = (start, end, config.memory)
        layout = self._layouts.get(key)
        if layout is None:
            try:
                layout = pv_layout.compute(image.virt_base, start, end, config.memory * PAGES_PER_MIB)
            except pv_layout.LayoutError as error:
                raise ToolstackError(str(config.error("memory", f"too little memory: {error}"))) from None
            self._layouts[key] = layout
        return layout

    @staticmethod
    def _start_info(
        layout: pv_layout.PvLayout,
        config: DomainConfig,
        built: Built,
        shared_info: int,
        store_port: int,
        console_port: int,
    ) -> bytes:
        return xen.start_info.pack(
            magic=MAGIC,
            nr_pages=layout.nr_pages,
            shared_info=shared_info,
            store_mfn=built.store_mfn,
            store_evtchn=store_port,
            console={"domU": {"mfn": built.console_mfn, "evtchn": console_port}},
            pt_base=layout.va(layout.tables.pfn),
            nr_pt_frames=layout.tables.pages,
            mfn_list=layout.va(layout.p2m.pfn),
            cmd_line=config.cmdline.encode(),
        )

    @staticmethod
    def _fill(
        mapping: ForeignMapping,
        layout: pv_layout.PvLayout,
        p2m: Sequence[int],
        image: PythonKernelImage,
        start_info: bytes,
    ) -> None:
        """Write what is loaded into the new domain's pages, by pfn."""
        for address, contents in kernel_segments(image):
            pfn = address - image.virt_base >> PAGE_SHIFT
            for index in range(len(contents) >> PAGE_SHIFT):
                mapping[pfn + index][:] = contents[index << PAGE_SHIFT : (index + 1) << PAGE_SHIFT]
        frames = memoryview(array("Q", p2m)).cast("B")
        for index in range(layout.p2m.pages):
            part = frames[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            mapping[layout.p2m.pfn + index][: len(part)] = part
        mapping[layout.start_info][: len(start_info)] = start_info
        for page in (layout.xenstore, layout.console):
            assert page is not None
            mapping[page][:] = _ZERO
        for pfn, entries in pv_layout.build_tables(layout, p2m):
            mapping[pfn][:] = memoryview(entries).cast("B")


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
