"""What Xen says on the serial line while it starts: who it is, what it was told, what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.version import COMPILE_INFO, EXTRAVERSION, MAJOR, MINOR

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor


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
    hv.log(f"Brought up {hv.machine.nr_pcpus} CPUs")
    if modules > 1:
        hv.log("Multiple initrd candidates, picking module #1")
