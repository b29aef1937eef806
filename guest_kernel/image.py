"""The image of a Python guest: what the domain builder loads instead of an ELF file."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from guest_kernel.kernel import Kernel
from guest_kernel.symbols import SYMBOLS, VIRT_BASE
from hypervisor.abi.cpu import Cpu, Run

if TYPE_CHECKING:
    from guest_kernel.xenbus.driver import XenbusDriver


class Program(Protocol):
    """What runs on the kernel: `guest_kernel.guest.Guest`, or anything of its shape."""

    async def main(self) -> None:
        """Run. When it returns the domain powers off; when it raises the domain crashes."""
        ...


DriverFactory = Callable[["Kernel"], "XenbusDriver"]
Service = Callable[["Kernel"], Coroutine[Any, Any, None]]
"""What runs beside the program: called with the kernel, returns what a thread of its own is to run."""


@attrs.define(kw_only=True)
class PythonKernelImage:
    """A kernel and its program, as `hypervisor.abi.cpu.Image`. One for each domain.

    `main` is called with the kernel and makes the program (a subclass of Guest, as a rule); `drivers` are called with
    the kernel and make a xenbus driver each (driver classes, or `functools.partial` of one with its options).
    `services` run in threads beside the program; a kernel that has some does not power off when the program returns.
    `options` is for programs: the kernel does not look at it.
    """

    name: str
    main: Callable[[Kernel], Program]
    drivers: Sequence[DriverFactory] = ()
    services: Sequence[Service] = ()
    options: Mapping[str, Any] = attrs.field(factory=dict)
    virt_base: int = VIRT_BASE
    virt_entry: int = SYMBOLS["startup"]
    kernel: Kernel | None = attrs.field(default=None, init=False, repr=False, eq=False)
    """The kernel that runs, once it has been booted."""

    @property
    def symbols(self) -> Mapping[str, int]:
        """Addresses of the kernel's code by name."""
        return SYMBOLS

    def boot(self, cpu: Cpu, start_info: int) -> Run:
        """Boot the kernel on the first vCPU."""
        self.kernel = Kernel(self, cpu, start_info)
        return self.kernel.run()

    def unload(self) -> None:
        """Drop the kernel with all its suspended threads: the domain is gone."""
        kernel, self.kernel = self.kernel, None
        if kernel is not None:
            kernel.destroy()
