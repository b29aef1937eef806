"""Disk specifications, as in xl-disk-configuration(5).

A specification is a comma-separated list of positional parameters `target, format, vdev, access` and of `key=value`
ones. `target=` given by name takes the whole rest of the text, commas included. The old prefixes `file:` and `phy:`
(and `raw:`) are understood: after one of them no format is asked for, so the short form is `file:/x.img,xvda,w`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs

from hypervisor.machine.failing_disk import Faults, parse_faults
from hypervisor.machine.nbd_address import PREFIX as NBD_PREFIX
from hypervisor.machine.nbd_address import NbdAddress, parse_nbd
from toolstack.errors import SpecError, did_you_mean

RAW_FORMAT = "raw"
OVERLAY_FORMAT = "overlay"
"""Not one of xl's: what a guest changes goes to a file of its own (`hypervisor.machine.overlay`)."""
MEMORY_FORMAT = "memory"
"""Nor this: a disk in the memory of the host's process, full of zeros at first and gone with it."""
FORMATS = (RAW_FORMAT, OVERLAY_FORMAT, MEMORY_FORMAT)
EMPTY_FORMAT = "empty"
"""That of a CD drive with nothing in it."""
_OTHER_FORMATS = ("qcow", "qcow2", "vhd", "qed")
_ACCESS = {"r": False, "ro": False, "w": True, "rw": True}
_PREFIX = re.compile(r"(file|phy|raw|aio|tap2?|qcow2?|vhd|qed|nbd|iscsi):")
_DOS_PREFIXES = ("tap", "tap2", "nbd", "iscsi")
SECTOR = 512
_SIZES = {"sector-size": 4096, "physical-sector-size": 1 << 16}
"""Parameters that are powers of two, which xl does not have, and the most that each can be."""
_KEYS = (
    *("format", "vdev", "access", "target", "backend", "base", "devtype", "backendtype", "faults", "script"),
    *(*_SIZES, "reconnect-delay", "discard-secure", "specification"),
)
_WORDS: dict[str, tuple[str, bool]] = {
    "cdrom": ("removable", True),
    "discard": ("discard", True),
    "no-discard": ("discard", False),
    "trusted": ("trusted", True),
    "untrusted": ("trusted", False),
    "direct-io-safe": ("direct_io_safe", True),
}
"""Parameters without a value, and what each says; of two that contradict each other the last counts, as with xl."""
_WITHOUT_MEANING = {"backendtype": ("phy", "qdisk"), "specification": ("xen",)}
"""Parameters whose values make no difference here, and these."""
LONGEST_DELAY = 86_400
"""Seconds. A guest that waits longer than a day for its disk waits for ever."""
_XVD_MAJOR = 202
_EXTENDED = 1 << 28
_XVD = re.compile(r"xvd([a-z]{1,2})([1-9][0-9]*)?")
_IDE = re.compile(r"hd([a-d])([1-9][0-9]*)?")
_SCSI = re.compile(r"sd([a-p])([1-9][0-9]*)?")
_PLAIN = re.compile(r"d([0-9]+)(?:p([0-9]+))?")


