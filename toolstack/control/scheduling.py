"""The verbs about processors: `sched-credit2`, `cpupool-list`, `vcpu-pin`, `info`, … as dom0 carries them out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from guest_kernel.errors import XenError
from hypervisor.abi import errno
from hypervisor.abi.version import XENVER_commandline
from hypervisor.abi.xen import HYPERVISOR_xen_version
from toolstack.control.verbs import Arguments, Toolstack
from toolstack.cpupools import find_pool, is_pool_name, pool_names
from toolstack.errors import ToolstackError, did_you_mean
from toolstack.nodes import DOM0
from toolstack.xc_scheduling import NUMBERS, Pool, XcScheduling
from toolstack.xl_config import DOM0_NAME, parse_cpus

Verb = Callable[[Toolstack, Arguments], Awaitable[Any]]
COMMANDLINE_LEN = 1024
"""xen_commandline_t (version.h)"""


def _scheduling(toolstack: Toolstack) -> XcScheduling:
    return XcScheduling(toolstack.lifecycle.xc)


def _domains(toolstack: Toolstack, wanted: str = "") -> list[tuple[int, str]]:
    """Return number and name of all domains, or of the one that is wanted. Raises ToolstackError."""
    names: dict[int, str] = {DOM0: DOM0_NAME}
    for live in toolstack.lifecycle.live.values():
        if not live.over:
            names[live.domid] = live.name
    if not wanted:
        return sorted(names.items())
    for domid, name in names.items():
        if wanted in (name, str(domid)):
            return [(domid, name)]
    raise ToolstackError(f"there is no domain {wanted!r}{did_you_mean(wanted, names.values())}")


def _refused(error: XenError, what: str, sentences: Mapping[int, str]) -> ToolstackError:
    """Say in words why Xen refuses something."""
    return ToolstackError(f"{what}: {sentences.get(error.errno or 0, str(error))}")


# -- pools --------------------------------------------------------------------------------------------------------


async def _pool_names(toolstack: Toolstack, pools: Iterable[Pool]) -> dict[int, str]:
    return await pool_names(toolstack.kernel, pools)


async def _find_pool(toolstack: Toolstack, name: str) -> tuple[Pool, str]:
    return await find_pool(toolstack.kernel, _scheduling(toolstack), name)


async def _cpupool_list(toolstack: Toolstack, args: Arguments) -> list[dict[str, Any]]:
    pools = _scheduling(toolstack).pools()
    names = await _pool_names(toolstack, pools)
    wanted = args.text("pool", "")
    if wanted:
        pools = [(await _find_pool(toolstack, wanted))[0]]
    return [
        {
            "name": names[pool.pool_id],
            "id": pool.pool_id,
            "cpus": list(pool.cpus),
            "sched": pool.scheduler,
            "domains": pool.domains,
        }
        for pool in pools
    ]


async def _cpupool_create(toolstack: Toolstack, args: Arguments) -> int:
    """Make a pool of pCPUs that are free; without a list of them, of one."""
    scheduling, name, scheduler = _scheduling(toolstack), args.text("name"), args.text("sched", "credit2")
    if scheduler not in NUMBERS:
        raise ToolstackError(f"there is no scheduler {scheduler!r}{did_you_mean(scheduler, NUMBERS)}")
    await _check_pool_name(toolstack, name)
    free = scheduling.free_cpus()
    text = args.text("cpus", "")
    cpus = free[:1] if not text else free if text == "all" else parse_cpus(text.split(",")) or free
    lacking = [cpu for cpu in cpus if cpu not in free]
    if not cpus or lacking:
        none = "no pCPU is free: cpupool-cpu-remove first"
        raise ToolstackError(f"pCPU {lacking[0]} is not free" if lacking else none)
    try:
        pool = scheduling.create_pool(scheduler)
    except XenError as error:
        raise _refused(error, f"cpupool {name!r}", {errno.ENOSPC: "there are too many pools already"}) from None
    for cpu in cpus:
        scheduling.add_cpu(pool, cpu)
    await toolstack.kernel.xenbus.write(f"/local/pool/{pool}/name", name)
    return pool


async def _check_pool_name(toolstack: Toolstack, name: str) -> None:
    """See whether a pool can be called like that. Raises ToolstackError."""
    if not is_pool_name(name):
        raise ToolstackError(f"{name!r} cannot be the name of a cpupool")
    if name in (await _pool_names(toolstack, _scheduling(toolstack).pools())).values():
        raise ToolstackError(f"there is a cpupool {name!r} already")


async def _cpupool_rename(toolstack: Toolstack, args: Arguments) -> None:
    """Give a pool another name: Xen knows numbers only, and names are in xenstore (libxl_cpupool_rename)."""
    pool, _ = await _find_pool(toolstack, args.text("pool"))
    name = args.text("name")
    await _check_pool_name(toolstack, name)
    await toolstack.kernel.xenbus.write(f"/local/pool/{pool.pool_id}/name", name)


async def _cpupool_destroy(toolstack: Toolstack, args: Arguments) -> None:
    """Give a pool without domains up; its pCPUs are free then."""
    scheduling = _scheduling(toolstack)
    pool, name = await _find_pool(toolstack, args.text("pool"))
    if pool.domains:
        raise ToolstackError(f"there are {pool.domains} domains in {name}")
    for cpu in pool.cpus:
        scheduling.remove_cpu(pool.pool_id, cpu)
    scheduling.destroy_pool(pool.pool_id)
    await toolstack.kernel.xenbus.rm(f"/local/pool/{pool.pool_id}")


_CPU_REFUSALS = {
    errno.EINVAL: "there is no such pCPU, or it must stay (pCPU 0, in pool 0)",
    errno.EBUSY: "it is the last one, and there are domains",
    errno.EADDRNOTAVAIL: "it is not in this pool",
    errno.ENODEV: "it is not free",
}


async def _cpupool_cpu(toolstack: Toolstack, args: Arguments) -> None:
    """Put pCPUs into a pool, or take some out (`remove`)."""
    scheduling = _scheduling(toolstack)
    pool, name = await _find_pool(toolstack, args.text("pool"))
    change = scheduling.remove_cpu if args.flag("remove") else scheduling.add_cpu
    text = args.text("cpus")
    whole = pool.cpus if args.flag("remove") else scheduling.free_cpus()
    for cpu in parse_cpus(text.split(",")) or whole:
        try:
            change(pool.pool_id, cpu)
        except XenError as error:
            raise _refused(error, f"pCPU {cpu} and {name}", _CPU_REFUSALS) from None


async def _cpupool_migrate(toolstack: Toolstack, args: Arguments) -> None:
    ((domid, name),) = _domains(toolstack, args.text("domain"))
    pool, pool_name = await _find_pool(toolstack, args.text("pool"))
    why = {errno.EPERM: "dom0 cannot move itself", errno.ENOENT: "it has no pCPUs"}
    try:
        _scheduling(toolstack).move_domain(domid, pool.pool_id)
    except XenError as error:
        raise _refused(error, f"{name} to {pool_name}", why) from None


# -- parameters of schedulers -------------------------------------------------------------------------------------


async def _sched(toolstack: Toolstack, args: Arguments) -> list[dict[str, Any]]:
    """Return, for each pool with this scheduler, its parameters and those of its domains (or of the one wanted)."""
    scheduling, kind, wanted = _scheduling(toolstack), args.text("sched"), args.text("domain", "")
    pools = [pool for pool in scheduling.pools() if pool.scheduler == kind]
    names = await _pool_names(toolstack, pools)
    rows = []
    for pool in pools:
        members = []
        for domid, name in _domains(toolstack, wanted):
            info = toolstack.lifecycle.xc.domain_info(domid)
            if info is None or info.cpupool != pool.pool_id:
                continue
            if kind == "rtds":
                vcpus = range(info.max_vcpu_id + 1)
                values: Any = [{"vcpu": vcpu, **scheduling.vcpu_params(domid, vcpu)} for vcpu in vcpus]
            else:
                values = scheduling.params(domid, kind)
            members.append({"name": name, "id": domid, "params": values})
        own = {} if kind == "rtds" else scheduling.global_params(pool.pool_id, kind)
        rows.append({"pool": names[pool.pool_id], "params": own, "domains": members})
    if wanted and not any(row["domains"] for row in rows):
        raise ToolstackError(f"{wanted} is not in a cpupool that has the scheduler {kind}")
    return rows


async def _sched_set(toolstack: Toolstack, args: Arguments) -> None:
    """Set parameters of a domain; those that are -1 stay as they are."""
    scheduling, kind = _scheduling(toolstack), args.text("sched")
    ((domid, name),) = _domains(toolstack, args.text("domain"))
    try:
        if kind == "rtds":
            info = toolstack.lifecycle.xc.domain_info(domid)
            most = 0 if info is None else info.max_vcpu_id + 1
            vcpu = args.number("vcpu", -1)
            for number in range(most) if vcpu < 0 else (vcpu,):
                now = scheduling.vcpu_params(domid, number)
                new = {key: args.number(key, -1) for key in ("period", "budget", "extratime")}
                merged = {key: now[key] if value < 0 else value for key, value in new.items()}
                merged["extratime"] = bool(merged["extratime"])
                scheduling.set_vcpu_params(domid, number, **merged)  # type: ignore[arg-type]
        else:
            now = scheduling.params(domid, kind)
            new = {key: args.number(key, -1) for key in ("weight", "cap")}
            scheduling.set_params(domid, kind, **{key: now[key] if value < 0 else value for key, value in new.items()})
    except XenError as error:
        why = f"{name} is not under the scheduler {kind}, or the values are out of range"
        raise _refused(error, f"sched-{kind}", {errno.EINVAL: why}) from None


async def _sched_set_pool(toolstack: Toolstack, args: Arguments) -> None:
    """Set parameters of a pool's scheduler; those that are -1 stay as they are."""
    scheduling, kind = _scheduling(toolstack), args.text("sched")
    pool, name = await _find_pool(toolstack, args.text("pool"))
    why = {errno.EINVAL: f"{name} has another scheduler, or the values are out of range"}
    try:
        now = scheduling.global_params(pool.pool_id, kind)
        new = {key: args.number(key, -1) for key in now}
        changed = {key: now[key] if value < 0 else value for key, value in new.items()}
        scheduling.set_global_params(pool.pool_id, kind, **changed)
    except XenError as error:
        raise _refused(error, f"sched-{kind}", why) from None


