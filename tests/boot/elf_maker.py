"""ELF files and bzImages made to measure."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import attrs

from hypervisor.abi import elfnote
from hypervisor.kernel_image.elf import PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE, SHT_NOTE, SHT_STRTAB

BASE = 0xFFFFFFFF80000000
TEXT = bytes(range(256)) * 24
ENTRY = BASE + 0x100040

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")


def note(kind: int, description: bytes, name: bytes = b"Xen\0") -> bytes:
    head = struct.pack("<III", len(name), len(description), kind)
    return head + name.ljust(len(name) + 3 & ~3, b"\0") + description.ljust(len(description) + 3 & ~3, b"\0")


def text_note(kind: int, text: str) -> bytes:
    return note(kind, text.encode() + b"\0")


def number_note(kind: int, value: int, size: int = 8) -> bytes:
    return note(kind, value.to_bytes(size, "little"))


NOTES = (
    text_note(elfnote.XEN_ELFNOTE_GUEST_OS, "toy"),
    text_note(elfnote.XEN_ELFNOTE_LOADER, "generic"),
    text_note(elfnote.XEN_ELFNOTE_XEN_VERSION, "xen-3.0"),
    number_note(elfnote.XEN_ELFNOTE_VIRT_BASE, BASE),
    number_note(elfnote.XEN_ELFNOTE_ENTRY, ENTRY),
)
"""What a kernel has to say at least."""


@attrs.frozen
class Part:
    """A segment to be."""

    kind: int
    contents: bytes
    paddr: int = 0
    memory_size: int | None = None
    flags: int = PF_R | PF_W | PF_X


def elf(
    parts: Sequence[Part],
    sections: Sequence[tuple[str, int, bytes]] = (),
    *,
    machine: int = 62,
    kind: int = 2,
    ident: bytes = b"\x7fELF\x02\x01\x01",
    entry: int = ENTRY,
) -> bytes:
    """Return an ELF file with these segments and sections (name, type, contents)."""
    out = bytearray(_HEADER.size + 56 * len(parts))
    headers = bytearray()
    for part in parts:
        size = len(part.contents) if part.memory_size is None else part.memory_size
        fields = (part.kind, part.flags, len(out), part.paddr + BASE & (1 << 64) - 1, part.paddr)
        headers += struct.pack("<IIQQQQQQ", *fields, len(part.contents), size, 4096)
        out += part.contents
    table = bytearray(64)
    names = b"\0"
    for name, section_kind, contents in [*sections, (".shstrtab", SHT_STRTAB, b"")]:
        at, names = len(names), names + name.encode() + b"\0"
        contents = names if name == ".shstrtab" else contents
        table += struct.pack("<IIQQQQIIQQ", at, section_kind, 0, 0, len(out), len(contents), 0, 0, 1, 0)
        out += contents
    shoff, shnum = len(out), len(table) // 64
    out += table
    fields = (kind, machine, 1, entry, _HEADER.size, shoff, 0, _HEADER.size, 56, len(parts), 64, shnum, shnum - 1)
    out[: _HEADER.size] = _HEADER.pack(ident.ljust(16, b"\0"), *fields)
    out[_HEADER.size : _HEADER.size + len(headers)] = headers
    return bytes(out)


def kernel(*extra_notes: bytes, notes: Sequence[bytes] = NOTES, bss: int = 0x3000) -> bytes:
    """Return a kernel with one segment of text and some bss, and these notes in a PT_NOTE segment."""
    text = Part(PT_LOAD, TEXT, paddr=0x100000, memory_size=len(TEXT) + bss)
    return elf([text, Part(PT_NOTE, b"".join([*notes, *extra_notes]))])


def kernel_with_note_section(notes: Sequence[bytes] = NOTES) -> bytes:
    return elf([Part(PT_LOAD, TEXT, paddr=0x100000)], [(".note", SHT_NOTE, b"".join(notes))])


def legacy_kernel(text: str, paddr: int = BASE + 0x100000) -> bytes:
    return elf([Part(PT_LOAD, TEXT, paddr=paddr)], [("__xen_guest", 1, text.encode() + b"\0")])


def bzimage(payload: bytes, *, version: int = 0x20F, sectors: int = 4) -> bytes:
    """Return a bzImage whose payload lies 0x80 bytes behind its setup part."""
    head = bytearray((sectors + 1) * 512 + 0x80)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, 0x80, len(payload))
    return bytes(head) + payload + b"the end"
