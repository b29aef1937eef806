"""The menu: every fault, what can be said of it, what it does, and what a good host does about it."""

from __future__ import annotations

from typing import Final

import attrs

from toolstack.faults import disks, ends, events, exhaustion, grants, network, rings
from toolstack.faults.fault import Fault
from toolstack.faults.spec import FaultSpec

_US, _MS = 1000, 1_000_000


@attrs.frozen
class Entry:
    """One fault of the menu."""

    name: str
    make: type[Fault]
    keys: tuple[str, ...]
    """What can be said of it, beside `domain` and `at`."""
    does: str
    good: str
    """What a good host does about it."""
    default: FaultSpec = attrs.field(factory=lambda: FaultSpec(name=""))
    needs: tuple[str, ...] = ()
    """Keys that must be given."""
    hurts: frozenset[str] = frozenset()
    """What the victim itself may lose (`LOSSES`); nobody else may lose anything."""


LOSSES: Final = {
    "requests": "requests are answered with an error",
    "progress": "it may wait for ever, or do without a device",
    "frames": "frames do not arrive",
    "data": "what it wrote and read, for it is its own requests that change",
    "life": "it is over",
}
"""What a fault may cost its victim."""

_TIMED = ("domain", "at", "for")
_DICE = (*_TIMED, "probability", "count")