# -- vCPUs --------------------------------------------------------------------------------------------------------


async def _vcpu_list(toolstack: Toolstack, args: Arguments) -> list[dict[str, Any]]:
    scheduling = _scheduling(toolstack)
    rows = []
    for domid, name in _domains(toolstack, args.text("domain", "")):
        info = toolstack.lifecycle.xc.domain_info(domid)
        for vcpu in range(0 if info is None else info.max_vcpu_id + 1):
            told = scheduling.vcpu_info(domid, vcpu)
            if told is None:
                continue
            rows.append(
                {
                    "name": name,
                    "id": domid,
                    "vcpu": vcpu,
                    "cpu": told.cpu if told.online else -1,
                    "running": bool(told.running),
                    "blocked": bool(told.blocked),
                    "time_ns": told.cpu_time,
                    "hard": list(scheduling.affinity(domid, vcpu)),
                    "soft": list(scheduling.affinity(domid, vcpu, soft=True)),
                }
            )
    return rows


async def _vcpu_pin(toolstack: Toolstack, args: Arguments) -> None:
    """Set hard and soft affinity (texts like `0-3,^1`, `all`; an empty one is left as it is) of a vCPU or all (-1)."""
    ((domid, name),) = _domains(toolstack, args.text("domain"))
    scheduling, number = _scheduling(toolstack), args.number("vcpu", -1)
    info = toolstack.lifecycle.xc.domain_info(domid)
    most = 0 if info is None else info.max_vcpu_id + 1
    if number >= most:
        raise ToolstackError(f"{name} has {most} vCPU{'s' * (most != 1)}: there is no number {number}")
    why = {errno.EINVAL: "no pCPU of its cpupool is among these", errno.EBUSY: "the vCPU is pinned by its guest"}
    for vcpu in range(most) if number < 0 else (number,):
        for key, soft in (("hard", False), ("soft", True)):
            text = args.text(key, "")
            if text:
                try:
                    scheduling.set_affinity(domid, vcpu, parse_cpus(text.split(",")), soft=soft)
                except XenError as error:
                    raise _refused(error, f"vcpu-pin {name} {vcpu}", why) from None