@attrs.frozen
class DiskSpec:
    """One virtual disk of a domain."""

    target: str
    """Path of the image file, or of an overlay's file of changes, as written (the reader of it resolves it); how large
    a disk in memory is.

    Empty for a CD drive with nothing in it.
    """
    vdev: str
    """Name of the device in the guest: xvda, xvdb2, sda, hda, d3p1."""
    writable: bool = True
    format: str = RAW_FORMAT
    base: str = ""
    """Path of the image that an overlay changes."""
    backend: str = "0"
    """Name or number of the domain that serves the disk."""
    removable: bool = False
    """Whether it is a CD drive: what is in it may be changed."""
    discard: bool = attrs.field(default=attrs.Factory(lambda self: self.writable, takes_self=True))
    """Whether the guest may say what it does not need any more, so that the image shrinks."""
    discard_secure: bool = attrs.field(
        default=attrs.Factory(lambda self: self.discard and self.format == MEMORY_FORMAT, takes_self=True)
    )
    """Whether what the guest discards is gone for good (`discard-secure=`, which xl does not have)."""
    trusted: bool = True
    """What the frontend is told of its backend."""
    direct_io_safe: bool = False
    """What the backend is told of its kernel: a note for QEMU's, which nobody here needs."""
    faults: Faults | None = None
    """What is wrong with the machine's disk (`faults=`, which xl does not have)."""
    sector_size: int = SECTOR
    """Bytes of the machine's disk's sectors (`sector-size=`): all its transfers are whole ones."""
    physical_sector_size: int = SECTOR
    """Bytes that it says it transfers at one go (`physical-sector-size=`)."""
    reconnect_delay: int = 0
    """Seconds for which requests wait for an NBD server that was lost (`reconnect-delay=`, QEMU's word); 0: nobody
    looks for it."""

    def resolved(self, directory: Path) -> DiskSpec:
        """Return the same with paths that start at `directory` if they are relative."""
        if self.nbd is not None:
            nbd = attrs.evolve(self.nbd, path=str(directory / self.nbd.path) if self.nbd.path else "")
            return attrs.evolve(self, target=str(nbd))
        if self.format == MEMORY_FORMAT:
            return self
        base = str(directory / self.base) if self.base else ""
        return attrs.evolve(self, target=str(directory / self.target) if self.target else "", base=base)

    @property
    def nbd(self) -> NbdAddress | None:
        """Where the disk is if that is an NBD server."""
        return parse_nbd(self.target) if self.target.startswith(NBD_PREFIX) else None

    @property
    def devid(self) -> int:
        """The device number of the virtual disk: last component of its xenstore paths."""
        return vdev_number(self.vdev)


def vdev_number(vdev: str) -> int:
    """Return the number that the protocol gives to a virtual disk name (xen-vbd-interface(7)).

    `xvda`..`xvdp` with partitions below 16 are `202 << 8 | disk << 4 | partition`; later disks use the extended scheme
    `1 << 28 | disk << 8 | partition`; hd and sd names have the numbers of the Linux IDE and SCSI devices.
    Raises `SpecError` for a name that is none of them.
    """
    if match := _XVD.fullmatch(vdev):
        return _xvd_number(_letters(match[1]), int(match[2] or 0), vdev)
    if match := _PLAIN.fullmatch(vdev):
        return _xvd_number(int(match[1]), int(match[2] or 0), vdev)
    if match := _IDE.fullmatch(vdev):
        disk, partition = _letters(match[1]), int(match[2] or 0)
        if partition < 64:
            return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
    if match := _SCSI.fullmatch(vdev):
        disk, partition = _letters(match[1]), int(match[2] or 0)
        if partition < 16:
            return 8 << 8 | disk << 4 | partition
    raise SpecError(f"{vdev!r} is no virtual disk name (such as xvda or xvdb1)")


