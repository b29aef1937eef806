"""`paravirt boot`: a machine-code PV kernel as dom0 of a host of its own."""

from __future__ import annotations

import codecs
import math
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import attrs
import click
import trio

from hypervisor.abi import sched
from hypervisor.errors import DeviceError, InvariantError
from toolstack.boot_host import DEFAULT_HOST_MIB, DEFAULT_PCPUS, DEFAULT_XEN_CMDLINE, BootHost, BootResult, BootSpec
from toolstack.commands.common import EXIT_INTERNAL, EXIT_INTERRUPTED, OneSentence, check_output
from toolstack.commands.profile import PROFILE_ROWS, save_speedscope
from toolstack.commands.top import format_sample
from toolstack.errors import UsageError
from toolstack.live_view import LiveView
from toolstack.machine_code import read_file, read_kernel, require_emulator
from toolstack.output import StandardOutput
from toolstack.profiling.table import print_profile
from toolstack.report import make_console

EXIT_CRASH = 3
EXIT_TIMEOUT = 124
"""As timeout(1) ends."""
_REASONS = {
    sched.SHUTDOWN_suspend: "has suspended itself",
    sched.SHUTDOWN_crash: "crashed",
    sched.SHUTDOWN_watchdog: "was ended by its watchdog",
    sched.SHUTDOWN_soft_reset: "asked for a soft reset",
}
_TIMED_OUT = "dom0 still runs after"
_INTERRUPTED = "interrupted"


