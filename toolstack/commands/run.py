"""`paravirt run`: a host with a domain for each configuration."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import click
import trio

from hypervisor.errors import DeviceError, InvariantError, ReplayError
from hypervisor.sched.schedulers import CHOICES, DEFAULT
from toolstack.commands.common import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE, OneSentence, check_output
from toolstack.commands.profile import PROFILE_ROWS, save_speedscope
from toolstack.commands.top import format_sample
from toolstack.console_log import XEN_TAG, ConsoleLog
from toolstack.control.endpoint import ControlEndpoint
from toolstack.cpupools import parse_pool
from toolstack.errors import UsageError, did_you_mean
from toolstack.faults import parse_fault
from toolstack.host import Host
from toolstack.live_view import LiveView
from toolstack.nbd_export import parse_export
from toolstack.output import StandardOutput
from toolstack.outside import Outside
from toolstack.person import ConsolePerson
from toolstack.preparation import parse_nic
from toolstack.profiling.table import print_profile
from toolstack.report import HostResult, make_console, print_table
from toolstack.stuck import LastWords
from toolstack.xenstore.plug import serving_store
from toolstack.xl_config import DOM0_NAME, DomainConfig, load_config, load_dom0_config


@click.command()
@click.argument("configs", metavar="GUEST.cfg...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--dom0",
    "dom0",
    metavar="CFG",
    type=click.Path(path_type=Path),
    help="Configuration of dom0 (memory, vcpus, extra).",
)
@click.option("--pcpus", type=click.IntRange(1, 256), default=1, show_default=True, help="Physical CPUs of the host.")
@click.option(
    "--memory",
    metavar="MIB",
    type=click.IntRange(1, 1 << 20),
    help="Memory of the host in MiB. [default: as much as the domains need]",
)
@click.option(
    "--time",
    "clock",
    type=click.Choice(["virtual", "real"]),
    default="virtual",
    show_default=True,
    help="Virtual time jumps over idleness and is repeatable; real time follows the wall clock.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of everything random: MAC addresses, the guests' own random numbers.",
)
@click.option(
    "--scheduler",
    type=click.Choice(list(CHOICES)),
    help=f"Who runs, and for how long: one of Xen's schedulers. [default: {DEFAULT}]",
)
@click.option(
    "--cpupool",
    "pools",
    metavar="NAME=SCHEDULER:CPUS",
    multiple=True,
    help='A pool of pCPUs with a scheduler of its own, such as rt=rtds:2-3, for guests with `pool = "rt"`.',
)
@click.option(
    "--schedule",
    metavar="POLICY",
    default="",
    help="Overrule the scheduler: fifo, random:SEED (explore another order), replay:FILE (repeat the order of a "
    "trace) or decisions:N=I,... (a few choices that differ).",
)
@click.option(
    "--costs",
    metavar="FILE|off",
    default="",
    help="What hypercalls, switches, copies cost in virtual time: a TOML file (docs/costs.md), or nothing.",
)
@click.option(
    "--nic",
    "nics",
    metavar="[DOMAIN/]BRIDGE=WIRE",
    multiple=True,
    help="A bridge of the host, or of a driver domain, and what its network card is plugged into: none, tap:NAME (a "
    "TAP interface of Linux; needs --time real), or pcap:FILE. A FILE.pcap gets what goes onto the wire; any other "
    "name gets every frame at every port of the bridge, as pcapng.",
)
@click.option(
    "--capture",
    "capture",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Record every frame of every network interface in FILE (pcapng, for Wireshark): one interface for each vif.",
)
@click.option(
    "--export-nbd",
    "exports",
    metavar="GUEST:VDEV=WHERE",
    multiple=True,
    help="Serve a guest's disk, as the guest sees it through its driver, to NBD clients at unix:PATH or "
    "tcp:HOST:PORT. The guest stays on until it is asked to shut down.",
)
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
    help="Have the trace show the host's state too: rings, event bits, grants, page types, xenstore. For `paravirt "
    "trace --format html`; slow.",
)
@click.option(
    "--trace-threads",
    is_flag=True,
    help="Have the trace tell of the guests' threads, too: for `paravirt profile`.",
)
@click.option(
    "--profile",
    "profile_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add up where guests spend virtual time; print a table, and write a flame graph to FILE (for speedscope.app).",
)
@click.option(
    "--console",
    "console",
    metavar="NAME",
    help="Attach to the console of this guest: it is shown alone and as it is, and typed at. Ctrl-] leaves it.",
)
@click.option(
    "--pty", "ptys", is_flag=True, help="Give each guest's console a pseudo-terminal (xenstore: console/tty)."
)
@click.option(
    "--log-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write what each guest prints to DIR/guest-NAME.log, too.",
)
@click.option(
    "--xenstore-socket",
    "store_path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Let Xen's xenstore tools and other clients use the host's store, as dom0, on a Unix socket. A host on which "
    "nothing can happen by itself waits for them.",
)
@click.option(
    "--control",
    "control",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Listen at this Unix socket for `paravirt list`, `console`, `block-attach`, …",
)
@click.option(
    "--top",
    "top_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.01),
    help="Show what the domains use, as `paravirt top` does, every so many seconds of wall-clock time.",
)
@click.option("--progress", is_flag=True, help="Show how far the host has got, and how fast it is.")
@click.option(
    "--fault",
    "faults",
    metavar="NAME[:KEY=VALUE]...",
    multiple=True,
    help="Break something on purpose, such as event-drop:domain=web:probability=0.01. `paravirt faults` has the menu.",
)
@click.option("--quiet", is_flag=True, help="Do not show the consoles, only the closing table.")
def run(
    configs: tuple[Path, ...],
    dom0: Path | None,
    pcpus: int,
    memory: int | None,
    clock: str,
    seed: int,
    scheduler: str | None,
    pools: tuple[str, ...],
    schedule: str,
    costs: str,
    nics: tuple[str, ...],
    capture: Path | None,
    exports: tuple[str, ...],
    trace_file: Path | None,
    trace_state: bool,
    trace_threads: bool,
    profile_file: Path | None,
    console: str | None,
    ptys: bool,
    log_dir: Path | None,
    store_path: Path | None,
    control: Path | None,
    top_seconds: float | None,
    progress: bool,
    faults: tuple[str, ...],
    quiet: bool,
) -> None:
    """Run a host with a domain for each GUEST.cfg until all of them have ended.

    The consoles of all domains are shown live, and at the end a table of what each domain used. Ctrl-C asks the guests
    to shut down; a second one destroys them. Exits with 0, with 1 if a guest failed, with 2 if something in the
    configuration is wrong.
    """
    if trace_threads and trace_file is None:
        raise OneSentence("--trace-threads says what to write to the --trace FILE, and there is none")
    if trace_state and trace_file is None:
        raise OneSentence("--trace-state says what is to be in a trace: it needs --trace FILE")
    output = StandardOutput()
    outside = Outside(log_dir=log_dir, ptys=ptys)
    if top_seconds or progress:
        view = LiveView(
            top_seconds=top_seconds or 0,
            progress=progress,
            format_top=format_sample,
            write=output.write,
            warn=partial(click.echo, err=True),
        )
        outside.tasks.append(view.run)
    try:
        guests = [load_config(path) for path in configs]
        person = None if console is None else _person(console, guests, outside)
        host = Host(
            memory_mib=memory,
            pcpus=pcpus,
            time=clock,
            seed=seed,
            scheduler=scheduler or "",
            pools=[parse_pool(text) for text in pools],
            schedule=schedule,
            costs=costs,
            nics=[parse_nic(text) for text in nics],
            capture=capture,
            exports=[parse_export(text) for text in exports],
            trace_file=trace_file,
            trace_state=trace_state,
            trace_threads=trace_threads,
            profile=profile_file is not None,
            dom0=load_dom0_config(dom0) if dom0 is not None else None,
            faults=[parse_fault(text) for text in faults],
            consoles=None if quiet else _console_log(guests, output, person),
            outside=outside,
        )
        output.on_loss = host.interrupt
        host.on_notice = lambda sentence: click.echo(f"paravirt: {sentence}", err=True)
        with (
            _interrupting(host),
            serving_store(outside, store_path),
            _listening(control, outside),
            LastWords() as last_words,
        ):
            host.heartbeat = last_words.beat
            result = trio.run(host.run, guests)
    except (UsageError, ReplayError, DeviceError) as error:
        raise OneSentence(str(error)) from None
    except InvariantError as error:
        how = f"schedule {schedule}" if schedule else f"scheduler {scheduler or DEFAULT}"
        click.echo(
            f"paravirt: internal error: {error} (seed {seed}, {how})",
            err=True,
        )
        sys.exit(EXIT_INTERNAL)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    if host.profile is not None and profile_file is not None:
        output.attempt(partial(print_profile, host.profile, make_console(), "call", PROFILE_ROWS))
        save_speedscope(host.profile, profile_file, " ".join(guest.name for guest in guests))
    _finish(result, output)


def _person(name: str, guests: Sequence[DomainConfig], outside: Outside) -> ConsolePerson:
    """Attach whoever sits here to a guest's console. Raises `UsageError`."""
    names = [guest.name for guest in guests]
    if name not in names:
        raise UsageError(f"--console {name!r}: there is no such guest{did_you_mean(name, names)}")
    return ConsolePerson(name, outside)


