"""What Xen says on the serial line while it starts: who it is, what it was told, what there is, where dom0 lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.log import INFO
from hypervisor.version import COMPILE_INFO, EXTRAVERSION, MAJOR, MINOR

if TYPE_CHECKING:
    from hypervisor.abi.pv_layout import PvLayout
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.kernel_image import PvKernel

_LEVELS = ("Nothing", "Errors", "Errors and warnings", "Errors, warnings and info", "All")


def announce(hv: Hypervisor, modules: int) -> None:
    """Print the lines that come before dom0 is built; `modules`: how many there are besides the kernel."""
    info = {key: value.decode() for key, value in COMPILE_INFO.items()}
    who, compiler, date = info["compile_by"], info["compiler"], info["compile_date"]
    host = info["compile_domain"]
    hv.log(f"Xen version {MAJOR}.{MINOR}{EXTRAVERSION.decode()} ({who}@{host}) ({compiler}) debug=n {date}")
    for complaint in hv.options.complaints:
        hv.log(complaint)
    hv.log(f"Command line: {hv.options.text}")
    kib = hv.memory.frames << 2
    hv.log(f"System RAM: {kib >> 10}MB ({kib}kB)")
    algorithm, wanted = hv.sched.algorithm, hv.options.scheduler
    if wanted and wanted != algorithm.name:
        hv.log(f"Could not find scheduler: {wanted}")
        hv.log(f"Using '{algorithm.title}' ({algorithm.name})")
    hv.log(f"Using scheduler: {algorithm.title} ({algorithm.name})")
    hv.log(f"Brought up {hv.machine.nr_pcpus} CPUs")
    if modules > 1:
        hv.log("Multiple initrd candidates, picking module #1")
    hv.log("*** Building a PV Dom0 ***", INFO)


def describe_dom0(hv: Hypervisor, kernel: PvKernel, layout: PvLayout, vcpus: int) -> None:
    """Print where in its address space dom0 has what (dom0_construct_pv), and the last lines before it runs."""
    base = kernel.virt_base
    pae = ", PAE" if kernel.pae else ""
    hv.log(" Xen  kernel: 64-bit, lsb")
    hv.log(f" Dom0 kernel: 64-bit{pae}, lsb, paddr {kernel.start - base:#x} -> {kernel.end - base:#x}")
    hv.log("VIRTUAL MEMORY ARRANGEMENT:")
    start_info = layout.va(layout.start_info)
    info_size = xen.start_info.size + xen.dom0_vga_console_info.size
    ranges = [("Loaded kernel", kernel.start, kernel.end)]
    if layout.module is not None and layout.module_is_mapped:
        ranges.append(("Init. ramdisk", layout.va(layout.module.pfn), layout.va(layout.module.end)))
    ranges += [
        ("Phys-Mach map", layout.p2m_address, layout.p2m_address + layout.nr_pages * 8),
        ("Start info", start_info, start_info + info_size),
        ("Page tables", layout.va(layout.tables.pfn), layout.va(layout.tables.end)),
        ("Boot stack", layout.va(layout.boot_stack), layout.stack_pointer),
        ("TOTAL", base, layout.virt_end),
    ]
    for name, start, end in ranges:
        hv.log(f" {name + ':':15}{start:016x}->{end & (1 << 64) - 1:016x}")
    hv.log(f" ENTRY ADDRESS: {kernel.virt_entry:016x}")
    hv.log(f"Dom0 has maximum {vcpus} VCPUs")
    for name, (always, seldom) in (("Std.", hv.options.loglvl), ("Guest", hv.options.guest_loglvl)):
        limited = f" (Rate-limited: {_LEVELS[seldom]})" if seldom != always else ""
        hv.log(f"{name} Loglevel: {_LEVELS[always]}{limited}")
    hv.log("*** Serial input to DOM0")
