"""Lab 1, solved."""

from __future__ import annotations

import struct

from hypervisor.abi import sched, xen
from hypervisor.abi import version as ver
from hypervisor.abi.cpu import Cpu

PAGE_SIZE = 4096
COMMAND_LINE_SIZE = 1024


class XenError(Exception):
    """Xen has refused something; `errno` says why, as a positive number."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"Xen answers -{errno}")
        self.errno = errno


def check(result: int) -> int:
    """Return the result of a hypercall; raise XenError if it is an error."""
    if result < 0:
        raise XenError(-result)
    return result


def xen_version(cpu: Cpu) -> tuple[int, int]:
    """Return Xen's version, as (major, minor)."""
    result = check(cpu.hypercall(xen.HYPERVISOR_xen_version, ver.XENVER_version))
    return result >> 16, result & 0xFFFF


def command_line(cpu: Cpu, page: int) -> str:
    """Return the command line with which Xen was started."""
    check(cpu.hypercall(xen.HYPERVISOR_xen_version, ver.XENVER_commandline, page))
    return bytes(cpu.view(page)[:COMMAND_LINE_SIZE]).partition(b"\0")[0].decode()


def has_feature(cpu: Cpu, page: int, number: int) -> bool:
    """Return whether Xen offers feature `number`."""
    view = cpu.view(page)
    struct.pack_into("<II", view, 0, number // 32, 0)
    check(cpu.hypercall(xen.HYPERVISOR_xen_version, ver.XENVER_get_features, page))
    _, submap = struct.unpack_from("<II", view)
    return bool(submap >> (number % 32) & 1)


def say(cpu: Cpu, page: int, text: str) -> None:
    """Print a text on the console of the host, however long it is."""
    view = cpu.view(page)
    data = text.encode()
    for start in range(0, len(data), PAGE_SIZE):
        piece = data[start : start + PAGE_SIZE]
        view[: len(piece)] = piece
        check(cpu.hypercall(xen.HYPERVISOR_console_io, xen.CONSOLEIO_write, len(piece), page))


def batch(cpu: Cpu, page: int, calls: list[tuple[int, ...]]) -> list[int]:
    """Make several hypercalls by entering Xen once; return the result of each."""
    view = cpu.view(page)
    for index, (number, *arguments) in enumerate(calls):
        padded = arguments + [0] * (6 - len(arguments))
        struct.pack_into("<QQ6Q", view, 64 * index, number, 0, *padded)
    check(cpu.hypercall(xen.HYPERVISOR_multicall, page, len(calls)))
    return [struct.unpack_from("<q", view, 64 * index + 8)[0] for index in range(len(calls))]


def power_off(cpu: Cpu, page: int) -> None:
    """End this domain."""
    struct.pack_into("<I", cpu.view(page), 0, sched.SHUTDOWN_poweroff)
    check(cpu.hypercall(xen.HYPERVISOR_sched_op, sched.SCHEDOP_shutdown, page))
