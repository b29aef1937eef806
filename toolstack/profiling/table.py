"""A profile as tables: who had the processors, and what for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolstack.profiling.profile import Profile, Spent, Stack
from toolstack.report import duration

Key = tuple[str, ...]

LEVELS: Mapping[str, tuple[tuple[str, ...], Callable[[str, int, Stack], Key]]] = {
    "domain": (("domain",), lambda domain, _vcpu, _stack: (domain,)),
    "vcpu": (("domain", "vCPU"), lambda domain, vcpu, _stack: (domain, str(vcpu))),
    "thread": (("domain", "who"), lambda domain, _vcpu, stack: (domain, stack[0])),
    "call": (("domain", "who", "what"), lambda domain, _vcpu, stack: (domain, stack[0], " > ".join(stack[1:]))),
    "cost": (("what",), lambda _domain, _vcpu, stack: (stack[-1],)),
}
"""What `--by` takes: the columns that name a row, and how a part of a vCPU's time is put into one."""


def print_profile(profile: Profile, console: Console, by: str, rows: int) -> None:
    """Print the two tables. At most `rows` lines each; what is left out is added up in a last line."""
    console.print(_vcpus(profile, rows))
    console.print(_parts(profile, by, rows))


def _vcpus(profile: Profile, rows: int) -> Table:
    table = _table(f"{duration(profile.end)} of virtual time", "domain", "vCPU")
    for column in ("ran", "%", "waited", "%", "blocked", "turns"):
        table.add_column(column, justify="right")
    whole = profile.end or 1
    found = list(profile.vcpus().items())
    found.sort(key=lambda item: -item[1].ran)
    for (domid, vcpu_id), vcpu in found[:rows]:
        table.add_row(
            Text(profile.domain_name(domid)),
            str(vcpu_id),
            duration(vcpu.ran),
            f"{100 * vcpu.ran / whole:.1f}",
            duration(vcpu.waited),
            f"{100 * vcpu.waited / whole:.1f}",
            duration(vcpu.blocked),
            f"{vcpu.turns:,}",
        )
    rest = [vcpu for _, vcpu in found[rows:]]
    if rest:
        ran, waited, blocked = (sum(part) for part in zip(*((v.ran, v.waited, v.blocked) for v in rest), strict=True))
        turns = sum(vcpu.turns for vcpu in rest)
        table.add_row(f"{len(rest)} more", "", duration(ran), "", duration(waited), "", duration(blocked), f"{turns:,}")
    return table


def _parts(profile: Profile, by: str, rows: int) -> Table:
    titles, key_of = LEVELS[by]
    found: dict[Key, Spent] = {}
    for (domid, vcpu_id), vcpu in profile.vcpus().items():
        domain = profile.domain_name(domid)
        for stack, spent in vcpu.stacks.items():
            found.setdefault(key_of(domain, vcpu_id, stack), Spent()).add(spent.ns, spent.count)
    whole = sum(spent.ns for spent in found.values())
    table = _table(f"{duration(whole)} that vCPUs ran, by {by}", *titles)
    for column in ("time", "%", "times"):
        table.add_column(column, justify="right")
    ordered = sorted(found.items(), key=lambda item: (-item[1].ns, item[0]))
    for key, spent in ordered[:rows]:
        table.add_row(*map(Text, key), duration(spent.ns), f"{100 * spent.ns / (whole or 1):.1f}", f"{spent.count:,}")
    rest = [spent for _, spent in ordered[rows:]]
    if rest:
        ns, count = sum(spent.ns for spent in rest), sum(spent.count for spent in rest)
        names = [f"{len(rest)} more", *[""] * (len(titles) - 1)]
        table.add_row(*names, duration(ns), f"{100 * ns / (whole or 1):.1f}", f"{count:,}")
    return table


def _table(title: str, *names: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    return table
