"""Building dom0: the one domain that the hypervisor loads itself, when there is no toolstack yet.

As Xen's construct_dom0: memory, the layout of `abi.pv_layout` without rings for xenstore and console (dom0 runs their
servers), page tables with the root pinned and loaded, start_info, and the registers of vCPU 0. The domain stays paused
until whoever built it unpauses it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hypervisor.abi import pv_layout, xen
from hypervisor.abi.features import XENFEAT_supervisor_mode_kernel
from hypervisor.abi.tracepoints import VCPU_UP
from hypervisor.errors import InvariantError
from hypervisor.kernel_image import PvKernel
from hypervisor.mm.frame_table import PGT_l4_page_table
from hypervisor.mm.heap import MAX_ORDER, Extent
from hypervisor.mm.manager import hypercall_page
from hypervisor.vcpu import VPF_DOWN

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor

PAGE_SIZE, PAGE_SHIFT = 4096, 12
_MAGIC = b"xen-3.0-x86_64"
_POWER_MANAGEMENT = 3 << 8
"""In SIF_PM_MASK: Xen wants to hear from dom0 about the processors' C and P states."""
_RFLAGS = 0x202
_UNLIMITED = 0xFFFFFFFF
INITRD = 1
"""Which of the boot modules dom0 gets; the one before it is its kernel."""


class BuildError(ValueError):
    """Dom0 cannot be built from what was given. The message is one sentence for the person who gave it."""


def construct_dom0(
    hv: Hypervisor, domain: Domain, kernel: PvKernel, cmdline: str, module: bytes | None, nr_pages: int
) -> pv_layout.PvLayout:
    """Load a kernel into a fresh domain of `nr_pages` pages and make vCPU 0 ready to enter it.

    Returns the layout. Raises BuildError when something does not fit.
    """
    command_line = _command_line(cmdline)
    _check_kernel(kernel)
    layout = _layout(kernel, module, nr_pages)
    p2m = _allocate(hv, domain, layout)
    if kernel.pae:
        domain.vm_assist |= 1 << xen.VMASST_TYPE_pae_extended_cr3
    for segment in kernel.segments:
        offset = segment.address - kernel.virt_base
        _write(hv, p2m, offset, segment.contents)
        _write(hv, p2m, offset + len(segment.contents), bytes(segment.size - len(segment.contents)))
    if kernel.hypercall_page is not None:
        _write(hv, p2m, kernel.hypercall_page - kernel.virt_base, hypercall_page())
    if layout.module is not None and module:
        _write(hv, p2m, layout.module.pfn * PAGE_SIZE, module)
    _write(hv, p2m, layout.p2m.pfn * PAGE_SIZE, p2m.tobytes())
    for pfn, entries in pv_layout.build_tables(layout, p2m, _written(kernel, layout)):
        hv.memory.write(p2m[pfn] << 12, entries.tobytes())
    hv.memory.write(p2m[layout.start_info] << 12, _start_info(domain, kernel, layout, command_line, module))
    _start(hv, domain, kernel, layout, p2m[layout.tables.pfn])
    hv.frames.free_init()
    return layout


def _written(kernel: PvKernel, layout: pv_layout.PvLayout) -> list[pv_layout.Area]:
    """Return what Xen fills while it runs on dom0's page tables: all that it loads, but for the module."""
    areas = [layout.p2m, pv_layout.Area(layout.start_info, 1)]
    for segment in kernel.segments:
        first = segment.address - kernel.virt_base >> PAGE_SHIFT
        areas.append(pv_layout.Area(first, pv_layout.pages_of(segment.end - kernel.virt_base) - first))
    if kernel.hypercall_page is not None:
        areas.append(pv_layout.Area(kernel.hypercall_page - kernel.virt_base >> PAGE_SHIFT, 1))
    return areas


def _command_line(cmdline: str) -> bytes:
    raw = cmdline.encode()
    if len(raw) >= xen.MAX_GUEST_CMDLINE or b"\0" in raw:
        raise BuildError(
            f"dom0's command line has {len(raw)} bytes; {xen.MAX_GUEST_CMDLINE - 1} without NUL are possible"
        )
    return raw


def _check_kernel(kernel: PvKernel) -> None:
    if not kernel.can_be_dom0:
        raise BuildError("dom0 cannot be built: the kernel's SUPPORTED_FEATURES do not name dom0")
    if kernel.features_required >> XENFEAT_supervisor_mode_kernel & 1:
        raise BuildError("dom0 cannot be built: the kernel requires supervisor_mode_kernel, which no Xen has any more")


def _layout(kernel: PvKernel, module: bytes | None, nr_pages: int) -> pv_layout.PvLayout:
    try:
        layout = pv_layout.compute(
            kernel.virt_base,
            kernel.start,
            kernel.end,
            nr_pages,
            module_size=len(module or b""),
            module_is_mapped=not kernel.unmapped_module,
            p2m_base=kernel.p2m_base,
            magic_pages=False,
            whole_block=True,
        )
    except pv_layout.LayoutError as error:
        raise BuildError(f"dom0 cannot be built: {error}") from None
    page = kernel.hypercall_page
    if page is not None and not layout.virt_base <= page <= layout.va(layout.mapped_pages) - PAGE_SIZE:
        raise BuildError(f"dom0 cannot be built: the kernel wants its hypercall page at {page:#x}, outside of itself")
    return layout


