"""Data sheets of the simulated machine's own devices: disk controllers, network cards, the serial card.

They are made for this machine (no real hardware is imitated): a handful of 32-bit I/O ports, queues in memory, one
interrupt line each, DMA to machine addresses. Drivers are in `guest_kernel.hw`, the devices in `hypervisor.machine`.

Disk controller, unit n (0 … 255): ports `DISK_PORTS(n)`, line `DISK_IRQ(n)`. The driver gives it one page as command
queue and one as completion queue. A command names a list of segments; the device moves the data straight from or to
those machine addresses and puts one completion per command into the completion queue, in order, before it raises its
line once for all of them.

Network card, unit n (0 … 15): ports `NIC_PORTS(n)`, line `NIC_IRQ(n)`. Two queues of descriptors in memory, one to
transmit and one of empty buffers; the device counts what it has used in registers.

Serial card (one): ports from `SERIAL_PORT`, line `SERIAL_IRQ`. It has any number of lines, each opened by a name; what
is plugged into a line (a terminal, a log, a person's tool) is the outside's business. Bytes go through one page that
the driver names. The card raises its interrupt line when a line has news (input, room again, the other side has gone),
and the driver asks `SERIAL_NEWS` for the lines until there is none.

Socket card, unit n (0 … 14): ports `SOCKET_PORTS(n)`, line `SOCKET_IRQ(n)`. A network card with the whole of TCP on it:
behind it is one listening socket, and the driver's commands accept connections, receive, send and hang up. As with the
disk controller, commands stand in a page, name lists of segments that the card moves data to or from by DMA, and are
answered by completions; unlike there, each command is answered when it can be, a receive perhaps never.
"""

from hypervisor.abi.layout import Layout

DISK_UNITS = 256
DISK_PORT_BASE = 0xC000
DISK_PORT_COUNT = 64
DISK_IRQ_BASE = 64

DISK_MAGIC = 0x4B534450
"""What the ID register of a plugged-in unit reads ("PDSK"); an empty one reads all ones."""

DISK_ID, DISK_FLAGS, DISK_SECTORS_LOW, DISK_SECTORS_HIGH, DISK_SECTOR_SIZE, DISK_PHYSICAL_SECTOR_SIZE = (
    0,
    4,
    8,
    12,
    16,
    20,
)
"""Registers to read: offsets from the unit's first port. Sectors are of the size that the unit says, everywhere."""
DISK_COMMANDS, DISK_COMPLETIONS, DISK_DOORBELL, DISK_RESET = 32, 36, 40, 44
"""Registers to write: frame of the command queue, frame of the completion queue, producer index, any value."""

DISK_FLAG_READONLY, DISK_FLAG_DISCARD, DISK_FLAG_SECURE_DISCARD = 1, 2, 4
"""The medium cannot be written; commands may say what of it is not needed any more, and that it must not be found."""

DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_SECURE_DISCARD = 0, 1, 2, 3, 4
"""Commands."""

DISK_QUEUE_LENGTH = 128
"""Commands in the queue's page; a driver has at most this many under way."""

disk_command = Layout(
    "disk_command",
    ("uint8_t", "op"),
    ("uint8_t", "pad"),
    ("uint16_t", "nr_segments"),
    ("uint32_t", "id"),
    ("uint64_t", "sector"),
    ("uint64_t", "segments"),
    ("uint64_t", "sectors"),
)
"""`segments` is the machine address of `nr_segments` `disk_segment`s, all in one page; `sector` is the first sector.
`sectors` is how many to discard; other commands say that by their segments."""

disk_segment = Layout("disk_segment", ("uint64_t", "maddr"), ("uint64_t", "length"))
"""`length` bytes from a machine address on."""

DISK_MAX_SEGMENTS = 256
DISK_MAX_BYTES = 1 << 20
"""What all segments of a command have together at most."""

disk_completion = Layout("disk_completion", ("uint32_t", "id"), ("int32_t", "status"))
"""`status` is 0 or a negative errno. Completions start at offset 8 of their page; the word at 0 counts them, and the
word at 4 counts changes of the medium (another capacity: the driver reads the registers again)."""

DISK_COMPLETIONS_OFFSET = 8
DISK_COMPLETION_SLOTS = 256

NIC_UNITS = 16
NIC_PORT_BASE = 0xB000
NIC_PORT_COUNT = 64
NIC_IRQ_BASE = 32

NIC_MAGIC = 0x43494E50
"""What the ID register of a plugged-in card reads ("PNIC")."""

NIC_ID, NIC_MAC_LOW, NIC_MAC_HIGH, NIC_MTU, NIC_TX_USED, NIC_RX_USED = 0, 4, 8, 12, 16, 20
"""Registers to read: ID, address, MTU, and how many descriptors of each queue the card has used so far."""
NIC_TX_RING, NIC_RX_RING, NIC_TX_DOORBELL, NIC_RX_DOORBELL = 32, 36, 40, 44
"""Registers to write: frame of each ring, producer index of each ring."""

NIC_RING_LENGTH = 256
nic_descriptor = Layout("nic_descriptor", ("uint64_t", "maddr"), ("uint32_t", "length"), ("uint32_t", "flags"))
"""A buffer within one page. The card writes the received length back into an rx descriptor."""

NIC_FLAG_MORE = 1
"""The frame goes on in the next descriptor (tx)."""

SERIAL_PORT = 0xA000
SERIAL_PORT_COUNT = 64
SERIAL_IRQ = 48

SERIAL_MAGIC = 0x52455350
"""What the ID register reads ("PSER")."""

