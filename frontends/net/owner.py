"""What the queues of a device must know of it: see `FrontDevice`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from frontends.net.control import ControlRing
    from frontends.net.pages import GrantedPages
    from guest_kernel.kernel import Kernel
    from guest_kernel.net.device import Counters, ReceivedMany, ReceivedRaw
    from guest_kernel.net.offload import Offload


class QueueOwner(Protocol):
    """The device that a queue belongs to."""

    kernel: Kernel
    backend: int
    pages: GrantedPages
    counters: Counters
    connected: bool
    broken: str
    scatter: bool
    gso_prefix: bool
    control: ControlRing | None
    received_raw: ReceivedRaw | None
    received_many: ReceivedMany | None

    def hand_over(self, frames: Sequence[bytes], offloads: Sequence[Offload]) -> None:
        """Hand frames that came to whoever is there for them."""
        ...

    def hand_over_alike(self, frames: list[bytes], offloads: Offload | list[Offload]) -> None:
        """Do the same, fast if all frames are alike."""
        ...

    def give_up(self, why: str) -> bool:
        """Use the device no more, as its backend does not keep to the protocol; returns False."""
        ...
