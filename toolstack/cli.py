"""The command `paravirt`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from toolstack.commands import control, processors
from toolstack.commands.boot import boot
from toolstack.commands.cd import cd_eject, cd_insert
from toolstack.commands.check import check
from toolstack.commands.dmesg import dmesg
from toolstack.commands.faults import faults
from toolstack.commands.lab import lab
from toolstack.commands.profile import profile
from toolstack.commands.run import run
from toolstack.commands.soak import soak
from toolstack.commands.sweep import sweep
from toolstack.commands.top import top
from toolstack.commands.trace import trace
from toolstack.commands.uptime import uptime
from toolstack.commands.xenstore import xenstore
from toolstack.commands.xenstored import xenstored


def _version() -> str:
    try:
        return version("paravirt")
    except PackageNotFoundError:
        return "(not installed)"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name="paravirt")
def main() -> None:
    """A whole Xen host, simulated: hypervisor, dom0, guests, split drivers, xenstore.

    Guests are Python classes; domains are described by xl.cfg files, as for xl.

    \b
        paravirt run examples/hello/hello.cfg
        paravirt run examples/first-host/*.cfg --trace host.trace
        paravirt trace host.trace
        paravirt run --control host.sock guest.cfg &
        paravirt list --control host.sock
        paravirt boot vmlinuz --module initrd.img --cmdline console=hvc0
    """


_SINGLE = (
    run,
    boot,
    trace,
    profile,
    sweep,
    top,
    dmesg,
    uptime,
    xenstore,
    xenstored,
    cd_insert,
    cd_eject,
    check,
    faults,
    soak,
    lab,
)
for _command in (*_SINGLE, *control.COMMANDS, *processors.COMMANDS):
    main.add_command(_command)
