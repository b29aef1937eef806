"""Unpacking what a bzImage carries: gzip, bzip2, LZMA, XZ, LZO, LZ4 and Zstandard, recognised by their first bytes.

The first four of them are Python's own; LZO, LZ4 and Zstandard come with the extra `kernels`. The output is bounded:
a file of a few KiB can stand for gigabytes of zeros.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any

from hypervisor.kernel_image.elf import ELF_MAGIC, ImageError
from hypervisor.kernel_image.output import CHUNK, Output

MAX_SIZE = 1 << 30
"""Bytes that an unpacked kernel may have: real ones have 20 to 100 MiB."""
_LZ4_BLOCK = 8 << 20
_LZO_MAGIC = b"\x89LZO\x00\x0d\x0a\x1a\x0a"
_PIECE = 256 << 10
"""How many packed bytes `bz2` and `lzma` are given at a time: they copy what they do not use at once."""

Bytes = bytes | memoryview
Unpack = Callable[[Bytes], Bytes]


def unpack(data: Bytes) -> Bytes:
    """Return what was compressed. Raises ImageError: unknown, damaged, too large, or a library is missing."""
    head = bytes(data[:16])
    for name, magics, function in _FORMATS:
        if head.startswith(magics):
            try:
                return function(data)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, struct.error, RuntimeError) as error:
                if isinstance(error, ImageError):
                    raise
                raise ImageError(f"holds a damaged kernel: its {name} data cannot be unpacked ({error})") from None
    raise ImageError(f"holds a kernel that is compressed in an unknown way (it begins with {head[:6].hex(' ')})")


def _bounded(out: Bytes, finished: bool) -> Bytes:
    if not finished:
        if len(out) >= MAX_SIZE:
            raise _too_large()
        raise EOFError("it ends too early")
    return out


def _stream(stream: bz2.BZ2Decompressor | lzma.LZMADecompressor, data: Bytes) -> Bytes:
    """Unpack a chunk at a time, up to the end, the end of the data, or `MAX_SIZE` bytes: see what `stream.eof` says."""
    output = Output(MAX_SIZE)
    for start in range(0, len(data), _PIECE):
        chunk = stream.decompress(data[start : start + _PIECE], min(CHUNK, output.room))
        output.append(chunk)
        while output.room and not (stream.eof or stream.needs_input):
            output.append(stream.decompress(b"", min(CHUNK, output.room)))
        if stream.eof or not output.room:
            break
    return output.contents()


def _too_large() -> ImageError:
    return ImageError(f"holds a kernel that unpacks to more than {MAX_SIZE >> 20} MiB")


def _gzip(data: Bytes) -> Bytes:
    stream = zlib.decompressobj(31)
    return _bounded(stream.decompress(data, MAX_SIZE), stream.eof)


def _bzip2(data: Bytes) -> Bytes:
    stream = bz2.BZ2Decompressor()
    return _bounded(_stream(stream, data), stream.eof)


def _xz(data: Bytes) -> Bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    return _bounded(_stream(stream, data), stream.eof)


def _lzma(data: Bytes) -> Bytes:
    # The size in the header says where it ends if there is no end mark; the kernel's build puts it behind the data too.
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE)
    out = _stream(stream, data)
    size = int.from_bytes(data[5:13], "little")
    return _bounded(out, stream.eof or len(out) == size)


def _zstd(data: Bytes) -> Bytes:
    library = _library("zstandard", "Zstandard")
    stream = library.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    try:
        out: bytes = stream.decompress(data)
    except library.ZstdError as error:
        raise ValueError(str(error)) from None
    return _bounded(out, stream.eof and len(out) <= MAX_SIZE)


def _lz4(data: Bytes) -> Bytes:
    """Unpack the legacy frame format, which the kernel's build uses: blocks of 8 MiB, each with its packed size."""
    library = _library("lz4.block", "LZ4")
    blocks, total, at = [], 0, 4
    while at + 4 <= len(data) and total < MAX_SIZE:
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if not size or at + size > len(data):
            break  # what follows the last block is the size of it all
        try:
            blocks.append(library.decompress(data[at : at + size], uncompressed_size=_LZ4_BLOCK))
        except library.LZ4BlockError as error:
            raise ValueError(str(error)) from None
        total += len(blocks[-1])
        at += size
    return _bounded(b"".join(blocks), 0 < total < MAX_SIZE)


def _lzo(data: Bytes) -> Bytes:
    """Unpack a file of lzop: a header, then blocks with their sizes and check sums."""
    library = _library("lzallright", "LZO")
    flags, at = _lzop_header(data)
    plain_sums = bool(flags & 0x1) + bool(flags & 0x100)
    packed_sums = bool(flags & 0x2) + bool(flags & 0x200)
    out = bytearray()
    while True:
        (size,) = struct.unpack_from(">I", data, at)
        at += 4
        if not size:
            return bytes(out)
        (packed,) = struct.unpack_from(">I", data, at)
        at += 4 + 4 * plain_sums + (4 * packed_sums if packed < size else 0)
        block = data[at : at + packed]
        at += packed
        if len(out) + size > MAX_SIZE:
            raise _too_large()
        if len(block) < packed:
            raise EOFError("it ends too early")
        try:
            out += library.LZOCompressor.decompress(block, size) if packed < size else block
        except library.LZOError as error:
            raise ValueError(str(error)) from None


def _lzop_header(data: Bytes) -> tuple[int, int]:
    """Return the flags of a file of lzop, and where its blocks begin."""
    at = len(_LZO_MAGIC)
    (version,) = struct.unpack_from(">H", data, at)
    at += 8 if version >= 0x940 else 5  # version, library, needed version, method, level
    (flags,) = struct.unpack_from(">I", data, at)
    at += 4 + (4 if flags & 0x800 else 0)  # a filter
    at += 12 if version >= 0x940 else 8  # mode and times
    at += 1 + data[at] + 4  # name, check sum
    if flags & 0x40:
        (size,) = struct.unpack_from(">I", data, at)
        at += 4 + size + 4
    return flags, at


def _library(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImageError(
            f"holds a kernel that is compressed with {what}; unpacking it needs pip install 'paravirt[kernels]'"
        ) from None


_FORMATS: tuple[tuple[str, bytes | tuple[bytes, ...], Unpack], ...] = (
    ("ELF", ELF_MAGIC, bytes),
    ("gzip", (b"\x1f\x8b", b"\x1f\x9e"), _gzip),
    ("bzip2", b"BZh", _bzip2),
    ("XZ", b"\xfd7zXZ\0", _xz),
    ("LZMA", b"\x5d\0\0", _lzma),
    ("LZO", _LZO_MAGIC, _lzo),
    ("LZ4", b"\x02\x21\x4c\x18", _lz4),
    ("Zstandard", b"\x28\xb5\x2f\xfd", _zstd),
)
"""Name, first bytes, how it is unpacked. A kernel that is not compressed is a format, too."""
