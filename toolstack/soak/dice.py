"""Which faults a seed stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from toolstack.faults.menu import MENU, Entry

BUSY_MS: Final = 60
"""Faults begin while the guests work."""
RECORDS: Final = ("hypercall", "evtchn_pending", "gnttab_map", "gnttab_copy", "block_request", "net_packet", "upcall")
STATES: Final = ("initialised", "connected")

_VALUES: Final[Mapping[str, Callable[[Random], str]]] = {
    "for": lambda rng: f"{rng.randint(1, 30)}ms",
    "probability": lambda rng: f"{rng.choice((0.01, 0.05, 0.2, 0.5, 1))}",
    "count": lambda rng: f"{rng.choice((1, 2, 10, 100))}",
    "by": lambda rng: f"{rng.choice((10, 100, 1000, 5000))}us",
    "every": lambda rng: f"{rng.choice((20, 100, 500))}us",
    "vdev": lambda rng: "xvda",
    "device": lambda rng: rng.choice(("vbd", "vif")),
    "side": lambda rng: rng.choice(("frontend", "backend")),
    "bridge": lambda rng: "xenbr0",
    "sectors": lambda rng: f"{rng.choice((1, 16, 100))}",
    "writes": lambda rng: f"{rng.choice((2, 5, 11))}",
}
_ALWAYS: Final = frozenset({"for", "count"})
"""Keys that are given more often than not: most faults are to pass."""


def roll(seed: int, guests: list[str], most: int) -> list[str]:
    """Return the faults of a seed, as `--fault` takes them; the last guest is never a victim."""
    rng = Random(f"soak/{seed}")
    return [_roll_one(rng, rng.choice(list(MENU.values())), guests[:-1]) for _ in range(rng.randint(1, most))]


def _roll_one(rng: Random, entry: Entry, victims: list[str]) -> str:
    words = [entry.name]
    for key in entry.keys:
        if key == "domain":
            words.append(f"domain={rng.choice(victims)}")
        elif key == "at":
            words.append(f"at={_moment(rng)}")
        elif rng.random() < (0.7 if key in _ALWAYS else 0.5):
            words.append(f"{key}={_VALUES[key](rng)}")
    return ":".join(words)


def _moment(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return f"{rng.randrange(BUSY_MS * 1000)}us"
    if kind < 0.8:
        return f"{rng.choice(RECORDS)}#{rng.choice((1, 3, 10, 50, 200))}"
    return f"{rng.choice(('vbd', 'vif'))}-{rng.choice(STATES)}"
