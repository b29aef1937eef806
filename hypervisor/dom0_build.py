"""Building dom0: the one domain that the hypervisor loads itself, when there is no toolstack yet.

As Xen's construct_dom0: memory, the layout of `abi.pv_layout` without rings for xenstore and console (dom0 runs their
servers), page tables with the root pinned and loaded, start_info, and the registers of vCPU 0. The domain stays paused
until whoever built it unpauses it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from hypervisor.abi import pv_layout, xen
from hypervisor.abi.tracepoints import VCPU_UP
from hypervisor.errors import InvariantError
from hypervisor.mm.frame_table import PGT_l4_page_table
from hypervisor.vcpu import VPF_DOWN

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor

PAGE_SIZE = 4096
_MAGIC = b"xen-3.0-x86_64"
_POWER_MANAGEMENT = 3 << 8
"""In SIF_PM_MASK: Xen wants to hear from dom0 about the processors' C and P states."""
_RFLAGS = 0x202
_UNLIMITED = 0xFFFFFFFF


class KernelImage(Protocol):
    """A kernel to load: what its ELF headers and notes would say."""

    virt_base: int
    virt_entry: int
    segments: Sequence[tuple[int, bytes]]
    """(address, contents) of each part to load; may be empty for a kernel that is not machine code."""


class BuildError(ValueError):
    """Dom0 cannot be built from what was given. The message is one sentence for the person who gave it."""


def construct_dom0(
    hv: Hypervisor, domain: Domain, kernel: KernelImage, cmdline: str, module: bytes | None, nr_pages: int
) -> pv_layout.PvLayout:
    """Load a kernel into a fresh domain of `nr_pages` pages and make vCPU 0 ready to enter it.

    Returns the layout. Raises BuildError when something does not fit.
    """
    command_line = _command_line(cmdline)
    start, end = _extent(kernel)
    try:
        layout = pv_layout.compute(
            kernel.virt_base, start, end, nr_pages, module_size=len(module or b""), magic_pages=False
        )
    except pv_layout.LayoutError as error:
        raise BuildError(f"dom0 cannot be built: {error}") from None
    p2m = _allocate(hv, domain, nr_pages)
    for address, contents in kernel.segments:
        _write(hv, p2m, address - kernel.virt_base, contents)
    if layout.module is not None and module:
        _write(hv, p2m, layout.module.pfn * PAGE_SIZE, module)
    _write(hv, p2m, layout.p2m.pfn * PAGE_SIZE, p2m.tobytes())
    for pfn, entries in pv_layout.build_tables(layout, p2m):
        hv.memory.write(p2m[pfn] << 12, entries.tobytes())
    hv.memory.write(p2m[layout.start_info] << 12, _start_info(domain, layout, command_line, module))
    _start(hv, domain, kernel, layout, p2m[layout.tables.pfn])
    return layout


def _command_line(cmdline: str) -> bytes:
    raw = cmdline.encode()
    if len(raw) >= xen.MAX_GUEST_CMDLINE or b"\0" in raw:
        raise BuildError(
            f"dom0's command line has {len(raw)} bytes; {xen.MAX_GUEST_CMDLINE - 1} without NUL are possible"
        )
    return raw


def _extent(kernel: KernelImage) -> tuple[int, int]:
    """Return the first and the end address of the kernel; a kernel without segments has one page at its base."""
    if not kernel.segments:
        return kernel.virt_base, kernel.virt_base + PAGE_SIZE
    return min(va for va, _ in kernel.segments), max(va + len(data) for va, data in kernel.segments)


def _allocate(hv: Hypervisor, domain: Domain, nr_pages: int) -> array[int]:
    """Give the domain its memory; returns the p2m."""
    domain.max_pages = _UNLIMITED
    extents = hv.frames.alloc_frames(domain, nr_pages)
    if not extents:
        free = hv.frames.free_frames >> 8
        raise BuildError(f"dom0 is to have {nr_pages >> 8} MiB of memory, but the host has {free} MiB free")
    p2m = array("Q")
    for mfn, count in extents:
        hv.frames.m2p[mfn : mfn + count] = memoryview(array("Q", range(len(p2m), len(p2m) + count)))
        p2m.extend(range(mfn, mfn + count))
    return p2m


def _write(hv: Hypervisor, p2m: array[int], offset: int, data: bytes) -> None:
    """Write into the domain's pseudo-physical memory, page by page."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        pfn, inside = divmod(offset + done, PAGE_SIZE)
        length = min(PAGE_SIZE - inside, len(view) - done)
        hv.memory.write((p2m[pfn] << 12) + inside, view[done : done + length])
        done += length


def _start_info(domain: Domain, layout: pv_layout.PvLayout, command_line: bytes, module: bytes | None) -> bytes:
    return xen.start_info.pack(
        magic=_MAGIC,
        nr_pages=layout.nr_pages,
        shared_info=domain.shared_info_mfn << 12,
        flags=xen.SIF_PRIVILEGED | xen.SIF_INITDOMAIN | _POWER_MANAGEMENT,
        pt_base=layout.va(layout.tables.pfn),
        nr_pt_frames=layout.tables.pages,
        mfn_list=layout.va(layout.p2m.pfn),
        mod_start=layout.va(layout.module.pfn) if layout.module is not None else 0,
        mod_len=len(module or b""),
        cmd_line=command_line,
    )


def _start(hv: Hypervisor, domain: Domain, kernel: KernelImage, layout: pv_layout.PvLayout, root: int) -> None:
    """Load the page tables and the registers."""
    vcpu = domain.vcpu(0)
    if vcpu is None:
        raise InvariantError("dom0 is to be started without vCPU 0")
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
