"""Lab 1: hypercalls. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct

from hypervisor.abi import sched, xen  # noqa: F401
from hypervisor.abi import version as ver  # noqa: F401
from hypervisor.abi.cpu import Cpu

PAGE_SIZE = 4096
COMMAND_LINE_SIZE = 1024
"""Bytes that XENVER_commandline writes: the string and zeros behind it."""


class XenError(Exception):
    """Xen has refused something; `errno` says why, as a positive number."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"Xen answers -{errno}")
        self.errno = errno


def check(result: int) -> int:
    """Return the result of a hypercall; raise XenError if it is an error."""
    raise NotImplementedError("a negative result is an error")


def xen_version(cpu: Cpu) -> tuple[int, int]:
    """Return Xen's version, as (major, minor).

    XENVER_version takes no argument but itself. The result has the major version in its upper 16 bits.
    """
    raise NotImplementedError("call HYPERVISOR_xen_version and take the result apart")


def command_line(cpu: Cpu, page: int) -> str:
    """Return the command line with which Xen was started.

    XENVER_commandline wants the address of a buffer of COMMAND_LINE_SIZE bytes.
    """
    raise NotImplementedError("give Xen the address, then read what it wrote, up to the first zero byte")


def has_feature(cpu: Cpu, page: int, number: int) -> bool:
    """Return whether Xen offers feature `number` (XENFEAT_*).

    XENVER_get_features takes the address of a xen_feature_info: 32 features at a time. Submap 0 holds numbers 0 to 31,
    submap 1 the next 32, and so on. Raises XenError if Xen has no such submap.
    """
    raise NotImplementedError("write submap_idx, call, read submap")


def say(cpu: Cpu, page: int, text: str) -> None:
    """Print a text on the console of the host, however long it is.

    HYPERVISOR_console_io takes CONSOLEIO_write, the number of bytes, and their address. You have one page.
    """
    raise NotImplementedError("copy a piece of the text into the page, call, go on with the next piece")


def batch(cpu: Cpu, page: int, calls: list[tuple[int, ...]]) -> list[int]:
    """Make several hypercalls by entering Xen once; return the result of each.

    A call is (number, first argument, ...); at most 64 calls, which fit into the page. Results are signed. Raises
    XenError if Xen refuses the multicall itself.
    """
    raise NotImplementedError("fill an array of multicall_entry, call, read the results out of it")


def power_off(cpu: Cpu, page: int) -> None:
    """End this domain: SCHEDOP_shutdown with reason SHUTDOWN_poweroff, in a sched_shutdown (one unsigned int)."""
    raise NotImplementedError("the reason has to lie in memory")


assert struct.calcsize("<8Q") == 64, "a multicall_entry"
