"""Preemption of the memory hypercalls: interrupted anywhere, they come to what they come to undisturbed."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from mm_world import (
    EBUSY,
    EINVAL,
    EXTRA_PFN,
    RO_TABLE,
    RW,
    TABLE,
    Guest,
    P,
    World,
)
from preemption import Points, everywhere

from hypervisor.abi import domctl, memory, xen
from hypervisor.mm.frame_table import PARTIAL

DONE_PFN = 20
Counts = tuple[bytes, bytes, bytes]


def counts(world: World) -> Counts:
    """All counts, and the types that are in use."""
    frames = world.hv.frames
    types = bytes(kind if count else 0 for kind, count in zip(frames.type, frames.type_count, strict=True))
    return frames.count.tobytes(), frames.type_count.tobytes(), types


def disturbed(work: Callable[[Guest], object], prepare: Callable[[Guest], None] = lambda _: None) -> object:
    """Do work in a domU, preempted everywhere; with a recount wherever it is. Returns what it returned."""

    def once(points: Points) -> object:
        world = World()
        guest = world.guest()
        prepare(guest)
        points.others = lambda _: world.check()
        points.on(world.hv)
        result = work(guest)
        points.off()
        world.check()
        assert not guest.vcpu.old_tables
        assert not world.hv.frames.leftovers
        assert not any(flags & PARTIAL for flags in world.hv.frames.flags)
        after = counts(world)
        world.close()
        return result, after

    result, _ = everywhere(once)  # type: ignore[misc]
    return result


def a_tree(guest: Guest) -> tuple[int, list[int]]:
    """A root over two L3 (one of them twice, and linearly) over L2 and L1 with data: (root, all tables)."""
    data = guest.mfn(guest.new_page())
    l1s = [guest.mfn(guest.new_table(dict.fromkeys(range(3), data << 12 | P | RW))) for _ in range(4)]
    l2s = [guest.mfn(guest.new_table({0: a << 12 | TABLE, 7: b << 12 | TABLE})) for a, b in (l1s[:2], l1s[2:])]
    first = guest.mfn(guest.new_table({i: l2 << 12 | TABLE for i, l2 in enumerate(l2s)}))
    second = guest.mfn(guest.new_table({0: l2s[0] << 12 | TABLE, 1: first << 12 | RO_TABLE}))
    root = guest.mfn(guest.new_table({1: first << 12 | TABLE, 2: first << 12 | TABLE, 3: second << 12 | TABLE}))
    return root, [*l1s, *l2s, first, second, root]


def several(guest: Guest, *ops: tuple[int, int]) -> tuple[int, int]:
    """Make one mmuext_op of several operations: (rc, done)."""
    raw = b"".join(struct.pack("<IIQQ", command, 0, mfn, 0) for command, mfn in ops)
    done = guest.put(b"\xff" * 4, EXTRA_PFN)
    rc = guest.call(xen.HYPERVISOR_mmuext_op, guest.put(raw), len(ops), done, xen.DOMID_SELF)
    return rc, struct.unpack("<I", guest.get(4, EXTRA_PFN))[0]


class TestMmuext:
    def test_pin_and_unpin(self) -> None:
        def work(guest: Guest) -> object:
            root, _ = a_tree(guest)
            before = guest.hv.frames.count.tobytes()
            results = [guest.pin(4, root), guest.unpin(root)]
            assert guest.hv.frames.count.tobytes() == before
            return results

        assert disturbed(work) == [0, 0]

    def test_pin_and_leave_pinned(self) -> None:
        assert disturbed(lambda guest: guest.pin(4, a_tree(guest)[0])) == 0

    def test_pin_of_a_tree_with_a_bad_leaf(self) -> None:
        # XSA-299, -309, -310: what was validated so far is released, wherever it was interrupted.
        def work(guest: Guest) -> object:
            bad = guest.mfn(guest.new_table({0: guest.root << 12 | P | RW}))
            _, tables = a_tree(guest)
            l2 = guest.mfn(
                guest.new_table({0: tables[0] << 12 | TABLE, 1: tables[1] << 12 | TABLE, 2: bad << 12 | TABLE})
            )
            l3 = guest.mfn(
                guest.new_table({0: tables[4] << 12 | TABLE, 1: tables[5] << 12 | TABLE, 9: l2 << 12 | TABLE})
            )
            root = guest.mfn(guest.new_table({0: tables[6] << 12 | TABLE, 5: l3 << 12 | TABLE}))
            before = guest.hv.frames.count.tobytes(), guest.hv.frames.type_count.tobytes()
            rc = guest.pin(4, root)
            assert (guest.hv.frames.count.tobytes(), guest.hv.frames.type_count.tobytes()) == before
            return rc

        assert disturbed(work) == EBUSY

    def test_a_batch_and_its_count(self) -> None:
        def work(guest: Guest) -> object:
            root, tables = a_tree(guest)
            pin, unpin = xen.MMUEXT_PIN_L1_TABLE, xen.MMUEXT_UNPIN_TABLE
            return several(
                guest, (pin + 3, root), (pin + 2, tables[6]), (unpin, root), (pin, tables[0]), (unpin, tables[6])
            )

        assert disturbed(work) == (0, 5)

    def test_a_batch_that_fails_after_a_release(self) -> None:
        def work(guest: Guest) -> object:
            root, tables = a_tree(guest)
            pin, unpin = xen.MMUEXT_PIN_L1_TABLE, xen.MMUEXT_UNPIN_TABLE
            return several(guest, (pin + 3, root), (unpin, root), (unpin, root), (pin, tables[0]))

        assert disturbed(work) == (EINVAL, 2)

    def test_pinned_already(self) -> None:
        def work(guest: Guest) -> object:
            root, _ = a_tree(guest)
            return [guest.pin(4, root), guest.pin(4, root), guest.unpin(root)]

        assert disturbed(work) == [0, EINVAL, 0]

    def test_roots(self) -> None:
        def work(guest: Guest) -> object:
            root, _ = a_tree(guest)
            copied = struct.unpack("<512Q", guest.hv.memory.frame(guest.root).tobytes())
            words = {i: word for i, word in enumerate(copied) if word & P and not 256 <= i <= 271}
            copy = guest.mfn(guest.new_table(words))
            return several(
                guest,
                (xen.MMUEXT_NEW_USER_BASEPTR, root),
                (xen.MMUEXT_NEW_BASEPTR, copy),
                (xen.MMUEXT_NEW_USER_BASEPTR, 0),
                (xen.MMUEXT_NEW_BASEPTR, guest.root),
            )

        assert disturbed(work) == (0, 4)


class TestMmuUpdate:
    def test_tables_come_and_go(self) -> None:
        def work(guest: Guest) -> object:
            root, tables = a_tree(guest)
            slot = (guest.root << 12) + 5 * 8
            updates = [
                (slot, tables[6] << 12 | TABLE),
                (slot + 8, tables[7] << 12 | TABLE),
                (slot, 0),
                (slot, tables[6] << 12 | TABLE),
                (slot + 8, 0),
                (slot + 8, tables[7] << 12 | TABLE),
                (slot, tables[7] << 12 | TABLE),
            ]
            return guest.mmu_update(updates), root in tables

        assert disturbed(work) == ((0, 7), True)

    def test_a_bad_one_among_them(self) -> None:
        def work(guest: Guest) -> object:
            _, tables = a_tree(guest)
            slot = (guest.root << 12) + 5 * 8
            bad = guest.mfn(guest.new_table({0: guest.root << 12 | P | RW}))
            l2 = guest.mfn(guest.new_table({0: tables[0] << 12 | TABLE, 2: bad << 12 | TABLE}))
            l3 = guest.mfn(guest.new_table({0: tables[5] << 12 | TABLE, 2: l2 << 12 | TABLE}))
            return guest.mmu_update([(slot, tables[6] << 12 | TABLE), (slot, 0), (slot, l3 << 12 | TABLE), (slot, 0)])

        assert disturbed(work) == (EBUSY, 2)

    def test_stores_into_data_and_machphys(self) -> None:
        def work(guest: Guest) -> object:
            data = guest.mfn(guest.new_page())
            updates = [(data << 12 | index << 3, index) for index in range(5)]
            updates += [(data << 12 | xen.MMU_MACHPHYS_UPDATE, 0x777)]
            return guest.mmu_update(updates), guest.hv.memory.q[data * 512 : data * 512 + 5].tolist()

        assert disturbed(work) == ((0, 6), [0, 1, 2, 3, 4])


class TestMemoryOp:
    def test_decrease_and_populate(self) -> None:
        def work(guest: Guest) -> object:
            pfns = [guest.new_page() for _ in range(6)]
            mfns = [guest.mfn(pfn) for pfn in pfns]
            for pfn in pfns:
                assert guest.update_va(guest.va(pfn), 0) == 0
            rc, _ = guest.reservation(memory.XENMEM_decrease_reservation, mfns)
            flags = 40  # (below 2**40: what makes it go one by one)
            again, new = guest.reservation(memory.XENMEM_populate_physmap, pfns, flags=flags)
            return rc, again, sorted(guest.hv.frames.m2p[mfn] for mfn in new) == pfns, guest.domain.tot_pages

        rc, again, known, pages = disturbed(work)  # type: ignore[misc]
        assert (rc, again, known, pages) == (6, 6, True, 1024)

    def test_increase_until_it_is_full(self) -> None:
        def work(guest: Guest) -> object:
            guest.domain.max_pages += 3
            rc, extents = guest.reservation(memory.XENMEM_increase_reservation, [0] * 5)
            return rc, [mfn != 0 for mfn in extents]

        assert disturbed(work) == (3, [True, True, True, False, False])

    @pytest.mark.parametrize("order", [0, 1])
    def test_exchange(self, order: int) -> None:
        def work(guest: Guest) -> object:
            pfns = [guest.new_page() for _ in range(8)]
            mfns = [guest.mfn(pfn) for pfn in pfns]
            for pfn in pfns:
                assert guest.update_va(guest.va(pfn), 0) == 0
            wanted = pfns[:: 1 << order]
            rc = guest.exchange(mfns, wanted, 0, order)
            return rc, [guest.hv.frames.m2p[mfn] for mfn in guest.exchanged] == wanted, guest.domain.tot_pages

        assert disturbed(work) == ((0, 8), True, 1024)

    def test_exchange_with_one_bad_frame(self) -> None:
        def work(guest: Guest) -> object:
            pfns = [guest.new_page() for _ in range(5)]
            for pfn in pfns[:3]:
                assert guest.update_va(guest.va(pfn), 0) == 0
            return guest.exchange([guest.mfn(pfn) for pfn in pfns], pfns), guest.domain.tot_pages

        assert disturbed(work) == ((EINVAL, 3), 1024)


def test_initialise_a_vcpu() -> None:
    # XSA-296: the other vCPU's root is validated on the way.
    def once(points: Points) -> object:
        world = World()
        guest = world.guest(vcpus=2)
        root, _ = a_tree(guest)
        context = xen.vcpu_guest_context.pack(flags=xen.VGCF_in_kernel, ctrlreg=(0, 0, 0, root << 12, 0, 0, 0, 0))
        where = guest.put(context, 100)
        points.others = lambda _: world.check()
        points.on(world.hv)
        rc = guest.call(xen.HYPERVISOR_vcpu_op, 0, 1, where)
        points.off()
        world.check()
        after = counts(world), guest.domain.vcpu(1).kernel_cr3 == root  # type: ignore[union-attr]
        world.close()
        return rc, after

    rc, (_, loaded) = everywhere(once)  # type: ignore[misc]
    assert (rc, loaded) == (0, True)


def test_reset_a_vcpu() -> None:
    # setvcpucontext without a context takes the roots away: the last use of a whole tree.
    def once(points: Points) -> object:
        world = World()
        guest = world.guest(vcpus=2)
        root, tables = a_tree(guest)
        vcpu = guest.domain.vcpu(1)
        assert vcpu is not None
        world.hv.mm.load_user_root(vcpu, root)
        op = domctl.xen_domctl.pack(
            cmd=domctl.XEN_DOMCTL_setvcpucontext,
            interface_version=domctl.XEN_DOMCTL_INTERFACE_VERSION,
            domain=1,
            u={"vcpucontext": {"vcpu": 1, "ctxt": 0}},
        )
        where = world.dom0.put(op, 21)
        points.others = lambda _: world.check()
        points.on(world.hv)
        rc = world.dom0.call(xen.HYPERVISOR_domctl, where)
        points.off()
        assert not world.hv.frames.leftovers
        assert not any(world.hv.frames.type_count[mfn] for mfn in tables)
        after = counts(world)
        world.close()
        return rc, after

    assert everywhere(once)[0] == 0  # type: ignore[index]


def destroy(world: World, domid: int) -> int:
    op = domctl.xen_domctl.pack(
        cmd=domctl.XEN_DOMCTL_destroydomain, interface_version=domctl.XEN_DOMCTL_INTERFACE_VERSION, domain=domid
    )
    return world.dom0.call(xen.HYPERVISOR_domctl, world.dom0.put(op, 21))


class TestDestroy:
    def once(self, points: Points, others: Callable[[World, Guest], None] = lambda world, _: world.check()) -> object:
        world = World()
        before = counts(world), world.hv.frames.free_frames
        guest = world.guest(pages=300)
        root, tables = a_tree(guest)
        assert guest.pin(4, root) == 0
        assert guest.pin(1, tables[0]) == 0
        assert guest.set_entry((guest.root << 12) + 300 * 8, guest.root << 12 | RO_TABLE) == 0
        dom0 = world.dom0
        kept, at = guest.mfn(200), dom0.entry_at(DONE_PFN)
        old = dom0.entry(DONE_PFN)
        assert dom0.set_entry(at, kept << 12 | P | RW, 1) == 0
        points.others = lambda _: others(world, guest)
        points.on(world.hv)
        rc = destroy(world, 1)
        points.off()
        dying, alive = guest.domain.is_dying, 1 in world.hv.domains
        again = destroy(world, 1)
        assert dom0.set_entry(at, old) == 0
        world.check()
        assert world.hv.frames.free_frames == before[1]
        assert counts(world)[:2] == before[0][:2]
        world.close()
        return rc, again, dying, alive, list(world.hv.domains)

    def test_everything_comes_back(self) -> None:
        assert everywhere(self.once) == (0, 0, 2, True, [0])

    def test_others_let_go_of_pages_meanwhile(self) -> None:
        def others(world: World, guest: Guest) -> None:
            world.check()
            dom0 = world.dom0
            assert dom0.set_entry(dom0.entry_at(DONE_PFN), 0) == 0
            world.check()
            # Its pages may still be given away by its controller, one at a time.
            dom0.reservation(memory.XENMEM_decrease_reservation, [guest.mfn(150)], domid=1)
            world.check()

        points = Points(3)
        assert self.once(points, others)[0] == 0  # type: ignore[index]
        assert points.stops == 1
