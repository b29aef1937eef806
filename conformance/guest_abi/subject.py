"""What a guest's kernel is given as: an ELF file, a configuration, a program on the guest kernel in Python."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Final

import attrs

from conformance.subjects import SubjectError, load_class
from hypervisor.kernel_image import PvKernel
from toolstack.errors import UsageError
from toolstack.machine_code import is_machine_code, read_kernel, require_emulator
from toolstack.xl_config import DomainConfig, load_config, parse_config

MEMORY_MIB: Final = 32
"""Of a guest that is only a kernel."""


@attrs.frozen
class Subject:
    """A guest whose kernel is judged."""

    config: DomainConfig
    kernel: PvKernel | None
    """What its file says; None for a kernel in Python."""


def parse(text: str) -> Subject:
    """Return what `elf:FILE`, `cfg:FILE` or `module:Class` names. Raises SubjectError."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "elf":
            return _subject(_config(f'kernel = "{Path(rest).resolve()}"'))
        if kind == "cfg":
            return _subject(load_config(rest))
        found = load_class(text)
        return _subject(_config(f'kernel = "{inspect.getfile(found)}:{found.__name__}"'))
    except UsageError as error:
        raise SubjectError(str(error)) from None


def _config(setting: str) -> DomainConfig:
    return parse_config(f'name = "guest"\nmemory = {MEMORY_MIB}\n{setting}\n', "guest.cfg", Path.cwd())


def _subject(config: DomainConfig) -> Subject:
    """Make a subject of a configuration. It lives once, whatever becomes of it."""
    config = attrs.evolve(
        config, name="guest", on_poweroff="destroy", on_reboot="destroy", on_crash="destroy", on_watchdog="destroy"
    )
    path = Path(config.kernel)
    if not is_machine_code(path):
        return Subject(config, None)
    require_emulator()
    return Subject(config, read_kernel(path))
