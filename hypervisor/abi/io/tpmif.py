"""Trusted platform modules (io/tpmif.h): commands and answers in one shared page that changes hands."""

from hypervisor.abi.layout import Layout

# io/tpmif.h, version 1: a ring of one slot that names a granted page.
tpmif_tx_request = Layout(
    "tpmif_tx_request",
    ("unsigned long", "addr"),
    ("grant_ref_t", "ref"),
    ("uint16_t", "unused"),
    ("uint16_t", "size"),
)

TPMIF_TX_RING_SIZE = 1

tpmif_ring = Layout(
    "tpmif_ring",
    (tpmif_tx_request, "req"),
)


tpmif_tx_interface = Layout(
    "tpmif_tx_interface",
    (tpmif_ring, "ring", TPMIF_TX_RING_SIZE),
)


# Version 2: whose turn it is.
TPMIF_STATE_IDLE = 0
TPMIF_STATE_SUBMIT = 1
TPMIF_STATE_FINISH = 2
TPMIF_STATE_CANCEL = 3

# The head of the page; further granted pages follow, then the bytes.
tpmif_shared_page = Layout(
    "tpmif_shared_page",
    ("uint32_t", "length"),
    ("uint8_t", "state"),
    ("uint8_t", "locality"),
    ("uint8_t", "pad"),
    ("uint8_t", "nr_extra_pages"),
    ("uint32_t", "extra_pages", 0),
)
