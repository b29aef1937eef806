"""A machine-code guest as a subject: its own kernel, its own drivers, and a program that does what the kit types.

The kit talks to the program on the guest's console, in lines (docs/conformance-machine-code.md):

    kit     paravirt: NUMBER WHAT ARGUMENTS...
    guest   paravirt: ready                      once, when it can be asked
    guest   paravirt: NUMBER ok [DATA]           DATA in base64, without blanks
    guest   paravirt: NUMBER error
    guest   paravirt: WHAT DATA                  something that has happened
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import attrs

from conformance.kit.split_host import Occupant
from conformance.subjects import SubjectError
from hypervisor.machine.serial import Plug
from toolstack.errors import UsageError
from toolstack.machine_code import is_machine_code, read_file, read_kernel, require_emulator
from toolstack.outside import AttachPlug
from toolstack.xl_config import DomainConfig, load_config

if TYPE_CHECKING:
    from toolstack.host import Host

PREFIX: Final = "paravirt: "
PATIENCE_NS: Final = 60_000_000_000
"""Virtual time after which something counts as not happening: the guest has to boot first."""
ELF_MEMORY: Final = 64
"""MiB of a guest of which only the kernel is known."""
KEPT: Final = 200
"""Lines of the console that are kept, to be shown with a failure."""

OnDone = Callable[[int, bool, bytes], None]


@final
class MachineGuest(Occupant):
    """One life of such a guest. `domain` is the name that its domain has on the judge's host."""

    settings = 'memory = 64\nkernel = "front_guest.py"'
    """(Of which nothing but the devices is used.)"""
    patience_ns = PATIENCE_NS

    def __init__(self, config: DomainConfig, domain: str) -> None:
        self._config = config
        self._domain = domain
        self._host: Host | None = None
        self._partial = ""
        self._waiting = bytearray()
        self.lines: list[str] = []
        """What it has printed last."""
        self.is_ready = False
        self.on_done: OnDone = lambda number, good, data: None
        self.on_told: Callable[[str, bytes], None] = lambda what, data: None

    def configure(self, given: DomainConfig) -> DomainConfig:
        """Return the configuration of the guest, with the name and the devices that the judge gives it."""
        return attrs.evolve(
            self._config, name=given.name, disks=given.disks, vifs=given.vifs, others=given.others,
            on_poweroff="destroy", on_reboot="destroy", on_crash="destroy", on_watchdog="destroy",
        )  # fmt: skip

    @contextmanager
    def present(self) -> Iterator[None]:
        """Be there."""
        yield

    def attend(self, host: Host) -> None:
        """Have the guest's console come here."""
        self._host = host
        host.outside.by_hand.add(self._domain)

    def ask(self, number: int, *words: object) -> None:
        """Have the program do something."""
        self._waiting += f"{PREFIX}{number} {' '.join(map(str, words))}\n".encode()
        self.look()

    def look(self) -> None:
        """Take what the guest has printed, and type what it has room for. To be called again and again."""
        plug = self._plug()
        if plug is None:
            return
        if plug.attached is None:
            plug.attach(self._take, lambda: None)
        if self._waiting:
            del self._waiting[: plug.type(bytes(self._waiting))]

    def end(self) -> None:
        """End the guest, as it is."""
        if self._host is not None:
            self._host.interrupt()
            self._host.interrupt()

    def _plug(self) -> AttachPlug | None:
        plug: Plug | None = None if self._host is None else self._host.outside.terminals.get(self._domain)
        return plug if isinstance(plug, AttachPlug) else None

    def _take(self, data: bytes) -> None:
        *whole, self._partial = (self._partial + data.decode("utf-8", "replace")).split("\n")
        for line in whole:
            self._heard(line.rstrip("\r"))

    def _heard(self, line: str) -> None:
        self.lines = [*self.lines[-KEPT:], line]
        # (The kernel may have a word in the middle of a line of its own, but not of a program's.)
        _, prefix, told = line.partition(PREFIX)
        words = told.split()
        if not prefix or not words:
            return
        if words == ["ready"]:
            self.is_ready = True
        elif words[0].isdigit() and len(words) in (2, 3) and words[1] in ("ok", "error"):
            data = _decoded(words[2:])
            if data is not None:
                self.on_done(int(words[0]), words[1] == "ok", data)
        elif len(words) == 2 and (data := _decoded(words[1:])) is not None:
            self.on_told(words[0], data)


def _decoded(words: list[str]) -> bytes | None:
    """Return what base64 stands for, of one word or none; None if it is no base64."""
    try:
        return base64.b64decode("".join(words), validate=True)
    except binascii.Error:
        return None


def open_config(text: str) -> DomainConfig | None:
    """Return the guest that `elf:FILE` or `cfg:FILE` names; None if it is neither. Raises SubjectError."""
    kind, colon, name = text.partition(":")
    if not colon or kind not in ("elf", "cfg"):
        return None
    path = Path(name).absolute()
    try:
        if kind == "cfg":
            config = load_config(path)
        else:
            config = DomainConfig(source=name, name="guest", kernel=path, memory=ELF_MEMORY, maxmem=ELF_MEMORY)
        # What is wrong with it is said now, and not by each check.
        if not is_machine_code(config.kernel):
            raise SubjectError(f"{str(config.kernel)!r} is no kernel of machine code")
        require_emulator()
        read_kernel(config.kernel)
        if config.ramdisk is not None:
            read_file(config.ramdisk, "ramdisk")
    except UsageError as error:
        raise SubjectError(str(error)) from None
    return config