def _console_log(guests: Sequence[DomainConfig], output: StandardOutput, person: ConsolePerson | None) -> ConsoleLog:
    """Return the live view of all consoles; it rests while a person looks at a single one."""

    def write(line: str) -> None:
        if person is None or not person.attached:
            output.write(line)

    width = max(len(name) for name in (DOM0_NAME, XEN_TAG, *(guest.name for guest in guests)))
    return ConsoleLog(write, width=min(width, 24), colour=output.is_terminal)


@contextmanager
def _listening(control: Path | None, outside: Outside) -> Iterator[None]:
    """Listen at the control socket. Raises `UsageError`."""
    if control is None:
        yield
        return
    endpoint = ControlEndpoint(control, outside)
    endpoint.open()
    try:
        yield
    finally:
        endpoint.close()


@contextmanager
def _interrupting(host: Host) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask the host for its end."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        if not host.is_on:
            raise KeyboardInterrupt  # there is nothing to be shut down yet
        click.echo("paravirt: shutting down (again: at once)", err=True)
        host.interrupt()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    host.hears_interrupts = True
    try:
        yield
    finally:
        host.hears_interrupts = False
        for number, old in before.items():
            signal.signal(number, old)


def _finish(result: HostResult, output: StandardOutput) -> None:
    output.attempt(lambda: print_table(result, make_console()))
    for report in result.faults:
        click.echo(f"paravirt: fault {report.sentence}", err=True)
    for domain in result.failures:
        click.echo(f"paravirt: {domain.sentence}", err=True)
    check_output(output)
    for sentence in result.unfinished:
        click.echo(f"paravirt: {sentence}", err=True)
    if result.unfinished:
        sys.exit(EXIT_USAGE)
    sys.exit(EXIT_INTERRUPTED if result.interrupted else result.exit_code)