MENU: Final = {
    entry.name: entry
    for entry in (
        Entry(
            "event-drop",
            events.EventDrop,
            _DICE,
            "Events between the victim and others are lost.",
            "The victim's devices stall until the next event; a guest that stalls for good is named at the end.",
            hurts=frozenset({"progress"}),
        ),
        Entry(
            "event-delay",
            events.EventDelay,
            (*_DICE, "by"),
            "Events between the victim and others come late.",
            "Everything is done, only later.",
            FaultSpec(name="", by=_MS),
        ),
        Entry(
            "event-duplicate",
            events.EventDuplicate,
            (*_DICE, "by"),
            "Events between the victim and others come once more.",
            "A handler that finds nothing to do does nothing.",
            FaultSpec(name="", by=100 * _US),
        ),
        Entry(
            "event-storm",
            events.EventStorm,
            (*_TIMED, "count", "every"),
            "Events that nobody has sent arrive at all ports of the victim.",
            "The storm costs the victim its own time; others get their share.",
            FaultSpec(name="", by=100 * _US, count=1000),
        ),
        Entry(
            "stop-posting",
            rings.StopPosting,
            ("domain", "at", "device", "side"),
            "One end of the victim's rings does not post any more, whatever its driver writes.",
            "The other end waits without a timeout; closing and destroying work all the same.",
            FaultSpec(name="", device="vbd"),
            hurts=frozenset({"progress"}),
        ),
        Entry(
            "ring-mutate",
            rings.RingMutate,
            (*_DICE, "device"),
            "Bytes of the victim's requests change after its backend has read them, and before it has answered.",
            "A backend that reads each request once does not notice (XSA-155); one not read yet is a bad request.",
            FaultSpec(name="", device="vbd", probability=0.05),
            hurts=frozenset({"data"}),
        ),
        Entry(
            "grant-fail",
            grants.GrantFail,
            _DICE,
            "Mapping and copying of the victim's grants fails with GNTST_bad_gntref.",
            "The request that needed the page gets an error; the others of its batch do not.",
            FaultSpec(name="", probability=0.1),
            hurts=frozenset({"requests", "progress"}),
        ),
        Entry(
            "disk-fail",
            disks.DiskFail,
            (*_DICE, "vdev"),
            "Commands of the victim's disks fail with EIO.",
            "The guest gets an error for that request; what was acknowledged and flushed before stays.",
            FaultSpec(name="", probability=0.1),
            hurts=frozenset({"requests"}),
        ),
        Entry(
            "disk-slow",
            disks.DiskSlow,
            ("domain", "vdev", "by"),
            "The victim's disks take longer, from power-on to the end.",
            "The victim waits, and nobody else.",
            FaultSpec(name="", by=5 * _MS),
        ),
        Entry(
            "disk-full",
            disks.DiskFull,
            ("domain", "vdev", "sectors"),
            "The victim's disks have room for so many written sectors.",
            "Later writes get an error (ENOSPC); reading and flushing go on.",
            FaultSpec(name="", sectors=64),
            hurts=frozenset({"requests"}),
        ),
        Entry(
            "disk-torn",
            disks.DiskTorn,
            ("domain", "vdev", "writes"),
            "Of each so many writes to the victim's disks, one stores only its first half, and fails with EIO.",
            "The error reaches the guest: a torn write is never acknowledged.",
            FaultSpec(name="", sectors=7),
            hurts=frozenset({"requests"}),
        ),
        Entry(
            "kill-domain",
            ends.KillDomain,
            ("domain", "at"),
            "The victim is destroyed, as by `xl destroy`.",
            "Its pages, grants, ports and nodes are all given back; its backends close.",
            hurts=frozenset({"life"}),
        ),
        Entry(
            "crash-domain",
            ends.CrashDomain,
            ("domain", "at"),
            "The victim crashes where it stands.",
            "The same, and `on_crash` is obeyed.",
            hurts=frozenset({"life"}),
        ),
        Entry(
            "pause-domain",
            ends.PauseDomain,
            _TIMED,
            "The victim stands still.",
            "Whoever waits for it waits; nobody else does. It goes on where it stood.",
            FaultSpec(name="", lasting=20 * _MS),
        ),
        Entry(
            "kill-backend",
            ends.KillBackend,
            ("domain", "at", "device"),
            "The backends of the victim's devices in dom0 give up.",
            "The device goes to Closing with an error node; the guest sees errors, not silence.",
            FaultSpec(name="", device="vbd"),
            hurts=frozenset({"requests", "progress"}),
        ),
        Entry(
            "kill-xenstored",
            ends.KillXenstored,
            ("at", "for"),
            "xenstored ends, and comes back with what it had saved.",
            "Rings go on without it; what waited for the store goes on when it is back.",
            FaultSpec(name="", lasting=10 * _MS),
        ),
        Entry(
            "exhaust-ports",
            exhaustion.ExhaustPorts,
            _TIMED,
            "The victim gets no more event channels (ENOSPC).",
            "Devices that have theirs go on; others fail with a sentence.",
            hurts=frozenset({"progress"}),
        ),
        Entry(
            "exhaust-grants",
            exhaustion.ExhaustGrants,
            _TIMED,
            "The victim's grant table does not grow any more.",
            "The guest makes do with the entries that it has, or says that it has none.",
            hurts=frozenset({"progress"}),
        ),
        Entry(
            "exhaust-memory",
            exhaustion.ExhaustMemory,
            ("at", "for"),
            "The host has no memory left that anybody could get.",
            "What runs goes on; what is to be made is refused (ENOMEM) and leaves nothing behind.",
            hurts=frozenset({"progress"}),
        ),
        Entry(
            "exhaust-quota",
            exhaustion.ExhaustQuota,
            _TIMED,
            "The victim owns as many nodes of the store as it may.",
            "It gets EQUOTA for new ones; others do not notice.",
            hurts=frozenset({"progress"}),
        ),
        Entry(
            "partition",
            network.Partition,
            (*_TIMED, "bridge"),
            "The victim is cut off from everybody else on a bridge.",
            "Its frames are lost; those of others arrive. When it is over, the network is as before.",
            hurts=frozenset({"frames"}),
        ),
        Entry(
            "frame-loss",
            network.FrameLoss,
            (*_DICE, "bridge"),
            "Frames to and from the victim are lost on a bridge.",
            "As with any Ethernet: who needs each of them has to ask again.",
            FaultSpec(name="", probability=0.1),
            hurts=frozenset({"frames"}),
        ),
    )
}
"""By name, in the order of the documentation."""