def parse_size(text: str) -> int:
    """Return a number of bytes: `1048576`, or with a unit of 1024, `16M` (K, M, G, T). Raises `SpecError`."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text.strip().upper(), re.ASCII)
    size = int(match[1]) << 10 * " KMGT".index(match[2] or " ") if match else 0
    if not 0 < size < 1 << 62:
        raise SpecError(f"{text!r} is no size of a disk (such as 64M)")
    return size


def _letters(text: str) -> int:
    number = 0
    for char in text:
        number = number * 26 + ord(char) - ord("a") + 1
    return number - 1


def _xvd_number(disk: int, partition: int, vdev: str) -> int:
    if disk < 16 and partition < 16:
        return _XVD_MAJOR << 8 | disk << 4 | partition
    if disk < 1 << 20 and partition < 256:
        return _EXTENDED | disk << 8 | partition
    raise SpecError(f"the virtual disk name {vdev!r} is out of range")


@attrs.define
class _Draft:
    """What the parser has so far; None is not said yet."""

    target: str | None = None
    format: str | None = None
    vdev: str | None = None
    access: str | None = None
    base: str | None = None
    backend: str = "0"
    removable: bool = False
    discard: bool | None = None
    discard_secure: bool | None = None
    trusted: bool = True
    direct_io_safe: bool = False
    faults: Faults | None = None
    sector_size: int | None = None
    physical_sector_size: int | None = None
    reconnect_delay: int | None = None


def parse_disk(text: str) -> DiskSpec:
    """Parse one entry of the `disk` list. Raises `SpecError` with one sentence."""
    draft = _Draft()
    words = _strip_prefix(text.strip(), draft).split(",")
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        key = key.strip().lower()
        if not equals:
            _positional(draft, word.strip())
        elif key == "target":
            _set(draft, "target", ",".join([value, *words[index + 1 :]]).strip())
            break
        elif key in _KEYS:
            _keyword(draft, key, value.strip())
        else:
            raise SpecError(f"unknown disk parameter {key!r}{did_you_mean(key, _KEYS)}")
    return _finish(draft)


def _strip_prefix(text: str, draft: _Draft) -> str:
    match = _PREFIX.match(text)
    if match is None:
        return text
    prefix = match[1]
    if prefix in _DOS_PREFIXES:
        raise SpecError(f"the disk prefix '{prefix}:' is not supported; give a raw image file")
    draft.format = _format(RAW_FORMAT if prefix in ("file", "phy", "aio") else prefix)
    return text[match.end() :]


def _format(word: str) -> str:
    word = word.lower()
    if word in (*FORMATS, EMPTY_FORMAT):
        return word
    if word in _OTHER_FORMATS:
        raise SpecError(f"the disk format {word!r} is not supported; only {', '.join(map(repr, FORMATS))} are")
    raise SpecError(f"unknown disk format {word!r}{did_you_mean(word, (*FORMATS, *_OTHER_FORMATS))}")


def _positional(draft: _Draft, word: str) -> None:
    """Give the word to the first of target, format, vdev, access that has no value yet; an empty word skips one."""
    lowered = word.lower()
    if lowered in _WORDS:
        setattr(draft, *_WORDS[lowered])
    elif draft.target is None:
        draft.target = word
    elif draft.format is None:
        draft.format = _format(word) if word else RAW_FORMAT
    elif draft.vdev is None:
        draft.vdev = word
    elif draft.access is None:
        draft.access = word
    elif word:
        raise SpecError(
            f"a disk has four positional parameters (target, format, vdev, access), and {word!r} is the fifth"
        )


def _keyword(draft: _Draft, key: str, value: str) -> None:
    if key == "backend":
        draft.backend = value
    elif key == "devtype":
        if value.lower() not in ("disk", "cdrom"):
            raise SpecError(f"unknown devtype {value!r}")
        draft.removable = value.lower() == "cdrom"
    elif key == "format":
        _set(draft, "format", _format(value))
    elif key in _READERS:
        _set(draft, key.replace("-", "_"), _READERS[key](key, value))
    elif key in ("vdev", "access", "base"):
        _set(draft, key, value)
    elif key == "faults":
        try:
            _set(draft, "faults", parse_faults(value))
        except ValueError as error:
            raise SpecError(str(error)) from None
    elif key in _WITHOUT_MEANING:
        if value not in _WITHOUT_MEANING[key]:
            raise SpecError(f"unknown {key} {value!r}; there is {', '.join(_WITHOUT_MEANING[key])}")
    else:
        raise SpecError(f"the disk parameter {key!r} is not supported")


def _seconds(key: str, value: str) -> int:
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
    if not 0 <= number <= LONGEST_DELAY:
        raise SpecError(f"{key} is a number of seconds, up to {LONGEST_DELAY}, not {value!r}")
    return number


def _power_of_two(key: str, value: str) -> int:
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0
    if not SECTOR <= number <= _SIZES[key] or number & number - 1:
        raise SpecError(f"{key} is a power of two from {SECTOR} to {_SIZES[key]}, not {value!r}")
    return number


def _flag(key: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise SpecError(f"{key} is 0 or 1, not {value!r}")
    return value == "1"


_READERS: dict[str, Callable[[str, str], int | bool]] = {
    **dict.fromkeys(_SIZES, _power_of_two),
    "reconnect-delay": _seconds,
    "discard-secure": _flag,
}
"""Parameters of which xl has none, by what makes a value of their text."""


def _set(draft: _Draft, field: str, value: str | int | Faults) -> None:
    if getattr(draft, field) is not None and not (field == "target" and draft.target == ""):
        raise SpecError(f"the disk parameter {field.replace('_', '-')!r} is given twice")
    setattr(draft, field, value)


def _finish_target(draft: _Draft) -> str:
    """Return the target. That of a CD drive may be left out, to mean that it is empty."""
    if draft.format == EMPTY_FORMAT:
        if draft.target or not draft.removable:
            raise SpecError("only a CD drive (devtype=cdrom) without a target can be empty")
        draft.format = RAW_FORMAT
    if not draft.target and not draft.removable:
        raise SpecError("the disk has no target (the image file)")
    return draft.target or ""


def _discards_securely(draft: _Draft, discard: bool, image_format: str, target: str) -> bool:
    """Return whether discards are to be secure: on a disk in memory they are, a file's owner has to vouch for it."""
    if draft.discard_secure is None:
        return discard and image_format == MEMORY_FORMAT
    if not draft.discard_secure:
        return False
    if image_format == OVERLAY_FORMAT or target.startswith(NBD_PREFIX):
        where = "the base of an overlay" if image_format == OVERLAY_FORMAT else "an NBD server"
        raise SpecError(f"nobody can promise that {where} forgets what is discarded (discard-secure=1)")
    if not discard:
        raise SpecError("what cannot be discarded cannot be discarded securely (discard-secure=1)")
    return True


