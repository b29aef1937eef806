"""What a kernel's file says of itself, in lines. Addresses are told by what they point at: a linker chooses them."""

from __future__ import annotations

from collections.abc import Iterator

from hypervisor.kernel_image import PvKernel


def notes_in_words(kernel: PvKernel) -> Iterator[str]:
    """Yield a line for each of the notes (elfnote.h) that a check asks about."""
    info = kernel.info
    for name, text in (("XEN_VERSION", info.xen_version), ("GUEST_OS", info.guest_os), ("LOADER", info.loader)):
        yield f"note     {name}: {repr(text) if text else 'is not there'}"
    yield f"note     VIRT_BASE: {'is not there' if info.virt_base is None else hex(info.virt_base)}"
    entry = f"is not there; the header's entry, {_place(kernel, kernel.virt_entry)}, is taken"
    yield f"note     ENTRY: {entry if info.entry is None else _place(kernel, info.entry)}"
    page = kernel.hypercall_page
    if page is None:
        yield "note     HYPERCALL_PAGE: is not there"
    else:
        within = f"{page % 4096} bytes behind the beginning of a page" if page % 4096 else "a whole page"
        yield f"note     HYPERCALL_PAGE: {within}, {_place(kernel, page, False)}"


def _place(kernel: PvKernel, address: int, is_exact: bool = True) -> str:
    """Return where an address is, as seen from what is loaded."""
    if address < kernel.start:
        return f"{kernel.start - address} bytes in front of all that is loaded"
    if address >= kernel.end:
        return "behind all that is loaded"
    if address == kernel.start:
        return "the first byte that is loaded"
    return f"{address - kernel.start} bytes into what is loaded" if is_exact else "in what is loaded"
