"""The machine as a whole: what the hypervisor finds when it is switched on."""

from hypervisor.machine.clock import Clock
from hypervisor.machine.firmware import ACPI_TABLES
from hypervisor.machine.interrupts import Interrupts
from hypervisor.machine.io_apic import IoApic
from hypervisor.machine.memory import PAGE_SHIFT, Memory
from hypervisor.machine.ports import Ports
from hypervisor.machine.timers import Timers


class Machine:
    """Memory, processors, clock, timers, interrupt lines and I/O ports of one host.

    Devices (`hypervisor.machine.disk`, `.nic`, …) are plugged in by whoever assembles the host: they claim ports and a
    line, and do their DMA on `memory`.

    `has_firmware`: it is a PC: of so much memory the last 128 KiB are the firmware's, who has its tables there, and its
    processors have SVM.
    """

    __slots__ = ("clock", "has_svm", "interrupts", "io_apic", "memory", "nr_pcpus", "ports", "timers")

    def __init__(self, *, memory_mib: int, pcpus: int = 1, real_time: bool = False, has_firmware: bool = False) -> None:
        if pcpus < 1:
            raise ValueError(f"a machine needs at least one processor, not {pcpus}")
        self.memory = Memory((memory_mib << 20) - (ACPI_TABLES if has_firmware else 0) >> PAGE_SHIFT)
        self.clock = Clock(real=real_time)
        self.timers = Timers()
        self.interrupts = Interrupts()
        self.io_apic = IoApic()
        self.ports = Ports()
        self.nr_pcpus = pcpus
        self.has_svm = has_firmware
