"""Kernel images: ELF files and what they say about themselves in Xen's notes; bzImages and how they are unpacked.

`load_kernel` makes a `PvKernel` of the bytes of a file, for whoever builds a domain: the hypervisor its dom0, the
toolstack the others. A file that cannot be loaded raises `ImageError` with one sentence.
"""

from hypervisor.kernel_image.bzimage import extract
from hypervisor.kernel_image.elf import ELF_MAGIC, Elf, ImageError, parse_elf
from hypervisor.kernel_image.pv_kernel import LoadSegment, PvKernel, pv_kernel

__all__ = ["Elf", "ImageError", "LoadSegment", "PvKernel", "is_kernel_image", "load_kernel", "parse_elf", "pv_kernel"]


def load_kernel(data: bytes) -> PvKernel:
    """Return the PV kernel that an ELF file or a bzImage holds. Raises ImageError."""
    return pv_kernel(parse_elf(extract(data)))


def is_kernel_image(data: bytes) -> bool:
    """Whether the first bytes of a file (1 KiB is enough) are those of an ELF file or of a bzImage."""
    return data.startswith(ELF_MAGIC) or data[0x202:0x206] == b"HdrS"
