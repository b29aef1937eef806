"""Pools of pCPUs by name: Xen knows numbers, and the names are in xenstore (`/local/pool/N/name`), as with libxl.

`paravirt run --cpupool NAME=SCHEDULER:CPUS` has dom0 make pools before it starts the guests; `pool = "NAME"` in a
configuration puts a guest into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from guest_kernel.kernel import Kernel
from hypervisor.sched.schedulers import DEFAULT
from toolstack.errors import SpecError, ToolstackError, UsageError, did_you_mean
from toolstack.xc_scheduling import NUMBERS, Pool, XcScheduling
from toolstack.xl_config import DomainConfig, parse_cpus

FIRST_POOL = "Pool-0"
"""The pool that has all pCPUs which are in no other, dom0, and whoever names none."""


@attrs.frozen
class PoolSpec:
    """A pool that a host is to have."""

    name: str
    scheduler: str
    cpus: tuple[int, ...]


def parse_pool(text: str) -> PoolSpec:
    """Parse `NAME=SCHEDULER:CPUS`, such as `rt=rtds:2-3`. Raises `UsageError`."""
    name, equals, rest = text.partition("=")
    scheduler, colon, cpus = rest.partition(":")
    if not equals or not colon:
        raise UsageError(f"--cpupool {text!r} is not of the form NAME=SCHEDULER:CPUS, such as rt=rtds:2-3")
    if not is_pool_name(name):
        raise UsageError(f"--cpupool {text!r}: {name!r} cannot be the name of a cpupool")
    if scheduler not in NUMBERS:
        raise UsageError(f"--cpupool {text!r}: there is no scheduler {scheduler!r}{did_you_mean(scheduler, NUMBERS)}")
    try:
        found = parse_cpus(cpus.split(","))
    except SpecError as error:
        raise UsageError(f"--cpupool {text!r}: {error}") from None
    if found is None:
        raise UsageError(f"--cpupool {text!r}: pCPU 0 stays in {FIRST_POOL}, so not all can be in {name}")
    return PoolSpec(name, scheduler, found)


def is_pool_name(name: str) -> bool:
    """Whether a pool can be called like that."""
    return bool(name) and "/" not in name and name.isascii() and name.isprintable()


def check_pools(specs: Sequence[PoolSpec], pcpus: int) -> None:
    """Check what only all pools together can get wrong. Raises `UsageError`."""
    names: set[str] = {FIRST_POOL}
    owners = {0: FIRST_POOL}
    for spec in specs:
        if spec.name in names:
            raise UsageError(f"--cpupool {spec.name}: there is a cpupool of that name already")
        names.add(spec.name)
        for cpu in spec.cpus:
            if cpu >= pcpus:
                raise UsageError(f"--cpupool {spec.name}: there is no pCPU {cpu}, the host has {pcpus} (--pcpus)")
            if cpu in owners:
                raise UsageError(f"--cpupool {spec.name}: pCPU {cpu} is in {owners[cpu]} already")
            owners[cpu] = spec.name


def pool_of(config: DomainConfig, specs: Iterable[PoolSpec], scheduler: str, pcpus: int) -> PoolSpec:
    """Return the pool that a configuration names. Raises `ConfigError` if the host has no such pool."""
    specs = list(specs)
    taken = {cpu for spec in specs for cpu in spec.cpus}
    first = PoolSpec(FIRST_POOL, scheduler or DEFAULT, tuple(cpu for cpu in range(pcpus) if cpu not in taken))
    for spec in (first, *specs):
        if config.pool in ("", spec.name):
            return spec
    names = [spec.name for spec in (first, *specs)]
    raise config.error("pool", f"the host has no cpupool {config.pool!r}{did_you_mean(config.pool, names)} (--cpupool)")


async def pool_names(kernel: Kernel, pools: Iterable[Pool]) -> dict[int, str]:
    """Return the names of pools by their numbers."""
    numbers = [pool.pool_id for pool in pools]
    texts = await kernel.xenbus.read_many([f"/local/pool/{number}/name" for number in numbers])
    return {number: text or f"Pool-{number}" for number, text in zip(numbers, texts, strict=True)}


async def find_pool(kernel: Kernel, scheduling: XcScheduling, name: str) -> tuple[Pool, str]:
    """Return a pool, by name or number, and its name. Raises ToolstackError."""
    pools = scheduling.pools()
    names = await pool_names(kernel, pools)
    for pool in pools:
        if name in (names[pool.pool_id], str(pool.pool_id)):
            return pool, names[pool.pool_id]
    raise ToolstackError(f"there is no cpupool {name!r}{did_you_mean(name, names.values())}")


async def make_pools(kernel: Kernel, scheduling: XcScheduling, specs: Iterable[PoolSpec]) -> None:
    """Make pools of pCPUs that are in the first one. (They have been checked.)"""
    first = scheduling.pools()[0].pool_id
    for spec in specs:
        pool = scheduling.create_pool(spec.scheduler)
        for cpu in spec.cpus:
            scheduling.remove_cpu(first, cpu)
            scheduling.add_cpu(pool, cpu)
        await kernel.xenbus.write(f"/local/pool/{pool}/name", spec.name)
