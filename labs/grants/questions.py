"""The questions of lab 6."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from hypervisor.abi import grant_table as gt
from hypervisor.abi import xen
from labs.grants.checks import Run, Scene, kernels
from labs.kit.questions import Question

NOBODY = SimpleNamespace(Grants=lambda *arguments: None)
"""What the questions need of a submission: nothing."""


def _grant(scene: Scene, ref: int, flags: int, domid: int, mfn: int) -> None:
    gt.grant_entry_v1.pack_into(
        scene.hv.memory.b, (scene.table_frame() << 12) + 8 * ref, flags=flags, domid=domid, frame=mfn
    )


def _map(scene: Scene, va: int, ref: int, flags: int) -> Any:
    view = scene.cpu.view(scene.page)
    gt.gnttab_map_grant_ref.pack_into(view, 0, host_addr=va, flags=flags, ref=ref, dom=1)
    assert scene.cpu.hypercall(xen.HYPERVISOR_grant_table_op, gt.GNTTABOP_map_grant_ref, scene.page, 1) == 0
    return gt.gnttab_map_grant_ref.unpack_from(view)


def _flags_after(granted: int, mapped: int, times: int) -> int:
    """Return the flags of an entry that was mapped so often."""
    found: list[int] = []

    def granter(scene: Scene) -> Run:
        _grant(scene, 20, granted, 2, scene.alloc()[1])
        scene.said["ref"] = 20
        yield from scene.hear("mapped")
        found.append(scene.entry(20)[0])
        scene.said["seen"] = 1

    def grantee(scene: Scene) -> Run:
        yield from scene.hear("ref")
        for _ in range(times):
            assert _map(scene, scene.alloc()[0], 20, mapped).status == 0
        scene.said["mapped"] = 1
        yield from scene.hear("seen")

    kernels(NOBODY, granter, grantee)
    return found[0]


def _status(flags: int, domid: int, mapped: int) -> str:
    """Return the status of a mapping by domain 2 of an entry with these flags for domain `domid`."""
    found: list[str] = []

    def granter(scene: Scene) -> Run:
        _grant(scene, 20, flags, domid, scene.alloc()[1])
        scene.said["ref"] = 20
        yield from scene.hear("mapped")

    def grantee(scene: Scene) -> Run:
        yield from scene.hear("ref")
        found.append(str(_map(scene, scene.alloc()[0], 20, mapped).status))
        scene.said["mapped"] = 1

    kernels(NOBODY, granter, grantee)
    return found[0]


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    readonly = rng.choice([True, False])
    times = rng.randrange(2, 6)
    how = "read-only" if readonly else "writable"
    flags = gt.GNTMAP_host_map | (gt.GNTMAP_readonly if readonly else 0)
    ref = rng.randrange(8, 5000)
    return [
        Question(
            f"A domain grants a page (flags 1), and another maps it {times} times, each time {how}. What are the "
            "flags of the entry then?",
            lambda: _flags_after(gt.GTF_permit_access, flags, times),
            "GTF_reading is 8, GTF_writing 16. They say that somebody uses the grant, not how often.",
        ),
        Question(
            "An entry has flags 5 (permit access, read-only). What is the status of mapping it writable?",
            lambda: _status(5, 2, gt.GNTMAP_host_map),
            "-1 is GNTST_general_error; Xen's log says more.",
        ),
        Question(
            "An entry is for domain 3. What is the status if domain 2 maps it?",
            lambda: _status(1, 3, gt.GNTMAP_host_map),
            "A reference is no secret, and need not be one: the entry names who may use it.",
        ),
        Question(
            f"In which frame of the table (from 0), at which byte, is the entry of reference {ref}? (frame.byte)",
            lambda: f"{ref // 512}.{ref % 512 * 8}",
            "A frame has 512 entries of version 1. A domain begins with one and asks for more.",
        ),
    ]
