"""Ending: poweroff, reboot, crash, and the toolstack's requests for them.

`xl shutdown` and `xl reboot` write a word to the guest's `control/shutdown` node. The guest says that it has seen it by
writing the empty string, does its work, and ends itself with SCHEDOP_shutdown; the reason tells the toolstack what to
do with the domain.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from guest_kernel import sysrq
from guest_kernel.errors import GuestError, ThreadCancelled
from guest_kernel.threads import Thread, WaitQueue, is_library, take_over
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.client import Transaction, XenstoreError
from hypervisor.abi.cpu import Run
from hypervisor.abi.io.xs_wire import XS_WRITE
from hypervisor.abi.sched import (
    SCHEDOP_shutdown,
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    sched_shutdown,
)

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

CONTROL = "control/shutdown"
FEATURES = {"control/feature-poweroff": "1", "control/feature-reboot": "1", "control/feature-suspend": "0"}
"""What the guest says it can and cannot do (docs/misc/xenstore-paths, ~/control/feature-*)."""
REQUESTS = {
    "poweroff": SHUTDOWN_poweroff,
    "halt": SHUTDOWN_poweroff,
    "reboot": SHUTDOWN_reboot,
    "crash": SHUTDOWN_crash,
}
"""What the toolstack may ask for, and the reason to end with."""
REFUSED = {
    "suspend": "this guest cannot suspend: it has no way to write down what its threads were doing",
    "s3": "there is no ACPI S3 in a paravirtualized guest",
    "s4": "there is no ACPI S4 in a paravirtualized guest",
}
"""Requests that are understood and refused."""
PROGRAM_TIMEOUT_NS = 1_000_000_000
"""A cancelled program that has not ended after this time is left behind."""
HOOK_TIMEOUT_NS = 30_000_000_000
"""A shutdown hook that is not done after this time is left behind."""
DRAIN_TIMEOUT_NS = 2_000_000_000

Hook = Callable[[], Awaitable[None] | None]
"""What runs before an orderly end: a function, plain or async."""


class Power:
    """The end of a domain, from inside."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._hooks: list[Hook] = []
        self._ending = False
        self._ender: Thread | None = None
        """The thread that carries out an orderly end."""
        self.program: Thread | None = None
        """The thread of the guest's own program."""
        self.cause = ""
        """Why the domain crashes, in a few words and with the line of the guest's code: for a person outside."""

    def on_shutdown(self, hook: Hook, *, late: bool = False) -> None:
        """Run `hook` before an orderly end: the last one registered first, a `late` one after those before it."""
        if late:
            self._hooks.insert(0, hook)
        else:
            self._hooks.append(hook)

    async def poweroff(self) -> NoReturn:
        """End the domain in order."""
        await self._shutdown(SHUTDOWN_poweroff)

    async def reboot(self) -> NoReturn:
        """End the domain in order, and ask the toolstack to start it again."""
        await self._shutdown(SHUTDOWN_reboot)

    def reboot_at_once(self) -> None:
        """End the domain without order: nothing is closed or written. Returns; nothing else runs after that."""
        self._kernel.scheduler.take_over(self.stop(SHUTDOWN_reboot))

    async def crash(self, why: str = "") -> NoReturn:
        """End the domain at once, as a failure."""
        self.cause = f"crash requested{f': {why}' if why else ''}"
        await take_over(self._last_words(f"{self.cause}\n"))
        raise AssertionError("unreachable")

    def thread_failed(self, thread: Thread, failure: BaseException) -> None:
        """Panic over a thread that failed; while the domain is ending in order, only say so."""
        if self._ending and thread is not self._ender:
            self._kernel.console.write(f"shutdown: thread {thread.name} failed\n{format_failure(failure)}")
        else:
            self.panic(failure, f"thread {thread.name} failed")

    def panic(self, failure: BaseException, what: str) -> None:
        """End the domain because of a failure of its own code: traceback on the console, then SHUTDOWN_crash.

        Returns; nothing but the end runs after that. Callable from upcall handlers.
        """
        self.cause = describe_failure(failure)
        text = f"Kernel panic: {what}\n{format_failure(failure)}"
        self._kernel.scheduler.take_over(self._last_words(text))

    def stop(self, reason: int) -> Run:
        """Return the code that ends the domain with a reason (SHUTDOWN_*)."""
        self._kernel.hypercalls.sched(SCHEDOP_shutdown, sched_shutdown, "SCHEDOP_shutdown", reason=reason)
        while True:
            yield 0

    def _last_words(self, text: str) -> Run:
        yield from self._kernel.console.last_words(text)
        yield from self.stop(SHUTDOWN_crash)

    async def _shutdown(self, reason: int) -> NoReturn:
        kernel = self._kernel
        if self._ending:
            await kernel.never()
        self._ending = True
        self._ender = kernel.scheduler.current
        await self._stop_program()
        for hook in reversed(self._hooks):
            await self._run_hook(hook)
        # If nobody reads the console the words are lost, as on a real one.
        with contextlib.suppress(TimeoutError):
            await kernel.wait_for(kernel.console.drain(), DRAIN_TIMEOUT_NS)
        await take_over(self.stop(reason))
        raise AssertionError("unreachable")

    async def _stop_program(self) -> None:
        """Cancel the guest's program, if it is not what asked for the end: its devices are about to close."""
        program = self.program
        if program is None or program is self._ender or program.done:
            return
        program.cancel()
        console = self._kernel.console
        try:
            await self._kernel.wait_for(program.join(), PROGRAM_TIMEOUT_NS)
        except ThreadCancelled:
            return
        except TimeoutError:
            console.printk(f"shutdown: the program goes on after {PROGRAM_TIMEOUT_NS // 10**9} s, leaving it behind")
        except Exception as failure:
            console.write(f"shutdown: the program failed\n{format_failure(failure)}")

    async def _run_hook(self, hook: Hook) -> None:
        kernel = self._kernel
        try:
            outcome = hook()
            if outcome is not None:
                await kernel.wait_for(outcome, HOOK_TIMEOUT_NS)
        except TimeoutError:
            kernel.console.printk(f"shutdown: {hook!r} is not done after {HOOK_TIMEOUT_NS // 10**9} s, going on")
        except Exception as failure:
            kernel.console.write(f"shutdown: a hook failed, going on\n{format_failure(failure)}")

    async def watch_control(self) -> None:
        """Obey `control/shutdown` and `control/sysrq`: a thread of each domain that has a xenstore.

        A request that the guest will not carry out is not acknowledged, as in Linux: a toolstack that waits sees it.
        """
        kernel = self._kernel
        client = kernel.xenbus
        offers = [client.submit(XS_WRITE, wire.join(path) + wire.to_bytes(can), path) for path, can in FEATURES.items()]
        news = WaitQueue()
        changed = {CONTROL: None, sysrq.NODE: None}

        def note(path: str, token: str) -> None:
            changed[path] = None
            news.wake()

        registered = [client.submit_watch(path, note, direct=True)[1] for path in changed]
        for answer in [*offers, *registered]:
            # Without these nodes, or the right to write them, the toolstack does not want to know.
            with contextlib.suppress(XenstoreError):
                await answer
        while True:
            while changed:
                paths = list(changed)
                changed.clear()
                # (Nothing is there after the first events, and those of our own acknowledgements.)
                found = dict(zip(paths, await client.read_many(paths), strict=True))
                if found.get(sysrq.NODE):
                    await sysrq.obey(kernel)
                if found.get(CONTROL) and (request := await client.transact(_take_request)):
                    await self._obey(request)
            await news.wait()

    async def _obey(self, request: str) -> None:
        console = self._kernel.console
        reason = REQUESTS.get(request)
        if reason is None:
            why = REFUSED.get(request, "this guest knows no such request")
            console.printk(f"control/shutdown: {request!r} is refused: {why}")
        elif reason == SHUTDOWN_crash:
            await self.crash("by control/shutdown")
        else:
            console.printk(f"control/shutdown: {request}")
            await self._shutdown(reason)


