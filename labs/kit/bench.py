"""Hosts for labs: kernels that are a function, on a real hypervisor, without the guest kernel of this project.

A *program* is called with the door of its boot vCPU and the address of start_info, as Xen enters a kernel. It returns
None, or is a generator: each `yield` is where the vCPU can be interrupted. The host runs until all programs have ended.
What a program raises ends the host, and is raised by `run`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Generator, Mapping
from pathlib import Path
from typing import Any

import attrs

from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from guest_kernel.symbols import SYMBOLS, VIRT_BASE
from hypervisor.abi import sched as sched_abi
from hypervisor.abi.cpu import Cpu, Run
from hypervisor.abi.xen import HYPERVISOR_sched_op, start_info
from hypervisor.dom0_build import construct_dom0
from hypervisor.domain import NO_SHUTDOWN
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.machine import Machine
from hypervisor.options import XenOptions
from hypervisor.sched.algorithm import NEVER
from labs.kit.check import Miss
from toolstack.builder import PvBuilder, python_kernel
from toolstack.xc import Xc
from toolstack.xl_config import DomainConfig

Program = Callable[[Cpu, int], Run | None]
DOM0_MIB = 16
PROJECT = Path(__file__).parents[2]
"""What lies here is not the student's."""
PAGE_SIZE = 4096
MAX_STEPS = 400_000
"""Stretches of guest code after which a host that has not come to its end never will."""


@attrs.define
class Dom:
    """A domain to build, and what is known of it while the host runs and afterwards."""

    program: Program
    mib: int = 8
    cmdline: str = ""
    vcpus: int = 1
    domid: int = -1
    over: bool = False
    """The program has come to its end."""
    failure: Exception | None = None
    ends_host: bool = False
    """When this program has ended the host is switched off, whatever the others do."""

    def image(self, name: str) -> Any:
        """Return what the domain executes."""
        return BareImage(name, self)


@attrs.define
class KernelDom(Dom):
    """A domain that runs this project's guest kernel: its program is `main(kernel)`, a coroutine function."""

    program: Any = None
    main: Callable[[Kernel], Coroutine[Any, Any, None]] = attrs.field(kw_only=True)

    def image(self, name: str) -> Any:
        """Return what the domain executes."""
        dom = self

        class Program:
            def __init__(self, kernel: Kernel) -> None:
                self.kernel = kernel
                panic = kernel.power.panic

                def noted(failure: BaseException, what: str) -> None:
                    # An event handler, or a thread that nobody waits for, has failed: that is what ends the run.
                    dom.failure = failure if isinstance(failure, Exception) else Miss(f"{type(failure).__name__}")
                    panic(failure, what)

                kernel.power.panic = noted  # type: ignore[method-assign]

            async def main(self) -> None:
                try:
                    await dom.main(self.kernel)
                except Exception as error:
                    dom.failure = error
                dom.over = True
                await self.kernel.never()

        return PythonKernelImage(name=name, main=Program)


class BareImage:
    """A kernel that is a function (`hypervisor.abi.cpu.Image`)."""

    virt_base = VIRT_BASE
    virt_entry = SYMBOLS["startup"]
    symbols: Mapping[str, int] = SYMBOLS

    def __init__(self, name: str, dom: Dom) -> None:
        self.name = name
        self._dom = dom

    def boot(self, cpu: Cpu, start_info: int) -> Run:
        """Run the program, then do nothing more."""
        return self._live(cpu, start_info)

    def _live(self, cpu: Cpu, start: int) -> Run:
        dom = self._dom
        try:
            running = dom.program(cpu, start)
            if running is not None:
                yield from running
        except Exception as error:
            dom.failure = error
        dom.over = True
        while True:
            cpu.hypercall(HYPERVISOR_sched_op, sched_abi.SCHEDOP_block)
            yield 0

    def unload(self) -> None:
        """Nothing is kept."""


