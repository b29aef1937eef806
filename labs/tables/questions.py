"""The questions of lab 4."""

from __future__ import annotations

import random
from typing import Any

from hypervisor.abi import xen
from hypervisor.abi.errno import NAMES
from labs.kit.questions import Question
from labs.tables.checks import VIRT_BASE, Scene, kernel


def _called(result: int) -> str:
    return f"-{NAMES[-result]}" if result < 0 else str(result)


def _map(scene: Scene, va: int, mfn: int, bits: int) -> int:
    entry = mfn << 12 | bits
    return scene.cpu.hypercall(xen.HYPERVISOR_update_va_mapping, va, entry, xen.UVMF_INVLPG)


def _map_table_writable() -> str:
    def use(scene: Scene) -> str:
        va, _ = scene.alloc()
        return _called(_map(scene, va, scene.root, 3))

    return str(kernel(use))


def _map_table_readable() -> str:
    def use(scene: Scene) -> str:
        va, _ = scene.alloc()
        return _called(_map(scene, va, scene.root, 1))

    return str(kernel(use))


def _pin(slot: int) -> str:
    """Pin an L4 table with an entry in a slot of Xen's; say what came of it, and of a later update of the slot."""

    def use(scene: Scene) -> str:
        va, mfn = scene.alloc()
        scene.cpu.view(va).cast("Q")[slot] = scene.root << 12 | 1
        assert _map(scene, va, mfn, 1) == 0
        view = scene.cpu.view(scene.page)
        xen.mmuext_op.pack_into(view, 0, cmd=xen.MMUEXT_PIN_L4_TABLE, arg1={"mfn": mfn})
        pinned = scene.cpu.hypercall(xen.HYPERVISOR_mmuext_op, scene.page, 1, 0, xen.DOMID_SELF)
        xen.mmu_update.pack_into(view, 0, ptr=mfn << 12 | slot << 3, val=0)
        updated = scene.cpu.hypercall(xen.HYPERVISOR_mmu_update, scene.page, 1, 0, xen.DOMID_SELF)
        return f"{_called(pinned)}, {_called(updated)}"

    return str(kernel(use))


def _tables(mib: int) -> int:
    """Return how many tables map so many MiB from VIRT_BASE on."""
    pages = mib << 8
    l1 = -(-pages // 512)
    l2 = -(-l1 // 512)
    return l1 + l2 + 2


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    va = VIRT_BASE + (rng.randrange(1 << 18) << 12) + rng.randrange(4096)
    mib = rng.randrange(100, 1000)
    slot = rng.randrange(256, 272)

    def indices() -> Any:
        return " ".join(str(va >> shift & 511) for shift in (39, 30, 21, 12))

    return [
        Question(
            f"Which entries of the L4, L3, L2 and L1 table does the processor use for {va:#x}? (four numbers)",
            indices,
            "Nine bits each. All of a kernel at the top of the address space is in slot 511 of its L4 table.",
        ),
        Question(
            f"How many page tables map {mib} MiB without holes from {VIRT_BASE:#x} on, the L4 table counted?",
            lambda: _tables(mib),
            "One L1 table for each 2 MiB, one L2 for each GiB, one L3, one L4: a five hundredth, again.",
        ),
        Question(
            "A kernel maps the frame of its own L4 table somewhere, writable. What does update_va_mapping return?",
            _map_table_writable,
            "A frame has one type at a time: this one is a page table, and cannot be a writable page as well.",
        ),
        Question(
            "And read-only?",
            _map_table_readable,
            "Reading is harmless. It is how kernels walk their own tables.",
        ),
        Question(
            f"A kernel puts something into slot {slot} of a page, pins the page as an L4 table, and then sets that "
            "slot to 0 by mmu_update. What are the two results?",
            lambda: _pin(slot),
            "Slots 256 to 271 are Xen's in every address space: what was there is overwritten, and no update gets in.",
        ),
    ]