async def _take_request(transaction: Transaction) -> str:
    """Read the request, and acknowledge one that can be carried out by emptying the node."""
    request = await transaction.read_or_none(CONTROL)
    if request in REQUESTS:
        await transaction.write(CONTROL, "")
    return request or ""


def format_failure(failure: BaseException) -> str:
    """Return the traceback as text, without the kernel's own frames around the guest's code.

    Of something that the kernel refused (GuestError) the frames end where the guest's code does: what a library did
    with the refusal helps nobody.
    """
    frames = failure.__traceback__
    inner = frames
    while inner is not None and _is_kernel(inner.tb_frame):
        inner = inner.tb_next
    shown = traceback.TracebackException(type(failure), failure, inner or frames)
    if isinstance(failure, GuestError):
        own = [number for number, (frame, _) in enumerate(traceback.walk_tb(inner)) if not is_library(frame)]
        if own:
            shown.stack = traceback.StackSummary.from_list(shown.stack[: own[-1] + 1])
    return "".join(shown.format())


def describe_failure(failure: BaseException) -> str:
    """Return in a few words what failed and where: `ValueError: no good (at guest.py:7)`, the guest's own line."""
    if type(failure) is GuestError:
        # A sentence of the kernel's own, which may name the line already.
        text = str(failure)
    else:
        lines = "".join(traceback.format_exception_only(failure)).splitlines()
        text = lines[-1] if lines else type(failure).__name__
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(failure.__traceback__)
        if not _is_kernel(frame) and not is_library(frame)
    ]
    if isinstance(failure, SyntaxError) or not places:
        return text
    file, line = places[-1]
    place = f"{os.path.basename(file)}:{line}"
    return text if text.startswith(f"{place}: ") else f"{text} (at {place})"


def _is_kernel(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("guest_kernel.")
