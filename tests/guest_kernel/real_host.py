"""Guest kernels on the real hypervisor, without xenstore: dom0 builds the others with the toolstack's builder."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from hypervisor.abi.io.console import xencons_interface
from hypervisor.dom0_build import construct_dom0
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.machine import Machine
from hypervisor.sched.scheduler import NEVER
from toolstack.builder import PvBuilder, python_kernel
from toolstack.xc import Xc
from toolstack.xl_config import DomainConfig

Main = Callable[[Kernel], Awaitable[None]]


def make_image(name: str, main: Main) -> PythonKernelImage:
    class Program:
        def __init__(self, kernel: Kernel) -> None:
            self.kernel = kernel

        async def main(self) -> None:
            await main(self.kernel)

    return PythonKernelImage(name=name, main=Program)


@attrs.define
class Guest:
    """A domain to build: its program and its size."""

    main: Main
    vcpus: int = 1
    mib: int = 8
    cmdline: str = ""
    domid: int = -1
    console: bytes = b""
    reason: int = -1


class RealHost:
    """A host that runs the guests until all of them are shut down, then destroys them from dom0 and stops."""

    def __init__(self, guests: Sequence[Guest], *, pcpus: int = 1, memory_mib: int = 64, **options: Any) -> None:
        self.guests = guests
        self.log = bytearray()
        self.hv = Hypervisor(Machine(memory_mib=memory_mib, pcpus=pcpus), console=self.log.extend, **options)
        self._vcpus: dict[int, list[Any]] = {}
        self._build_dom0()

    def _build_dom0(self) -> None:
        hv = self.hv
        image = make_image("Domain-0", self._control)
        domain = hv.domain_ops.create(0, max_vcpus=1, is_privileged=True)
        domain.image = image
        hv.domain_ops.add_vcpu(domain, 0)
        construct_dom0(hv, domain, python_kernel(image), "", None, 16 * 256)
        hv.domain_ops.unpause(domain)

    async def _control(self, kernel: Kernel) -> None:
        """Dom0's program: build the domains, read their consoles, wait for their ends, destroy them."""
        xc = Xc(kernel)
        builder = PvBuilder(xc)
        consoles = []
        for number, guest in enumerate(self.guests):
            config = DomainConfig(
                "test", f"guest{number}", Path(), memory=guest.mib, maxmem=guest.mib, cmdline=guest.cmdline
            )
            guest.domid = xc.create_domain(bytes([number + 1] * 16), max_vcpus=guest.vcpus)
            image = make_image(config.name, guest.main)
            self.hv.domains[guest.domid].image = image
            xc.max_vcpus(guest.domid, guest.vcpus)
            xc.max_mem(guest.domid, guest.mib << 10)
            port = xc.alloc_unbound(guest.domid, 0)
            built = builder.build(guest.domid, python_kernel(image), config, store_port=0, console_port=port)
            consoles.append(self._open_console(kernel, guest, built.console_mfn, port))
            self._vcpus[guest.domid] = self.hv.domains[guest.domid].online_vcpus()
        for guest in self.guests:
            xc.unpause(guest.domid)
        while any(self._end_of(xc, guest) < 0 for guest in self.guests):
            await kernel.sleep(1_000_000)
        for guest, (port, mapping, read) in zip(self.guests, consoles, strict=True):
            read()
            kernel.events.unbind(port)
            kernel.mm.unmap_foreign(mapping)
            xc.destroy(guest.domid)
        xc.close()

    def _end_of(self, xc: Xc, guest: Guest) -> int:
        if guest.reason < 0:
            info = xc.domain_info(guest.domid)
            assert info is not None
            guest.reason = info.flags >> 16 & 0xFF if info.flags & 4 else -1
        return guest.reason

    def _open_console(self, kernel: Kernel, guest: Guest, mfn: int, remote: int) -> tuple[int, Any, Callable[[], None]]:
        mapping = kernel.mm.map_foreign(guest.domid, [mfn])
        words = mapping[0].cast("I")
        out = xencons_interface.offset("out")
        cons_at = xencons_interface.offset("out_cons") >> 2

        def read() -> None:
            cons, prod = words[cons_at], words[cons_at + 1]
            guest.console += bytes(mapping[0][out + (index & 2047)] for index in range(cons, prod))
            words[cons_at] = prod
            if cons != prod:
                kernel.events.notify(port)

        port = kernel.events.bind_interdomain(guest.domid, remote, read)
        return port, mapping, read

    def run(self, max_steps: int = 2_000_000) -> None:
        """Run to the end. Raises AssertionError, with the consoles, if the host stops or hangs before."""
        steps = 0
        while not self.hv.stopped:
            wait = self.hv.sched.drain(1000)
            steps += 1000
            if wait == NEVER and not self.hv.stopped:
                raise AssertionError(f"nothing more happens; {self.consoles()}")
            if steps > max_steps:
                raise AssertionError(f"no end; {self.consoles()}")

    def consoles(self) -> str:
        text = "".join(f"\n--- d{guest.domid}: {guest.console.decode()}" for guest in self.guests)
        return f"host: {self.log.decode()}{text}"

    def cpu_ns(self, guest: Guest) -> list[int]:
        """Nanoseconds that each vCPU of a guest has run."""
        return [vcpu.time_running for vcpu in self._vcpus[guest.domid]]


def run_guests(*guests: Guest, **options: Any) -> RealHost:
    """Run guests to their end; each must end as `Guest.reason` is found afterwards."""
    host = RealHost(guests, **options)
    try:
        host.run()
    finally:
        host.hv.switch_off()
    return host
