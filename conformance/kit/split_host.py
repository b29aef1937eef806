"""The host that judges either half of a split driver: a driver domain, a guest with a device of it, other drivers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import attrs
import trio

from conformance.kit.check import Failure
from conformance.kit.recording import host_options
from conformance.kit.telling import watch
from guest_kernel.image import DriverFactory, PythonKernelImage
from toolstack.domains import CRASH
from toolstack.host import Host
from toolstack.xl_config import DomainConfig, parse_config

HANG_LIMIT: Final = 20.0
"""Seconds after which a subject that does not yield is ended."""
BACKEND: Final = 'memory = 16\nkernel = "back_guest.py"'
FRONTEND: Final = 'memory = 8\nkernel = "front_guest.py"'
"""The domains of Python subjects, and of checks."""


class Occupant(ABC):
    """A subject that is no class of a driver: something else is the whole kernel of its domain."""

    settings: str
    """Lines for the configuration of its domain: `memory`, `kernel`, and what else it needs."""
    thinks = 0.0
    """Seconds of real time that its domain may use without a yield, besides HANG_LIMIT."""

    def configure(self, given: DomainConfig) -> DomainConfig:
        """Return the configuration of its domain, made of what `settings` and the devices give."""
        return given

    def attend(self, host: Host) -> None:
        """Take note of the host, which will be switched on."""
        return

    def settle(self, host: Host) -> None:
        """Take note of the host, which is switched on: a Python kernel is loaded."""
        return

    @abstractmethod
    def present(self) -> AbstractContextManager[None]:
        """Be there, while the host runs."""

    def end(self) -> None:
        """End the domain: the check is over. (A driver domain ends without this, when no guest is left.)"""
        return

    def left_behind(self) -> str:
        """Return what it should have given back when its domain ended, in a few words; empty if there is nothing."""
        return ""

    def judge(self) -> None:
        """Raise Failure for what it has done, whatever else the check has found."""
        return


@final
class JudgedHost(Host):
    """A host on whose domains `replaced` is the subject instead, and `left_out` is missing: the check is that."""

    def __init__(self, subject: Any, replaced: DriverFactory, left_out: DriverFactory) -> None:
        self.occupant = subject if isinstance(subject, Occupant) else None
        thinks = self.occupant.thinks if self.occupant is not None else 0.0
        super().__init__(hang_limit=HANG_LIMIT + thinks, **host_options())
        watch(self)
        self._subject = subject
        self._replaced = replaced
        self._left_out = left_out

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Have a domain execute an image, with other drivers."""
        if self.occupant is not None:
            self.occupant.settle(self)
        kept = [driver for driver in image.drivers if _made_by(driver) is not self._left_out]
        if self.occupant is not None:
            drivers = [driver for driver in kept if _made_by(driver) is not self._replaced]
        else:
            drivers = [self._put_in(driver) if _made_by(driver) is self._replaced else driver for driver in kept]
        super().load(domid, attrs.evolve(image, drivers=drivers))

    def _put_in(self, driver: DriverFactory) -> DriverFactory:
        """Return what makes the subject, with the options that the driver in its place would have had."""
        return partial(self._subject, **driver.keywords) if isinstance(driver, partial) else self._subject


def _made_by(driver: DriverFactory) -> object:
    return driver.func if isinstance(driver, partial) else driver


class Stage:
    """What the two worlds share: a check that runs in one domain, and what became of the host."""

    def __init__(self) -> None:
        self.over = False
        self.check: Coroutine[Any, Any, None] | None = None
        self.failure: Exception | None = None

    def begin(self) -> Coroutine[Any, Any, None]:
        """Return the check, for the domain that is to run it: once."""
        check, self.check = self.check, None
        assert check is not None, "the check has been begun before"
        return check

    def run(
        self, host: JudgedHost, check: Coroutine[Any, Any, None], programs: Path, devices: str, judged: str,
        present: AbstractContextManager[None],
    ) -> None:  # fmt: skip
        """Run the host with a check on it.

        `programs` holds `back_guest.py` and `front_guest.py`; `devices` is the line of the guest's configuration that
        gives it its devices of domain `backend`; `judged` names the domain with the subject; `present` makes this the
        stage that programs find. Raises what the check raises, and Failure for what the subject leaves behind.
        """
        self.check = check
        occupant = host.occupant
        texts = {"backend": BACKEND, "frontend": FRONTEND}
        if occupant is not None:
            texts[judged] = occupant.settings
        texts["backend"] += "\ndriver_domain = 1\n"
        texts["frontend"] += f"\n{devices}\n"
        configs = [parse_config(f'name = "{name}"\n{text}', f"{name}.cfg", programs) for name, text in texts.items()]
        if occupant is not None:
            configs = [occupant.configure(config) if config.name == judged else config for config in configs]
        self.play(host, configs, judged, occupant, present)

    def play(
        self, host: Host, configs: Sequence[DomainConfig], judged: str, occupant: Occupant | None,
        present: AbstractContextManager[None],
    ) -> None:  # fmt: skip
        """Run a host, one of whose domains begins the check. Raises as `run` does."""
        check = self.check
        assert check is not None
        if occupant is not None:
            occupant.attend(host)
        with present, nullcontext() if occupant is None else occupant.present():
            try:
                trio.run(host.run, configs)
            finally:
                check.close()
        if occupant is not None:
            occupant.judge()
        # What the check has seen of a domain that fell is less than why it fell.
        if host.results[judged].reason == CRASH:
            raise Failure(f"The {judged}'s domain crashes: {host.results[judged].message}")
        if self.failure is not None:
            raise self.failure
        if not self.over:
            told = "; ".join(result.message for result in host.results.values() if result.message)
            raise Failure(f"The host ends before the check does. {told}")
        kept = "" if occupant is None else occupant.left_behind()
        left = [kept] if kept else host.leaks()
        if left:
            raise Failure(f"The {judged} leaves something behind: {left[0]}.")
