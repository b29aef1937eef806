"""The checks of lab 2. The submission's functions run as the kernel of a domU."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from hypervisor.abi import errno, xen
from hypervisor.abi.cpu import Cpu
from hypervisor.abi.event_channel import EVTCHNOP_send
from labs.kit.bench import Bench, Dom, Watched, boot_info, free_page, use_domu
from labs.kit.check import Checks, Work, expect, expect_equal, miss

CHECKS = Checks()
check = CHECKS.check

TIME, OUT, OUT_CONS, OUT_PROD = 32, 1024, 3080, 3084
NANOSECONDS = 1_000_000_000


@check(20, "read_start_info")
def read_start_info(work: Work) -> None:
    """The letter of the builder is read, member by member."""
    lab = work.load("boot")
    line = f"root=/dev/xvda1 {work.word()}={work.rng.randrange(10**6)} quiet"
    mib = work.rng.randrange(4, 12)
    found: list[tuple[Any, Any]] = []

    def program(cpu: Cpu, start: int) -> None:
        found.append((lab.read_start_info(cpu, start), boot_info(cpu, start)))

    Bench().run_guests(Dom(program, mib, line))
    read, there = found[0]
    for name in ("nr_pages", "shared_info", "flags", "store_mfn", "store_evtchn", "pt_base", "nr_pt_frames"):
        expect_equal(getattr(read, name), getattr(there, name), f"the member {name}")
    expect_equal(read.mfn_list, there.mfn_list, "the member mfn_list")
    expect_equal(read.console_mfn, there.console.domU.mfn, "the member console.domU.mfn")
    expect_equal(read.console_evtchn, there.console.domU.evtchn, "the member console.domU.evtchn")
    expect_equal(read.magic, "xen-3.0-x86_64", "the magic")
    expect_equal(read.cmd_line, line, "the command line")


@check(5, "magic")
def magic(work: Work) -> None:
    """A page that is no start_info is refused."""
    lab = work.load("boot")

    def use(cpu: Cpu, info: Any) -> bool:
        page = free_page(info)
        cpu.view(page)[:8] = b"Linux 6.1"[:8]
        try:
            lab.read_start_info(cpu, page)
        except ValueError:
            return True
        return False

    refused, _ = use_domu(use)
    expect(refused, "read_start_info takes a page without the magic for start_info; it should raise ValueError")


def mapped(lab: Any, use: Callable[[Cpu, Any, memoryview], Any]) -> tuple[Any, Bench]:
    """Run `use(cpu, start_info, shared_info)` in a domU whose shared_info the submission has mapped."""

    def program(cpu: Cpu, info: Any) -> Any:
        return use(cpu, info, lab.map_shared_info(cpu, info, free_page(info, 3)))

    return use_domu(program)


@check(15, "map_shared_info")
def map_shared_info(work: Work) -> None:
    """shared_info is mapped, writable, at the address that was given up for it."""
    lab = work.load("boot")
    mark = work.rng.randrange(1 << 32)
    frames: list[int] = []

    def use(cpu: Cpu, info: Any) -> bytes:
        va = free_page(info, 3)
        cpu.view(va)[:] = b"\xee" * 4096
        page = lab.map_shared_info(cpu, info, va)
        expect(isinstance(page, memoryview) and len(page) == 4096, "map_shared_info returns no page of 4096 bytes")
        expect(not page.readonly, "the page that map_shared_info returns is read-only")
        frames.append(info.shared_info >> 12)
        struct.pack_into("<I", page, 4000, mark)
        return bytes(cpu.view(va)[4000:4004])

    through, bench = use_domu(use)
    at = (frames[0] << 12) + 4000
    expect_equal(through, struct.pack("<I", mark), "what is read at the address after a store to the page")
    expect_equal(bytes(bench.hv.memory.b[at : at + 4]), struct.pack("<I", mark), "what Xen sees of a store to the page")

    def refused(cpu: Cpu, info: Any) -> int:
        info.shared_info += 4096 * 3  # a frame that is none of ours
        try:
            lab.map_shared_info(cpu, info, 0x1000)
        except OSError as error:
            return error.errno or 0
        return 0

    code, _ = use_domu(refused)
    expect(code in (errno.EINVAL, errno.EPERM), f"where Xen refuses, OSError is to have its errno; it has {code}")


@check(10, "silence")
def silence(work: Work) -> None:
    """All events and the upcall of vCPU 0 are masked, and nothing else changes."""
    lab = work.load("boot")

    def use(cpu: Cpu, info: Any, shared: memoryview) -> tuple[bytes, bytes]:
        before = bytearray(shared)
        lab.silence(shared)
        before[1] = 1
        before[2560:3072] = b"\xff" * 512
        return bytes(shared), bytes(before)

    (after, wanted), _ = mapped(lab, use)
    expect_equal(after[2560:3072], b"\xff" * 512, "evtchn_mask")
    expect_equal(after[1], 1, "vcpu_info[0].evtchn_upcall_mask")
    expect(after == wanted, "silence() changes more of shared_info than the masks of events and of vCPU 0's upcalls")


class Moving:
    """A shared_info that Xen updates after so many loads: old, then half of the new behind an odd version, then new."""

    def __init__(self, old: bytes, new: bytes, version: int, update_after: int) -> None:
        self.states = [old, self._torn(old, new, version), new]
        self.update_after = update_after
        self.loads = 0

    @staticmethod
    def _torn(old: bytes, new: bytes, version: int) -> bytes:
        torn = bytearray(old)
        (number,) = struct.unpack_from("<I", old, version)
        struct.pack_into("<I", torn, version, number + 1)
        torn[version + 4 : version + 16] = new[version + 4 : version + 16]
        return bytes(torn)

    def load(self, offset: int, size: int) -> int:
        """Load a number."""
        if self.loads > 1000:
            miss("the loop never ends: a version that is even, and the same before and after, is fine")
        state = self.states[(self.loads >= self.update_after) + (self.loads >= self.update_after + 3)]
        self.loads += 1
        return int.from_bytes(state[offset : offset + size], "little")


def time_page(rng: Any, version: int) -> tuple[bytes, Callable[[int], int]]:
    """Return a shared_info with a time, and what it says for a time stamp."""
    page = bytearray(4096)
    stamp, system = rng.randrange(1 << 40), rng.randrange(1 << 50)
    mul, shift = rng.randrange(1 << 31, 1 << 32), rng.choice([-3, -1, 0, 2])
    struct.pack_into("<IIQQIb", page, TIME, version, 0, stamp, system, mul, shift)

    def at(tsc: int) -> int:
        delta = tsc - stamp
        return int(system + ((delta << shift if shift >= 0 else delta >> -shift) * mul >> 32))

    return bytes(page), at


@check(10, "system_time")
def system_time(work: Work) -> None:
    """The time is computed from a time stamp, with shifts in both directions."""
    lab = work.load("boot")
    for _ in range(50):
        page, at = time_page(work.rng, 2 * work.rng.randrange(1 << 30))
        tsc = (1 << 41) + work.rng.randrange(1 << 40)
        found = lab.system_time(Moving(page, page, TIME, 1 << 30).load, tsc)
        expect_equal(found, at(tsc), "system_time()")

    def use(cpu: Cpu, info: Any, shared: memoryview) -> tuple[int, int]:
        def load(offset: int, size: int) -> int:
            return int.from_bytes(shared[offset : offset + size], "little")

        return lab.system_time(load, cpu.rdtsc()), cpu.rdtsc()

    (found, wanted), _ = mapped(lab, use)
    expect(abs(found - wanted) < 10_000, f"on a host that has run for {wanted} ns, system_time() is {found}")


@check(15, "torn time")
def torn_time(work: Work) -> None:
    """A time that Xen changes while it is read is read again."""
    lab = work.load("boot")
    tsc = 1 << 42
    for after in range(12):
        old, at_old = time_page(work.rng, 6)
        new, at_new = time_page(work.rng, 8)
        found = lab.system_time(Moving(old, new, TIME, after).load, tsc)
        told = f"when Xen updates the time after {after} loads, system_time() is {found}"
        expect(found in (at_old(tsc), at_new(tsc)), f"{told}: a mixture of two times")


@check(10, "wall_clock")
def wall_clock(work: Work) -> None:
    """The date is the wall clock at boot and the time since, whole also beyond 2106 and while it is being set."""
    lab = work.load("boot")
    for after in (1 << 30, *range(10)):
        pages, dates = [], []
        now = work.rng.randrange(1 << 50)
        for version in (2, 4):
            page = bytearray(4096)
            seconds, nanoseconds = work.rng.randrange(1 << 34), work.rng.randrange(NANOSECONDS)
            struct.pack_into("<IIII", page, 3072, version, seconds & 0xFFFFFFFF, nanoseconds, seconds >> 32)
            pages.append(bytes(page))
            dates.append(seconds * NANOSECONDS + nanoseconds + now)
        found = lab.wall_clock(Moving(pages[0], pages[1], 3072, after).load, now)
        if after > 1000:
            expect_equal(found, dates[0], "wall_clock()")
        expect(found in dates, f"when Xen sets the clock after {after} loads, wall_clock() is a mixture of two dates")


@check(15, "console_write")
def console_write(work: Work) -> None:
    """Bytes go round the console's ring, never more than there is room for, and the other end hears of them."""
    lab = work.load("boot")
    rng = work.rng

    def use(cpu: Cpu, info: Any) -> None:
        place = info.console.domU
        m2p = cpu.view(xen.MACH2PHYS_VIRT_START + (place.mfn * 8 & -4096), 4096, False).cast("Q")
        ring = cpu.view(0xFFFF_FFFF_8000_0000 + (m2p[place.mfn & 511] << 12))
        for cons, filled, length in (
            (rng.randrange(1000), 0, 60),
            ((1 << 32) - rng.randrange(1, 50), 0, 100),
            (rng.randrange(1 << 31), 2000, 100),
            (rng.randrange(1 << 31), 2048, 10),
            ((1 << 32) - 3, 10, 2048),
        ):
            prod = cons + filled & 0xFFFFFFFF
            struct.pack_into("<II", ring, OUT_CONS, cons, prod)
            data = rng.randbytes(length)
            before = bytes(ring[OUT : OUT + 2048])
            watched = Watched(cpu)
            taken = lab.console_write(watched, free_page(info), ring, place.evtchn, data)
            wanted = min(length, 2048 - filled)
            told = f"with {filled} bytes in the ring and {length} to write"
            expect_equal(taken, wanted, f"{told}, what console_write returns")
            expect_equal(struct.unpack_from("<I", ring, OUT_PROD)[0], prod + wanted & 0xFFFFFFFF, f"{told}, out_prod")
            expect_equal(struct.unpack_from("<I", ring, OUT_CONS)[0], cons, f"{told}, out_cons (it is the reader's)")
            for index in range(2048):
                offset = (index - prod) % 2048
                byte = data[offset] if offset < wanted else before[index]
                expect(ring[OUT + index] == byte, f"{told}, byte {index} of the ring is wrong")
            sends = watched.results(xen.HYPERVISOR_event_channel_op, EVTCHNOP_send)
            expect_equal(sends, [0] if wanted else [], f"{told}, the results of EVTCHNOP_send")

    use_domu(use)
