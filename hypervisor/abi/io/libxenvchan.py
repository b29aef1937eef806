"""Vchan (io/libxenvchan.h): a two-way byte channel between domains, in shared memory without a backend driver."""

from hypervisor.abi.layout import Layout

# io/libxenvchan.h: indices of one direction.
ring_shared = Layout(
    "ring_shared",
    ("uint32_t", "cons"),
    ("uint32_t", "prod"),
)

# Which changes the other side wants to hear of.
VCHAN_NOTIFY_WRITE = 0x1
VCHAN_NOTIFY_READ = 0x2

# The first shared page; small rings lie in it too, at 1024 and 2048, larger ones in pages of their own.
vchan_interface = Layout(
    "vchan_interface",
    (ring_shared, "left"),
    (ring_shared, "right"),
    ("uint16_t", "left_order"),
    ("uint16_t", "right_order"),
    ("uint8_t", "cli_live"),
    ("uint8_t", "srv_live"),
    ("uint8_t", "cli_notify"),
    ("uint8_t", "srv_notify"),
    ("uint32_t", "grants", 0),
)
