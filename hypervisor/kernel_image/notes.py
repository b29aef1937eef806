"""What a kernel says about itself: ELF notes of the name "Xen" (elfnote.h), or the older section `__xen_guest`.

Xen looks for notes in PT_NOTE segments, then in SHT_NOTE sections, then for the section; the first place that has any
counts. Numbers are little-endian of 1, 2, 4 or 8 bytes (any other length reads as 0), strings end with NUL.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from hypervisor.abi import elfnote, features
from hypervisor.kernel_image.elf import PT_NOTE, SHT_NOTE, Elf, ImageError

GUEST_SECTION = "__xen_guest"
MAX_NOTES = 65536
_MAX_STRING = 4096
_NOTE = struct.Struct("<III")
_NUMBER_SIZES = (1, 2, 4, 8)

_STRINGS = {
    elfnote.XEN_ELFNOTE_XEN_VERSION: "xen_version",
    elfnote.XEN_ELFNOTE_GUEST_OS: "guest_os",
    elfnote.XEN_ELFNOTE_GUEST_VERSION: "guest_version",
    elfnote.XEN_ELFNOTE_LOADER: "loader",
}
_NUMBERS = {
    elfnote.XEN_ELFNOTE_ENTRY: "entry",
    elfnote.XEN_ELFNOTE_HYPERCALL_PAGE: "hypercall_page",
    elfnote.XEN_ELFNOTE_VIRT_BASE: "virt_base",
    elfnote.XEN_ELFNOTE_PADDR_OFFSET: "paddr_offset",
    elfnote.XEN_ELFNOTE_INIT_P2M: "init_p2m",
    elfnote.XEN_ELFNOTE_MOD_START_PFN: "mod_start_pfn",
    elfnote.XEN_ELFNOTE_HV_START_LOW: "hv_start_low",
}
_GUEST_STRINGS = {
    "LOADER": "loader",
    "GUEST_OS": "guest_os",
    "GUEST_VER": "guest_version",
    "XEN_VER": "xen_version",
}
_GUEST_NUMBERS = {"VIRT_BASE": "virt_base", "VIRT_ENTRY": "entry", "ELF_PADDR_OFFSET": "paddr_offset"}

_FEATURE_BITS = {
    "writable_page_tables": features.XENFEAT_writable_page_tables,
    "writable_descriptor_tables": features.XENFEAT_writable_descriptor_tables,
    "auto_translated_physmap": features.XENFEAT_auto_translated_physmap,
    "supervisor_mode_kernel": features.XENFEAT_supervisor_mode_kernel,
    "pae_pgdir_above_4gb": features.XENFEAT_pae_pgdir_above_4gb,
    "hvm_callback_vector": features.XENFEAT_hvm_callback_vector,
    "dom0": features.XENFEAT_dom0,
}
"""The features that a kernel can name."""


@attrs.define
class GuestInfo:
    """What the notes say; None: nothing. Features are bits of submap 0 (features.h)."""

    is_legacy: bool = False
    """It comes from `__xen_guest`: physical addresses of the ELF file begin at the virtual base then."""
    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    init_p2m: int | None = None
    mod_start_pfn: int | None = None
    hv_start_low: int | None = None
    xen_version: str = ""
    guest_os: str = ""
    guest_version: str = ""
    loader: str = ""
    pae: bool = False
    bsd_symtab: bool = False
    supported: int = 0
    required: int = 0
    says_supported: bool = False
    """There is a note SUPPORTED_FEATURES: a kernel that does not name dom0 in it cannot be one."""


def guest_info(elf: Elf) -> GuestInfo:
    """Return what a kernel says about itself. Raises ImageError if it says nothing, or asks for an unknown feature."""
    segments = (elf.contents(part) for part in elf.segments if part.kind == PT_NOTE and part.offset)
    sections = (elf.contents(part) for part in elf.sections if part.kind == SHT_NOTE)
    for place in (segments, sections):
        notes = [note for block in place for note in xen_notes(block)]
        if notes:
            info = GuestInfo()
            for kind, description in notes:
                _take_note(info, kind, description)
            return info
    section = elf.section(GUEST_SECTION)
    if section is None:
        raise ImageError("is no Xen kernel: it has neither ELF notes of the name Xen nor a section __xen_guest")
    return _legacy_info(elf.contents(section).split(b"\0", 1)[0].decode("latin-1"))


def xen_notes(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and description of the Xen notes of a segment or section; stop at what is no note any more."""
    at = 0
    for _ in range(MAX_NOTES):
        if at + _NOTE.size > len(block):
            return
        name_size, size, kind = _NOTE.unpack_from(block, at)
        name_at = at + _NOTE.size
        start = name_at + (name_size + 3 & ~3)
        if start + size > len(block):
            return
        if block[name_at : name_at + 4] == b"Xen\0":
            yield kind, block[start : start + size]
        at = start + (size + 3 & ~3)
    raise ImageError("has too many ELF notes")