class Bench:
    """A host. `xen_cmdline` is Xen's command line; what Xen and dom0 print is in `console`."""

    def __init__(self, *, memory_mib: int = 64, pcpus: int = 1, xen_cmdline: str = "", **options: Any) -> None:
        self.console = bytearray()
        self.hv = Hypervisor(
            Machine(memory_mib=memory_mib, pcpus=pcpus),
            console=self.console.extend,
            options=XenOptions(xen_cmdline),
            **options,
        )
        self._doms: list[Dom] = []
        self._control_failure: Exception | None = None

    # -- one domain: dom0 ---------------------------------------------------------------------------------------------

    def run_dom0(self, program: Program, *, mib: int = DOM0_MIB, cmdline: str = "") -> None:
        """Run a program as dom0's kernel, alone on the host. Raises what it raises, and Miss if it does not end."""
        dom = Dom(program, mib, cmdline, domid=0)
        self._doms = [dom]
        self._build_dom0(BareImage("dom0", dom), mib, cmdline)
        self._turn()

    def _build_dom0(self, image: Any, mib: int, cmdline: str) -> None:
        hv = self.hv
        domain = hv.domain_ops.create(0, max_vcpus=1, is_privileged=True)
        domain.image = image
        hv.domain_ops.add_vcpu(domain, 0)
        construct_dom0(hv, domain, python_kernel(image), cmdline, None, mib * 256)
        hv.domain_ops.unpause(domain)

    # -- several: dom0 builds them ------------------------------------------------------------------------------------

    def run_guests(self, *doms: Dom) -> None:
        """Run programs as the kernels of unprivileged domains, numbered from 1. Raises as `run_dom0`.

        Dom0 is a kernel of this project that builds them with the toolstack's builder and lets them go together.
        """
        self._doms = list(doms)
        bench = self

        class Control:
            def __init__(self, kernel: Kernel) -> None:
                self.kernel = kernel

            async def main(self) -> None:
                try:
                    bench._build_guests(self.kernel)
                except Exception as error:
                    bench._control_failure = error
                await self.kernel.never()

        self._build_dom0(PythonKernelImage(name="Domain-0", main=Control), DOM0_MIB, "")
        self._turn()

    def _build_guests(self, kernel: Kernel) -> None:
        xc = Xc(kernel)
        builder = PvBuilder(xc)
        for number, dom in enumerate(self._doms, 1):
            config = DomainConfig("lab", f"guest{number}", Path(), memory=dom.mib, maxmem=dom.mib, cmdline=dom.cmdline)
            dom.domid = xc.create_domain(bytes([number] * 16), max_vcpus=dom.vcpus)
            image = dom.image(config.name)
            self.hv.domains[dom.domid].image = image
            xc.max_vcpus(dom.domid, dom.vcpus)
            xc.max_mem(dom.domid, dom.mib << 10)
            port = xc.alloc_unbound(dom.domid, 0)
            builder.build(dom.domid, python_kernel(image), config, store_port=0, console_port=port)
        for dom in self._doms:
            xc.unpause(dom.domid)

    # -- the run ------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Run the host until all programs have ended. Raises the first failure."""
        steps = 0
        try:
            while not self._ended():
                wait = self.hv.sched.drain(100)
                steps += 100
                if self.hv.stopped:
                    for dom in self._doms:
                        dom.over = True
                if self._ended():
                    break
                if wait == NEVER:
                    raise Miss("nothing happens any more: the kernel waits for an event that never comes")
                if steps > MAX_STEPS:
                    raise Miss(f"the kernel has not come to an end after {steps} turns of its vCPU")
        finally:
            self.hv.switch_off()
        for dom in self._doms:
            if dom.failure is not None:
                raise dom.failure

    def _ended(self) -> bool:
        if self._control_failure is not None:
            raise self._control_failure
        if any(dom.failure is not None or (dom.over and dom.ends_host) for dom in self._doms):
            return True
        for dom in self._doms:
            domain = self.hv.domains.get(dom.domid)
            if domain is not None and domain.shutdown_code != NO_SHUTDOWN and not dom.over:
                dom.over = True
                if domain.crash_reason:
                    raise Miss(f"domain {dom.domid} crashes: {self._line_of_crash()}{domain.crash_reason}")
        return all(dom.over for dom in self._doms)

    def _line_of_crash(self) -> str:
        """Return where an exception came from that a domain's kernel let escape, by what Xen printed of it."""
        lines = re.findall(r'File "([^"]+)", line (\d+)', self.console.decode("utf-8", "replace"))
        theirs = [(Path(name).name, number) for name, number in lines if not Path(name).is_relative_to(PROJECT)]
        return "{}:{}: ".format(*theirs[-1]) if theirs else ""


# -- what programs of graders use -------------------------------------------------------------------------------------


def boot_info(cpu: Cpu, address: int) -> Any:
    """Return start_info as an object with its members."""
    return start_info.unpack_from(cpu.view(address & -PAGE_SIZE), address % PAGE_SIZE)


def free_page(info: Any, number: int = 0) -> int:
    """Return the address of a page that is mapped and belongs to nobody yet: behind page tables and boot stack."""
    return int(info.pt_base + (info.nr_pt_frames + 1 + number) * PAGE_SIZE)


class Watched:
    """A processor that remembers the hypercalls that are made through it: (registers, result)."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cpu, name)

    def hypercall(self, *registers: int) -> int:
        """Enter Xen."""
        result = self._cpu.hypercall(*registers)
        self.calls.append((registers, result))
        return result

    def results(self, number: int, *beginning: int) -> list[int]:
        """Return the results of the calls of one hypercall, with these first arguments."""
        wanted = (number, *beginning)
        return [result for registers, result in self.calls if registers[: len(wanted)] == wanted]


class Refusing(Watched):
    """A processor whose Xen refuses everything, with one errno."""

    def __init__(self, cpu: Cpu, errno: int) -> None:
        super().__init__(cpu)
        self._errno = errno

    def hypercall(self, *registers: int) -> int:
        """Be refused."""
        self.calls.append((registers, -self._errno))
        return -self._errno


def use_domu(use: Callable[[Cpu, Any], Any], *, mib: int = 8, cmdline: str = "", **options: Any) -> tuple[Any, Bench]:
    """Run `use(cpu, start_info)` as the kernel of an unprivileged domain; return what it returns, and the host.

    `use` may be a generator function, which yields where it can be interrupted. Raises as `Bench.run_guests`.
    """
    found: list[Any] = []

    def program(cpu: Cpu, start: int) -> Run:
        made = use(cpu, boot_info(cpu, start))
        if isinstance(made, Generator):
            made = yield from made
        found.append(made)

    bench = Bench(**options)
    bench.run_guests(Dom(program, mib, cmdline))
    return (found[0] if found else None), bench
