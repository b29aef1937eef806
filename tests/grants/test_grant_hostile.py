"""Two hostile domains against a small model: what they do to each other's grants, and what Xen must answer."""

from __future__ import annotations

import attrs
from grant_world import World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hypervisor.abi import grant_table as abi
from hypervisor.grant_table.check import check_grants

HOST, DEVICE, RO = abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly
OK, GENERAL, BAD_REF, BAD_PAGE = (
    abi.GNTST_okay,
    abi.GNTST_general_error,
    abi.GNTST_bad_gntref,
    abi.GNTST_bad_page,
)
HOLE = 0x400000
REFS = range(8, 12)
PAGES = 3
PAGE_TABLE = PAGES
NOWHERE = PAGES + 1
LIMIT = 128

domains = st.sampled_from([0, 1])
refs = st.sampled_from([*REFS, 512])
entry_flags = st.sampled_from([1, 1, 1, 1, 5, 5, 0, 2, 3, 0x19, 0x1D, 0x08, 0x101, 0xFFFF])
kinds = st.sampled_from([HOST, HOST | RO, DEVICE, DEVICE | RO, HOST | DEVICE, HOST | DEVICE | RO])


@attrs.define
class Entry:
    """What the granter wrote, and what Xen remembers of an entry in use."""

    flags: int = 0
    domid: int = 0
    page: int = NOWHERE
    pinned_page: int = NOWHERE
    pinned_by: int = -1
    uses: list[tuple[str, bool]] = attrs.Factory(list)

    def writers(self) -> int:
        return sum(1 for _, readonly in self.uses if not readonly)


@attrs.frozen
class Mapping:
    """A live handle. `parts` is what is left of it."""

    mapper: int
    granter: int
    ref: int
    handle: int
    va: int
    readonly: bool
    parts: frozenset[str]
    visible: bool


