"""Faults that end somebody: a domain, a backend, the store; or have a domain stand still."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from toolstack.faults.fault import Fault

if TYPE_CHECKING:
    from hypervisor.domain import Domain


@final
class KillDomain(Fault):
    """The victim is destroyed, as by `xl destroy`."""

    needs_victim: ClassVar[bool] = True

    def begin(self) -> None:
        """Have dom0 do it."""
        victim = self.world.domain(self.spec.domain)
        if victim is not None:
            self.note("It is destroyed.")
            self.world.order(f"destroy-domain {self.spec.domain}")


@final
class CrashDomain(Fault):
    """The victim does what no domain survives."""

    needs_victim: ClassVar[bool] = True

    def begin(self) -> None:
        """Crash it where it stands."""
        victim = self.world.domain(self.spec.domain)
        if victim is not None and not victim.shutting_down:
            self.note("It crashes.")
            self.world.hv.domain_ops.crash(victim, f"fault {self.spec.name}")


@final
class PauseDomain(Fault):
    """The victim stands still for a while: it neither posts nor answers."""

    needs_victim: ClassVar[bool] = True
    _paused: Domain | None = None

    def begin(self) -> None:
        """Pause it."""
        victim = self.world.domain(self.spec.domain)
        if victim is not None and not victim.is_dying:
            self._paused = victim
            self.note("It stands still.")
            self.world.hv.domain_ops.pause(victim)

    def end(self) -> None:
        """Have it go on, if it is still there."""
        paused, self._paused = self._paused, None
        if paused is not None and self.world.hv.domains.get(paused.domid) is paused and not paused.is_dying:
            self.world.hv.domain_ops.unpause(paused)


@final
class KillBackend(Fault):
    """The backend of the victim's devices in dom0 gives up, as a driver that met what it cannot handle."""

    needs_victim: ClassVar[bool] = True

    def begin(self) -> None:
        """Have dom0's drivers do it."""
        if self.world.domain(self.spec.domain) is not None:
            self.note(f"The backends of its devices of class {self.spec.device} give up.")
            self.world.order(f"fail-backend {self.spec.domain} {self.spec.device}")


@final
class KillXenstored(Fault):
    """xenstored ends and is there again after a while, with what it had saved (as by a live update)."""

    def begin(self) -> None:
        """Stop it."""
        self.note("xenstored ends.", 0)
        self.world.order("stop-xenstored")

    def end(self) -> None:
        """Start it again."""
        self.world.order("start-xenstored")
