"""XEN_DOMCTL_shadow_op: which pages a domain has written, whoever did it; and what is refused."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
from bare_guest import RW_PAGE
from core_world import World
from preemption import ALWAYS, Points, everywhere

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.abi import grant_table as gnt
from hypervisor.mm.log_dirty import LEAF_BITS

OFF, TEST, ENABLE_LOG, ENABLE = (
    abi.XEN_DOMCTL_SHADOW_OP_OFF,
    abi.XEN_DOMCTL_SHADOW_OP_ENABLE_TEST,
    abi.XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY,
    abi.XEN_DOMCTL_SHADOW_OP_ENABLE,
)
CLEAN, PEEK = abi.XEN_DOMCTL_SHADOW_OP_CLEAN, abi.XEN_DOMCTL_SHADOW_OP_PEEK
GET, SET = abi.XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION, abi.XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION
EBUSY, EFAULT, EINVAL, ENOMEM, EPERM = (
    -errno.EBUSY,
    -errno.EFAULT,
    -errno.EINVAL,
    -errno.ENOMEM,
    -errno.EPERM,
)
BITMAP = 3
"""The page of dom0's that bitmaps are copied to."""
NOWHERE = 0x700000


def shadow(guest, op, domid=1, **fields):
    """Returns the result, and what Xen left in the structure."""
    rc, left = guest.call(
        xen.HYPERVISOR_domctl,
        layout=abi.xen_domctl,
        cmd=abi.XEN_DOMCTL_shadow_op,
        interface_version=abi.XEN_DOMCTL_INTERFACE_VERSION,
        domain=domid,
        u={"shadow_op": {"op": op, **fields}},
    )
    return rc, left.u.shadow_op


def rc_of(guest, op, domid=1, **fields):
    return shadow(guest, op, domid, **fields)[0]


def number(guest):
    """Give all pages of a domain numbers, as its builder does."""
    for pfn, mfn in enumerate(list(guest.hv.frames.pages(guest.hv.frames.page_list(guest.domain)))):
        guest.hv.frames.set_gpfn(mfn, pfn)


def dirty(pair, op=CLEAN, pages=64):
    """Returns the page numbers that are dirty."""
    at = pair.dom0.va(BITMAP)
    pair.dom0.poke(at, b"\xff" * 4096)
    rc, left = shadow(pair.dom0, op, dirty_bitmap=at, pages=pages)
    assert rc == 0
    bits = int.from_bytes(pair.dom0.peek(at, pages + 7 >> 3), "little")
    found = {pfn for pfn in range(pages) if bits >> pfn & 1}
    assert left.pages == pages
    assert left.stats.dirty_count == len(found)
    return found


def make_pair():
    world = World()
    return SimpleNamespace(dom0=world.guest(), domu=world.guest(vcpus=2), world=world, hv=world.hv)


def window(guest):
    """Returns the address of 4 MiB, behind which is one page only."""
    q, alloc = guest.hv.memory.q, guest.hv.frames.alloc
    target = alloc(guest.domain)
    for index in (8, 9):
        table = alloc(guest.domain)
        for entry in range(512):
            q[(table << 9) + entry] = target << 12 | RW_PAGE
        assert guest.mmu_update((guest.l2 << 9) + index, table << 12 | RW_PAGE) == 0
    return 8 << 21


def pfn_of(guest, page):
    return guest.hv.frames.m2p[guest.pages[page]]


@pytest.fixture
def logged(pair):
    """Dom0, and domain 1 whose dirty pages are logged."""
    number(pair.domu)
    assert rc_of(pair.dom0, ENABLE_LOG) == 0
    yield pair
    assert rc_of(pair.dom0, OFF) == 0


