"""The I/O APIC (Intel 82093AA): 24 pins, each with an entry that says which vector its line raises, and how.

Lines reach whoever listens without it (`interrupts`): it is here for those who read and program it.
"""

from hypervisor.machine.interrupts import NR_LINES

VERSION = 0x20
ID_REGISTER, VERSION_REGISTER, ARBITRATION_REGISTER, FIRST_ENTRY = 0, 1, 2, 0x10
MASKED = 1 << 16
LEVEL_TRIGGERED = 1 << 15
DELIVERY_MODE, LOWEST_PRIORITY = 7 << 8, 1 << 8
VECTOR = 0xFF


class IoApic:
    """The registers behind its index register."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries = [MASKED, 0] * NR_LINES

    def read(self, register: int) -> int:
        """Return a 32-bit register; 0 for one that does not exist."""
        register &= 0xFF
        if register == VERSION_REGISTER:
            return NR_LINES - 1 << 16 | VERSION
        entry = register - FIRST_ENTRY
        return self._entries[entry] if 0 <= entry < len(self._entries) else 0

    def write_entry(self, pin: int, low: int) -> None:
        """Set the low half of a pin's entry."""
        self._entries[2 * pin] = low & 0xFFFF_FFFF
