"""What a campaign simulates: configurations as `paravirt run` takes them, or a Python file that makes a host itself.

Runs of one campaign share nothing. So a disk image that a guest may write to is only read: what the run changes goes to
an overlay in the run's own directory, and is thrown away with it.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import attrs

from hypervisor.sched.schedulers import CHOICES
from toolstack.disk_spec import MEMORY_FORMAT, OVERLAY_FORMAT, DiskSpec
from toolstack.errors import UsageError, did_you_mean
from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.sweep.grid import Run, Value
from toolstack.xl_config import DomainConfig, load_config, parse_config, read_text

HOST_SETTINGS = ("pcpus", "memory", "scheduler", "schedule", "costs")
"""What `--set KEY=` can say of the host, as the options of `paravirt run` do."""
ANY_GUEST = "*"
ENTRY = "scenario"
"""The function that a Python file has."""

Measure = Callable[[Host, HostResult], Mapping[str, Value]]


@attrs.frozen
class Scenario:
    """One host to run: what the function `scenario(seed, directory, ...)` of a Python file returns.

    `host` are keyword arguments of `toolstack.host.Host`; `measure(host, result)` is called after the run and returns
    more columns of the table of results.
    """

    configs: Sequence[DomainConfig]
    host: Mapping[str, Any] = attrs.field(factory=dict)
    measure: Measure | None = None


@attrs.frozen
class Source:
    """The files of a scenario, as a person named them."""

    files: tuple[Path, ...]

    @property
    def is_python(self) -> bool:
        """Whether it is a Python file that makes scenarios."""
        return self.files[0].suffix == ".py"

    def check(self, settings: Sequence[str]) -> None:
        """See whether there is a scenario, and these can be set of it. Raises `UsageError`."""
        if self.is_python:
            if len(self.files) > 1:
                raise UsageError("a scenario is one Python file, or any number of configurations")
            _check_parameters(self.files[0], _load(self.files[0]), settings)
            return
        names = [load_config(path).name for path in self.files]
        for key in settings:
            name, dot, _ = key.rpartition(".")
            if dot and name not in (*names, ANY_GUEST):
                raise UsageError(f"--set {key!r}: there is no guest {name!r}{did_you_mean(name, names)}")
            if not dot and key not in HOST_SETTINGS:
                raise UsageError(
                    f"--set {key!r} is nothing of the host{did_you_mean(key, HOST_SETTINGS)}; there are "
                    f"{', '.join(HOST_SETTINGS)}, and of guests NAME.KEY"
                )

    def build(self, run: Run, directory: Path) -> Scenario:
        """Make the host of one run. `directory` is the run's own. Raises `UsageError`."""
        if self.is_python:
            made = _load(self.files[0])(seed=run.seed, directory=directory, **run.settings)
            if not isinstance(made, Scenario):
                raise UsageError(f"{ENTRY}() of {str(self.files[0])!r} returns {type(made).__name__}, not a Scenario")
            configs = made.configs
        else:
            configs = [_configured(path, run.settings) for path in self.files]
            host = {key: value for key, value in run.settings.items() if key in HOST_SETTINGS}
            if "memory" in host:
                host["memory_mib"] = host.pop("memory")
            made = Scenario(configs, host)
        return attrs.evolve(made, configs=[_unshared(config, directory) for config in configs])

    def digest(self) -> str:
        """Return a hash of the files, and of the kernels that configurations name: of what decides the results."""
        found = hashlib.sha256()
        for path in self.files:
            kernels = [] if self.is_python else [load_config(path).kernel]
            for file in (path, *kernels):
                try:
                    found.update(hashlib.sha256(file.read_bytes()).digest())
                except OSError as error:
                    raise UsageError(f"cannot read {str(file)!r}: {error.strerror}") from None
        return found.hexdigest()


def make_host(scenario: Scenario, run: Run, **options: Any) -> Host:
    """Return the host of a run. Raises `UsageError`, also for arguments of `Host` that are none."""
    for key in ("pcpus", "memory_mib"):
        value = scenario.host.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise UsageError(f"{key.removesuffix('_mib')} is a whole number above 0, not {value!r}")
    arguments = {"seed": run.seed, **scenario.host, **options}
    for key in ("scheduler", "schedule", "costs"):
        if key in arguments:
            arguments[key] = str(arguments[key])
    name = arguments.get("scheduler")
    if name is not None and name not in CHOICES:
        raise UsageError(f"there is no scheduler {name!r}{did_you_mean(name, CHOICES)}; there are {', '.join(CHOICES)}")
    try:
        return Host(**arguments)
    except TypeError as error:
        raise UsageError(f"the scenario's host: {error}") from None


def _configured(path: Path, settings: Mapping[str, Value]) -> DomainConfig:
    """Return a configuration with the settings of its guest put behind it: the last one counts."""
    text = read_text(path, "configuration")
    name = load_config(path).name
    for key, value in settings.items():
        guest, dot, setting = key.rpartition(".")
        if dot and guest in (name, ANY_GUEST):
            text += f"\n{setting} = {_quoted(value)}\n"
    return parse_config(text, str(path), path.absolute().parent)


def _quoted(value: Value) -> str:
    if isinstance(value, int):
        return str(int(value))
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unshared(config: DomainConfig, directory: Path) -> DomainConfig:
    disks = tuple(_own_disk(config.name, disk, directory) if disk.writable else disk for disk in config.disks)
    return attrs.evolve(config, disks=disks)


def _own_disk(name: str, disk: DiskSpec, directory: Path) -> DiskSpec:
    """Return a disk whose changes are the run's own."""
    if disk.nbd is not None:
        raise UsageError(f"{name}: {disk.vdev} is at an NBD server, and all runs would write to the same disk")
    if disk.format == MEMORY_FORMAT:
        return disk
    changes = directory / f"{name}.{disk.vdev}.changes"
    if Path(disk.target).is_relative_to(directory):
        return disk
    if disk.format == OVERLAY_FORMAT:
        if Path(disk.target).exists():
            shutil.copyfile(disk.target, changes)
        return attrs.evolve(disk, target=str(changes))
    return attrs.evolve(disk, format=OVERLAY_FORMAT, base=disk.target, target=str(changes))


def _load(path: Path) -> Callable[..., Scenario]:
    """Execute a scenario file and return its function. Raises `UsageError`."""
    if not path.is_file():
        raise UsageError(f"the scenario file {str(path)!r} does not exist")
    name = f"paravirt_scenario_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    place = str(path.absolute().parent)
    if place not in sys.path:
        sys.path.insert(0, place)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path}: the scenario cannot be loaded: {type(error).__name__}: {error}") from None
    function = getattr(module, ENTRY, None)
    if not callable(function):
        raise UsageError(f"{str(path)!r} has no function {ENTRY}(seed, directory, …)")
    return function  # type: ignore[no-any-return]


def _check_parameters(path: Path, function: Callable[..., Scenario], settings: Sequence[str]) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(seed=0, directory=Path(), **dict.fromkeys(settings, 0))
    except TypeError as error:
        raise UsageError(f"{ENTRY}{signature} of {str(path)!r}: {error}") from None
