"""What grant operations cost: microseconds per operation, in batches of 32, hypervisor side only.

    python benchmarks/grants.py [ROUNDS]

Each line: median and best over the rounds, and the goal of the median on the machine it was set for. The caller's
arguments lie in one page, as a driver has them; preparing them and reading the results is not counted.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from itertools import pairwise

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu, Run
from hypervisor.grant_table.check import check_grants
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.machine import Machine

BATCH = 32
FIRST_REF = 8
ARGUMENTS, PAGES, HOLE = 0x1000, 0x2000, 0x400000
HOST, DEVICE, READONLY = abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly
GRANT_TABLE_OP = xen.__HYPERVISOR_grant_table_op
RW = 0x67


class Program:
    """What makes the user a domain in Python; it is never run."""

    name = "benchmark"
    virt_base = virt_entry = 0

    def boot(self, cpu: Cpu, start_info: int) -> Run:
        """Refuse: hypercalls are made from outside."""
        raise AssertionError("this domain has no program")

    def unload(self) -> None:
        """There is no code."""


class Bench:
    """A privileged domain that uses grants of an ordinary one."""

    def __init__(self) -> None:
        hv = self.hv = Hypervisor(Machine(memory_mib=64))
        self.user = hv.domain_ops.create(0, max_vcpus=1, is_privileged=True)
        self.granter = hv.domain_ops.create(1, max_vcpus=1)
        frames, q = hv.frames, hv.memory.q
        self.user.image = Program()
        vcpu = hv.domain_ops.add_vcpu(self.user, 0)
        tables = [frames.alloc(self.user) for _ in range(5)]
        for upper, lower in pairwise(tables[:4]):
            q[upper << 9] = lower << 12 | RW
        q[(tables[2] << 9) + (HOLE >> 21)] = tables[4] << 12 | RW
        arguments = frames.alloc(self.user)
        self.own = [frames.alloc(self.user) for _ in range(BATCH)]
        for index, mfn in enumerate([arguments, *self.own]):
            q[(tables[3] << 9) + 1 + index] = mfn << 12 | RW
        hv.mm.load_root(vcpu, tables[0])
        self.base = arguments << 12
        self.bytes = hv.memory.b
        self.call = vcpu.cpu.hypercall  # type: ignore[attr-defined]
        self.granted = [frames.alloc(self.granter) for _ in range(BATCH)]
        entries = self.granter.grant_table.shared[0] << 12
        for index, mfn in enumerate(self.granted):
            frames.get_page_and_type(mfn, self.granter, 7)
            struct.pack_into("<HHI", self.bytes, entries + 8 * (FIRST_REF + index), abi.GTF_permit_access, 0, mfn)

    def run(self, cmd: int) -> float:
        """Make one batch; returns seconds."""
        begin = time.perf_counter()
        rc = self.call(GRANT_TABLE_OP, cmd, ARGUMENTS, BATCH)
        end = time.perf_counter()
        assert rc == 0
        return end - begin

    def map_unmap(self, flags: int) -> tuple[float, float]:
        """Map and unmap a batch; returns the seconds of each."""
        for n in range(BATCH):
            fields = (HOLE + (n << 12), flags, FIRST_REF + n, 1, 1, 0, 0)
            struct.pack_into("<QIIHhIQ", self.bytes, self.base + 32 * n, *fields)
        mapping = self.run(abi.GNTTABOP_map_grant_ref)
        results = [struct.unpack_from("<hIQ", self.bytes, self.base + 32 * n + 18) for n in range(BATCH)]
        for n, (status, handle, bus) in enumerate(results):
            assert status == 0
            va = HOLE + (n << 12) if flags & HOST else 0
            bus = bus if flags & DEVICE else 0
            struct.pack_into("<QQIh", self.bytes, self.base + 24 * n, va, bus, handle, 1)
        unmapping = self.run(abi.GNTTABOP_unmap_grant_ref)
        assert not any(struct.unpack_from("<h", self.bytes, self.base + 24 * n + 20)[0] for n in range(BATCH))
        return mapping, unmapping

    def copy(self, length: int, *, outwards: bool) -> tuple[float]:
        """Copy a batch between own pages and granted ones; returns the seconds."""
        for n in range(BATCH):
            ours, theirs = (self.own[n], xen.DOMID_SELF, 0), (FIRST_REF + n, 1, 0)
            ends, flags = ((*ours, *theirs), 2) if outwards else ((*theirs, *ours), 1)
            struct.pack_into("<QHH4xQHH4xHHh", self.bytes, self.base + 40 * n, *ends, length, flags, 1)
        seconds = self.run(abi.GNTTABOP_copy)
        assert not any(struct.unpack_from("<h", self.bytes, self.base + 40 * n + 36)[0] for n in range(BATCH))
        return (seconds,)


def report(names: list[str], goals: list[float], rounds: int, once: Callable[[], tuple[float, ...]]) -> None:
    """Repeat a measurement and print a line for each of its parts."""
    samples = [once() for _ in range(rounds)]
    for name, goal, column in zip(names, goals, zip(*samples, strict=True), strict=True):
        ordered = sorted(seconds / BATCH * 1e6 for seconds in column)
        median, best = ordered[len(ordered) // 2], ordered[0]
        print(f"{name:32} {median:6.2f} us   best {best:5.2f}   goal {goal:4.1f}")


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    bench = Bench()
    for kind, flags, goals in (
        ("device", DEVICE, [1.0, 0.8]),
        ("device, read-only", DEVICE | READONLY, [1.0, 0.8]),
        ("host", HOST, [1.6, 1.4]),
        ("host, read-only", HOST | READONLY, [1.6, 1.4]),
    ):
        report([f"map {kind}", f"unmap {kind}"], goals, rounds, lambda flags=flags: bench.map_unmap(flags))
    for length, goal in ((64, 1.0), (1500, 1.0), (4096, 1.5)):
        report([f"copy {length} bytes in"], [goal], rounds, lambda length=length: bench.copy(length, outwards=False))
        report([f"copy {length} bytes out"], [goal], rounds, lambda length=length: bench.copy(length, outwards=True))
    check_grants(bench.hv)


if __name__ == "__main__":
    main()