class HostileDomains(RuleBasedStateMachine):
    """Domains 0 and 1 grant, map, rewrite and copy at will."""

    mappings = Bundle("mappings")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.guests = [self.world.guest(privileged=False) for _ in range(2)]
        self.entries = [{ref: Entry() for ref in REFS} for _ in range(2)]
        self.next_hole = [0, 0]
        self.live: set[Mapping] = set()
        self.bytes = [[bytes([16 * d + p]) for p in range(PAGES)] for d in range(2)]
        for d, guest in enumerate(self.guests):
            for p in range(PAGES):
                guest.poke(guest.va(p), self.bytes[d][p] * 4096)

    def mfn(self, domid: int, page: int) -> int:
        guest = self.guests[domid]
        return guest.l1 if page == PAGE_TABLE else 0xFFFFFF if page == NOWHERE else guest.pages[page]

    # -- what granters do ---------------------------------------------------------------------------------------------

    @rule(
        d=domains,
        ref=st.sampled_from(REFS),
        to=st.sampled_from([0, 1, 1, 0, 7]),
        page=st.integers(0, NOWHERE),
        flags=entry_flags,
    )
    def write_entry(self, d, ref, to, page, flags):
        """Anything may be written at any time, be the entry in use or not."""
        self.guests[d].grant(ref, to, self.mfn(d, page), flags)
        entry = self.entries[d][ref]
        entry.flags, entry.domid, entry.page = flags, to, page

    @rule(d=domains, ref=st.sampled_from(REFS), flags=entry_flags)
    def rewrite_flags(self, d, ref, flags):
        self.guests[d].set_flags(ref, flags)
        self.entries[d][ref].flags = flags

    @rule(d=domains, ref=st.sampled_from(REFS))
    def end_access(self, d, ref):
        """As a decent granter does it: only when Xen's bits say that nobody uses the entry."""
        if not self.guests[d].flags(ref) & 0x18:
            self.rewrite_flags(d, ref, 0)

    # -- what mappers do ----------------------------------------------------------------------------------------------

    @rule(target=mappings, mapper=domains, granter=domains, ref=refs, kind=kinds)
    def map(self, mapper, granter, ref, kind):
        va = HOLE + 0x1000 * self.next_hole[mapper]
        if kind & HOST:
            if self.next_hole[mapper] == 511:
                return multiple()
            self.next_hole[mapper] += 1
        op = self.guests[mapper].map(granter, ref, va if kind & HOST else 0, kind)
        expected = self.begin(mapper, granter, ref, kind, mapping=True)
        assert op.status == expected
        if expected:
            assert (op.handle, op.dev_bus_addr) == (0xDEAD, 0x7777)
            return multiple()
        entry = self.entries[granter][ref]
        assert op.dev_bus_addr == self.mfn(granter, entry.pinned_page) << 12
        parts = frozenset(name for name, bit in (("host", HOST), ("device", DEVICE)) if kind & bit)
        made = Mapping(mapper, granter, ref, op.handle, va, bool(kind & RO), parts, True)
        self.live.add(made)
        return made

    def begin(self, user, granter, ref, kind, *, mapping):
        """The model of a map or a copy: the status, and what it does to the entry."""
        if ref not in REFS:
            return BAD_REF
        entry = self.entries[granter][ref]
        readonly = bool(kind & RO)
        names = [name for name, bit in (("host", HOST), ("device", DEVICE)) if kind & bit]
        if entry.uses:
            full = any(entry.uses.count((name, readonly)) >= LIMIT for name in names)
            if entry.pinned_by != user or full:
                return GENERAL
        elif (
            entry.flags & 3 != abi.GTF_permit_access
            or entry.domid != user
            or (mapping and entry.flags & abi.GTF_sub_page)
        ):
            return GENERAL
        named = entry.pinned_page if entry.uses else entry.page
        if not entry.uses or not (readonly or entry.writers()):
            if not readonly and entry.flags & abi.GTF_readonly:
                return GENERAL
            entry.flags |= 0x08 if readonly else 0x18
            if not mapping:
                # A copy that is the first writer looks at the frame again.
                named = entry.page
        page = entry.pinned_page if entry.uses else entry.page
        writes_table = page == PAGE_TABLE and not readonly
        status = BAD_PAGE if named == NOWHERE else GENERAL if named != page or writes_table else OK
        if status:
            self.settle(entry, readonly)
            return status
        entry.pinned_page, entry.pinned_by = page, user
        entry.uses += [(name, readonly) for name in names]
        return OK

    def settle(self, entry, readonly):
        """The model of giving up: the bits that nobody needs go."""
        if not readonly and not entry.writers():
            entry.flags &= ~0x10
        if not entry.uses:
            entry.flags &= ~0x08

    @rule(target=mappings, mapping=consumes(mappings), parts=st.sampled_from(["host", "device", "both", "neither"]))
    def unmap(self, mapping, parts):
        guest = self.guests[mapping.mapper]
        bus = self.mfn(mapping.granter, self.entries[mapping.granter][mapping.ref].pinned_page) << 12
        host = parts in ("host", "both")
        device = parts in ("device", "both")
        status = guest.unmap(mapping.handle, mapping.va if host else 0, bus if device else 0)
        gone = {name for name, wanted in (("host", host), ("device", device)) if wanted and name in mapping.parts}
        if "host" in gone and not mapping.visible:
            assert status == GENERAL
            return mapping
        assert status == OK
        entry = self.entries[mapping.granter][mapping.ref]
        for name in gone:
            entry.uses.remove((name, mapping.readonly))
        if gone:
            self.settle(entry, mapping.readonly)
        self.live.discard(mapping)
        left = attrs.evolve(mapping, parts=mapping.parts - gone)
        if left.parts:
            self.live.add(left)
            return left
        assert guest.unmap(mapping.handle, mapping.va, bus) == abi.GNTST_bad_handle
        return multiple()

    @rule(mapping=mappings)
    def unmap_as_another(self, mapping):
        """A handle is its owner's: by its number in the other domain, at its address, nothing of it goes."""
        other = self.guests[1 - mapping.mapper]
        if mapping.handle not in other.table.maptrack.live():
            assert other.unmap(mapping.handle, mapping.va, 0) == abi.GNTST_bad_handle

    @rule(mapping=mappings)
    def unmap_wrongly(self, mapping):
        guest = self.guests[mapping.mapper]
        if "host" in mapping.parts:
            assert guest.unmap(mapping.handle, HOLE + 511 * 0x1000) == GENERAL
        if "device" in mapping.parts:
            assert guest.unmap(mapping.handle, 0, 0x123456000) == abi.GNTST_bad_dev_addr

    @rule(target=mappings, mapping=consumes(mappings))
    def clear_the_entry(self, mapping):
        """The mapper takes its page table entry out itself; the pin stays for good."""
        if "host" not in mapping.parts or not mapping.visible:
            return mapping
        assert self.guests[mapping.mapper].set_pte(mapping.va, 0) == 0
        self.live.discard(mapping)
        hidden = attrs.evolve(mapping, visible=False)
        self.live.add(hidden)
        return hidden

    # -- copies -------------------------------------------------------------------------------------------------------

    @rule(user=domains, granter=domains, ref=refs, page=st.integers(0, PAGES - 1), out=st.booleans())
    def copy(self, user, granter, ref, page, out):
        """Between an own page and a grant, either way."""
        guest = self.guests[user]
        own, theirs = (guest.pages[page], 0x7FF0, 0), (ref, granter, 0)
        if out:
            status = guest.copy(own, theirs, 4096, abi.GNTCOPY_dest_gref)
        else:
            status = guest.copy(theirs, own, 4096, abi.GNTCOPY_source_gref)
        kind = HOST if out else HOST | RO
        expected = self.begin(user, granter, ref, kind, mapping=False)
        assert status == expected
        if expected:
            return
        entry = self.entries[granter][ref]
        there = entry.pinned_page
        entry.uses.remove(("host", not out))
        self.settle(entry, not out)
        if out:
            self.bytes[granter][there] = self.bytes[user][page]
        elif there == PAGE_TABLE:
            guest.poke(guest.va(page), self.bytes[user][page] * 4096)
        else:
            self.bytes[user][page] = self.bytes[granter][there]

    # -- what holds all the time --------------------------------------------------------------------------------------

    @invariant()
    def entries_are_as_the_model_says(self):
        for d, guest in enumerate(self.guests):
            for ref, entry in self.entries[d].items():
                assert guest.flags(ref) == entry.flags, (d, ref)

    @invariant()
    def the_account_is_right(self):
        check_grants(self.world.hv)

    @invariant()
    def references_are_as_the_model_says(self):
        frames = self.world.hv.frames
        for d, guest in enumerate(self.guests):
            for page in range(PAGES):
                held = [
                    (name, m.readonly)
                    for m in self.live
                    for name in m.parts
                    if m.granter == d and self.entries[d][m.ref].pinned_page == page and (name == "device" or m.visible)
                ]
                mfn = guest.pages[page]
                writers = sum(1 for _, readonly in held if not readonly)
                assert (frames.count[mfn], frames.type_count[mfn]) == (2 + len(held), 1 + writers)

    @invariant()
    def bytes_are_as_the_model_says(self):
        for d, guest in enumerate(self.guests):
            for page in range(PAGES):
                assert guest.peek(guest.va(page) + 4095, 1) == self.bytes[d][page]
        for mapping in self.live:
            page = self.entries[mapping.granter][mapping.ref].pinned_page
            if "host" in mapping.parts and mapping.visible and page != PAGE_TABLE:
                assert self.guests[mapping.mapper].peek(mapping.va, 1) == self.bytes[mapping.granter][page]

    def teardown(self):
        """Whatever happened, the end of both domains gives everything back."""
        self.world.check()
        for guest in self.guests:
            self.world.hv.domain_ops.kill(guest.domain)
        assert (list(self.world.hv.domains), self.world.leaks()) == ([], [])


TestHostileDomains = HostileDomains.TestCase
TestHostileDomains.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
