"""Guests that are machine code: their kernels and ramdisks, and what has to be installed to run them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import attrs

from hypervisor.kernel_image import ImageError, PvKernel, is_kernel_image, load_kernel
from toolstack.errors import UsageError

_HEAD = 1024


@attrs.frozen
class MachineCode:
    """A kernel to be loaded, and its ramdisk."""

    kernel: PvKernel
    ramdisk: bytes | None = attrs.field(default=None, repr=False)


def is_machine_code(path: Path) -> bool:
    """Whether a file is an ELF kernel or a bzImage; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return is_kernel_image(file.read(_HEAD))
    except OSError:
        return False


def read_kernel(path: Path) -> PvKernel:
    """Return the kernel in a file. Raises UsageError."""
    try:
        return load_kernel(read_file(path, "kernel"))
    except ImageError as error:
        raise UsageError(f"the kernel {str(path)!r} {error}") from None


def read_file(path: Path, what: str) -> bytes:
    """Return the contents of a file; failures become one sentence that names `what` it was to be."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"the {what} {str(path)!r} does not exist") from None
    except IsADirectoryError:
        raise UsageError(f"the {what} {str(path)!r} is a directory") from None
    except OSError as error:
        raise UsageError(f"cannot read the {what} {str(path)!r}: {error.strerror}") from None


def require_emulator() -> None:
    """Raise UsageError if machine code cannot be run here."""
    if find_spec("unicorn") is None:
        raise UsageError("machine-code kernels need the CPU emulator: pip install 'paravirt[emulator]'")