class TestDirtyPages:
    def test_nothing_is_dirty_at_first(self, logged):
        assert dirty(logged) == set()

    def test_the_guests_own_stores(self, logged):
        logged.domu.poke(logged.domu.va(5) + 8, b"x")
        logged.domu.poke(logged.domu.va(7) + 4095, b"x")
        pages = {pfn_of(logged.domu, 5), pfn_of(logged.domu, 7)}
        assert dirty(logged, PEEK) == pages
        assert dirty(logged, PEEK) == pages
        assert dirty(logged) == pages
        assert dirty(logged) == set()
        logged.domu.poke(logged.domu.va(5) + 8, b"y")
        assert dirty(logged) == {pfn_of(logged.domu, 5)}

    def test_a_page_that_got_its_old_contents_back_before_anybody_looked_is_clean_and_after_that_dirty(self, logged):
        logged.domu.poke(logged.domu.va(5), b"x")
        assert dirty(logged, PEEK) == {pfn_of(logged.domu, 5)}
        logged.domu.poke(logged.domu.va(5), b"\0")
        assert dirty(logged) == {pfn_of(logged.domu, 5)}
        logged.domu.poke(logged.domu.va(5), b"x")
        logged.domu.poke(logged.domu.va(5), b"\0")
        assert dirty(logged) == set()

    def test_what_xen_writes(self, logged):
        domu = logged.domu
        assert domu.hypercall(xen.HYPERVISOR_xen_version, 1, domu.va(9)) == 0
        changed = dirty(logged)
        assert changed == {pfn_of(domu, 9)}
        # A page table, changed by mmu_update; the request is in a page of its own.
        assert domu.set_pte(domu.va(4), 0) == 0
        m2p = logged.hv.frames.m2p
        assert dirty(logged) == {m2p[domu.l1], m2p[domu.scratch[-1]]}

    def test_a_grant_copy_and_a_store_through_a_mapping(self, logged):
        domu, dom0 = logged.domu, logged.dom0
        setup = gnt.gnttab_setup_table.pack(dom=xen.DOMID_SELF, nr_frames=1, frame_list=domu.va(1))
        domu.poke(domu.args, setup)
        assert domu.hypercall(xen.HYPERVISOR_grant_table_op, gnt.GNTTABOP_setup_table, domu.args, 1) == 0
        (table,) = struct.unpack("<Q", domu.peek(domu.va(1), 8))
        entry = gnt.grant_entry_v1.pack(flags=gnt.GTF_permit_access, domid=0, frame=domu.pages[6])
        logged.hv.memory.b[(table << 12) + 64 : (table << 12) + 72] = entry
        dirty(logged)
        mapping = gnt.gnttab_map_grant_ref.pack(host_addr=dom0.va(10), flags=gnt.GNTMAP_host_map, ref=8, dom=1)
        dom0.poke(dom0.args, mapping)
        assert dom0.hypercall(xen.HYPERVISOR_grant_table_op, gnt.GNTTABOP_map_grant_ref, dom0.args, 1) == 0
        left = gnt.gnttab_map_grant_ref.unpack(dom0.peek(dom0.args, gnt.gnttab_map_grant_ref.size))
        assert left.status == 0
        assert dirty(logged) == set()
        dom0.poke(dom0.va(10) + 100, b"hello")
        assert dirty(logged) == {pfn_of(domu, 6)}
        unmapping = gnt.gnttab_unmap_grant_ref.pack(host_addr=dom0.va(10), handle=left.handle)
        dom0.poke(dom0.args, unmapping)
        assert dom0.hypercall(xen.HYPERVISOR_grant_table_op, gnt.GNTTABOP_unmap_grant_ref, dom0.args, 1) == 0

    def test_another_frame_behind_a_page_number(self, logged):
        domu = logged.domu
        pfn = pfn_of(domu, 8)
        domu.poke(domu.spare, struct.pack("<QQ", domu.pages[8] << 12 | xen.MMU_MACHPHYS_UPDATE, 50))
        dirty(logged)
        assert domu.hypercall(xen.HYPERVISOR_mmu_update, domu.spare, 1, 0, xen.DOMID_SELF) == 0
        assert dirty(logged) == {50}
        assert pfn != 50

    def test_only_the_leaves_that_were_asked_for_are_cleared_and_those_wholly(self, logged):
        domu, dom0 = logged.domu, logged.dom0
        far = 2 * LEAF_BITS + 3
        logged.hv.frames.set_gpfn(domu.pages[2], far)
        assert rc_of(dom0, PEEK) == 0
        domu.poke(domu.va(3), b"x")
        near = pfn_of(domu, 3)
        # Eight pages only, but they are in the same leaf as the one that was written.
        assert near >= 8
        assert rc_of(dom0, CLEAN, dirty_bitmap=dom0.va(BITMAP), pages=8) == 0
        rc, left = shadow(dom0, PEEK, dirty_bitmap=dom0.va(BITMAP), pages=3 * LEAF_BITS)
        # (The count was begun anew for all.)
        assert (rc, left.stats.dirty_count) == (0, 0)
        assert int.from_bytes(dom0.peek(dom0.va(BITMAP), 3 * 4096), "little") == 1 << far

    def test_a_bitmap_is_not_written_beyond_its_end(self, logged):
        logged.domu.poke(logged.domu.va(5), b"x")
        at = logged.dom0.va(BITMAP)
        logged.dom0.poke(at, b"\xff" * 8)
        rc, left = shadow(logged.dom0, PEEK, dirty_bitmap=at, pages=9)
        assert (rc, left.pages) == (0, 9)
        assert logged.dom0.peek(at + 2, 6) == b"\xff" * 6

    def test_without_a_bitmap_there_are_numbers_only(self, logged):
        logged.domu.poke(logged.domu.va(5), b"x")
        rc, left = shadow(logged.dom0, CLEAN, pages=1 << 60)
        assert (rc, left.pages, left.stats.dirty_count) == (0, 1 << 42, 1)
        assert dirty(logged) == set()

    def test_a_bitmap_that_is_nowhere(self, logged):
        logged.domu.poke(logged.domu.va(5), b"x")
        rc, left = shadow(logged.dom0, CLEAN, dirty_bitmap=NOWHERE, pages=64)
        assert (rc, left.stats.dirty_count, left.pages) == (EFAULT, 1, 64)
        assert dirty(logged) == {pfn_of(logged.domu, 5)}