def number(description: bytes) -> int:
    """Return the number of a note."""
    return int.from_bytes(description, "little") if len(description) in _NUMBER_SIZES else 0


def _string(description: bytes) -> str:
    return description[:_MAX_STRING].split(b"\0", 1)[0].decode("latin-1")


def _take_note(info: GuestInfo, kind: int, description: bytes) -> None:
    if kind in _STRINGS:
        setattr(info, _STRINGS[kind], _string(description))
    elif kind in _NUMBERS:
        setattr(info, _NUMBERS[kind], number(description))
    elif kind == elfnote.XEN_ELFNOTE_PAE_MODE:
        text = _string(description)
        info.pae = info.pae or text == "yes" or "bimodal" in text
    elif kind == elfnote.XEN_ELFNOTE_BSD_SYMTAB:
        info.bsd_symtab = info.bsd_symtab or _string(description) == "yes"
    elif kind == elfnote.XEN_ELFNOTE_FEATURES:
        _take_features(info, _string(description))
    elif kind == elfnote.XEN_ELFNOTE_SUPPORTED_FEATURES:
        info.says_supported = True
        if description and not len(description) % 4:
            info.supported |= int.from_bytes(description[:4], "little")


def _take_features(info: GuestInfo, text: str) -> None:
    """Take `name|!name|…`: with a `!` the kernel does not run without it."""
    for word in text.split("|"):
        name = word.removeprefix("!")
        bit = _FEATURE_BITS.get(name)
        if bit is not None:
            info.supported |= 1 << bit
            if word.startswith("!"):
                info.required |= 1 << bit
        elif word.startswith("!"):
            raise ImageError(f"requires the feature {name!r}, which Xen does not know")


def _legacy_info(text: str) -> GuestInfo:
    """Read the text of `__xen_guest`: `KEY=value,KEY=value,…`."""
    info = GuestInfo(is_legacy=True)
    page = None
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key in _GUEST_STRINGS:
            setattr(info, _GUEST_STRINGS[key], value)
        elif key in _GUEST_NUMBERS:
            setattr(info, _GUEST_NUMBERS[key], _legacy_number(key, value))
        elif key == "HYPERCALL_PAGE":
            page = _legacy_number(key, value) << 12
        elif key == "PAE":
            info.pae = value.startswith("yes")
        elif key == "BSD_SYMTAB":
            info.bsd_symtab = True
        elif key == "FEATURES":
            _take_features(info, value)
    if page is not None:
        # Counted in pages from the virtual base.
        info.hypercall_page = page + (info.virt_base or 0) & (1 << 64) - 1
    return info


def _legacy_number(key: str, value: str) -> int:
    digits = value.strip().lower()
    try:
        if digits.startswith("0x"):
            return int(digits, 16) & (1 << 64) - 1
        return int(digits, 8 if digits.startswith("0") else 10) & (1 << 64) - 1
    except ValueError:
        raise ImageError(f"says {key}={value[:40]} in {GUEST_SECTION}, which is no number") from None
