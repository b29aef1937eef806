"""Makes the pages of `paravirt check explain`: of each check a good run, and one of a subject that it catches.

python -m tests.mutants.explain [SUITE...]          # of all suites, or of these
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.block import BlockBack
from backends.net import NetBack
from conformance.block.world import scene as block_back
from conformance.block_front.world import scene as block_front
from conformance.console.world import OurConsole
from conformance.console.world import scene as console
from conformance.kit.check import Check, Outcome
from conformance.kit.pages import DIRECTORY, page, record
from conformance.kit.runner import Result, run_check
from conformance.net.world import scene as net_back
from conformance.net_front.world import scene as net_front
from conformance.ring.world import OurRings, rings
from conformance.suites import SUITES
from conformance.xenbus.world import scene as bus
from conformance.xenstore.world import open_subject
from frontends.block import BlockFront
from frontends.net import NetFront
from tests.mutants.families import FAMILIES
from tests.mutants.kernels import build
from tests.mutants.tiny_disks import Rewritten
from tests.mutants.toys import ToyBack, ToyFront
from tests.xenstored.store_process import ThreadedStore


@contextmanager
def _stored() -> Iterator[Any]:
    """A store that is fresh: numbers of transactions begin anew."""
    with tempfile.TemporaryDirectory() as name:
        store = ThreadedStore(Path(name) / "socket")
        try:
            with open_subject(f"unix:{store.path}")() as made:
                yield made
        finally:
            store.stop()


@contextmanager
def _kernel(*options: str) -> Iterator[Any]:
    """A kernel in C that is right. It is compiled here; the page is the same whatever the compiler makes of it."""
    with (
        tempfile.TemporaryDirectory() as name,
        SUITES["guest-abi"].world(f"elf:{build(Path(name), 0, *options)}")() as made,
    ):
        yield made


GOOD: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "ring": lambda: rings(OurRings),
    "blkif-backend": lambda: block_back(BlockBack),
    "blkif-frontend": lambda: block_front(BlockFront),
    "netif-backend": lambda: net_back(NetBack),
    "netif-frontend": lambda: net_front(NetFront),
    "xenbus-frontend": lambda: bus(ToyFront, "frontend"),
    "xenbus-backend": lambda: bus(ToyBack, "backend"),
    "console": lambda: console(OurConsole),
    "guest-abi": _kernel,
    "xenstore": _stored,
}
"""Suite → the world with a good subject."""
_GOOD_FOR: dict[str, Callable[[], AbstractContextManager[Any]]] = {"GUEST-ABI-044": lambda: _kernel("-DSUSPENDS")}
"""Checks that the good subject of their suite skips → one that does not."""


def pages(suite: str, step: int = 1) -> Iterator[tuple[str, str]]:
    """Yield the id of each check of a suite, or of one in `step`, and its page."""
    mutants = FAMILIES[suite].mutants
    first = {mutants[name][1]: name for name in reversed(mutants)}
    for check in SUITES[suite].checks[::step]:
        yield check.id, _page(suite, check, first.get(check.id))


def _page(suite: str, check: Check, mutant: str | None) -> str:
    world = _GOOD_FOR.get(check.id, GOOD[suite])
    how = () if mutant is None else FAMILIES[suite].mutants[mutant][2:]
    # A fault in something else than the usual subject is compared with what that is without it.
    world = next((one.good for one in how if isinstance(one, Rewritten)), world)
    good = record(lambda: run_check(check, world, schedules=0))
    assert good.result.outcome is Outcome.success, good.result
    if mutant is None:
        return page(good)
    bad = record(lambda: _judge(suite, mutant))
    assert bad.result.outcome is Outcome.failure, bad.result
    return page(good, FAMILIES[suite].mutants[mutant][0], bad)


def _judge(suite: str, mutant: str) -> Result:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        return FAMILIES[suite].judge(mutant, patch, Path(name))


def main(names: list[str]) -> None:
    """Write the pages of these suites, or of all."""
    DIRECTORY.mkdir(exist_ok=True)
    for suite in names or GOOD:
        for id, text in pages(suite):
            (DIRECTORY / f"{id}.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