class TestModes:
    def test_twice_is_refused(self, pair):
        assert [rc_of(pair.dom0, op) for op in (ENABLE_LOG, ENABLE_LOG, TEST, OFF, OFF)] == [0, EINVAL, EINVAL, 0, 0]
        assert [rc_of(pair.dom0, op) for op in (TEST, TEST, ENABLE_LOG, OFF, ENABLE_LOG, OFF)] == [
            0,
            EINVAL,
            0,
            0,
            0,
            0,
        ]

    @pytest.mark.parametrize(
        ("mode", "rc"),
        [
            (abi.XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY, 0),
            # Whatever else is asked for.
            (abi.XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY | 1 << 20, 0),
            (0, 0),
            (1 << 31, 0),
            (1, EINVAL),
            (1 << 5, EINVAL),
            (abi.XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT, EINVAL),
            # All three: not for a domain that has memory.
            (0b11010, EINVAL),
        ],
    )
    def test_modes_by_their_bits(self, pair, mode, rc):
        assert rc_of(pair.dom0, ENABLE, mode=mode) == rc
        assert rc_of(pair.dom0, ENABLE, mode=mode) == (EINVAL if rc == 0 else rc)
        assert rc_of(pair.dom0, OFF) == 0

    def test_who_and_whom(self, pair):
        assert rc_of(pair.domu, ENABLE_LOG) == EPERM
        assert rc_of(pair.dom0, ENABLE_LOG, 0) == EINVAL
        assert [rc_of(pair.dom0, op) for op in (3, 10, 13, 33, 99)] == [EINVAL] * 5
        assert [rc_of(pair.dom0, op, mode=2) for op in (PEEK, CLEAN)] == [EINVAL] * 2
        assert rc_of(pair.dom0, PEEK, mode=abi.XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL) == 0

    def test_a_log_that_is_not_kept_is_empty(self, pair):
        pair.domu.poke(pair.domu.va(5), b"x")
        assert dirty(pair) == set()

    def test_a_domain_that_dies_meanwhile(self, pair):
        assert rc_of(pair.dom0, ENABLE_LOG) == 0
        # It lives as long as somebody maps a page of it.
        pair.hv.frames.get_page(pair.domu.pages[0], pair.domu.domain)
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert [rc_of(pair.dom0, op) for op in (ENABLE_LOG, PEEK, OFF, 99)] == [0] * 4
        pair.hv.frames.put_page(pair.domu.pages[0])


