"""bzImages: the kernel inside is found and unpacked, whatever its compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import sys
import zlib

import pytest
from elf_maker import BASE, bzimage, kernel

from hypervisor.kernel_image import ImageError, is_kernel_image, load_kernel, unpack
from hypervisor.kernel_image.output import CHUNK

KERNEL = kernel()
SIZE = struct.pack("<I", len(KERNEL))


def xz(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32)


def old_lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


def lz4_legacy(data: bytes) -> bytes:
    block = pytest.importorskip("lz4.block")
    blocks = (block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20))
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(one)) + one for one in blocks)


def lzop(data: bytes) -> bytes:
    library = pytest.importorskip("lzallright")
    head = struct.pack(">HHHBBIIII", 0x1030, 0x2080, 0x0940, 3, 9, 0x0300000D, 0o100644, 0, 0) + b"\0"
    out = b"\x89LZO\0\r\n\x1a\n" + head + struct.pack(">I", zlib.adler32(head))
    for at in range(0, len(data), 256 << 10):
        block = data[at : at + (256 << 10)]
        packed = library.LZOCompressor().compress(block)
        packed = packed if len(packed) < len(block) else block
        out += struct.pack(">III", len(block), len(packed), zlib.adler32(block)) + packed
    return out + bytes(4)


def zstandard(data: bytes) -> bytes:
    compressor = pytest.importorskip("zstandard").ZstdCompressor(write_content_size=False)
    packed: bytes = compressor.compress(data)
    return packed


PACKERS = {
    "none": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": xz,
    "lzma": old_lzma,
    "lz4": lz4_legacy,
    "lzo": lzop,
    "zstd": zstandard,
}


@pytest.mark.parametrize("how", PACKERS)
@pytest.mark.parametrize("has_size", [False, True])
def test_every_compression(how: str, has_size: bool) -> None:
    payload = PACKERS[how](KERNEL)
    if has_size:
        # As Linux's build does it for all but gzip, which has the size itself.
        payload += SIZE
    image = bzimage(payload)
    assert is_kernel_image(image[:1024])
    loaded = load_kernel(image)
    assert loaded.virt_base == BASE
    assert loaded == load_kernel(KERNEL)


@pytest.mark.parametrize("how", ["lz4", "lzo", "zstd"])
def test_large_kernels_have_many_blocks(how: str) -> None:
    data = bytes(range(256)) * (80 << 10)
    assert unpack.unpack(PACKERS[how](data)) == data


@pytest.mark.parametrize("how", ["bzip2", "xz", "lzma"])
def test_what_is_unpacked_in_chunks(how: str) -> None:
    """Zeros of whole chunks, which are left out, and pieces that are none; the last chunk is a part of one."""
    noise = random.Random(1).randbytes(3 * CHUNK + 5)
    data = noise + bytes(CHUNK * 4) + noise[: CHUNK - 5] + bytes(CHUNK) + b"end" + bytes(CHUNK * 2 + 7)
    assert unpack.unpack(PACKERS[how](data)) == data
    assert unpack.unpack(PACKERS[how](data) + SIZE) == data


@pytest.mark.parametrize("how", ["bzip2", "xz", "lzma"])
def test_the_largest_kernel_that_may_be(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_SIZE", 4 * CHUNK + 10)
    data = bytes(range(250)) * 1000
    assert unpack.unpack(PACKERS[how](data[: 4 * CHUNK + 9])) == data[: 4 * CHUNK + 9]
    with pytest.raises(ImageError, match="unpacks to more than"):
        unpack.unpack(PACKERS[how](data[: 4 * CHUNK + 11]))


def test_a_bare_compressed_kernel() -> None:
    assert load_kernel(gzip.compress(KERNEL)) == load_kernel(KERNEL)


@pytest.mark.parametrize("how", [name for name in PACKERS if name != "none"])
def test_damaged_payloads(how: str) -> None:
    payload = PACKERS[how](KERNEL)
    with pytest.raises(ImageError, match=r"holds a damaged kernel|is cut short|is not an ELF|is no Xen"):
        load_kernel(bzimage(payload[: len(payload) // 2]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (bzimage(KERNEL, version=0x207), "is a bzImage of boot protocol 2.07"),
        (bzimage(KERNEL)[:0x240], "is a bzImage that is cut short"),
        (bzimage(KERNEL)[:-400], "is a bzImage that is cut short: its kernel ends"),
        (bzimage(b"\x01\x02\x03\x04\x05\x06"), r"compressed in an unknown way \(it begins with 01 02 03 04 05 06\)"),
    ],
)
def test_broken_bzimages(image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_kernel(image)


@pytest.mark.parametrize("how", ["gzip", "bzip2", "xz", "lzma", "lz4", "lzo", "zstd"])
def test_a_bomb_does_not_go_off(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_SIZE", 1 << 20)
    with pytest.raises(ImageError, match="unpacks to more than 1 MiB"):
        unpack.unpack(PACKERS[how](bytes(9 << 20)))


@pytest.mark.parametrize(
    ("how", "module", "name"),
    [("lz4", "lz4.block", "LZ4"), ("lzo", "lzallright", "LZO"), ("zstd", "zstandard", "Zstandard")],
)
def test_a_missing_library_is_named(how: str, module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = PACKERS[how](KERNEL)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=f"compressed with {name}; .*paravirt\\[kernels\\]"):
        load_kernel(bzimage(payload))
