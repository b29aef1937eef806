"""Interrupt lines of the machine, from devices to whoever listens (the hypervisor's PIRQ router)."""

from collections.abc import Callable

NR_IRQS = 4096
NR_LINES = 24
"""The pins of a PC's I/O APIC: what a machine without further devices has."""


class Interrupts:
    """Numbered lines, edge triggered. A line that is raised while nobody listens stays pending until somebody does."""

    __slots__ = ("_pending", "handlers", "nr_lines")

    def __init__(self) -> None:
        self.nr_lines = NR_LINES
        """Devices are on lines below this one."""
        self.handlers: dict[int, Callable[[], None]] = {}
        """Who listens to which line: a device that raises one often looks here by itself."""
        self._pending: set[int] = set()

    def plug_in(self, irq: int) -> None:
        """Make room for a device on a line."""
        self.nr_lines = max(self.nr_lines, irq + 1)

    def connect(self, irq: int, handler: Callable[[], None]) -> None:
        """Route a line to `handler`. Raises ValueError for a line that does not exist or is taken."""
        if not 0 <= irq < NR_IRQS:
            raise ValueError(f"there is no interrupt line {irq}")
        if irq in self.handlers:
            raise ValueError(f"interrupt line {irq} is already routed")
        self.handlers[irq] = handler
        if irq in self._pending:
            self._pending.discard(irq)
            handler()

    def disconnect(self, irq: int) -> None:
        """Stop routing a line; a line that is not routed is left alone."""
        self.handlers.pop(irq, None)

    def raise_line(self, irq: int) -> None:
        """Signal an edge on a line."""
        handler = self.handlers.get(irq)
        if handler is None:
            self._pending.add(irq)
        else:
            handler()
