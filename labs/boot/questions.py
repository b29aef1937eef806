"""The questions of lab 2."""

from __future__ import annotations

import random
from typing import Any

from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu
from labs.kit.bench import use_domu
from labs.kit.questions import Question


def _boot(mib: int, member: str) -> int:
    found, _ = use_domu(lambda cpu, info: int(getattr(info, member)), mib=mib)
    return int(found)


def _is_mapped_at_first() -> str:
    def use(cpu: Cpu, info: Any) -> bool:
        root = cpu.view(info.pt_base, 4096, False).cast("Q")
        # Every frame that a level-1 entry of the builder's names, whatever it is.
        frames = set()
        for table in range(info.nr_pt_frames):
            view = cpu.view(info.pt_base + (table << 12), 4096, False).cast("Q")
            frames |= {entry >> 12 & 0xFF_FFFF_FFFF for entry in view if entry & 1}
        assert len(root) == 512
        return info.shared_info >> 12 in frames

    found, _ = use_domu(use)
    return "yes" if found else "no"


def _time_after(mul: int, shift: int, ticks: int) -> int:
    delta = ticks << shift if shift >= 0 else ticks >> -shift
    return delta * mul >> 32


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    mib = rng.randrange(5, 30)
    mul, shift, ticks = rng.randrange(1 << 31, 1 << 32), rng.choice([-2, -1, 1, 2]), rng.randrange(10**6, 10**9)
    vcpu = rng.randrange(1, 32)
    port = rng.randrange(4096)
    return [
        Question(
            f"A domain is built with {mib} MiB. What is start_info.nr_pages?",
            lambda: _boot(mib, "nr_pages"),
            "Pages have 4 KiB. The domain numbers them from 0: that is its pseudo-physical memory (lab 3).",
        ),
        Question(
            "Do the page tables that the builder has made map shared_info anywhere? (yes or no)",
            _is_mapped_at_first,
            "The frame is Xen's, and start_info has only its machine address: the kernel maps it itself.",
        ),
        Question(
            f"vcpu_time_info has tsc_to_system_mul {mul:#x} and tsc_shift {shift}. How many ns are {ticks} ticks of "
            "the time-stamp counter?",
            lambda: _time_after(mul, shift, ticks),
            "The factor is a fraction of 2^32; the shift keeps it between one half and one, where it is most precise.",
        ),
        Question(
            f"At which offset of shared_info is the evtchn_upcall_mask of vCPU {vcpu}?",
            lambda: xen.shared_info.offset(f"vcpu_info[{vcpu}].evtchn_upcall_mask"),
            "A vcpu_info has 64 bytes, a cache line: vCPUs do not disturb each other.",
        ),
        Question(
            f"Which byte of shared_info, and which bit of it (0 to 7), is the pending bit of event channel {port}? "
            "(byte.bit)",
            lambda: f"{xen.shared_info.offset('evtchn_pending') + port // 8}.{port % 8}",
            "Words have 64 bits, but the machine is little endian: counted in bytes it is the same.",
        ),
    ]