SERIAL_ID, SERIAL_RESULT, SERIAL_NEWS = 0, 4, 8
"""Registers to read: ID; outcome of the last command, a number or a negative errno; the next line with news, or all
ones (reading it takes the line off the list)."""
SERIAL_PAGE, SERIAL_LINE, SERIAL_OPEN, SERIAL_CLOSE, SERIAL_SEND, SERIAL_RECEIVE = 32, 36, 40, 44, 48, 52
"""Registers to write: frame of the driver's page; the line that the next commands are about; and the commands:

open a line of a kind (SERIAL_LOG, …) by the name in the page, NUL-terminated: the result is its number, and the page
holds the name of the terminal behind it ("" if it has none); close the line; send so many bytes of the page: the result
is how many were taken; receive at most so many bytes into the page: the result is how many there are."""

SERIAL_LOG, SERIAL_TERMINAL, SERIAL_MANAGEMENT, SERIAL_STORE = 0, 1, 2, 3
"""Kinds of lines: one that only takes, and takes all; one with a person at the other end; the way in for tools that
steer the host; the clients of xenstored, all on one line (see `backends.xenstored.line`). The card answers ENODEV
where nothing is plugged in, and ENFILE when there are `SERIAL_LINES` lines."""

SERIAL_LINES = 65536

SOCKET_UNITS = 15
SOCKET_PORT_BASE = 0x9000
SOCKET_PORT_COUNT = 64
SOCKET_IRQ_BASE = 49

SOCKET_MAGIC = 0x434F5350
"""What the ID register of a plugged-in card reads ("PSOC")."""

SOCKET_ID = 0
"""Register to read."""
SOCKET_COMMANDS, SOCKET_COMPLETIONS, SOCKET_DOORBELL, SOCKET_RESET = 32, 36, 40, 44
"""Registers to write: frame of the command queue, frame of the completion queue, producer index, any value. A reset
hangs up on everybody and forgets all commands; so does the loss of the domain that had the card."""

SOCKET_ACCEPT, SOCKET_RECEIVE, SOCKET_SEND, SOCKET_CLOSE = 0, 1, 2, 3
"""Commands. ACCEPT is answered with the number of the next connection. RECEIVE fills segments in their order and is
answered with how many bytes there are once that is at least `minimum`, or at the end of what the other side sends: then
with fewer, and with 0 from then on; with `minimum` 0 it is answered at once, with -EAGAIN if there is nothing. SEND is
answered when all has been sent. CLOSE hangs up, and what was under way on the connection is answered with -ECANCELED;
one of `SOCKET_LISTENER` does that to all ACCEPTs. The sends of a connection are carried out in their order, and so are
its receives."""

SOCKET_LISTENER = 0xFFFFFFFF
"""In the place of a connection's number: those who have not been accepted."""

SOCKET_CONNECTIONS = 16
"""Connections at a time; later ones wait to be accepted."""
SOCKET_QUEUE_LENGTH = 128
"""Commands in the queue's page; a driver has at most this many under way (-EBUSY beyond that)."""
SOCKET_MAX_SEGMENTS = 256

socket_command = Layout(
    "socket_command",
    ("uint8_t", "op"),
    ("uint8_t", "pad"),
    ("uint16_t", "nr_segments"),
    ("uint32_t", "id"),
    ("uint32_t", "connection"),
    ("uint32_t", "minimum"),
    ("uint64_t", "segments"),
    ("uint64_t", "pad2"),
)
"""`segments` is the machine address of `nr_segments` `socket_segment`s, all in one page."""

socket_segment = Layout("socket_segment", ("uint64_t", "maddr"), ("uint64_t", "length"))
"""`length` bytes from a machine address on; frames that are neighbours can be one segment."""

socket_completion = Layout("socket_completion", ("uint32_t", "id"), ("int32_t", "status"))
"""`status` is a number as told above or a negative errno. Completions start at offset 8 of their page; the word at 0
counts them. While the word at 4 is not 0, which is the driver's, they are not followed by an interrupt."""

SOCKET_HUSH_OFFSET = 4
SOCKET_COMPLETIONS_OFFSET = 8
SOCKET_COMPLETION_SLOTS = 256
SOCKET_PRODUCER_OFFSET = SOCKET_COMPLETIONS_OFFSET + SOCKET_COMPLETION_SLOTS * socket_completion.size
"""Behind them is a word in which the driver may leave its producer index without ringing the doorbell. The card looks
at it now and then, when the processors have nothing to do: so it is for commands that are in no hurry. (What the
doorbell rings for are all commands up to the index it is given. They are begun in their order, but what has come is
received after all that is to be sent has been.)"""


def disk_port(unit: int) -> int:
    """Return the first I/O port of a disk controller."""
    return DISK_PORT_BASE + unit * DISK_PORT_COUNT


def disk_irq(unit: int) -> int:
    """Return the interrupt line of a disk controller."""
    return DISK_IRQ_BASE + unit


def nic_port(unit: int) -> int:
    """Return the first I/O port of a network card."""
    return NIC_PORT_BASE + unit * NIC_PORT_COUNT


def nic_irq(unit: int) -> int:
    """Return the interrupt line of a network card."""
    return NIC_IRQ_BASE + unit


def socket_port(unit: int) -> int:
    """Return the first I/O port of a socket card."""
    return SOCKET_PORT_BASE + unit * SOCKET_PORT_COUNT


def socket_irq(unit: int) -> int:
    """Return the interrupt line of a socket card."""
    return SOCKET_IRQ_BASE + unit
