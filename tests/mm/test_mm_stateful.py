"""Two hostile domains do whatever they like with their memory; after each step every count is recounted."""

import itertools
import struct

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from mm_world import EXTRA_PFN, PCD, PSE, RW, US, Guest, P, World

from hypervisor.abi import memory, xen
from hypervisor.mm.frame_table import ERESTART
from hypervisor.preempt import Restart

PAGES = 192
PLAY = list(range(40, 56))
"""The pages that the domains play with; what they need to make hypercalls stays out of it."""
FLAGS = st.sampled_from([0, P, P | RW, P | US, P | RW | US, P | RW | US, P | US, P | RW | PCD, P | PSE, P | RW | 0x200])
WHO = st.integers(0, 1)
PAGE = st.sampled_from(PLAY)
SLOT = st.sampled_from([0, 1, 5, 255, 256, 258, 271, 272, 511])
LEVEL = st.integers(1, 4)
BUDGET = st.integers(0, 3)


class Hostile(RuleBasedStateMachine):
    """Frames are named by domain and page, so that steps shrink well; the p2m follows exchanges."""

    @initialize()
    def boot(self) -> None:
        self.world = World(16)
        self.guests = [self.world.guest(1, pages=PAGES, vcpus=1), self.world.guest(2, pages=PAGES, vcpus=1)]
        self.step = 0

    def frame(self, who: int, pfn: int) -> int:
        return self.guests[who].mfn(pfn)

    @rule(who=WHO, va_page=PAGE, owner=WHO, pfn=PAGE, flags=FLAGS)
    def update_va(self, who: int, va_page: int, owner: int, pfn: int, flags: int) -> None:
        guest = self.guests[who]
        guest.update_va(guest.va(va_page), self.frame(owner, pfn) << 12 | flags)

    @rule(who=WHO, pfn=PAGE)
    def unmap(self, who: int, pfn: int) -> None:
        guest = self.guests[who]
        guest.update_va(guest.va(pfn), 0)

    @rule(who=WHO, table=PAGE, slot=SLOT, owner=WHO, pfn=PAGE, flags=FLAGS, command=st.sampled_from([0, 2, 3]))
    def mmu_update(self, who: int, table: int, slot: int, owner: int, pfn: int, flags: int, command: int) -> None:
        guest = self.guests[who]
        guest.set_entry((guest.mfn(table) << 12) + slot * 8 + command, self.frame(owner, pfn) << 12 | flags)

    @rule(who=WHO, table=PAGE, slots=st.dictionaries(SLOT, st.tuples(WHO, PAGE, FLAGS), max_size=4))
    def write_page(self, who: int, table: int, slots: dict[int, tuple[int, int, int]]) -> None:
        """Store what could be page table entries, if the page is mapped writable."""
        guest = self.guests[who]
        if guest.entry(table) & (P | RW) == P | RW and guest.entry(table) >> 12 & 0xFFFFFFFFFF == guest.mfn(table):
            words = {slot: self.frame(owner, pfn) << 12 | flags for slot, (owner, pfn, flags) in slots.items()}
            guest.write_page(table, words)

    @rule(who=WHO, level=LEVEL, pfn=PAGE, own=st.booleans())
    def readonly_and_pin(self, who: int, level: int, pfn: int, own: bool) -> None:
        guest = self.guests[who if own else 1 - who]
        self.guests[who].make_readonly(pfn)
        self.guests[who].pin(level, guest.mfn(pfn))

    @rule(who=WHO, levels=st.lists(st.tuples(LEVEL, SLOT, PAGE, PAGE, FLAGS), min_size=1, max_size=4))
    def build_tree(self, who: int, levels: list[tuple[int, int, int, int, int]]) -> None:
        """Make tables point at each other, often in the right order, and pin the last."""
        guest = self.guests[who]
        for level, slot, table, lower, flags in levels:
            self.write_page(who, table, {slot: (who, lower, flags)})
            guest.make_readonly(table)
            guest.pin(level, guest.mfn(table))

    @rule(who=WHO, level=st.integers(2, 4), first=PAGE, second=PAGE, slots=st.lists(SLOT, min_size=1, max_size=3))
    def build_linear(self, who: int, level: int, first: int, second: int, slots: list[int]) -> None:
        """A table that names another of its own level, or itself."""
        guest = self.guests[who]
        self.write_page(who, first, {})
        guest.make_readonly(first)
        guest.pin(level, guest.mfn(first))
        self.write_page(who, second, dict.fromkeys(slots, (who, first, P | US)))
        guest.make_readonly(second)
        guest.pin(level, guest.mfn(second))

    @rule(
        who=WHO,
        pfns=st.lists(PAGE, min_size=5, max_size=5, unique=True),
        slots=st.lists(SLOT, min_size=1),
        pin=LEVEL,
        budget=BUDGET,
    )
    def build_down(self, who: int, pfns: list[int], slots: list[int], pin: int, budget: int) -> None:
        """A page, and a table of each level over the one before; one is pinned, or its validation interrupted."""
        guest = self.guests[who]
        for lower, table in itertools.pairwise(pfns):
            self.write_page(who, table, dict.fromkeys(slots, (who, lower, P | RW | US if lower == pfns[0] else P | US)))
            guest.make_readonly(table)
        if budget:
            self.interrupted_validation(who, pfns[pin], budget - 1, pin)
        else:
            guest.pin(pin, guest.mfn(pfns[pin]))

    @rule(who=WHO, pfn=PAGE)
    def unpin(self, who: int, pfn: int) -> None:
        self.guests[who].unpin(self.guests[who].mfn(pfn))

    @rule(who=WHO, pfns=st.lists(PAGE, min_size=1, max_size=3))
    def decrease(self, who: int, pfns: list[int]) -> None:
        guest = self.guests[who]
        guest.reservation(memory.XENMEM_decrease_reservation, [guest.mfn(pfn) for pfn in pfns])

    @rule(who=WHO, pfn=PAGE)
    def populate(self, who: int, pfn: int) -> None:
        guest = self.guests[who]
        rc, [mfn] = guest.reservation(memory.XENMEM_populate_physmap, [pfn])
        if rc:
            guest.p2m[pfn] = mfn

    @rule(who=WHO, pfns=st.lists(PAGE, min_size=1, max_size=4, unique=True), order=st.integers(0, 2))
    def exchange(self, who: int, pfns: list[int], order: int) -> None:
        guest = self.guests[who]
        if len(pfns) % (1 << order):
            return
        wanted = pfns[:: 1 << order]
        _, done = guest.exchange([guest.mfn(pfn) for pfn in pfns], wanted, 0, order)
        for index, mfn in enumerate(guest.exchanged[: done >> order]):
            for offset in range(1 << order):
                guest.p2m[pfns[(index << order) + offset]] = mfn + offset

    @rule(who=WHO, pfn=PAGE)
    def new_user_root(self, who: int, pfn: int) -> None:
        guest = self.guests[who]
        guest.mmuext(xen.MMUEXT_NEW_USER_BASEPTR, guest.mfn(pfn))

    @rule(who=WHO)
    def no_user_root(self, who: int) -> None:
        self.guests[who].mmuext(xen.MMUEXT_NEW_USER_BASEPTR, 0)

    @rule(who=WHO, pfns=st.lists(PAGE, max_size=2))
    def set_gdt(self, who: int, pfns: list[int]) -> None:
        guest = self.guests[who]
        raw = struct.pack(f"<{len(pfns)}Q", *(guest.mfn(pfn) for pfn in pfns)) + b"\0"
        guest.call(xen.HYPERVISOR_set_gdt, guest.put(raw, EXTRA_PFN), 512 * len(pfns))

    @rule(owner=WHO, pfn=PAGE, at=PAGE, flags=FLAGS, foreign=st.booleans())
    def dom0_maps(self, owner: int, pfn: int, at: int, flags: int, foreign: bool) -> None:
        dom0 = self.world.dom0
        domid = self.guests[owner].domain.domid
        value = self.frame(owner, pfn) << 12 | flags
        dom0.set_entry(dom0.entry_at(at), value, domid if foreign else xen.DOMID_SELF)

    @rule(owner=WHO, pfn=PAGE, budget=BUDGET, level=LEVEL)
    def interrupt(self, owner: int, pfn: int, budget: int, level: int) -> None:
        self.interrupted_validation(owner, pfn, budget, level)

    def interrupted_validation(self, owner: int, pfn: int, budget: int, level: int) -> None:
        """What an interrupted hypercall leaves behind if the guest never goes on with it."""
        frames, types = self.world.hv.frames, self.world.hv.mm.types
        guest = self.guests[owner]
        mfn = guest.mfn(pfn)
        left = [budget]

        def preempt() -> bool:
            left[0] -= 1
            return left[0] < 0

        if frames.get_page(mfn, guest.domain):
            usual, types.preempt = types.preempt, preempt
            error = frames.take_type(mfn, level)
            types.preempt = usual
            self.world.hv.mm.holders.append(lambda: [(mfn, 0 if error else level)])
            self.world.check()
            self.world.hv.mm.holders.pop()
            if not error:
                while frames.put_page_type(mfn) == ERESTART:
                    pass
            frames.put_page(mfn)

    @rule(pattern=st.sampled_from([0, 0, 1, 0b01, 0b110, 0b0010]))
    def preempt(self, pattern: int) -> None:
        """From now on hypercalls are preempted at some of their points, or (0) at none."""
        preempt = self.world.hv.preempt
        asked = itertools.count()
        length = max(pattern.bit_length(), 1)
        preempt.forced = (lambda: bool(pattern >> next(asked) % length & 1)) if pattern else None
        preempt.between = lambda _: self.world.check()

    @rule(who=WHO, table=PAGE, at=PAGE, slot=SLOT, owner=WHO, pfn=PAGE, flags=FLAGS, size=st.sampled_from([1, 4, 8]))
    def store_into_table(
        self, who: int, table: int, at: int, slot: int, owner: int, pfn: int, flags: int, size: int
    ) -> None:
        """What a store of the guest's into a page table does that it has mapped read-only."""
        guest = self.guests[who]
        guest.map(at, guest.mfn(table), P)
        tables, va = self.world.hv.mm.writable_tables, guest.va(at) + slot * 8
        if tables.covers(guest.vcpu, va):
            tables.store(guest.vcpu, va, va, size, self.frame(owner, pfn) << 12 | flags)

    @rule(who=WHO, on=st.booleans())
    def assist(self, who: int, on: bool) -> None:
        cmd = xen.VMASST_CMD_enable if on else xen.VMASST_CMD_disable
        for kind in (xen.VMASST_TYPE_writable_pagetables, xen.VMASST_TYPE_m2p_strict):
            self.guests[who].call(xen.HYPERVISOR_vm_assist, cmd, kind)

    @rule(who=WHO, pfn=PAGE)
    def die_and_come_back(self, who: int, pfn: int) -> None:
        """Its destruction may be preempted; meanwhile the controller takes a page of it away, and lets another go."""
        self.step += 1
        dom0 = self.world.dom0
        domid = self.guests[who].domain.domid
        while True:
            try:
                self.world.kill(self.guests[who])
                break
            except Restart:
                self.world.check()
                dom0.reservation(memory.XENMEM_decrease_reservation, [self.guests[who].mfn(pfn)], domid=domid)
                dom0.set_entry(dom0.entry_at(pfn), 0)
                self.world.check()
        self.world.check()
        preempt = self.world.hv.preempt
        preempt.forced, forced = None, preempt.forced
        self.guests[who] = Guest(self.world.hv, 2 + self.step, pages=PAGES)
        preempt.forced = forced

    @invariant()
    def every_count_is_right(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.hv.preempt.forced = None
            for pfn in PLAY:
                assert self.world.dom0.make_writable(pfn) == 0
            self.world.close()


TestHostile = Hostile.TestCase
TestHostile.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