class TestPool:
    def test_log_dirty_mode_costs_memory(self, pair):
        free = pair.hv.frames.free_frames
        assert shadow(pair.dom0, GET)[1].mb == 0
        assert rc_of(pair.dom0, ENABLE_LOG) == 0
        # 128 frames for each of the two vCPUs; the domain has less than a MiB.
        assert free - pair.hv.frames.free_frames == 256
        assert shadow(pair.dom0, GET)[1].mb == 1
        assert rc_of(pair.dom0, SET, mb=0) == EINVAL
        assert rc_of(pair.dom0, OFF) == 0
        assert pair.hv.frames.free_frames == free

    def test_its_size_can_be_set(self, pair):
        free = pair.hv.frames.free_frames
        assert [shadow(pair.dom0, SET, mb=mb)[1].mb for mb in (2, 3, 1)] == [2, 3, 1]
        assert free - pair.hv.frames.free_frames == 256
        # As on a real one, a number too large for 32 bits of frames is cut.
        rc, left = shadow(pair.dom0, SET, mb=1 << 24)
        assert (rc, left.mb) == (0, 0)
        assert pair.hv.frames.free_frames == free

    def test_memory_may_be_short(self, pair):
        free = pair.hv.frames.free_frames
        assert rc_of(pair.dom0, SET, mb=1 << 20) == ENOMEM
        assert pair.hv.frames.free_frames == 0
        assert rc_of(pair.dom0, SET, mb=0) == 0
        held = [pair.hv.frames.alloc_xen() for _ in range(free - 100)]
        assert rc_of(pair.dom0, ENABLE_LOG) == ENOMEM
        assert pair.hv.frames.free_frames == 100
        for mfn in held:
            pair.hv.frames.free_xen(mfn)

    def test_a_domain_takes_it_with_it(self, pair):
        free = pair.hv.frames.free_frames
        used = pair.domu.domain.tot_pages
        assert rc_of(pair.dom0, SET, mb=2) == 0
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert pair.hv.frames.free_frames >= free + used

    def test_setting_it_is_preemptible(self):
        def work(points):
            pair = make_pair()
            points.on(pair.hv)
            result = shadow(pair.dom0, SET, mb=1)
            points.off()
            return result[0], result[1].mb, pair.hv.frames.free_frames

        points = Points(ALWAYS)
        undisturbed = work(Points())
        assert undisturbed[:2] == (0, 1)
        assert work(points) == undisturbed
        assert points.stops == 256


class TestInterruption:
    HUGE = 2 * 512 * LEAF_BITS

    def _start(self, pair):
        """(The bitmap is so large that Xen looks up in between.)"""
        number(pair.domu)
        assert rc_of(pair.dom0, ENABLE_LOG) == 0
        pair.domu.poke(pair.domu.va(5), b"x")

    def test_others_are_told_to_wait_and_the_domain_is_paused(self, pair):
        self._start(pair)
        at = window(pair.dom0)
        seen = []

        def others(_vcpu):
            seen.append(
                (
                    pair.domu.domain.pause_count,
                    rc_of(pair.dom0, ENABLE_LOG),
                    rc_of(pair.dom0, PEEK),
                    rc_of(pair.dom0, GET),
                )
            )
            # The structure is where it was.
            pair.dom0.poke(pair.dom0.args, request)

        points = Points(ALWAYS)
        points.others = others
        fields = {"op": CLEAN, "dirty_bitmap": at, "pages": self.HUGE}
        request = abi.xen_domctl.pack(
            cmd=abi.XEN_DOMCTL_shadow_op,
            interface_version=abi.XEN_DOMCTL_INTERFACE_VERSION,
            domain=1,
            u={"shadow_op": fields},
        )
        points.on(pair.hv)
        rc, left = shadow(pair.dom0, **fields)
        points.off()
        assert (rc, left.pages, left.stats.dirty_count) == (0, self.HUGE, 1)
        assert points.stops == 2
        # (The domains of these tests are paused to begin with.)
        assert seen == [(2, EBUSY, EBUSY, 0)] * 2
        assert pair.domu.domain.pause_count == 1
        assert dirty(pair) == set()
        assert rc_of(pair.dom0, OFF) == 0

    def test_it_comes_to_the_same(self):
        def work(points):
            pair = make_pair()
            self._start(pair)
            at = window(pair.dom0)
            points.on(pair.hv)
            rc, left = shadow(pair.dom0, PEEK, dirty_bitmap=at, pages=self.HUGE)
            points.off()
            return rc, left.pages, left.stats.dirty_count, pair.domu.domain.pause_count

        assert everywhere(work, least=2) == (0, self.HUGE, 1, 1)
