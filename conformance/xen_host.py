"""Whole hosts for the tests of other people's guests and drivers: what the fixture `xen_host` gives, without pytest.

host = XenHost(directory, seed=7)

async def ask(guest):
    disk = await guest.disk("xvda")
    assert await disk.read(0, 1) == bytes(512)

host.run(host.guest("asks", ask, disk=[f"raw:{host.image('disk.img')},xvda,r"]))
assert not host.leaks()
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from guest_kernel.guest import Guest
from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from hypervisor.abi.sched import SHUTDOWN_poweroff
from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.xl_config import DomainConfig, parse_config

Program = Callable[[Guest], Awaitable[object]] | type[Guest] | str | Path
"""What a guest does: a coroutine function that takes the guest, a subclass of `Guest`, or a file with a kernel."""
Setting = str | int | Sequence[str]

_STAND_IN = "paravirt_stand_in.py"
_STAND_IN_CODE = '''"""Stands for a guest that a test has in memory."""

from guest_kernel.guest import Guest


class StandIn(Guest):
    async def main(self) -> None:
        raise AssertionError("the program of the test takes the place of this one")
'''


class GuestFailedError(AssertionError):
    """A guest has not ended in order, and nobody said that it would not; the message says which, and why."""


class XenHost:
    """Makes guests and runs them, each run on a fresh host. All files lie in `directory`.

    `tolerates` says, for the name of a domain, whether it may crash. With `traces` each run leaves a trace
    (docs/trace.md) in the directory.
    """

    def __init__(
        self,
        directory: Path,
        seed: int = 0,
        *,
        tolerates: Callable[[str], bool] = lambda name: False,
        traces: bool = False,
    ) -> None:
        self.directory = directory
        self.seed = seed
        self.lines: list[str] = []
        """What all consoles of all runs have printed, each line with the name of its domain in front."""
        self.traces: list[Path] = []
        """The traces of the runs, if there are any."""
        self._tolerates = tolerates
        self._traced = traces
        self._programs: dict[str, Callable[[Kernel], Guest]] = {}
        self._failures: dict[str, BaseException] = {}
        self._hosts: list[_Host] = []

    @property
    def host(self) -> Host:
        """The host of the last run: its store, hypervisor and results may be looked at. IndexError if there is none."""
        return self._hosts[-1]

    # -- before a run ---------------------------------------------------------------------------------------------

    def guest(self, name: str, program: Program, *, memory: int = 8, **settings: Setting) -> DomainConfig:
        """Make the configuration of a guest; `settings` are xl's (docs/xl-config.md), as `disk=["…"], vcpus=2`.

        Raises ConfigError, which is one sentence.
        """
        if isinstance(program, str | Path):
            kernel = str(Path(program).absolute())
        else:
            kernel = _STAND_IN
            (self.directory / _STAND_IN).write_text(_STAND_IN_CODE)
            self._programs[name] = self._watched(name, program)
        lines: dict[str, Setting] = {"name": name, "memory": memory, "kernel": kernel, **settings}
        text = "".join(f"{key} = {_as_setting(value)}\n" for key, value in lines.items())
        return parse_config(text, f"guest {name!r}", self.directory)

    def image(self, name: str, size: int = 1 << 20, content: bytes = b"") -> Path:
        """Write a disk image of so many bytes: `content`, then zeros."""
        path = self.directory / name
        with path.open("wb") as file:
            file.write(content)
            file.truncate(size)
        return path

    def _watched(self, name: str, program: Callable[[Guest], Awaitable[object]] | type[Guest]) -> Any:
        """Return what makes the guest's program, which remembers with what exception it ended."""
        failures = self._failures
        base = program if isinstance(program, type) else _guest_of(program)

        class Watched(base):  # type: ignore[misc, valid-type]
            async def main(self) -> None:
                __tracebackhide__ = True
                try:
                    await super().main()
                except GeneratorExit:
                    raise
                except BaseException as error:
                    failures[name] = error
                    raise

        return Watched

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self, *guests: DomainConfig, **options: Any) -> HostResult:
        """Run guests on a fresh host until all have ended; `options` are those of `toolstack.host.Host`.

        A guest that fails fails the run: an exception that its program raises (an assertion, say) is raised here as it
        is, anything else as GuestFailedError. Raises UsageError for what cannot be run.
        """
        __tracebackhide__ = True
        return self._judge(trio.run(partial(self._run, *guests, **options)))

    async def run_async(self, *guests: DomainConfig, **options: Any) -> HostResult:
        """Do what `run` does, under trio."""
        __tracebackhide__ = True
        return self._judge(await self._run(*guests, **options))

    async def _run(self, *guests: DomainConfig, **options: Any) -> HostResult:
        self._failures.clear()
        if self._traced and "trace_file" not in options:
            options["trace_file"] = self.directory / f"host-{len(self._hosts) + 1}.trace"
            self.traces.append(options["trace_file"])
        options = {"seed": self.seed, "consoles": ConsoleLog(self._show), **options}
        host = _Host(self._programs, **options)
        self._hosts.append(host)
        return await host.run(guests)

    def _judge(self, result: HostResult) -> HostResult:
        """Return a result that nothing is wrong with."""
        __tracebackhide__ = True
        for domain in result.failures:
            if not self._tolerates(domain.name):
                failure = self._failures.get(domain.name)
                if failure is not None:
                    raise failure
                raise GuestFailedError(domain.sentence)
        if result.unfinished:
            raise OSError(result.unfinished[0])
        return result

    def _show(self, line: str) -> None:
        self.lines.append(line.rstrip("\n"))

    # -- after a run ----------------------------------------------------------------------------------------------

    def console(self, name: str) -> list[str]:
        """Return the lines that a domain has printed, in all runs."""
        said = [line.partition(" | ") for line in self.lines]
        return [text for tag, _, text in said if tag.strip() == name]

    def leaks(self) -> list[str]:
        """Return a sentence for each thing that guests have left behind on a host that was shut down in order."""
        return [leak for host in self._hosts if host.is_over for leak in host.leaks()]


def _guest_of(function: Callable[[Guest], Awaitable[object]]) -> type[Guest]:
    """Return a guest that does what a function does."""

    class Function(Guest):
        async def main(self) -> None:
            __tracebackhide__ = True
            await function(self)

    return Function


class _Host(Host):
    """A host some of whose guests are in memory."""

    def __init__(self, programs: dict[str, Callable[[Kernel], Guest]], **options: Any) -> None:
        super().__init__(**options)
        self._programs = programs

    @property
    def is_over(self) -> bool:
        """Whether dom0 has shut it down, so that nothing of a guest may be left."""
        return self.lifecycle is not None and self.hv.stopped and self.hv.shutdown_reason == SHUTDOWN_poweroff

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Have a domain execute an image, or the program of a test."""
        program = self._programs.get(image.name)
        super().load(domid, image if program is None else attrs.evolve(image, main=program))


def _as_setting(value: Setting) -> str:
    """Return a value as a configuration writes it (its strings have the escapes of JSON's, but for \\u)."""
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"[{', '.join(_as_setting(item) for item in value)}]"