def _allocate(hv: Hypervisor, domain: Domain, layout: pv_layout.PvLayout) -> array[int]:
    """Give the domain its memory, from where Xen takes it; returns the p2m.

    One block of a power of two of pages holds all that is mapped at first but the module, whose frames stay where it
    was loaded. The rest are as large blocks as fit into what is missing.
    """
    frames, module = hv.frames, layout.module
    nr_module = 0 if module is None else module.pages
    loaded = len(frames.boot.modules) > INITRD and len(frames.boot.modules[INITRD]) == nr_module
    if layout.nr_pages > frames.free_frames + (nr_module if loaded else 0):
        free = frames.free_frames >> 8
        raise BuildError(f"dom0 is to have {layout.nr_pages >> 8} MiB of memory, but the host has {free} MiB free")
    domain.max_pages = _UNLIMITED
    # (Xen refuses a dom0 that is smaller than its block. There is no reason to: only what is used must be there.)
    block = min(layout.block_pages, layout.nr_pages - nr_module)
    p2m = _expand(frames.alloc_frames(domain, block))
    if module is not None:
        extents = [frames.give_module(INITRD, domain)] if loaded else frames.alloc_frames(domain, nr_module)
        p2m[module.pfn : module.pfn] = _expand(extents)
    # The kernel has been read: where its file was is memory as any other.
    frames.discard_modules()
    order = MAX_ORDER
    while left := layout.nr_pages - len(p2m):
        order = min(order, left.bit_length() - 1)
        mfn = frames.alloc(domain, order)
        if mfn >= 0:
            p2m.extend(range(mfn, mfn + (1 << order)))
        else:
            order -= 1
    frames.set_gpfns(p2m)
    return p2m


def _expand(extents: Iterable[Extent]) -> array[int]:
    """Return every single frame of some extents."""
    return array("Q", [mfn for first, count in extents for mfn in range(first, first + count)])


def _write(hv: Hypervisor, p2m: array[int], offset: int, data: bytes | memoryview) -> None:
    """Write into the domain's pseudo-physical memory, page by page."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        pfn, inside = divmod(offset + done, PAGE_SIZE)
        length = min(PAGE_SIZE - inside, len(view) - done)
        hv.memory.write((p2m[pfn] << 12) + inside, view[done : done + length])
        done += length


def _start_info(
    domain: Domain, kernel: PvKernel, layout: pv_layout.PvLayout, command_line: bytes, module: bytes | None
) -> bytes:
    flags = xen.SIF_PRIVILEGED | xen.SIF_INITDOMAIN | _POWER_MANAGEMENT
    mod_start = 0
    if layout.module is not None:
        # Unless it is mapped, the kernel learns its page frame number.
        mod_start = layout.va(layout.module.pfn) if layout.module_is_mapped else layout.module.pfn
        flags |= 0 if layout.module_is_mapped else xen.SIF_MOD_START_PFN
    return xen.start_info.pack(
        magic=_MAGIC + (b"p" if kernel.pae else b""),
        nr_pages=layout.nr_pages,
        shared_info=domain.shared_info_mfn << 12,
        flags=flags,
        # What there is for a screen stands behind start_info: nothing, so it stays zero.
        console={"dom0": {"info_off": xen.start_info.size, "info_size": xen.dom0_vga_console_info.size}},
        pt_base=layout.va(layout.tables.pfn),
        nr_pt_frames=layout.tables.pages,
        mfn_list=layout.p2m_address,
        mod_start=mod_start,
        mod_len=len(module or b""),
        cmd_line=command_line,
        first_p2m_pfn=layout.first_p2m_pfn,
        nr_p2m_frames=layout.p2m.pages + layout.p2m_tables.pages if layout.p2m_is_elsewhere else 0,
    )


def _start(hv: Hypervisor, domain: Domain, kernel: PvKernel, layout: pv_layout.PvLayout, root: int) -> None:
    """Load the page tables and the registers."""
    vcpu = domain.vcpu(0)
    if vcpu is None:
        raise InvariantError("dom0 is to be started without vCPU 0")
    hv.time.update_wallclock(domain)
    hv.mm.load_root(vcpu, root)
    error = hv.mm.pin(root, domain, PGT_l4_page_table)
    if error:
        raise InvariantError(f"the root of dom0's page tables cannot be pinned: errno {error}")
    state = vcpu.context
    state.rip = kernel.virt_entry
    state.rsp = layout.stack_pointer
    state.rsi = layout.va(layout.start_info)
    state.rflags = _RFLAGS
    state.flags = xen.VGCF_in_kernel
    state.kernel_ss = xen.FLAT_KERNEL_SS
    state.kernel_sp = layout.stack_pointer
    vcpu.initialised = True
    hv.sched.unpause(vcpu, VPF_DOWN)
    if hv.trace is not None:
        hv.trace(domain.domid, vcpu.vcpu_id, VCPU_UP)
