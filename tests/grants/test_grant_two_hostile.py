"""Two hostile domains, every grant operation, both versions, preemption anywhere: the accounts hold, whatever they do.

Unlike `test_grant_hostile` this has no model of what Xen must answer: it goes where a model would be as large as what
it models, and asks for no more than that everything still adds up, at each step and at the end.
"""

from __future__ import annotations

import random
import struct

from grant_world import World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen

HOLE = 0x400000
HOLES = 6
REFS = range(7, 12)
SELF = xen.DOMID_SELF

domains = st.sampled_from([0, 1])
domids = st.sampled_from([0, 1, 0, 1, 0, 1, 0, 1, SELF, 7])
refs = st.sampled_from([*REFS, *REFS, *REFS, 255, 512, 0xFFFFFFFF])
pages = st.sampled_from([0, 1, 2, 0, 1, 2, 3, 4, 5])
places = st.integers(0, HOLES - 1)
flags = st.sampled_from([1, 1, 1, 1, 5, 0x101, 2, 2, 3, 0, 0x19, 0x1FF])
map_flags = st.sampled_from([1, 2, 3, 5, 6, 7, 2 | 8, 2 | 0x70000, 2 | 16, 2, 3, 0])
counts = st.integers(1, 4)
aims = st.sampled_from([True, True, True, False])
"""Whether to name an entry of the other domain that may well be good."""


