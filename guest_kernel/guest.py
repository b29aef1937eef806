"""What a user writes: a class with `async def main(self)`.

    class Hello(Guest):
        async def main(self) -> None:
            self.print("hello from", self.name)
            await self.sleep(1.5)

Only what the guest's own kernel offers can be awaited. When `main` returns the guest powers off; when it raises, the
traceback goes to the guest's console and the domain crashes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from guest_kernel.time import NANOSECONDS

if TYPE_CHECKING:
    from guest_kernel.block import BlockDevice
    from guest_kernel.kernel import Kernel
    from guest_kernel.net import NetStack


class Guest(ABC):
    """A program on a guest kernel. Subclass it and write `main`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        """Everything else that the kernel offers."""
        self.name: str = kernel.image.name
        """The name of the image (for guests started from a config: the domain's name)."""

    @abstractmethod
    async def main(self) -> None:
        """Do what the guest is for."""

    @property
    def args(self) -> list[str]:
        """The words of the kernel's command line (`extra` in the config)."""
        return self.kernel.cmdline.split()

    @property
    def net(self) -> NetStack:
        """The network (`guest_kernel.net`)."""
        return self.kernel.net

    def print(self, *values: object, sep: str = " ", end: str = "\n") -> None:
        """Print on the guest's console."""
        self.kernel.console.write(sep.join(map(str, values)) + end)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self.kernel.sleep(round(seconds * NANOSECONDS))

    async def cpu(self, *, ns: int) -> None:
        """Compute for so many nanoseconds of processor time."""
        await self.kernel.cpu_burn(ns)

    async def disk(self, name: str) -> BlockDevice:
        """Return a disk by its name ("xvda"); wait until it is connected."""
        return await self.kernel.block.get(name)
