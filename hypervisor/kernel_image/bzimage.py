"""bzImage, the form in which Linux kernels are installed (Documentation/arch/x86/boot.rst): find the vmlinux in it.

A real-mode part of `setup_sects + 1` sectors comes first; behind it, at payload_offset, lies the compressed ELF file.
"""

from __future__ import annotations

import struct

from hypervisor.kernel_image.elf import ELF_MAGIC, ImageError
from hypervisor.kernel_image.unpack import Bytes, unpack

MAGIC = b"HdrS"
_MAGIC_AT, _VERSION_AT, _SECTORS_AT, _PAYLOAD_AT = 0x202, 0x206, 0x1F1, 0x248
_HEADER_SIZE = 0x250
_FIRST_VERSION = 0x208
"""Boot protocol 2.08: the first that says where the payload is."""
_SECTOR = 512
_DEFAULT_SECTORS = 4


def extract(data: bytes) -> Bytes:
    """Return the ELF file that a kernel file is, or holds: as it is, compressed, or in a bzImage. Raises ImageError."""
    if data.startswith(ELF_MAGIC):
        return data
    if data[_MAGIC_AT : _MAGIC_AT + 4] == MAGIC:
        return unpack(_payload(data))
    if not data:
        raise ImageError("is empty")
    try:
        return unpack(data)
    except ImageError as error:
        if "unknown way" in str(error):
            raise ImageError("is neither an ELF kernel nor a bzImage") from None
        raise


def _payload(data: bytes) -> memoryview:
    if len(data) < _HEADER_SIZE:
        raise ImageError("is a bzImage that is cut short")
    (version,) = struct.unpack_from("<H", data, _VERSION_AT)
    if version < _FIRST_VERSION:
        raise ImageError(f"is a bzImage of boot protocol {version >> 8}.{version & 0xFF:02}; Xen loads 2.08 and later")
    sectors = data[_SECTORS_AT] or _DEFAULT_SECTORS
    offset, length = struct.unpack_from("<II", data, _PAYLOAD_AT)
    start = (sectors + 1) * _SECTOR + offset
    if not length or start + length > len(data):
        raise ImageError(
            f"is a bzImage that is cut short: its kernel ends at byte {start + length:#x}, the file at {len(data):#x}"
        )
    return memoryview(data)[start : start + length]
