"""What a trace can hold: the literal table of record kinds.

A trace is a stream of msgpack arrays `[time_ns, domid, vcpu_id, kind, *fields]` after one header map. The hypervisor
emits kinds below 64; drivers, daemons and guest kernels emit the others through `Cpu.trace(kind, *fields)`, the
simulator's probe (it is no part of Xen's interface and changes nothing that a guest can see).

The kinds of `STATES` say how the host's state has changed by the records before them, and are there only if that was
asked for (`hypervisor.state_trace`). `domid` and `vcpu_id` of such a record name whose state it is.
"""

from enum import Enum

HYPERCALL = 1
EVTCHN_PENDING = 2
UPCALL = 3
SCHEDULE = 4
DESCHEDULE = 5
WAKE = 6
TIMER = 7
IRQ = 8
DOMAIN_CREATE = 9
DOMAIN_SHUTDOWN = 10
DOMAIN_CRASH = 11
DOMAIN_DESTROY = 12
VCPU_UP = 13
VCPU_DOWN = 14
FAULT = 15
GNTTAB_MAP = 20
GNTTAB_UNMAP = 21
GNTTAB_COPY = 22
GNTTAB_TRANSFER = 23

STATE_PORT = 32
STATE_EVENT = 33
STATE_UPCALL = 34
STATE_GRANT = 35
STATE_MAPPING = 36
STATE_PAGES = 37
STATE_RING = 38
STATE_SLOT = 39

RING_PUSH = 64
XENBUS_STATE = 65
XENSTORE_OP = 66
XENSTORE_EVENT = 67
CONSOLE = 68
BLOCK_REQUEST = 69
NET_PACKET = 70
GUEST_NOTE = 71
RING_CONNECT = 72
STATE_NODE = 73
THREAD = 74
DOMAIN_NAME = 75

STATES = frozenset(
    {STATE_PORT, STATE_EVENT, STATE_UPCALL, STATE_GRANT, STATE_MAPPING, STATE_PAGES, STATE_RING, STATE_SLOT, STATE_NODE}
)
"""The kinds that tell state."""

KINDS: dict[int, tuple[str, tuple[str, ...]]] = {
    HYPERCALL: ("hypercall", ("nr", "a1", "a2", "a3", "a4", "a5", "rc")),
    EVTCHN_PENDING: ("evtchn_pending", ("port",)),
    UPCALL: ("upcall", ("ready",)),
    SCHEDULE: ("schedule", ("pcpu",)),
    DESCHEDULE: ("deschedule", ("pcpu", "ran_ns", "flags")),
    WAKE: ("wake", ()),
    TIMER: ("timer", ("virq",)),
    IRQ: ("irq", ("line", "port")),
    DOMAIN_CREATE: ("domain_create", ("max_vcpus",)),
    DOMAIN_SHUTDOWN: ("domain_shutdown", ("reason",)),
    DOMAIN_CRASH: ("domain_crash", ("why",)),
    DOMAIN_DESTROY: ("domain_destroy", ()),
    VCPU_UP: ("vcpu_up", ()),
    VCPU_DOWN: ("vcpu_down", ()),
    FAULT: ("fault", ("name", "what")),
    GNTTAB_MAP: ("gnttab_map", ("granter", "ref", "flags", "handle", "status")),
    GNTTAB_UNMAP: ("gnttab_unmap", ("handle", "status")),
    GNTTAB_COPY: ("gnttab_copy", ("source", "dest", "len", "status")),
    GNTTAB_TRANSFER: ("gnttab_transfer", ("to", "ref", "status")),
    STATE_PORT: ("state_port", ("port", "state", "remote", "number", "tells", "priority")),
    STATE_EVENT: ("state_event", ("port", "pending", "masked")),
    STATE_UPCALL: ("state_upcall", ("pending", "masked", "ready")),
    STATE_GRANT: ("state_grant", ("ref", "flags", "to", "frame", "pin")),
    STATE_MAPPING: ("state_mapping", ("handle", "granter", "ref", "flags")),
    STATE_PAGES: ("state_pages", ("mfn", "frames", "type", "type_count", "count", "flags")),
    STATE_RING: ("state_ring", ("device", "ring", "indices")),
    STATE_SLOT: ("state_slot", ("device", "ring", "slot", "bytes")),
    RING_PUSH: ("ring_push", ("device", "what", "prod", "notify", "cons")),
    XENBUS_STATE: ("xenbus_state", ("path", "old", "new")),
    XENSTORE_OP: ("xenstore_op", ("connection", "op", "path", "result")),
    XENSTORE_EVENT: ("xenstore_event", ("connection", "path", "token")),
    CONSOLE: ("console", ("domain", "bytes")),
    BLOCK_REQUEST: ("block_request", ("device", "op", "sector", "sectors", "status")),
    NET_PACKET: ("net_packet", ("device", "direction", "bytes", "slots")),
    GUEST_NOTE: ("note", ("text",)),
    RING_CONNECT: ("ring_connect", ("device", "ring", "layout", "front", "refs")),
    STATE_NODE: ("state_node", ("path", "value", "permissions")),
    THREAD: ("thread", ("name",)),
    DOMAIN_NAME: ("domain_name", ("domain", "name")),
}
"""Kind → (name, names of the fields)."""


class Blank(Enum):
    """A field that is not the same in all records of a shape (`Cpu.trace.bind`); the value is its letter in a file."""

    WORD = "Q"
    """A number from 0 to 2**64 - 1."""
    SIGNED = "q"
    FLAG = "?"


WORD, SIGNED, FLAG = Blank
