"""A host whose dom0 is a machine-code kernel: what `paravirt boot` switches on.

There is a machine, Xen, and dom0; everything else is that kernel's business. The host's serial line is the only
console: Xen's lines and what dom0 prints through console_io go out, what a person types comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from hypervisor.abi import sched
from hypervisor.boot_log import announce, describe_dom0
from hypervisor.dom0_build import BuildError, construct_dom0
from hypervisor.errors import HypercallError
from hypervisor.hypervisor import Hypervisor
from hypervisor.kernel_image import PvKernel
from hypervisor.machine.machine import Machine
from hypervisor.mm.boot_memory import booted
from hypervisor.options import XenOptions, parse_options
from hypervisor.sched.costs import Costs
from hypervisor.sched.schedulers import DEFAULT, XENS
from toolstack.errors import UsageError
from toolstack.pace import Pace
from toolstack.profiling.profile import Profile
from toolstack.recording import Recording
from toolstack.xl_config import DOM0_NAME

if TYPE_CHECKING:
    from guest_kernel.xenbus.driver import XenbusDriver

DEFAULT_XEN_CMDLINE = "com1=115200,8n1 console=com1 loglvl=all guest_loglvl=all dom0_mem=64M dom0_max_vcpus=2"
DEFAULT_HOST_MIB = 512
DEFAULT_PCPUS = 2
XEN_BOOT_NS = 2_000_000_000
"""How long Xen takes to start: that much time has passed when dom0 begins."""
XEN_PAGES = 512
"""Free pages that Xen keeps for itself: tables of its own, further domains' bookkeeping."""


@attrs.frozen(kw_only=True)
class BootSpec:
    """What is to be booted. Modules are the contents of files; the kernel's path is for messages."""

    kernel_path: Path
    kernel: PvKernel
    kernel_size: int = 0
    """Size in bytes of the kernel's file, as the boot loader put it into memory."""
    modules: tuple[bytes, ...] = attrs.field(default=(), repr=False)
    cmdline: str = ""
    xen_cmdline: str = DEFAULT_XEN_CMDLINE
    host_memory_mib: int = DEFAULT_HOST_MIB
    pcpus: int = DEFAULT_PCPUS
    seed: int = 0
    trace_file: Path | None = None
    trace_state: bool = False
    """The trace shows the host's state, too."""
    profiles: bool = False
    """Where virtual time goes is to be added up."""


@attrs.frozen
class BootResult:
    """How a machine ended."""

    shutdown_reason: int
    """SHUTDOWN_* (sched.h), or -1: somebody or something from outside ended it."""
    virtual_ns: int
    why: str = ""
    """What ended it, if it was not dom0: a sentence."""

    @property
    def is_reboot(self) -> bool:
        """Whether the machine starts again."""
        return self.shutdown_reason == sched.SHUTDOWN_reboot


class BootHost:
    """One machine, from power-on to power-off. `run` is to be awaited under trio.

    `show` gets the bytes of the serial line. `types`: somebody may type, so the machine waits for that when it is idle.
    """

    def __init__(self, spec: BootSpec, show: Callable[[bytes], None], *, types: bool = False) -> None:
        self.spec = spec
        self.hv: Hypervisor
        self._show = show
        self._types = types
        self._typed = bytearray()
        self._wake = trio.Event()
        self._end = ""
        self._stack = ExitStack()
        self.profile = Profile(Costs()) if spec.profiles else None
        """Where virtual time goes; complete when `run` has returned."""
        self._recording = Recording(spec.trace_file, spec.seed, spec.trace_state, self.profile)
        self.is_on = trio.Event()
        """Set as soon as there is something to be seen."""

    # -- for those who look on (`live_view`) --------------------------------------------------------------------------

    real_time = False

    def dom0_drivers(self) -> list[XenbusDriver]:
        """Return nothing: what drivers dom0 has is its own affair."""
        return []

    def names(self) -> Mapping[int, str]:
        """Return what is known of the domains' names: those that dom0 makes have theirs in its own store."""
        return {0: DOM0_NAME}

    def guests_that_run(self) -> tuple[int, int]:
        """Return how many domains dom0 has made that have not shut down, and how many in all."""
        guests = [domain for domid, domain in self.hv.domains.items() if domid]
        return sum(not domain.shutting_down for domain in guests), len(guests)

    # -- the run ------------------------------------------------------------------------------------------------------

    async def run(self) -> BootResult:
        """Switch the machine on and run it to its end. Raises UsageError, InvariantError."""
        with self._stack:
            self._assemble()
            self._stack.callback(self.hv.switch_off)
            self.is_on.set()
            await self._drain()
            self._recording.finish()
        if self._recording.failure:
            raise UsageError(self._recording.failure)
        return BootResult(-1 if self._end else self.hv.shutdown_reason, self.hv.clock.now, self._end)

    def end(self, why: str) -> None:
        """Cut the power soon; `why` is a sentence."""
        self._end = self._end or why
        self._wake.set()

    def type(self, data: bytes) -> None:
        """Type on the serial line."""
        self._typed += data
        self._wake.set()

    async def _drain(self) -> None:
        hv, pace = self.hv, Pace()
        while not hv.stopped and not self._end:
            if self._typed and hv.console_io.room:
                # A person who pastes a page is not to lose the end of it.
                data = bytes(self._typed[: hv.console_io.room])
                del self._typed[: len(data)]
                hv.console_io.feed(data)
            until = hv.sched.drain(pace.start())
            pace.stop()
            if until == 0 or hv.stopped:
                await trio.lowlevel.checkpoint()
            elif self._types:
                self._wake = trio.Event()
                await self._wake.wait()
            else:
                self._end = "everything in dom0 waits for something that cannot happen any more"

    # -- assembly -------------------------------------------------------------------------------------------------

    def _assemble(self) -> None:
        spec = self.spec
        options = parse_options(spec.xen_cmdline)
        machine = Machine(memory_mib=spec.host_memory_mib, pcpus=spec.pcpus, has_firmware=True)
        machine.clock.now = XEN_BOOT_NS
        self._recording.open(self._stack, self._about(options))
        sizes = (spec.kernel_size, *(len(module) for module in spec.modules))
        try:
            boot = booted(machine.memory.frames, sizes)
            hv = Hypervisor(
                machine,
                trace=self._recording.emit,
                console=self._show,
                options=options,
                boot=boot,
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        self.hv = hv
        self._recording.attach(hv)
        vcpus = options.dom0_vcpus(spec.pcpus)
        module = spec.modules[0] if spec.modules else None
        announce(hv, len(spec.modules))
        try:
            domain = hv.domain_ops.create(0, max_vcpus=vcpus, is_privileged=True)
            for vcpu_id in range(vcpus):
                hv.domain_ops.add_vcpu(domain, vcpu_id)
            pages = options.dom0_pages(max(hv.frames.free_frames - XEN_PAGES, 0))
            layout = construct_dom0(hv, domain, spec.kernel, spec.cmdline, module, pages)
        except BuildError as error:
            raise UsageError(f"{spec.kernel_path}: {error}") from None
        except HypercallError:
            raise UsageError(f"too little memory: {spec.host_memory_mib} MiB are not enough for Xen and dom0") from None
        describe_dom0(hv, spec.kernel, layout, vcpus)
        hv.domain_ops.unpause(domain)

    def _about(self, options: XenOptions) -> dict[str, Any]:
        """Return what a trace says of the run at its beginning."""
        return {
            "pcpus": self.spec.pcpus,
            "time": "virtual",
            "schedule": "",
            "scheduler": options.scheduler if options.scheduler in XENS else DEFAULT,
            "preempts": False,
        }
