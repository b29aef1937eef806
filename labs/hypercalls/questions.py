"""The questions of lab 1."""

from __future__ import annotations

import random

from hypervisor.abi import version, xen
from hypervisor.abi.cpu import Cpu, Run
from hypervisor.sched.costs import Costs
from labs.kit.bench import Bench, boot_info, free_page
from labs.kit.questions import Question


def ask(*registers: int) -> int:
    """Make one hypercall on a host; return its result."""
    found: list[int] = []

    def program(cpu: Cpu, start: int) -> None:
        found.append(cpu.hypercall(*registers))

    Bench().run_dom0(program)
    return found[0]


def time_of(separate: bool, number: int, cost: int) -> int:
    """Return the virtual ns that `number` calls take, made one by one or as one multicall."""
    spans: list[int] = []

    def program(cpu: Cpu, start: int) -> Run:
        page = free_page(boot_info(cpu, start))
        for index in range(number):
            xen.multicall_entry.pack_into(cpu.view(page), 64 * index, op=xen.HYPERVISOR_xen_version, args=(0,) * 6)
        yield 0
        began = cpu.rdtsc()
        if separate:
            for _ in range(number):
                cpu.hypercall(xen.HYPERVISOR_xen_version, version.XENVER_version)
        else:
            cpu.hypercall(xen.HYPERVISOR_multicall, page, number)
        yield 0
        spans.append(cpu.rdtsc() - began)

    Bench(costs=Costs(hypercall=cost)).run_dom0(program)
    return spans[0]


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    unknown = rng.randrange(64, 1000)
    feature = rng.choice([0, 2, 3, 5, 8])
    number, cost = rng.randrange(10, 60), rng.randrange(100, 900)
    return [
        Question(
            f"A kernel makes hypercall number {unknown}, which no Xen has. What is in rax afterwards?",
            lambda: ask(unknown),
            "-38 is -ENOSYS: what is not there says so, and a kernel can try before it relies on something.",
        ),
        Question(
            "A kernel calls XENVER_extraversion and gives 0x1000 for the address of the buffer; nothing is mapped "
            "there. What is in rax afterwards?",
            lambda: ask(xen.HYPERVISOR_xen_version, version.XENVER_extraversion, 0x1000),
            "-14 is -EFAULT. Xen looks the address up in the guest's page tables, and survives what it finds.",
        ),
        Question(
            f"Is bit {feature} of submap 0 (XENVER_get_features) set for a PV dom0 on this host? (1 or 0)",
            lambda: _feature(feature),
            "features.h names the bits: those of a PV guest say what it must do itself, such as its p2m.",
        ),
        Question(
            f"Entering Xen costs {cost} ns on some host. How much longer do {number} calls of XENVER_version take, one "
            "by one, than as one multicall? (ns)",
            lambda: time_of(True, number, cost) - time_of(False, number, cost),
            "The work inside is the same; what a multicall saves is the way in and out.",
        ),
    ]


def _feature(number: int) -> int:
    found: list[int] = []

    def program(cpu: Cpu, start: int) -> None:
        page = free_page(boot_info(cpu, start))
        version.xen_feature_info.pack_into(cpu.view(page), 0, submap_idx=0)
        cpu.hypercall(xen.HYPERVISOR_xen_version, version.XENVER_get_features, page)
        found.append(version.xen_feature_info.unpack_from(cpu.view(page)).submap >> number & 1)

    Bench().run_dom0(program)
    return found[0]
