"""Memory management: frames and their counts, page types, guest page tables, reservations."""

from hypervisor.mm.manager import MemoryManager

__all__ = ("MemoryManager",)
