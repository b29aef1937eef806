"""The verbs about the host as a whole: its log, since when it and its domains run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from hypervisor.abi import sysctl
from toolstack.control.verbs import Arguments, Toolstack
from toolstack.nodes import DOM0
from toolstack.xl_config import DOM0_NAME

Verb = Callable[[Toolstack, Arguments], Awaitable[Any]]
CHUNK = 2048
"""Bytes of the log that are read at a time: less than the page that they are read into."""


async def _dmesg(toolstack: Toolstack, args: Arguments) -> bytes:
    """Return what Xen has printed and nobody has cleared; forget it, if that is asked for (libxl_xen_console_read)."""
    xc, clear = toolstack.lifecycle.xc, args.flag("clear")
    log = bytearray()
    index, incremental = 0, False
    while True:
        told = xc.sysctl(
            sysctl.XEN_SYSCTL_readconsole,
            "readconsole",
            buffer=xc.scratch.va,
            count=CHUNK,
            index=index,
            incremental=incremental,
            clear=False,
        ).u.readconsole
        if not told.count:
            break
        log += xc.scratch.view[: told.count]
        index, incremental = told.index, True
    if clear:
        # What was read last is the end: this forgets all before it.
        values = {"buffer": xc.scratch.va, "count": 0, "index": index, "incremental": incremental, "clear": True}
        xc.sysctl(sysctl.XEN_SYSCTL_readconsole, "readconsole", **values)
    return bytes(log)


async def _uptime(toolstack: Toolstack, args: Arguments) -> list[dict[str, Any]]:
    """Return for how long the host and its domains have run, in ns of the host's time."""
    now = toolstack.kernel.monotonic_ns()
    wanted = args.text("domain", "")
    rows = [{"name": DOM0_NAME, "id": DOM0, "ns": now}]
    for domid, live in sorted(toolstack.lifecycle.live.items()):
        rows.append({"name": live.name, "id": domid, "ns": now - live.started_ns})
    if wanted and wanted not in ("0", DOM0_NAME):
        domid = toolstack.find(wanted).domid
        return [row for row in rows if row["id"] == domid]
    return rows[:1] if wanted else rows


HOST_VERBS: Mapping[str, Verb] = {"dmesg": _dmesg, "uptime": _uptime}
