"""What a running host can be asked for, as `xl` would be: one function a verb, in a table.

They run in dom0, each in a thread of its own. A result is plain data; what is wrong is ToolstackError, SpecError or
ArgumentError with one sentence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from guest_kernel.kernel import Kernel
from hypervisor.abi import domctl, sched
from toolstack.control.top import sample
from toolstack.disk_spec import parse_disk, parse_size
from toolstack.domains import LiveDomain
from toolstack.errors import ToolstackError, did_you_mean
from toolstack.hotplug import Hotplug
from toolstack.lifecycle import MAXMEM_SLACK_KIB, Lifecycle
from toolstack.nodes import DOM0
from toolstack.vif_spec import parse_vif
from toolstack.xl_config import DOM0_NAME

PAGES_PER_MIB = 256


class ArgumentError(Exception):
    """A request has the wrong arguments; the text is one sentence."""


class Arguments:
    """The arguments of a request, taken one by one and checked."""

    def __init__(self, verb: str, values: Mapping[str, Any]) -> None:
        self._verb = verb
        self._values = values

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text. Raises ArgumentError if it is missing (no default) or something else."""
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise ArgumentError(f"{self._verb}: the argument {name!r} is to be a text")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        """Return a whole number that is not negative. Raises ArgumentError, also if it is missing (no default)."""
        value = self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ArgumentError(f"{self._verb}: the argument {name!r} is to be a whole number")
        return value

    def flag(self, name: str) -> bool:
        """Return a truth value, False if it is missing. Raises ArgumentError."""
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise ArgumentError(f"{self._verb}: the argument {name!r} is to be true or false")
        return value


@attrs.frozen
class Toolstack:
    """What the verbs work with."""

    kernel: Kernel
    lifecycle: Lifecycle
    hotplug: Hotplug
    terminal: Callable[[int], int | None]
    """The line of the serial card that a domain's console is on, by domain."""

    def find(self, name: str) -> LiveDomain:
        """Return a running guest by name or number. Raises ToolstackError."""
        if name in ("0", DOM0_NAME):
            raise ToolstackError(f"{DOM0_NAME} is the control domain: this can only be done to guests")
        for live in self.lifecycle.live.values():
            if name in (live.name, str(live.domid)):
                return live
        names = [live.name for live in self.lifecycle.live.values()]
        raise ToolstackError(f"there is no domain {name!r}{did_you_mean(name, names)}")

    def running(self, name: str) -> LiveDomain:
        """Return a guest that has not ended. Raises ToolstackError."""
        live = self.find(name)
        if live.over:
            raise ToolstackError(f"{live.name} has ended already")
        return live


Verb = Callable[[Toolstack, Arguments], Awaitable[Any]]


# -- asking -------------------------------------------------------------------------------------------------------


async def _list(toolstack: Toolstack, args: Arguments) -> list[dict[str, Any]]:
    wanted = args.text("domain", "")
    if wanted and wanted not in ("0", DOM0_NAME):
        toolstack.find(wanted)
    names = {DOM0: DOM0_NAME, **{domid: live.name for domid, live in toolstack.lifecycle.live.items()}}
    rows = []
    for state in toolstack.lifecycle.xc.domain_states():
        info = toolstack.lifecycle.xc.domain_info(state.domain)
        name = names.get(state.domain, "(null)")
        if info is None or (wanted and wanted not in (name, str(state.domain))):
            continue
        rows.append(
            {
                "name": name,
                "id": state.domain,
                "mem": info.tot_pages // PAGES_PER_MIB,
                "vcpus": info.nr_online_vcpus,
                "state": state_letters(info.flags),
                "time_ns": info.cpu_time,
            }
        )
    return rows


def state_letters(flags: int) -> str:
    """Return a domain's state as xl prints it: running, blocked, paused, shut down, crashed, dying."""
    down = bool(flags & domctl.XEN_DOMINF_shutdown)
    code = flags >> domctl.XEN_DOMINF_shutdownshift & domctl.XEN_DOMINF_shutdownmask
    letters = (
        ("r", flags & domctl.XEN_DOMINF_running),
        ("b", flags & domctl.XEN_DOMINF_blocked),
        ("p", flags & domctl.XEN_DOMINF_paused),
        ("s", down),
        ("c", down and code == sched.SHUTDOWN_crash),
        ("d", flags & domctl.XEN_DOMINF_dying),
    )
    return "".join(letter if is_set else "-" for letter, is_set in letters)


