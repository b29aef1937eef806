"""The PV console (io/console.h): one page with a ring of bytes for each direction."""

from hypervisor.abi.layout import Layout

# io/console.h: free-running indices, each advanced by one side; the rings' sizes are powers of two.
xencons_interface = Layout(
    "xencons_interface",
    ("char", "in", 1024),
    ("char", "out", 2048),
    ("XENCONS_RING_IDX", "in_cons"),
    ("XENCONS_RING_IDX", "in_prod"),
    ("XENCONS_RING_IDX", "out_cons"),
    ("XENCONS_RING_IDX", "out_prod"),
)


def MASK_XENCONS_IDX(index: int, ring_size: int) -> int:
    """Return the position in a ring of `ring_size` bytes (a power of two) that a free-running index names."""
    return index & (ring_size - 1)