class TwoHostile(RuleBasedStateMachine):
    """Domains 0 (privileged) and 1 do everything to each other, and to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.guests = [self.world.guest(), self.world.guest()]
        self.handles: list[list[tuple[int, int, int]]] = [[], []]
        self.random = random.Random(0)

    @initialize(seed=st.integers(0, 1 << 16), often=st.sampled_from([0.0, 0.3, 1.0]))
    def preempt(self, seed, often):
        """Long operations are given up at random points."""
        for d in (0, 1):
            self.write_good_entries(d, abi.GTF_permit_access, d)
        self.random.seed(seed)
        self.world.hv.preempt.forced = lambda: self.random.random() < often

    def mfn(self, d, page):
        """A page of a domain's, its page table, a frame of its grant table, or nobody's."""
        guest = self.guests[d]
        if page == 3:
            return guest.l1
        if page == 4:
            return guest.table.shared[0]
        return 0xFFFFFF if page == 5 else guest.pages[page]

    # -- what the owner of a table writes -----------------------------------------------------------------------------

    @rule(d=domains, ref=refs, kind=flags, to=domids, page=pages, part=st.sampled_from([0, 8, 4095]), size=counts)
    def write_any_entry(self, d, ref, kind, to, page, part, size):
        self.write_entry(d, ref, kind, to, page, part, size)

    def write_entry(self, d, ref, kind, to, page, part, size):
        table = self.guests[d].table
        if ref >= table.nr_entries:
            return
        mfn = self.mfn(d, page)
        if table.version == 1:
            entry = struct.pack("<HHI", kind, to, mfn)
        elif kind & 3 == abi.GTF_transitive:
            entry = struct.pack("<HHHxxIxxxx", kind, to, 1 - d, 7 + size)
        else:
            entry = struct.pack("<HHHHQ", kind, to, part, size * 1000, mfn)
        at = table.slot[ref] << 3
        self.world.hv.memory.b[at : at + len(entry)] = entry

    @rule(d=domains, kind=st.sampled_from([1, 1, 5, abi.GTF_accept_transfer]), page=st.integers(0, 2))
    def write_good_entries(self, d, kind, page):
        """Grant a page to the other domain, or ask it for one, through every entry at once."""
        for ref in REFS:
            self.write_entry(d, ref, kind, 1 - d, page, 0, 4)

    @rule(d=domains, version=st.sampled_from([1, 2, 3]))
    def set_version(self, d, version):
        layout = abi.gnttab_set_version
        guest = self.guests[d]
        guest.poke(guest.args, layout.pack(version=version))
        assert guest.raw(abi.GNTTABOP_set_version, guest.args, 1) in (0, -11, -16, -22, -34)

    @rule(d=domains, a=refs, b=refs)
    def swap(self, d, a, b):
        op = self.guests[d].one(abi.GNTTABOP_swap_grant_ref, abi.gnttab_swap_grant_ref, ref_a=a, ref_b=b)
        assert op.status in (0, abi.GNTST_bad_gntref, abi.GNTST_eagain)

    @rule(d=domains, dom=domids, frames=st.integers(0, 3))
    def setup(self, d, dom, frames):
        self.guests[d].setup_table(frames, dom)

    def aim(self, d, dom, ref, wanted):
        return (1 - d, REFS.start + ref % len(REFS)) if wanted else (dom, ref)

    # -- what others do with it ---------------------------------------------------------------------------------------

    @rule(d=domains, dom=domids, first=refs, place=places, kind=map_flags, count=counts, aim=aims)
    def map(self, d, dom, first, place, kind, count, aim):
        guest = self.guests[d]
        dom, first = self.aim(d, dom, first, aim)
        vas = [HOLE + ((place + n) % HOLES << 12) for n in range(count)]
        wheres = [guest.pte_index(va) << 3 if kind & abi.GNTMAP_contains_pte else va for va in vas]
        ops = [
            {"host_addr": where, "flags": kind, "ref": first + n & 0xFFFFFFFF, "dom": dom}
            for n, where in enumerate(wheres)
        ]
        for op in guest.batch(abi.GNTTABOP_map_grant_ref, abi.gnttab_map_grant_ref, ops):
            assert op.status <= 0
            if not op.status:
                self.handles[d].append((op.handle, op.host_addr, op.dev_bus_addr))

    @rule(d=domains, which=st.integers(0, 50), host=st.booleans(), device=st.booleans(), replace=st.booleans())
    def unmap(self, d, which, host, device, replace):
        if not self.handles[d]:
            return
        guest = self.guests[d]
        handle, va, bus = self.handles[d][which % len(self.handles[d])]
        if replace:
            guest.replace(handle, va if host else 0, HOLE + 0x1000 if device else 0)
        else:
            guest.unmap(handle, va if host else 0, bus if device else 0)

    @rule(
        d=domains, dom=domids, ref=refs, page=pages, out=st.booleans(), offset=st.sampled_from([0, 8, 4095]), aim=aims
    )
    def copy(self, d, dom, ref, page, out, offset, aim):
        guest = self.guests[d]
        dom, ref = self.aim(d, dom, ref, aim)
        mine, theirs = (self.mfn(d, page), SELF, offset), (ref, dom, offset)
        ends = (mine, theirs) if out else (theirs, mine)
        ops = [(*ends, 1 + 500 * n, abi.GNTCOPY_dest_gref if out else abi.GNTCOPY_source_gref) for n in range(3)]
        assert all(status <= 0 for status in guest.copies(ops))

    @rule(d=domains, dom=domids, ref=refs, aim=aims)
    def transfer(self, d, dom, ref, aim):
        guest = self.guests[d]
        dom, ref = self.aim(d, dom, ref, aim)
        if guest.domain.tot_pages < 200:
            assert guest.transfer(guest.alloc(), dom, ref) <= 0

    # -- what a mapper does to its own page tables --------------------------------------------------------------------

    @rule(d=domains, place=places, page=pages, present=st.booleans())
    def change_entry(self, d, place, page, present):
        self.guests[d].set_pte(HOLE + (place << 12), self.mfn(d, page) << 12 | 0x67 if present else 0)

    @invariant()
    def everything_adds_up(self):
        self.world.check()

    def teardown(self):
        self.world.hv.preempt.forced = None
        for guest in self.guests:
            self.world.hv.domain_ops.kill(guest.domain)
        assert (list(self.world.hv.domains), self.world.leaks()) == ([], [])


TestTwoHostile = TwoHostile.TestCase
TestTwoHostile.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
