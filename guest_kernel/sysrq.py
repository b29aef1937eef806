"""Magic SysRq: single letters that the toolstack writes to `control/sysrq` (`xl sysrq`).

The guest acknowledges each by emptying the node and answers on its console (docs/misc/xenstore-paths, ~/control/sysrq;
the letters are Linux').
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from guest_kernel.block import BlockError
from guest_kernel.xenbus.client import Transaction

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

NODE = "control/sysrq"

Answer = Callable[["Kernel"], Awaitable[None]]


async def _sync(kernel: Kernel) -> None:
    for name, disk in list(kernel.block.devices.items()):
        try:
            await disk.flush()
        except BlockError as error:
            kernel.console.printk(f"sysrq: {name}: {error}")
    kernel.console.printk("sysrq: emergency sync complete")


async def _threads(kernel: Kernel) -> None:
    for thread in kernel.scheduler.threads:
        kernel.console.printk(f"sysrq: thread {thread.name}")


async def _memory(kernel: Kernel) -> None:
    kernel.console.printk(f"sysrq: {kernel.mm.free_pages} of {kernel.mm.nr_pages} pages are free")


async def _crash(kernel: Kernel) -> None:
    await kernel.power.crash("by sysrq")


async def _reboot(kernel: Kernel) -> None:
    kernel.power.reboot_at_once()


async def _poweroff(kernel: Kernel) -> None:
    await kernel.power.poweroff()


ANSWERS: dict[str, tuple[str, Answer]] = {
    "b": ("reboot", _reboot),
    "c": ("crash", _crash),
    "m": ("show-memory-usage", _memory),
    "o": ("poweroff", _poweroff),
    "s": ("sync", _sync),
    "t": ("show-task-states", _threads),
}
"""Letter → its name in the help, what is done."""


async def obey(kernel: Kernel) -> None:
    """Acknowledge the letter that stands in the node, and do what it stands for. Raises XenstoreError."""
    letter = await kernel.xenbus.transact(_take)
    if letter:
        await answer(kernel, letter)


async def _take(transaction: Transaction) -> str:
    """Read the request and acknowledge it by emptying the node."""
    letter = await transaction.read_or_none(NODE)
    if letter:
        await transaction.write(NODE, "")
    return letter or ""


async def answer(kernel: Kernel, letter: str) -> None:
    """Do what a letter stands for; list the letters if it stands for nothing."""
    known = ANSWERS.get(letter[0])
    if known is None:
        names = " ".join(f"{name}({key})" for key, (name, _) in ANSWERS.items())
        kernel.console.printk(f"sysrq: HELP : {names}")
        return
    name, act = known
    kernel.console.printk(f"sysrq: {name}")
    await act(kernel)
