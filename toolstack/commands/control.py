"""The verbs that steer a running host: `paravirt list`, `console`, `block-attach`, … with the tables that xl prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from toolstack.commands.common import OneSentence, check_output
from toolstack.control.client import VARIABLE, Control, join
from toolstack.control.protocol import ControlError, ProtocolError
from toolstack.disk_spec import parse_disk, parse_size
from toolstack.errors import SpecError
from toolstack.memory_spec import parse_memory
from toolstack.output import StandardOutput

F = TypeVar("F", bound=Callable[..., Any])


def with_control(function: F) -> F:
    """Give a command the option that says which host is meant."""
    return click.option(
        "--control",
        "path",
        metavar="PATH",
        envvar=VARIABLE,
        required=True,
        type=click.Path(path_type=Path),
        help=f"The control socket of the host (`paravirt run --control PATH`). [default: ${VARIABLE}]",
    )(function)


@contextmanager
def on_host(path: Path) -> Iterator[Control]:
    """Connect to a host; what goes wrong is one sentence. What the host refuses is exit code 1, as with xl."""
    try:
        with Control(path) as control:
            yield control
    except ProtocolError as error:
        raise OneSentence(str(error)) from None
    except ControlError as error:
        click.echo(f"paravirt: {error}", err=True)
        sys.exit(1)


def print_lines(*lines: str) -> None:
    """Print lines; a reader that has gone ends the program quietly."""
    output = StandardOutput()
    for line in lines:
        output.write(line + "\n")
    check_output(output)


_domain = click.argument("domain", metavar="DOMAIN")


# -- asking -------------------------------------------------------------------------------------------------------


@click.command("list")
@click.argument("domain", metavar="[DOMAIN]", default="")
@with_control
def list_(path: Path, domain: str) -> None:
    """List the domains of a running host, or one of them."""
    with on_host(path) as control:
        rows = control.ask("list", domain=domain)
    print_lines("Name                                        ID   Mem VCPUs\tState\tTime(s)", *map(_domain_row, rows))


def _domain_row(row: Mapping[str, Any]) -> str:
    name, domid, mem, vcpus = row["name"], row["id"], row["mem"], row["vcpus"]
    return f"{name:<40} {domid:5d} {mem:5d} {vcpus:5d}     {row['state']}  {row['time_ns'] / 1e9:8.1f}"


@click.command()
@_domain
@with_control
def domid(path: Path, domain: str) -> None:
    """Print the number of a domain."""
    with on_host(path) as control:
        number = control.ask("domid", domain=domain)
    print_lines(str(number))


@click.command()
@click.argument("domain", metavar="DOMID")
@with_control
def domname(path: Path, domain: str) -> None:
    """Print the name of a domain."""
    with on_host(path) as control:
        name = control.ask("domname", domain=domain)
    print_lines(name)


# -- the lives of domains -----------------------------------------------------------------------------------------


def _simple(verb: str, help_: str) -> click.Command:
    """Make a command that names a domain and prints nothing."""

    @click.command(verb, help=help_)
    @_domain
    @with_control
    def command(path: Path, domain: str) -> None:
        with on_host(path) as control:
            control.ask(verb, domain=domain)

    return command


def _ending(verb: str, help_: str, what: str) -> click.Command:
    """Make a command that asks a guest to end, and may wait for it."""

    @click.command(verb, help=help_)
    @_domain
    @click.option("--wait", "-w", "wait", is_flag=True, help=f"Wait until the guest has {what}.")
    @with_control
    def command(path: Path, domain: str, wait: bool) -> None:
        with on_host(path) as control:
            control.ask(verb, domain=domain, wait=wait)

    return command


@click.command()
@_domain
@click.argument("letter", metavar="LETTER")
@with_control
def sysrq(path: Path, domain: str, letter: str) -> None:
    """Send a magic SysRq letter to a guest; it answers on its console."""
    with on_host(path) as control:
        control.ask("sysrq", domain=domain, letter=letter)


# -- memory and vCPUs ---------------------------------------------------------------------------------------------


@click.command("mem-set")
@_domain
@click.argument("memory", metavar="MEMORY")
@with_control
def mem_set(path: Path, domain: str, memory: str) -> None:
    """Ask a guest to give memory back, or let it take some: MEMORY in MiB (or with b, k, m, g, t)."""
    try:
        kib = parse_memory(memory)
    except SpecError as error:
        raise OneSentence(str(error)) from None
    with on_host(path) as control:
        control.ask("mem-set", domain=domain, kib=kib)


@click.command("vcpu-set")
@_domain
@click.argument("vcpus", metavar="VCPUS", type=click.IntRange(min=1))
@click.option("--ignore-host", "-i", is_flag=True, help="Even if the host has fewer physical CPUs.")
@with_control
def vcpu_set(path: Path, domain: str, vcpus: int, ignore_host: bool) -> None:
    """Let a guest use so many of its vCPUs."""
    with on_host(path) as control:
        control.ask("vcpu-set", domain=domain, count=vcpus, ignore_host=ignore_host)


# -- devices ------------------------------------------------------------------------------------------------------


@click.command("block-attach")
@_domain
@click.argument("spec", metavar="DISK-SPEC...", nargs=-1, required=True)
@with_control
def block_attach(path: Path, domain: str, spec: tuple[str, ...]) -> None:
    """Give a running guest another disk (xl-disk-configuration(5), as in `disk = [...]`)."""
    text = ",".join(spec)
    try:
        parse_disk(text)
    except SpecError as error:
        raise OneSentence(f"{text!r}: {error}") from None
    with on_host(path) as control:
        control.ask("block-attach", domain=domain, spec=text, cwd=os.getcwd())


@click.command("block-detach")
@_domain
@click.argument("device", metavar="VDEV")
@click.option("--force", "-f", is_flag=True, help="Do not wait for the guest to let go of the disk.")
@with_control
def block_detach(path: Path, domain: str, device: str, force: bool) -> None:
    """Take a disk away from a running guest: by name (xvdb), or by number."""
    with on_host(path) as control:
        control.ask("block-detach", domain=domain, device=device, force=force)


@click.command("block-resize")
@_domain
@click.argument("device", metavar="VDEV")
@click.argument("size", metavar="SIZE")
@with_control
def block_resize(path: Path, domain: str, device: str, size: str) -> None:
    """Make a disk of a running guest larger, to SIZE bytes (or K, M, G, T): its image, and what the guest sees."""
    try:
        parse_size(size)
    except SpecError as error:
        raise OneSentence(str(error)) from None
    with on_host(path) as control:
        control.ask("block-resize", domain=domain, device=device, size=size)


@click.command("block-list")
@_domain
@with_control
def block_list(path: Path, domain: str) -> None:
    """List the disks of a guest."""
    with on_host(path) as control:
        rows = control.ask("block-list", domain=domain)
    print_lines(
        f"{'Vdev':<5} {'BE':<3} {'handle':<6} {'state':<5} {'evt-ch':<6} {'ring-ref':<8} {'BE-path':<30}",
        *(
            f"{row['devid']:<5d} {row['backend_id']:<3d} {0:<6d} {_number(row, 'state'):<5d} "
            f"{_number(row, 'event-channel'):<6d} {_number(row, 'ring-ref'):<8d} {row['backend']:<30}"
            for row in rows
        ),
    )


@click.command("network-attach")
@_domain
@click.argument("spec", metavar="[VIF-SPEC...]", nargs=-1)
@with_control
def network_attach(path: Path, domain: str, spec: tuple[str, ...]) -> None:
    """Give a running guest another network interface (xl-network-configuration(5), as in `vif = [...]`)."""
    with on_host(path) as control:
        control.ask("network-attach", domain=domain, spec=",".join(spec))


@click.command("network-detach")
@_domain
@click.argument("device", metavar="DEVID|MAC")
@with_control
def network_detach(path: Path, domain: str, device: str) -> None:
    """Take a network interface away from a running guest."""
    with on_host(path) as control:
        control.ask("network-detach", domain=domain, device=device)


@click.command("network-list")
@_domain
@with_control
def network_list(path: Path, domain: str) -> None:
    """List the network interfaces of a guest."""
    with on_host(path) as control:
        rows = control.ask("network-list", domain=domain)
    print_lines(
        f"{'Idx':<3} {'BE':<2} {'Mac Addr.':<17} {'handle':<6} {'state':<5} {'evt-ch':<6} "
        f"{'tx-':>5}/{'rx-ring-ref':<5} {'BE-path':<30}",
        *(
            f"{row['devid']:<3d} {row['backend_id']:<2d} {row['mac'] or '':<17} {row['devid']:6d} "
            f"{_number(row, 'state'):5d} {_number(row, 'event-channel'):6d} "
            f"{_number(row, 'tx-ring-ref'):5d}/{_number(row, 'rx-ring-ref'):<11d} {row['backend']:<30}"
            for row in rows
        ),
    )


def _number(row: Mapping[str, Any], key: str) -> int:
    """Return a number that a guest has written; -1 if it is none, as libxl does."""
    text = row[key]
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 11 else -1


# -- consoles -----------------------------------------------------------------------------------------------------


@click.command()
@_domain
@with_control
def console(path: Path, domain: str) -> None:
    """Attach to the console of a guest. Ctrl-] leaves it.

    What the guest has printed and nobody has read comes first.
    """
    typed, shown = sys.stdin.fileno(), sys.stdout.fileno()
    with on_host(path) as control:
        place = control.ask("console", domain=domain)
        if "tty" in place:
            try:
                terminal = os.open(place["tty"], os.O_RDWR | os.O_NOCTTY)
            except OSError as error:
                raise OneSentence(f"cannot open the console {place['tty']!r}: {error.strerror}") from None
            with os.fdopen(terminal, "r+b", buffering=0):
                join(terminal, typed, shown)
        else:
            control.console(typed, shown)


COMMANDS: tuple[click.Command, ...] = (
    list_,
    domid,
    domname,
    _simple("pause", "Stop the vCPUs of a guest."),
    _simple("unpause", "Let the vCPUs of a guest go on."),
    _ending("shutdown", "Ask a guest to shut down.", "shut down"),
    _ending("reboot", "Ask a guest to reboot.", "ended its present life"),
    _simple("destroy", "End a guest at once, without asking it."),
    sysrq,
    mem_set,
    vcpu_set,
    console,
    block_attach,
    block_detach,
    block_resize,
    block_list,
    network_attach,
    network_detach,
    network_list,
)
"""What `paravirt` has for running hosts."""
