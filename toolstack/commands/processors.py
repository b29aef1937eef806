"""The verbs about processors on a running host: `paravirt sched-credit2`, `cpupool-list`, `vcpu-list`, `info`, …"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from toolstack.commands.common import OneSentence
from toolstack.commands.control import on_host, print_lines, with_control

MIB = 256

_domain = click.argument("domain", metavar="DOMAIN")
_pool = click.argument("pool", metavar="CPUPOOL")


# -- parameters of schedulers -------------------------------------------------------------------------------------


def _weights(kind: str, pool_options: Mapping[str, str]) -> click.Command:
    """Make `sched-credit` or `sched-credit2`; `pool_options`: the options of a pool by the names of its parameters."""

    @click.command(f"sched-{kind}", help=f"Show or set the parameters of {kind}: of domains, or of a pool (-s).")
    @click.option("-d", "--domain", default="", metavar="DOMAIN", help="This domain only.")
    @click.option("-w", "--weight", type=click.IntRange(1, 65535), help="How much it gets compared with others.")
    @click.option("-c", "--cap", type=click.IntRange(0, 65534), help="Percent of one pCPU at most; 0: no limit.")
    @click.option("-p", "--cpupool", default="", metavar="CPUPOOL", help="This pool only.")
    @click.option("-s", "--schedparam", is_flag=True, help="The parameters of the pool, not those of domains.")
    @with_control
    def command(
        path: Path, domain: str, weight: int | None, cap: int | None, cpupool: str, schedparam: bool, **own: int | None
    ) -> None:
        changes = {key: value for key, value in (("weight", weight), ("cap", cap)) if value is not None}
        own_changes = {key: value for key, value in own.items() if value is not None}
        if changes and not domain:
            raise OneSentence("a weight or a cap is of a domain: name it with -d")
        if own_changes and not schedparam:
            raise OneSentence("parameters of a pool are set with -s")
        with on_host(path) as control:
            if own_changes:
                control.ask("sched-set-pool", sched=kind, pool=cpupool or "Pool-0", **own_changes)
                return
            if changes:
                control.ask("sched-set", sched=kind, domain=domain, **changes)
                return
            pools = control.ask("sched", sched=kind, domain=domain)
        print_lines(*_weight_rows(pools, domain, cpupool, schedparam))

    for name, option in pool_options.items():
        command = click.option(option, name, type=click.IntRange(0), help=f"With -s: set {name}.")(command)
    return command


def _weight_rows(pools: Iterable[Mapping[str, Any]], domain: str, cpupool: str, own_only: bool) -> Iterable[str]:
    for pool in pools:
        if cpupool and pool["pool"] != cpupool:
            continue
        if not domain:
            yield f"Cpupool {pool['pool']}: " + " ".join(_pool_params(pool["params"]))
        if not own_only and (pool["domains"] or not domain):
            yield f"{'Name':<33} {'ID':>4} {'Weight':>6} {'Cap':>4}"
            for row in pool["domains"]:
                params = row["params"]
                yield f"{row['name']:<33} {row['id']:>4} {params['weight']:>6} {params['cap']:>4}"


def _pool_params(params: Mapping[str, int]) -> Iterable[str]:
    names = {
        "tslice_ms": ("tslice", "ms"),
        "ratelimit_us": ("ratelimit", "us"),
        "vcpu_migr_delay_us": ("migration-delay", "us"),
    }
    return [f"{names[key][0]}={value}{names[key][1]}" for key, value in params.items()]


@click.command("sched-rtds")
@click.option("-d", "--domain", default="", metavar="DOMAIN", help="This domain only.")
@click.option("-v", "--vcpuid", default="", metavar="VCPU|all", help="This vCPU only; all: each.")
@click.option("-p", "--period", type=click.IntRange(1), metavar="US", help="Length of a period.")
@click.option("-b", "--budget", type=click.IntRange(1), metavar="US", help="What it gets in each.")
@click.option("-e", "--extratime", type=click.IntRange(0, 1), help="Whether it may use what is left.")
@with_control
def sched_rtds(
    path: Path, domain: str, vcpuid: str, period: int | None, budget: int | None, extratime: int | None
) -> None:
    """Show or set the parameters of rtds: period, budget (us) and extratime of vCPUs."""
    given = (("period", period), ("budget", budget), ("extratime", extratime))
    changes = {key: value for key, value in given if value is not None}
    if changes and not domain:
        raise OneSentence("a period or a budget is of a domain: name it with -d")
    if vcpuid not in ("", "all") and not vcpuid.isdecimal():
        raise OneSentence(f"{vcpuid!r} is no number of a vCPU")
    if vcpuid.isdecimal():
        changes_of = {**changes, "vcpu": int(vcpuid)}
    else:
        changes_of = changes
    with on_host(path) as control:
        if changes:
            control.ask("sched-set", sched="rtds", domain=domain, **changes_of)
            return
        pools = control.ask("sched", sched="rtds", domain=domain)
    single = bool(vcpuid)
    columns = f"{'Period':>9} {'Budget':>9} {'Extratime':>10}"
    head = f"{'Name':<33} {'ID':>4} " + (f"{'VCPU':>4} " if single else "") + columns
    lines = []
    for pool in pools:
        if not domain:
            lines.append(f"Cpupool {pool['pool']}: sched=RTDS")
        lines.append(head)
        for row in pool["domains"]:
            for params in row["params"][: None if single else 1]:
                if vcpuid.isdecimal() and params["vcpu"] != int(vcpuid):
                    continue
                number = f"{params['vcpu']:>4} " if single else ""
                extra = "yes" if params["extratime"] else "no"
                name = f"{row['name']:<33} {row['id']:>4} "
                lines.append(f"{name}{number}{params['period']:>9} {params['budget']:>9} {extra:>10}")
    print_lines(*lines)


# -- pools --------------------------------------------------------------------------------------------------------


@click.command("cpupool-list")
@click.option("-c", "--cpus", is_flag=True, help="List the pCPUs of each pool.")
@click.argument("pool", metavar="[CPUPOOL]", default="")
@with_control
def cpupool_list(path: Path, cpus: bool, pool: str) -> None:
    """List the pools of pCPUs."""
    with on_host(path) as control:
        rows = control.ask("cpupool-list", pool=pool)
    lines = [f"{'Name':<19}" + ("CPU list" if cpus else "CPUs   Sched     Active   Domain count")]
    for row in rows:
        numbers = ",".join(map(str, row["cpus"]))
        told = numbers if cpus else f"{len(row['cpus']):3d} {row['sched']:>9}       y       {row['domains']:4d}"
        lines.append(f"{row['name']:<19}{told}")
    print_lines(*lines)


@click.command("cpupool-create")
@click.argument("name")
@click.option("--sched", default="credit2", show_default=True, metavar="SCHEDULER", help="Its scheduler.")
@click.option("--cpus", default="", metavar="LIST", help="Its pCPUs, of those that are free: 1,3 or 2-5 or all. [one]")
@with_control
def cpupool_create(path: Path, name: str, sched: str, cpus: str) -> None:
    """Make a pool of free pCPUs (`cpupool-cpu-remove` frees some)."""
    with on_host(path) as control:
        control.ask("cpupool-create", name=name, sched=sched, cpus=cpus)


@click.command("cpupool-destroy")
@_pool
@with_control
def cpupool_destroy(path: Path, pool: str) -> None:
    """Give a pool without domains up; its pCPUs are free then."""
    with on_host(path) as control:
        control.ask("cpupool-destroy", pool=pool)


@click.command("cpupool-rename")
@_pool
@click.argument("name", metavar="NEW-NAME")
@with_control
def cpupool_rename(path: Path, pool: str, name: str) -> None:
    """Give a pool another name."""
    with on_host(path) as control:
        control.ask("cpupool-rename", pool=pool, name=name)


def _cpupool_cpu(verb: str, help_: str, *, remove: bool) -> click.Command:
    @click.command(verb, help=help_)
    @_pool
    @click.argument("cpus", metavar="CPU-LIST")
    @with_control
    def command(path: Path, pool: str, cpus: str) -> None:
        with on_host(path) as control:
            control.ask("cpupool-cpu", pool=pool, cpus=cpus, remove=remove)

    return command


@click.command("cpupool-migrate")
@_domain
@_pool
@with_control
def cpupool_migrate(path: Path, domain: str, pool: str) -> None:
    """Move a domain to a pool."""
    with on_host(path) as control:
        control.ask("cpupool-migrate", domain=domain, pool=pool)


# -- vCPUs --------------------------------------------------------------------------------------------------------


@click.command("vcpu-list")
@click.argument("domain", metavar="[DOMAIN]", default="")
@with_control
def vcpu_list(path: Path, domain: str) -> None:
    """List the vCPUs: where each is, how long it has run, where it may run and would rather run."""
    with on_host(path) as control:
        rows = control.ask("vcpu-list", domain=domain)
        nr_cpus = control.ask("info")["nr_cpus"]
    columns = f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9}"
    print_lines(f"{columns} Affinity (Hard / Soft)", *(_vcpu_row(row, nr_cpus) for row in rows))


def _vcpu_row(row: Mapping[str, Any], nr_cpus: int) -> str:
    name = f"{row['name']:<32} {row['id']:>5} {row['vcpu']:>5}"
    if row["cpu"] < 0:
        place = f"{'-':>5} {'-':>3}{'-'}p "
    else:
        running, blocked = "r" if row["running"] else "-", "b" if row["blocked"] else "-"
        place = f"{row['cpu']:>5} {running:>3}{blocked}- "
    masks = f"{_ranges(row['hard'], nr_cpus)} / {_ranges(row['soft'], nr_cpus)}"
    return f"{name}{place}{row['time_ns'] / 1e9:9.1f}  {masks}"


def _ranges(cpus: list[int], nr_cpus: int) -> str:
    """Return `0-2,5`, `all` or `none`, as xl writes a bitmap."""
    if len(cpus) >= nr_cpus:
        return "all"
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts) or "none"


@click.command("vcpu-pin")
@_domain
@click.argument("vcpu", metavar="VCPU|all")
@click.argument("hard", metavar="CPUS|all|-")
@click.argument("soft", metavar="[CPUS|all|-]", default="-")
@with_control
def vcpu_pin(path: Path, domain: str, vcpu: str, hard: str, soft: str) -> None:
    """Say on which pCPUs a vCPU may run, and on which it would rather run; - leaves that as it is."""
    if vcpu != "all" and not vcpu.isdecimal():
        raise OneSentence(f"{vcpu!r} is no number of a vCPU")
    which = {} if vcpu == "all" else {"vcpu": int(vcpu)}
    masks = {key: text for key, text in (("hard", hard), ("soft", soft)) if text != "-"}
    with on_host(path) as control:
        control.ask("vcpu-pin", domain=domain, **which, **masks)


# -- the host -----------------------------------------------------------------------------------------------------


@click.command()
@with_control
def info(path: Path) -> None:
    """Show what the host is: its processors, its memory, its Xen."""
    with on_host(path) as control:
        told = control.ask("info")
    khz = told["cpu_khz"]
    rows = {
        **{key: told[key] for key in ("nr_cpus", "max_cpu_id", "nr_nodes", "cores_per_socket", "threads_per_core")},
        "cpu_mhz": f"{khz // 1000}.{khz % 1000:03d}",
        "total_memory": told["total_pages"] // MIB,
        "free_memory": (told["free_pages"] - told["outstanding_pages"]) // MIB,
        "outstanding_claims": told["outstanding_pages"] // MIB,
        "free_cpus": told["free_cpus"],
        "xen_major": told["major"],
        "xen_minor": told["minor"],
        "xen_extra": told["extra"],
        "xen_version": f"{told['major']}.{told['minor']}{told['extra']}",
        "xen_scheduler": told["scheduler"],
        "xen_pagesize": 4096,
        "xen_commandline": told["commandline"],
    }
    print_lines(*(f"{name:<23}: {value}" for name, value in rows.items()))


_LIMIT = {"ratelimit_us": "--ratelimit-us"}

COMMANDS: tuple[click.Command, ...] = (
    _weights("credit", {"tslice_ms": "--tslice-ms", **_LIMIT, "vcpu_migr_delay_us": "--migration-delay-us"}),
    _weights("credit2", _LIMIT),
    sched_rtds,
    cpupool_list,
    cpupool_create,
    cpupool_destroy,
    cpupool_rename,
    _cpupool_cpu("cpupool-cpu-add", "Put free pCPUs into a pool.", remove=False),
    _cpupool_cpu("cpupool-cpu-remove", "Take pCPUs out of a pool: they are free then.", remove=True),
    cpupool_migrate,
    vcpu_list,
    vcpu_pin,
    info,
)
"""What `paravirt` has about the processors of running hosts."""
