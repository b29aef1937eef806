"""I/O ports of the machine: where `in` and `out` reach the devices."""

from collections.abc import Callable

import attrs

NR_PORTS = 1 << 16
ALL_ONES = 0xFFFFFFFF


@attrs.frozen
class PortRange:
    """`count` consecutive ports of one device. `read(port)` and `write(port, value)` handle 32 bits at a time."""

    base: int
    count: int
    read: Callable[[int], int]
    write: Callable[[int, int], None]


class Ports:
    """The machine's 64 Ki I/O ports. Nothing answers at a port that no device claimed: it reads as all ones."""

    __slots__ = ("_by_port", "writers")

    def __init__(self) -> None:
        self._by_port: dict[int, PortRange] = {}
        self.writers: dict[int, Callable[[int, int], None]] = {}
        """What a store to a port calls, as `writer(port, value)` with a value of 32 bits; `outl` for a processor."""

    def map(self, base: int, count: int, read: Callable[[int], int], write: Callable[[int, int], None]) -> PortRange:
        """Claim ports for a device. Raises ValueError if one of them does not exist or is taken."""
        ports = range(base, base + count)
        if count <= 0 or base < 0 or base + count > NR_PORTS:
            raise ValueError(f"there are no I/O ports {base:#x}..{base + count - 1:#x}")
        if any(port in self._by_port for port in ports):
            raise ValueError(f"I/O ports {base:#x}..{base + count - 1:#x} are already taken")
        claimed = PortRange(base, count, read, write)
        for port in ports:
            self._by_port[port] = claimed
            self.writers[port] = write
        return claimed

    def unmap(self, claimed: PortRange) -> None:
        """Give up a range that `map` returned."""
        for port in range(claimed.base, claimed.base + claimed.count):
            del self._by_port[port]
            del self.writers[port]

    def is_claimed(self, port: int) -> bool:
        """Whether a device answers at a port."""
        return port in self._by_port

    def inl(self, port: int) -> int:
        """Read 32 bits from a port."""
        claimed = self._by_port.get(port)
        return ALL_ONES if claimed is None else claimed.read(port) & ALL_ONES

    def outl(self, port: int, value: int) -> None:
        """Write 32 bits to a port."""
        write = self.writers.get(port)
        if write is not None:
            write(port, value & ALL_ONES)
