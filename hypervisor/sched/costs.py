"""What the simulated machine charges for, in virtual nanoseconds. In real time only the wall clock counts.

The costs are those of no particular machine: a model shows shapes, such as what is slower than what and where two lines
cross. A person can set others in a TOML file (docs/costs.md).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import attrs

from hypervisor.abi.xen import HYPERCALL_NAMES

MAX_COST = 1_000_000_000
_NUMBERS = {name: number for number, name in HYPERCALL_NAMES.items()}


class CostError(Exception):
    """A file of costs is wrong; the text is one sentence."""


@attrs.frozen
class Costs:
    """All costs. Those of the last two groups are nothing by default, and then cost the simulator nothing either."""

    hypercall: int = 200
    """Each hypercall: into Xen and back."""
    run: int = 300
    """Each stretch of guest code from one yield to the next."""
    switch: int = 700
    """A pCPU that turns to another vCPU than the one that it had before."""
    idle_yield: int = 50_000
    """A yield while nobody else has work to do: who yields in a loop waits for time to pass."""
    grant_copy_page: int = 0
    """Copying 4096 bytes by GNTTABOP_copy; less for less."""
    fault: int = 0
    """An exception that Xen hands to the guest: a page fault, a general protection fault, …"""
    hypercalls: dict[int, int] = attrs.field(factory=dict)
    """For the hypercalls with these numbers, so much more."""

    @property
    def has_extras(self) -> bool:
        """Whether anything is charged that the pCPU loop does not know by itself."""
        return bool(self.grant_copy_page or self.fault or self.hypercalls)


OFF = Costs(hypercall=0, run=1, switch=0)
"""Time passes only where guests compute. (A stretch takes a nanosecond: a guest that waits in a loop must see time.)"""


def costs_for_trace(costs: Costs) -> dict[str, Any]:
    """Return the costs as a trace keeps them in its header: plain data."""
    return attrs.asdict(costs)


def costs_from_trace(data: Any) -> Costs | None:
    """Return the costs that `costs_for_trace` made data of; None if it is something else."""
    if not isinstance(data, dict):
        return None
    names = {field.name for field in attrs.fields(Costs)}
    known = {name: value for name, value in data.items() if name in names}
    numbers = [value for name, value in known.items() if name != "hypercalls"]
    hypercalls = known.get("hypercalls", {})
    if not isinstance(hypercalls, dict) or not all(type(n) is int for n in [*numbers, *hypercalls.values()]):
        return None
    return Costs(**known)


def load_costs(text: str) -> Costs:
    """Return the costs that `--costs` names: `off`, or a file of TOML. Raises CostError."""
    if text == "off":
        return OFF
    path = Path(text)
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise CostError(f"cannot read the costs {text!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CostError(f"{text}: {error}") from None
    names = [field.name for field in attrs.fields(Costs) if field.name != "hypercalls"]
    values = {name: _cost(text, name, value) for name, value in table.items() if name != "hypercalls"}
    for name in values:
        if name not in names:
            raise CostError(f"{text}: there is no cost {name!r}; there are {', '.join(names)}, and [hypercalls]")
    if values.get("run") == 0 or values.get("idle_yield") == 0:
        raise CostError(f"{text}: run and idle_yield are 1 at least: a guest that waits in a loop must see time pass")
    return Costs(**values, hypercalls=_hypercalls(text, table.get("hypercalls", {})))


def _hypercalls(source: str, table: Any) -> dict[int, int]:
    if not isinstance(table, dict):
        raise CostError(f"{source}: hypercalls is to be a table, as in [hypercalls]")
    for name in table:
        if name not in _NUMBERS:
            raise CostError(f"{source}: there is no hypercall {name!r}")
    return {_NUMBERS[name]: _cost(source, f"hypercalls.{name}", value) for name, value in table.items()}


def _cost(source: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COST:
        raise CostError(f"{source}: {name} is to be a whole number of nanoseconds, up to {MAX_COST}")
    return value
