"""What the kit has to know of a class of devices to stand in for its other end: a setting, and nodes.

A driver class of a kind that is not listed here may say it itself, in an attribute `conformance`; without one it is
taken for a device with one ring and one event channel, as `device = ["type=…,backend=…"]` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from hypervisor.abi.io import blkif
from hypervisor.abi.io.protocols import XEN_IO_PROTO_ABI_X86_64

RING: Final = object()
"""Stands for the reference of a granted page with a ring in it."""
PORT: Final = object()
"""Stands for an event channel."""


@attrs.frozen
class Refusal:
    """How a request on a ring is refused."""

    entry: int
    """Bytes of a slot."""
    answer: Callable[[bytes], bytes]
    """Takes a request, and returns the response."""


@attrs.frozen(kw_only=True)
class DeviceClass:
    """What the two ends of a class of devices say to each other."""

    setting: str
    """The line in the frontend's configuration that makes a device; `{backend}` and `{disk}` are filled in."""
    frontend: Mapping[str, object] = attrs.field(factory=lambda: {"ring-ref": RING, "event-channel": PORT})
    """What a frontend publishes."""
    offers: Mapping[str, object] = attrs.field(factory=dict)
    """What a backend writes before InitWait."""
    answers: Mapping[str, object] = attrs.field(factory=dict)
    """What a backend writes with Connected."""
    refusals: Mapping[str, Refusal] = attrs.field(factory=dict)
    """By the node of a ring: how a backend says no to what a guest wants of a new device before anybody asks it to."""


def _refuse_block(request: bytes) -> bytes:
    told = blkif.blkif_request.unpack(request)
    return blkif.blkif_response.pack(id=told.id, operation=told.operation, status=blkif.BLKIF_RSP_ERROR)


CLASSES: Final[Mapping[str, DeviceClass]] = {
    "vbd": DeviceClass(
        setting='disk = ["format=raw,vdev=xvda,access=rw,backend={backend},target={disk}"]',
        frontend={"ring-ref": RING, "event-channel": PORT, "protocol": XEN_IO_PROTO_ABI_X86_64},
        answers={"sectors": 2048, "info": 0, "sector-size": 512, "physical-sector-size": 512},
        refusals={"ring-ref": Refusal(112, _refuse_block)},
    ),
    "vif": DeviceClass(
        setting='vif = ["mac=00:16:3e:00:00:01,backend={backend}"]',
        frontend={
            "tx-ring-ref": RING, "rx-ring-ref": RING, "event-channel": PORT, "request-rx-copy": 1,
            "feature-rx-notify": 1,
        },
        offers={"feature-rx-copy": 1, "feature-sg": 1},
    ),
}  # fmt: skip


USUAL: Final = "vbd"
"""The class of devices with which a guest or a process is judged if nothing else is said."""


def class_of(subject: Any) -> DeviceClass:
    """Return what is known of the class of devices that a driver serves."""
    own = getattr(subject, "conformance", None)
    if isinstance(own, DeviceClass):
        return own
    return CLASSES.get(subject.type) or DeviceClass(setting=f'device = ["type={subject.type},backend={{backend}}"]')
