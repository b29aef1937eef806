"""The checks of lab 1. The submission's functions run as dom0's kernel, alone on a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypervisor.abi import errno, features, version, xen
from hypervisor.abi.cpu import Cpu
from labs.kit.bench import Bench, boot_info, free_page
from labs.kit.check import Checks, Work, expect, expect_equal, miss

CHECKS = Checks()
check = CHECKS.check


def kernel(use: Callable[[Cpu, int], Any], **options: Any) -> tuple[Any, Bench]:
    """Run `use(cpu, page)` as a kernel; return what it returns, and the host."""
    found: list[Any] = []

    def program(cpu: Cpu, start: int) -> None:
        page = free_page(boot_info(cpu, start))
        cpu.view(page)[:] = b"\xa5" * 4096  # what is left over in the page is not zero
        found.append(use(cpu, page))

    bench = Bench(**options)
    bench.run_dom0(program)
    return (found[0] if found else None), bench


def refusal(lab: Any, action: Callable[[], object]) -> int:
    """Return the errno of the XenError that an action raises; 0 if it raises none."""
    try:
        action()
    except lab.XenError as error:
        return int(error.errno)
    return 0


@check(10, "check")
def results(work: Work) -> None:
    """Results are passed on, and negative ones raise XenError."""
    lab = work.load("hypercalls")
    number = work.rng.randrange(1, 1 << 40)
    expect_equal(lab.check(number), number, f"check({number})")
    expect_equal(lab.check(0), 0, "check(0)")
    code = work.rng.randrange(1, 134)
    expect_equal(refusal(lab, lambda: lab.check(-code)), code, f"the errno of the XenError of check(-{code})")


@check(10, "xen_version")
def xen_version(work: Work) -> None:
    """The version is asked for and taken apart."""
    lab = work.load("hypercalls")
    found, _ = kernel(lambda cpu, page: lab.xen_version(cpu))
    told, _ = kernel(lambda cpu, page: cpu.hypercall(xen.HYPERVISOR_xen_version, version.XENVER_version))
    expect_equal(found, (told >> 16, told & 0xFFFF), "xen_version()")


@check(15, "command_line")
def command_line(work: Work) -> None:
    """Xen's command line is read from the page that it was written to."""
    lab = work.load("hypercalls")
    line = f"loglvl=all guest_loglvl=none comment={work.word()} mark={work.rng.randrange(10**6)}"
    found, _ = kernel(lambda cpu, page: lab.command_line(cpu, page), xen_cmdline=line)
    expect_equal(found, line, "command_line()")
    refused, _ = kernel(lambda cpu, page: refusal(lab, lambda: lab.command_line(cpu, 0x1000)))
    expect_equal(refused, errno.EFAULT, "the errno of the XenError for a page that is not mapped")


@check(15, "has_feature")
def has_feature(work: Work) -> None:
    """Features are looked up in the right submap, at the right bit."""
    lab = work.load("hypercalls")

    def ask(cpu: Cpu, page: int) -> list[bool]:
        return [lab.has_feature(cpu, page, number) for number in range(32)]

    found, _ = kernel(ask)
    there = features.XENFEAT_mmu_pt_update_preserve_ad, features.XENFEAT_gnttab_map_avail_bits
    for number in there:
        expect(found[number], f"has_feature({number}) is {found[number]}; this Xen has that feature")
    absent = features.XENFEAT_auto_translated_physmap, features.XENFEAT_hvm_callback_vector
    for number in absent:
        expect(not found[number], f"has_feature({number}) is {found[number]}; a PV guest does not have that feature")
    refused, _ = kernel(lambda cpu, page: refusal(lab, lambda: lab.has_feature(cpu, page, 32 + work.rng.randrange(99))))
    expect_equal(refused, errno.EINVAL, "the errno of the XenError for a submap that Xen does not have")


@check(15, "say")
def say(work: Work) -> None:
    """Texts of any length reach the console, whole and once."""
    lab = work.load("hypercalls")
    words = [f"{work.word()} {number}: größer als ß\n" for number in range(work.rng.randrange(600, 700))]
    for text in ("", f"{work.word()}\n", "".join(words)):
        _, bench = kernel(lambda cpu, page, text=text: lab.say(cpu, page, text))  # type: ignore[misc]
        found = bytes(bench.console)
        if found != text.encode():
            same = next((i for i, (a, b) in enumerate(zip(found, text.encode(), strict=False)) if a != b), None)
            place = f"differs from byte {same} on" if same is not None else f"has {len(found)} bytes"
            miss(f"the console {place}, of a text of {len(text.encode())} bytes")


@check(25, "batch")
def batch(work: Work) -> None:
    """Many calls enter Xen once, and each has its own result."""
    lab = work.load("hypercalls")
    rng = work.rng
    ask = xen.HYPERVISOR_xen_version
    calls: list[tuple[int, ...]] = [(ask, version.XENVER_version), (63,), (ask, version.XENVER_commandline, 0x1000)]
    calls += [(ask, version.XENVER_pagesize)] * rng.randrange(20, 40)
    rng.shuffle(calls)
    answers: dict[tuple[int, ...], int] = {}

    def use(cpu: Cpu, page: int) -> tuple[list[int], int]:
        answers.update({call: cpu.hypercall(*call) for call in calls})
        door = Counted(cpu)
        return lab.batch(door, page, calls), door.entered

    (found, entered), _ = kernel(use)
    expect_equal(found, [answers[call] for call in calls], f"what batch() returns for {len(calls)} calls")
    expect_equal(entered, 1, "the number of times that batch() enters Xen")
    empty, _ = kernel(lambda cpu, page: lab.batch(cpu, page, []))
    expect_equal(empty, [], "batch() of no calls")


class Counted:
    """A processor that counts how often Xen is entered."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self.entered = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cpu, name)

    def hypercall(self, *registers: int) -> int:
        """Enter Xen."""
        self.entered += 1
        return self._cpu.hypercall(*registers)


@check(10, "power_off")
def power_off(work: Work) -> None:
    """The domain ends, with the reason poweroff."""
    lab = work.load("hypercalls")

    def use(cpu: Cpu, page: int) -> None:
        lab.power_off(cpu, page)

    _, bench = kernel(use)
    expect(bench.hv.stopped, "the host still runs: dom0 has not shut down")
    expect_equal(bench.hv.shutdown_reason, 0, "the reason of the shutdown (SHUTDOWN_poweroff is 0)")
