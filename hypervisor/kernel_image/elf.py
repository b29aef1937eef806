"""ELF files (the gABI's chapters 4 and 5), as far as loading a 64-bit x86 kernel needs them.

Images come from anywhere, so every offset and size is checked against the file before it is used. What is wrong is
said in one sentence (`ImageError`).
"""

from __future__ import annotations

import struct

import attrs

ELF_MAGIC = b"\x7fELF"
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB = 1
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
PF_R, PF_W, PF_X = 4, 2, 1
SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 2, 3, 7, 8

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_CLASSES = {0: "no", ELFCLASS32: "a 32-bit", ELFCLASS64: "a 64-bit"}


class ImageError(ValueError):
    """A kernel image that cannot be loaded. The message completes the sentence `FILE …` (`is not an ELF file`)."""


@attrs.frozen
class Segment:
    """A program header: what is to be at an address when the program starts."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    memory_size: int

    @property
    def is_loadable(self) -> bool:
        """Whether it is loaded: a PT_LOAD that somebody may access."""
        return self.kind == PT_LOAD and bool(self.flags & (PF_R | PF_W | PF_X))


@attrs.frozen
class Section:
    """A section header, with its name."""

    name: str
    kind: int
    offset: int
    size: int
    link: int


@attrs.frozen
class Elf:
    """A checked 64-bit x86 ELF file: every segment's and section's bytes lie in `data`."""

    data: bytes | memoryview = attrs.field(repr=False)
    entry: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]

    def contents(self, part: Segment | Section) -> bytes:
        """Return the bytes that the file holds of a segment or a section."""
        if isinstance(part, Section):
            return b"" if part.kind == SHT_NOBITS else bytes(self.data[part.offset : part.offset + part.size])
        return bytes(self.view(part))

    def view(self, segment: Segment) -> memoryview:
        """Return the bytes that the file holds of a segment, without copying them."""
        return memoryview(self.data)[segment.offset : segment.offset + segment.file_size]

    def section(self, name: str) -> Section | None:
        """Return the first section of a name."""
        return next((section for section in self.sections if section.name == name), None)


def parse_elf(data: bytes | memoryview) -> Elf:
    """Read the headers of an ELF file. Raises ImageError: not ELF, of another machine, cut short, contradictory."""
    if data[: len(ELF_MAGIC)] != ELF_MAGIC:
        raise ImageError("is not an ELF file")
    if len(data) < _HEADER.size:
        raise ImageError(f"is cut short: {len(data)} bytes, and the ELF header alone has {_HEADER.size}")
    ident, kind, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = (
        _HEADER.unpack_from(data)
    )
    _check_machine(ident, kind, machine)
    segments = tuple(_segments(data, phoff, phentsize, phnum))
    if not any(segment.is_loadable for segment in segments):
        raise ImageError("has no segment to load")
    return Elf(data, entry, segments, tuple(_sections(data, shoff, shentsize, shnum, shstrndx)))


def _check_machine(ident: bytes, kind: int, machine: int) -> None:
    if ident[4] != ELFCLASS64:
        what = _CLASSES.get(ident[4], "no")
        raise ImageError(f"is {what} ELF file; only 64-bit kernels can be run")
    if ident[5] != ELFDATA2LSB:
        raise ImageError("is not little-endian, as x86 kernels are")
    if machine != EM_X86_64:
        raise ImageError(f"is for another processor (ELF machine {machine}); only x86-64 kernels can be run")
    if kind not in (ET_EXEC, ET_DYN):
        raise ImageError(f"is not a program but an ELF file of type {kind}")


def _segments(data: bytes | memoryview, offset: int, size: int, count: int) -> list[Segment]:
    _check_table(data, "program", offset, size, count, _PROGRAM_HEADER.size)
    segments = []
    for index in range(count):
        fields = _PROGRAM_HEADER.unpack_from(data, offset + index * size)
        kind, flags, start, vaddr, paddr, file_size, memory_size, _ = fields
        segment = Segment(kind, flags, start, vaddr, paddr, file_size, memory_size)
        segments.append(segment)
        if kind not in (PT_LOAD, PT_NOTE):
            continue
        if start + file_size > len(data):
            end = start + file_size
            raise ImageError(f"is cut short: segment {index} ends at byte {end:#x}, the file at {len(data):#x}")
        if segment.is_loadable and (memory_size < file_size or paddr + memory_size > 1 << 64):
            raise ImageError(f"has a segment {index} that does not fit into the memory it asks for")
    return segments


def _sections(data: bytes | memoryview, offset: int, size: int, count: int, names_index: int) -> list[Section]:
    """Read the section headers. Those that do not lie in the file are left out: what is loaded does not need them."""
    if not count:
        return []
    _check_table(data, "section", offset, size, count, _SECTION_HEADER.size)
    headers = [_SECTION_HEADER.unpack_from(data, offset + index * size) for index in range(count)]
    names = b""
    if names_index < count:
        _, _, _, _, start, length, *_ = headers[names_index]
        names = bytes(data[start : start + length]) if start + length <= len(data) else b""
    sections = []
    for name, kind, _, _, start, length, link, *_ in headers:
        if kind == SHT_NOBITS or start + length <= len(data):
            text = names[name:].split(b"\0", 1)[0][:256] if name < len(names) else b""
            sections.append(Section(text.decode("latin-1"), kind, start, length, link))
        else:
            # Kept as an empty one, so that the indices of the others stay what `link` says.
            sections.append(Section("", 0, 0, 0, 0))
    return sections


def _check_table(data: bytes | memoryview, what: str, offset: int, size: int, count: int, needed: int) -> None:
    if count and size < needed:
        raise ImageError(f"has {what} headers of {size} bytes; they have {needed}")
    if offset + size * count > len(data):
        end = offset + size * count
        raise ImageError(f"is cut short: its {what} headers end at byte {end:#x}, the file at {len(data):#x}")