async def _top(toolstack: Toolstack, args: Arguments) -> dict[str, Any]:
    names = {DOM0: DOM0_NAME, **{domid: live.name for domid, live in toolstack.lifecycle.live.items()}}
    return sample(toolstack.kernel, toolstack.lifecycle, names)


async def _domid(toolstack: Toolstack, args: Arguments) -> int:
    name = args.text("domain")
    return DOM0 if name == DOM0_NAME else toolstack.find(name).domid


async def _domname(toolstack: Toolstack, args: Arguments) -> str:
    number = args.text("domain")
    return DOM0_NAME if number == "0" else toolstack.find(number).name


# -- the lives of domains -----------------------------------------------------------------------------------------


async def _pause(toolstack: Toolstack, args: Arguments) -> None:
    toolstack.lifecycle.xc.pause(toolstack.running(args.text("domain")).domid)


async def _unpause(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    info = toolstack.lifecycle.xc.domain_info(live.domid)
    if info is None or not info.flags & domctl.XEN_DOMINF_paused:
        raise ToolstackError(f"{live.name} is not paused")
    toolstack.lifecycle.xc.unpause(live.domid)


async def _shutdown(toolstack: Toolstack, args: Arguments) -> None:
    await _request(toolstack, args, "poweroff")


async def _reboot(toolstack: Toolstack, args: Arguments) -> None:
    await _request(toolstack, args, "reboot")


async def _request(toolstack: Toolstack, args: Arguments, request: str) -> None:
    """Write `control/shutdown`, unless the guest has said that it would not answer; wait for the end, if asked to."""
    live = toolstack.running(args.text("domain"))
    wait = args.flag("wait")
    can = await toolstack.kernel.xenbus.read_or_none(f"{live.home}/control/feature-{request}")
    if can == "0":
        raise ToolstackError(f"{live.name} says that it cannot {request} (control/feature-{request} is 0)")
    await toolstack.lifecycle.request_shutdown(live, request)
    if wait:
        await toolstack.lifecycle.ended(live)


async def _destroy(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.find(args.text("domain"))
    await toolstack.lifecycle.condemn(live)


async def _sysrq(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    letter = args.text("letter")
    if len(letter) != 1 or not letter.isascii() or not letter.isprintable():
        raise ToolstackError(f"a sysrq request is one letter, not {letter!r}")
    await toolstack.kernel.xenbus.write(f"{live.home}/control/sysrq", letter)


# -- memory and vCPUs ---------------------------------------------------------------------------------------------


async def _mem_set(toolstack: Toolstack, args: Arguments) -> None:
    """Tell a guest's balloon driver how much memory to have, and Xen to give it no more (libxl_set_memory_target)."""
    live = toolstack.running(args.text("domain"))
    target = args.number("kib")
    if target == 0:
        raise ToolstackError("a domain without memory is none")
    static_max = await toolstack.kernel.xenbus.read_or_none(f"{live.home}/memory/static-max")
    most = int(static_max) if static_max and static_max.isdecimal() else 0
    if target > most:
        raise ToolstackError(f"{live.name} cannot have more than its maximum of {most // 1024} MiB")
    toolstack.lifecycle.xc.max_mem(live.domid, target + MAXMEM_SLACK_KIB)
    await toolstack.kernel.xenbus.write(f"{live.home}/memory/target", str(target))


async def _vcpu_set(toolstack: Toolstack, args: Arguments) -> None:
    """Tell a guest which of its vCPUs it may use: the first `count` (cpu/N/availability)."""
    live = toolstack.running(args.text("domain"))
    count = args.number("count")
    info = toolstack.lifecycle.xc.domain_info(live.domid)
    most = 0 if info is None else info.max_vcpu_id + 1
    if not 1 <= count <= most:
        raise ToolstackError(f"{live.name} has {most} vCPU{'s' * (most != 1)}: it cannot have {count}")
    pcpus = toolstack.lifecycle.xc.physinfo().nr_cpus
    if count > pcpus and not args.flag("ignore_host"):
        raise ToolstackError(
            f"that would overcommit: {count} vCPUs on {pcpus} physical CPU{'s' * (pcpus != 1)} (--ignore-host does it)"
        )
    for vcpu_id in range(most):
        word = "online" if vcpu_id < count else "offline"
        await toolstack.kernel.xenbus.write(f"{live.home}/cpu/{vcpu_id}/availability", word)


# -- devices ------------------------------------------------------------------------------------------------------


async def _block_attach(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    disk = parse_disk(args.text("spec")).resolved(Path(args.text("cwd", "/")))
    await toolstack.hotplug.attach_disk(live, disk)


async def _block_detach(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    await toolstack.hotplug.detach_disk(live, args.text("device"), force=args.flag("force"))


async def _block_resize(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    toolstack.hotplug.resize_disk(live, args.text("device"), parse_size(args.text("size")))


NOMINAL = "xvda"
"""Stands for any drive where only its medium matters."""


async def _cd_insert(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    medium = parse_disk(f"vdev={NOMINAL},devtype=cdrom,target={args.text('target')}")
    if not medium.target:
        raise ToolstackError("there is no image without a name (cd-eject empties a drive)")
    target = medium.resolved(Path(args.text("cwd", "/"))).target
    await toolstack.hotplug.change_medium(live, args.text("device"), target)


async def _cd_eject(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    await toolstack.hotplug.change_medium(live, args.text("device"), "")


async def _block_list(toolstack: Toolstack, args: Arguments) -> list[dict[str, Any]]:
    return await _devices(toolstack, toolstack.find(args.text("domain")), "vbd", "ring-ref")


async def _network_attach(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    await toolstack.hotplug.attach_vif(live, parse_vif(args.text("spec", "")))


async def _network_detach(toolstack: Toolstack, args: Arguments) -> None:
    live = toolstack.running(args.text("domain"))
    await toolstack.hotplug.detach_vif(live, args.text("device"))


async def _network_list(toolstack: Toolstack, args: Arguments) -> list[dict[str, Any]]:
    return await _devices(toolstack, toolstack.find(args.text("domain")), "vif", "tx-ring-ref", "rx-ring-ref")


async def _devices(toolstack: Toolstack, live: LiveDomain, kind: str, *keys: str) -> list[dict[str, Any]]:
    """Return what the frontends of one kind say of themselves."""
    rows = []
    for device in live.devices:
        if device.kind == kind:
            names = ("state", "event-channel", *keys)
            values = await toolstack.kernel.xenbus.read_many([f"{device.frontend}/{name}" for name in names])
            found = dict(zip(names, values, strict=True))
            ours = dict(device.frontend_values)
            mac = {"mac": ours["mac"]} if "mac" in ours else {}  # the guest may have written another one
            row = {"devid": device.devid, "backend_id": device.backend_domid, "backend": device.backend}
            rows.append({**row, **found, **mac})
    return rows


# -- consoles -----------------------------------------------------------------------------------------------------


async def _console(toolstack: Toolstack, args: Arguments) -> dict[str, Any]:
    """Say where a domain's console is: a pseudo-terminal (xenstore's console/tty), or a line to be attached to."""
    live = toolstack.find(args.text("domain"))
    tty = await toolstack.kernel.xenbus.read_or_none(f"{live.home}/console/tty")
    if tty:
        return {"tty": tty}
    line = toolstack.terminal(live.domid)
    if line is None:
        raise ToolstackError(f"{live.name} has no console that could be attached to")
    return {"line": line, "attached": True}


VERBS: Mapping[str, Verb] = {
    "list": _list,
    "top": _top,
    "domid": _domid,
    "domname": _domname,
    "pause": _pause,
    "unpause": _unpause,
    "shutdown": _shutdown,
    "reboot": _reboot,
    "destroy": _destroy,
    "sysrq": _sysrq,
    "mem-set": _mem_set,
    "vcpu-set": _vcpu_set,
    "block-attach": _block_attach,
    "block-detach": _block_detach,
    "block-list": _block_list,
    "block-resize": _block_resize,
    "cd-insert": _cd_insert,
    "cd-eject": _cd_eject,
    "network-attach": _network_attach,
    "network-detach": _network_detach,
    "network-list": _network_list,
    "console": _console,
}