@click.command()
@click.argument("kernel", metavar="KERNEL", type=click.Path(path_type=Path))
@click.option(
    "--module",
    "modules",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The initial ramdisk, or what else the kernel wants loaded beside it.",
)
@click.option("--cmdline", metavar="STR", default="", help="The kernel's command line.")
@click.option(
    "--memory", metavar="MIB", type=click.IntRange(1, 1 << 20), help="Memory of dom0 (dom0_mem). [default: 64]"
)
@click.option(
    "--host-memory",
    metavar="MIB",
    type=click.IntRange(8, 1 << 20),
    default=DEFAULT_HOST_MIB,
    show_default=True,
    help="Memory of the host.",
)
@click.option("--vcpus", metavar="N", type=click.IntRange(1, 128), help="vCPUs of dom0 (dom0_max_vcpus). [default: 2]")
@click.option(
    "--pcpus",
    metavar="N",
    type=click.IntRange(1, 256),
    default=DEFAULT_PCPUS,
    show_default=True,
    help="Physical CPUs of the host.",
)
@click.option(
    "--xen-cmdline", metavar="STR", default=DEFAULT_XEN_CMDLINE, show_default=True, help="Xen's own command line."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Noted in the trace.")
@click.option(
    "--trace",
    "trace_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Record every event of the host in FILE.",
)
@click.option(
    "--trace-state",
    is_flag=True,
    help="Have the trace show the host's state too: event bits, grants, page types. For `paravirt trace --format "
    "html`; slow.",
)
@click.option(
    "--profile",
    "profile_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add up where domains spend virtual time; print a table, and write a flame graph to FILE (for "
    "speedscope.app).",
)
@click.option(
    "--top",
    "top_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.01),
    help="Show what the domains use, as `paravirt top` does, every so many seconds of wall-clock time.",
)
@click.option(
    "--reboot", is_flag=True, help="Start the machine again when dom0 reboots it; without this that is the end."
)
@click.option(
    "--timeout", metavar="S", type=click.FloatRange(0, min_open=True), help="Cut the power after so many seconds."
)
def boot(
    kernel: Path,
    modules: tuple[Path, ...],
    cmdline: str,
    memory: int | None,
    host_memory: int,
    vcpus: int | None,
    pcpus: int,
    xen_cmdline: str,
    seed: int,
    trace_file: Path | None,
    trace_state: bool,
    profile_file: Path | None,
    top_seconds: float | None,
    reboot: bool,
    timeout: float | None,
) -> None:
    """Boot KERNEL, a 64-bit PV kernel (an ELF file or a bzImage), as dom0 of a host.

    The host's serial line is shown: what Xen and dom0 print. If standard input is a terminal, what is typed goes to
    dom0. Exits with 0 when dom0 powers the host off or reboots it, with 3 when it crashes, with 2 if something on the
    command line is wrong, with 124 after --timeout.
    """
    if trace_state and trace_file is None:
        raise OneSentence("--trace-state says what is to be in a trace: it needs --trace FILE")
    output = StandardOutput()
    onlooker = _Onlooker(output, kernel.name, profile_file, top_seconds)
    try:
        spec = BootSpec(
            kernel_path=kernel,
            kernel=read_kernel(kernel),
            kernel_size=kernel.stat().st_size,
            modules=tuple(read_file(path, "module") for path in modules),
            cmdline=cmdline,
            xen_cmdline=_xen_cmdline(xen_cmdline, memory, vcpus),
            host_memory_mib=host_memory,
            pcpus=pcpus,
            seed=seed,
            trace_file=trace_file,
            trace_state=trace_state,
            profiles=profile_file is not None,
        )
        require_emulator()
        result = trio.run(_run, spec, onlooker, timeout, reboot)
    except (UsageError, DeviceError) as error:
        raise OneSentence(str(error)) from None
    except InvariantError as error:
        click.echo(f"paravirt: internal error: {error} (seed {seed})", err=True)
        sys.exit(EXIT_INTERNAL)
    check_output(output)
    _finish(result)


def _xen_cmdline(text: str, memory: int | None, vcpus: int | None) -> str:
    """Let --memory and --vcpus stand for the words of Xen's command line that they are."""
    words = text.split()
    for name, value in (
        ("dom0_mem", None if memory is None else f"{memory}M"),
        ("dom0_max_vcpus", None if vcpus is None else str(vcpus)),
    ):
        if value is not None:
            words = [word for word in words if not word.startswith(f"{name}=")] + [f"{name}={value}"]
    return " ".join(words)


class _Onlooker:
    """What a person sees of a machine: its serial line, and what else they have asked for."""

    def __init__(self, output: StandardOutput, name: str, profile_file: Path | None, top_seconds: float | None) -> None:
        self.output = output
        self._name = name
        self._profile_file = profile_file
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._view: LiveView | None = None
        if top_seconds:
            self._view = LiveView(
                top_seconds=top_seconds,
                progress=False,
                format_top=format_sample,
                write=output.write,
                warn=partial(click.echo, err=True),
            )

    def show(self, data: bytes) -> None:
        """Show what comes over the serial line: as it is, or above a table that is renewed in place, as lines."""
        if self._view is None:
            self.output.write_bytes(data)
        else:
            self.output.write(self._decode(data))

    async def look(self, machine: BootHost) -> None:
        """Look on for as long as the machine is on."""
        if self._view is not None:
            await machine.is_on.wait()
            await self._view.run(machine)

    def finish(self, machine: BootHost, life: int) -> None:
        """Tell where the time of one life has gone. Raises OneSentence."""
        if machine.profile is not None and self._profile_file is not None:
            self.output.attempt(partial(print_profile, machine.profile, make_console(), "call", PROFILE_ROWS))
            save_speedscope(machine.profile, _of_life(self._profile_file, life), self._name)


def _of_life(path: Path, life: int) -> Path:
    """Return where to write what belongs to one life of a machine: the first has the name that was asked for."""
    return path if life == 1 else path.with_name(f"{path.name}.{life}")


async def _run(spec: BootSpec, onlooker: _Onlooker, limit: float | None, reboot: bool) -> BootResult:
    """Boot; if that is wanted, boot again after a reboot, until the machine stays off."""
    deadline = trio.current_time() + limit if limit is not None else math.inf
    lives = 0
    with _terminal() as is_terminal:
        while True:
            lives += 1
            trace = None if spec.trace_file is None else _of_life(spec.trace_file, lives)
            machine = BootHost(attrs.evolve(spec, trace_file=trace), onlooker.show, types=is_terminal)
            onlooker.output.on_loss = partial(machine.end, "nobody reads the console any more")
            result = await _run_once(machine, onlooker, deadline, limit, is_terminal)
            onlooker.finish(machine, lives)
            if not result.is_reboot or not reboot:
                return result
            if limit is not None and trio.current_time() >= deadline:
                return BootResult(-1, result.virtual_ns, f"{_TIMED_OUT} {limit:g} s")


async def _run_once(
    machine: BootHost, onlooker: _Onlooker, deadline: float, limit: float | None, is_terminal: bool
) -> BootResult:
    failure: UsageError | DeviceError | InvariantError | None = None
    with _interrupting(machine):
        async with trio.open_nursery() as nursery:
            if limit is not None:
                nursery.start_soon(_time_out, machine, deadline, limit)
            if is_terminal:
                nursery.start_soon(_type, machine)
            nursery.start_soon(onlooker.look, machine)
            try:
                result = await machine.run()
            except (UsageError, DeviceError, InvariantError) as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


async def _time_out(machine: BootHost, deadline: float, limit: float) -> None:
    await trio.sleep_until(deadline)
    machine.end(f"{_TIMED_OUT} {limit:g} s")


async def _type(machine: BootHost) -> None:
    """Pass on what a person types."""
    while True:
        await trio.lowlevel.wait_readable(sys.stdin)
        data = os.read(sys.stdin.fileno(), 1024)
        if not data:
            return
        machine.type(data)


@contextmanager
def _terminal() -> Iterator[bool]:
    """If a person sits at standard input, let each key count at once, and not be echoed: that is for dom0 to do."""
    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _interrupting(machine: BootHost) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM cut the power, between two stretches of guest code."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        machine.end(_INTERRUPTED)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _finish(result: BootResult) -> None:
    """End the program as the machine ended."""
    if result.why:
        click.echo(f"paravirt: {result.why}", err=True)
        if result.why == _INTERRUPTED:
            sys.exit(EXIT_INTERRUPTED)
        sys.exit(EXIT_TIMEOUT if result.why.startswith(_TIMED_OUT) else EXIT_CRASH)
    if result.is_reboot or result.shutdown_reason == sched.SHUTDOWN_poweroff:
        sys.exit(0)
    how = _REASONS.get(result.shutdown_reason, f"shut down for the unknown reason {result.shutdown_reason}")
    click.echo(f"paravirt: dom0 {how} at {result.virtual_ns / 1e9:.6f} s of virtual time", err=True)
    sys.exit(EXIT_CRASH)