def _check_base(draft: _Draft, image_format: str) -> None:
    """See whether an overlay has a base, and no other disk. Raises SpecError."""
    if image_format != OVERLAY_FORMAT:
        if draft.base is not None:
            raise SpecError(f"only an overlay has a base, and this is a disk of format {image_format!r}")
    elif not draft.base:
        raise SpecError("an overlay needs a base (base=, the image that it changes)")
    elif draft.base.startswith(NBD_PREFIX):
        raise SpecError(f"the base of an overlay is an image file, and {draft.base!r} is at an NBD server")


def _finish(draft: _Draft) -> DiskSpec:
    target = _finish_target(draft)
    if not draft.vdev:
        raise SpecError("the disk has no vdev (its name in the guest, such as xvda)")
    access = (draft.access or "rw").lower()
    if access not in _ACCESS:
        raise SpecError(f"the disk access is 'ro' or 'rw', not {draft.access!r}")
    vdev_number(draft.vdev)
    image_format = draft.format or RAW_FORMAT
    _check_base(draft, image_format)
    if target.startswith(NBD_PREFIX):
        if image_format != RAW_FORMAT:
            raise SpecError(f"what an NBD server has is a disk of format 'raw', not {image_format!r}")
        try:
            parse_nbd(target)
        except ValueError as error:
            raise SpecError(str(error)) from None
    elif draft.reconnect_delay is not None:
        raise SpecError("only a disk at an NBD server has a 'reconnect-delay'")
    if not draft.backend:
        raise SpecError("the disk parameter 'backend' is empty")
    sector_size = draft.sector_size or SECTOR
    physical = draft.physical_sector_size or sector_size
    if image_format == MEMORY_FORMAT and parse_size(target) % physical:
        raise SpecError(f"a disk has whole sectors of {physical} bytes, so it cannot have {parse_size(target)}")
    if physical < sector_size:
        raise SpecError(f"a physical sector of {physical} bytes cannot hold a sector of {sector_size}")
    writable = _ACCESS[access] and not draft.removable
    discard = writable and draft.discard is not False
    return DiskSpec(
        target=target,
        vdev=draft.vdev,
        writable=writable,
        format=image_format,
        base=draft.base or "",
        discard=discard,
        discard_secure=_discards_securely(draft, discard, image_format, target),
        backend=draft.backend,
        removable=draft.removable,
        trusted=draft.trusted,
        direct_io_safe=draft.direct_io_safe,
        faults=draft.faults,
        sector_size=sector_size,
        physical_sector_size=physical,
        reconnect_delay=draft.reconnect_delay or 0,
    )
