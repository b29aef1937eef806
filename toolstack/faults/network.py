"""Faults of bridges: frames that are lost, a guest that is cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from toolstack.faults.fault import Fault

if TYPE_CHECKING:
    from backends.net.bridge import Port

_VIF: Final = "vif"


class _BridgeFault(Fault):
    """What stands in the way of frames on a bridge of dom0."""

    needs_victim: ClassVar[bool] = True

    def begin(self) -> None:
        """Break the bridge."""
        bridge = self.world.bridge(self.spec.bridge)
        super().begin()
        if bridge is None:
            return
        others = bridge.broken

        def broken(source: Port, port: Port) -> bool:
            return (others is not None and others(source, port)) or self.loses(source, port)

        bridge.broken = broken
        bridge.changes += 1

    def loses(self, source: Port, port: Port) -> bool:
        """Whether a frame is lost on the way between two ports."""
        if not self.active or not (self._is_victims(source) or self._is_victims(port)) or not self.strikes():
            return False
        self.note(f"A frame from {source.name} to {port.name} is lost.")
        return True

    def _is_victims(self, port: Port) -> bool:
        domid = port.name.removeprefix(_VIF).partition(".")[0]
        return port.name.startswith(_VIF) and domid.isdigit() and self.is_victim(int(domid))


class Partition(_BridgeFault):
    """The victim is cut off from everybody else on a bridge."""


class FrameLoss(_BridgeFault):
    """Some frames to and from the victim are lost."""
