"""The hot loops do in place what the general operations do: same operations, same outcome, byte for byte."""

from __future__ import annotations

import random
import struct

import pytest

from hypervisor.abi import grant_table as abi

HOLE = 0x400000
SIZES = {0: abi.gnttab_map_grant_ref.size, 1: abi.gnttab_unmap_grant_ref.size, 5: abi.gnttab_copy.size}


def prepare(make_world, plain):
    world = make_world()
    dom0, domu = world.guest(), world.guest()
    grants = world.hv.grants
    grants.mapping.plain = grants.unmapping.plain = grants.copying.plain = plain
    return world, dom0, domu


def drive(world, dom0, domu, seed):
    """Run random batches; returns all that a guest could see of them."""
    choose = random.Random(seed)
    seen = []
    memory = world.hv.memory
    for page in range(6):
        domu.poke(domu.va(page), bytes(choose.randrange(256) for _ in range(64)) * 64)
    for _ in range(40):
        for ref in range(8, 16):
            if choose.random() < 0.3:
                mfn = choose.choice([*domu.pages[:6], domu.l1, dom0.pages[0], 0xFFFFFF])
                flags = choose.choice([1, 1, 1, 5, 0, 3, 0x19, 0x101, 0x29])
                domu.grant(ref, choose.choice([0, 0, 0, 1, 7]), mfn, flags)
        cmd = choose.choice([0, 0, 1, 1, 5])
        ops = [one(choose, cmd, dom0, domu) for _ in range(choose.randrange(1, 12))]
        at = dom0.args + choose.choice([0, 8, 3, 4096 - 40, 4096 - 64])
        dom0.poke(at, b"".join(ops))
        rc = dom0.raw(cmd, at, len(ops))
        seen.append((cmd, rc, dom0.peek(at, SIZES[cmd] * len(ops))))
        seen.append([domu.entry(ref) for ref in range(8, 16)])
        seen.append([domu.peek(domu.va(page), 4096) for page in range(6)])
        world.check()
    frames = world.hv.frames
    seen.append([(frames.count[mfn], frames.type_count[mfn], frames.type[mfn]) for mfn in range(frames.frames)])
    seen.append([bytes(memory.frame(dom0.hole_l1)), bytes(memory.frame(dom0.l1))])
    seen.append((dom0.table.stats, dom0.table.maptrack.flags, [list(q) for q in dom0.table.maptrack.free.values()]))
    return seen


def one(choose, cmd, dom0, domu):
    ref = choose.randrange(8, 17) if choose.random() < 0.95 else 512
    if cmd == 0:
        flags = choose.choice([1, 2, 3, 5, 6, 7, 2 | 8, 2 | 0x30000, 2 | 0x10, 0, 4])
        place = HOLE + choose.randrange(12) * 0x1000 if choose.random() < 0.9 else dom0.va(choose.randrange(4))
        return struct.pack("<QIIHhIQ", place, flags, ref, choose.choice([1, 1, 1, 1, 0, 9]), 0x55, 0xDEAD, 0x7777)
    if cmd == 1:
        place = HOLE + choose.randrange(12) * 0x1000 if choose.random() < 0.8 else 0
        bus = choose.choice(domu.pages[:6]) << 12 if choose.random() < 0.5 else 0
        return struct.pack("<QQIh2x", place, bus, choose.randrange(60), 0x55)
    source, dest = (side(choose, dom0, ref) for ref in (choose.randrange(8, 17), ref))
    flags = (source[3] and 1) | (dest[3] and 2)
    length = choose.choice([0, 1, 100, 1500, 4096, 4097])
    return struct.pack("<QHH4xQHH4xHHh2x", *source[:3], *dest[:3], length, flags, 0x55)


def side(choose, dom0, ref):
    offset = choose.choice([0, 0, 10, 3000, 4096])
    if choose.random() < 0.6:
        return ref, choose.choice([1, 1, 1, 0, 0x7FF0, 9]), offset, 1
    return choose.choice([*dom0.pages[4:7], dom0.l1, 1 << 30]), choose.choice([0x7FF0, 0x7FF0, 0x7FF0, 0, 9]), offset, 0


@pytest.mark.parametrize("seed", range(12))
def test_same_outcome(make_world, seed):
    fast = drive(*prepare(make_world, plain=False), seed)
    general = drive(*prepare(make_world, plain=True), seed)
    for number, (left, right) in enumerate(zip(fast, general, strict=True)):
        assert left == right, f"step {number}"