# -- the host -----------------------------------------------------------------------------------------------------


async def _info(toolstack: Toolstack, args: Arguments) -> dict[str, Any]:
    xc, kernel = toolstack.lifecycle.xc, toolstack.kernel
    physical = xc.physinfo()
    major, minor, extra = xc.xen_version()
    page = xc.scratch
    kernel.cpu.hypercall(HYPERVISOR_xen_version, XENVER_commandline, page.va)
    line = bytes(page.view[:COMMANDLINE_LEN]).split(b"\0")[0].decode()
    scheduling = _scheduling(toolstack)
    return {
        "nr_cpus": physical.nr_cpus,
        "max_cpu_id": physical.max_cpu_id,
        "nr_nodes": physical.nr_nodes,
        "cores_per_socket": physical.cores_per_socket,
        "threads_per_core": physical.threads_per_core,
        "cpu_khz": physical.cpu_khz,
        "total_pages": physical.total_pages,
        "free_pages": physical.free_pages,
        "outstanding_pages": physical.outstanding_pages,
        "free_cpus": len(scheduling.free_cpus()),
        "major": major,
        "minor": minor,
        "extra": extra,
        "scheduler": scheduling.pools()[0].scheduler,
        "commandline": line,
    }


SCHEDULING_VERBS: Mapping[str, Verb] = {
    "sched": _sched,
    "sched-set": _sched_set,
    "sched-set-pool": _sched_set_pool,
    "cpupool-list": _cpupool_list,
    "cpupool-create": _cpupool_create,
    "cpupool-destroy": _cpupool_destroy,
    "cpupool-rename": _cpupool_rename,
    "cpupool-cpu": _cpupool_cpu,
    "cpupool-migrate": _cpupool_migrate,
    "vcpu-list": _vcpu_list,
    "vcpu-pin": _vcpu_pin,
    "info": _info,
}
