"""All faulty subjects, by the suite that judges them, and how each is judged by the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest

from backends.block import BlockBack
from backends.net import NetBack
from conformance.block.world import scene as block_back
from conformance.block_front.world import scene as block_front
from conformance.console.world import OurConsole
from conformance.console.world import scene as console
from conformance.kit.check import CHECKS, Check
from conformance.kit.runner import Result, World, run_check
from conformance.net.world import scene as net_back
from conformance.net_front.world import scene as net_front
from conformance.ring.world import rings
from conformance.suites import SUITES
from conformance.xenbus.world import scene as bus
from conformance.xenstore.world import open_subject
from frontends.block import BlockFront
from frontends.net import NetFront
from tests.mutants import (
    block_backends,
    block_frontends,
    consoles,
    kernels,
    more_stores,
    net_backends,
    net_frontends,
    store_sockets,
    stores,
    tiny_disks,
    xenbus_backends,
    xenbus_frontends,
)
from tests.mutants import rings as faulty_rings
from tests.mutants.tiny_disks import Rewritten
from tests.xenstored.store_process import ThreadedStore

Mutant = tuple[Any, ...]
"""(fault, id of the check meant for it, and what makes a faulty subject of a good one)."""
Judge = Callable[[Check, Mutant, pytest.MonkeyPatch, Path], Result]


@attrs.frozen
class Family:
    """The faulty subjects of one suite."""

    suite: str
    mutants: Mapping[str, Mutant]
    _judge: Judge

    def judge(self, name: str, patch: pytest.MonkeyPatch, directory: Path) -> Result:
        """Run the check that is meant for a mutant. `patch` is undone by whoever calls."""
        mutant = self.mutants[name]
        return self._judge(CHECKS[mutant[1]], mutant, patch, directory)


def _patched(world: Callable[[], AbstractContextManager[Any]]) -> Judge:
    """Judge ours, with a patch."""

    def judge(check: Check, mutant: Mutant, patch: pytest.MonkeyPatch, _directory: Path) -> Result:
        if isinstance(mutant[2], Rewritten):
            return run_check(check, mutant[2].world)
        mutant[2](patch)
        return run_check(check, world)

    return judge


def _ring(check: Check, mutant: Mutant, _patch: pytest.MonkeyPatch, _directory: Path) -> Result:
    return run_check(check, lambda: rings(mutant[2]))


def _bus(check: Check, mutant: Mutant, patch: pytest.MonkeyPatch, _directory: Path) -> Result:
    _, _, driver, change = mutant
    change(patch)
    return run_check(check, lambda: bus(driver, driver.side))


def _console(check: Check, mutant: Mutant, patch: pytest.MonkeyPatch, _directory: Path) -> Result:
    def faulty(kernel: Any, page: Any, port: int) -> OurConsole:
        # The guest's own console is a good one: what it says would be lost.
        mutant[2](patch)
        return OurConsole(kernel, page, port)

    return run_check(check, lambda: console(faulty))


def _store(check: Check, mutant: Mutant, patch: pytest.MonkeyPatch, directory: Path) -> Result:
    store = ThreadedStore(directory / "socket")
    try:
        mutant[2](patch)
        world: World = open_subject(f"unix:{store.path}")
        return run_check(check, world)
    finally:
        # What a faulty store has made of itself is not looked at.
        patch.undo()
        store._stop = True
        store._thread.join()
        store.sockets.close()


def _kernel(check: Check, _mutant: Mutant, _patch: pytest.MonkeyPatch, directory: Path) -> Result:
    kernels.require_compiler()
    kernel = kernels.build(directory, kernels.number(check.id))
    return run_check(check, SUITES["guest-abi"].world(f"elf:{kernel}"))


BLOCK_BACKENDS: dict[str, Mutant] = {**block_backends.MUTANTS, **tiny_disks.MUTANTS}
FAMILIES = {
    family.suite: family
    for family in (
        Family("ring", faulty_rings.MUTANTS, _ring),
        Family("blkif-backend", BLOCK_BACKENDS, _patched(lambda: block_back(BlockBack))),
        Family("blkif-frontend", block_frontends.MUTANTS, _patched(lambda: block_front(BlockFront))),
        Family("netif-backend", net_backends.MUTANTS, _patched(lambda: net_back(NetBack))),
        Family("netif-frontend", net_frontends.MUTANTS, _patched(lambda: net_front(NetFront))),
        Family("xenbus-frontend", xenbus_frontends.MUTANTS, _bus),
        Family("xenbus-backend", xenbus_backends.MUTANTS, _bus),
        Family("console", consoles.MUTANTS, _console),
        Family("guest-abi", kernels.MUTANTS, _kernel),
        Family("xenstore", {**stores.MUTANTS, **more_stores.MUTANTS, **store_sockets.MUTANTS}, _store),
    )
}
"""By suite, in the order of the page."""
