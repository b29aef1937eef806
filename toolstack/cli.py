"""The command `paravirt`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click

MODULES: dict[str, tuple[str, ...]] = {
    "boot": ("boot",),
    "cd": ("cd-eject", "cd-insert"),
    "check": ("check",),
    "control": (
        *("list", "domid", "domname", "pause", "unpause", "shutdown", "reboot", "destroy", "sysrq", "mem-set"),
        *("vcpu-set", "console", "block-attach", "block-detach", "block-resize", "block-list"),
        *("network-attach", "network-detach", "network-list"),
    ),
    "dmesg": ("dmesg",),
    "faults": ("faults",),
    "lab": ("lab",),
    "processors": (
        *("sched-credit", "sched-credit2", "sched-rtds", "cpupool-list", "cpupool-create", "cpupool-destroy"),
        *(
            "cpupool-rename",
            "cpupool-cpu-add",
            "cpupool-cpu-remove",
            "cpupool-migrate",
            "vcpu-list",
            "vcpu-pin",
            "info",
        ),
    ),
    "profile": ("profile",),
    "run": ("run",),
    "soak": ("soak",),
    "sweep": ("sweep",),
    "top": ("top",),
    "trace": ("trace",),
    "uptime": ("uptime",),
    "xenstore": ("xenstore",),
    "xenstored": ("xenstored",),
}
"""The verbs, by the module of `toolstack.commands` that each is in."""
_HOMES = {verb: module for module, verbs in MODULES.items() for verb in verbs}


class Verbs(click.Group):
    """Finds each verb in its module when it is wanted: half of them need a whole host, and the others should not wait
    a second for its modules.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all verbs, by the alphabet."""
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb; None if there is none of that name."""
        home = _HOMES.get(cmd_name)
        if home is None:
            return None
        module = import_module(f"toolstack.commands.{home}")
        candidates = (*getattr(module, "COMMANDS", ()), *vars(module).values())
        return next(found for found in candidates if isinstance(found, click.Command) and found.name == cmd_name)


def _version() -> str:
    try:
        return version("paravirt")
    except PackageNotFoundError:
        return "(not installed)"


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
