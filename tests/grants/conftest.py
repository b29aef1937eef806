"""A host with a few hand-made domains that do nothing but make hypercalls."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.layout import Layout
from hypervisor.grant_table.check import check_grants, leaks
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.machine import Machine
from hypervisor.mm.check import check as check_frames

GRANT_TABLE_OP = xen.__HYPERVISOR_grant_table_op
MMU_UPDATE = xen.__HYPERVISOR_mmu_update
MMUEXT_OP = xen.__HYPERVISOR_mmuext_op
DATA_PAGES = 24
HOLES = 0x400000
"""Guest virtual address of 512 pages without a mapping, with page tables present."""
SCRATCH_PAGES = 4
RW_PAGE = 0x067
RO_PAGE = 0x065
U64 = 0xFFFFFFFFFFFFFFFF


class Guest:
    """A PV domain of one or two vCPUs: some data pages, some pages for arguments, some empty address space.

    Data page `n` is frame `pages[n]`, mapped writable at `va(n)`. Arguments of hypercalls are put at `args`.
    """

    def __init__(self, world: World, domid: int, *, privileged: bool, vcpus: int, max_pages: int) -> None:
        self.world = world
        hv = self.hv = world.hv
        self.domid = domid
        self.domain = hv.domain_ops.create(domid, max_vcpus=vcpus, is_privileged=privileged)
        self.domain.max_pages = max_pages
        self.vcpus = [hv.domain_ops.add_vcpu(self.domain, index) for index in range(vcpus)]
        frames = hv.frames
        self.l4, self.l3, self.l2, self.l1, self.hole_l1 = (frames.alloc(self.domain) for _ in range(5))
        self.pages = [frames.alloc(self.domain) for _ in range(DATA_PAGES)]
        self.scratch = [frames.alloc(self.domain) for _ in range(SCRATCH_PAGES)]
        q = hv.memory.q
        q[self.l4 << 9] = self.l3 << 12 | RW_PAGE
        q[self.l3 << 9] = self.l2 << 12 | RW_PAGE
        q[self.l2 << 9] = self.l1 << 12 | RW_PAGE
        q[(self.l2 << 9) + (HOLES >> 21)] = self.hole_l1 << 12 | RW_PAGE
        for index, mfn in enumerate(self.pages + self.scratch):
            q[(self.l1 << 9) + index + 1] = mfn << 12 | RW_PAGE
        for vcpu in self.vcpus:
            hv.mm.load_root(vcpu, self.l4)
        self.args = self.va(DATA_PAGES)
        self.spare = self.va(DATA_PAGES + SCRATCH_PAGES - 1)

    def va(self, page: int) -> int:
        """The address of a data page (or, past those, of a page for arguments)."""
        return (page + 1) << 12

    @property
    def table(self) -> Any:
        return self.domain.grant_table

    def alloc(self) -> int:
        """One more frame, mapped nowhere."""
        return self.hv.frames.alloc(self.domain)

    # -- memory -----------------------------------------------------------------------------------------------------

    def poke(self, va: int, data: bytes) -> None:
        """Store as the guest itself would."""
        from hypervisor.guest_access import translate_load

        for index in range(0, len(data), 4096 - (va & 0xFFF) or 4096):
            part = data[index : index + 4096 - ((va + index) & 0xFFF)]
            maddr = translate_load(self.vcpus[0], va + index, True)
            self.hv.memory.b[maddr : maddr + len(part)] = part

    def peek(self, va: int, size: int) -> bytes:
        """Load as the guest itself would; raises PageFault."""
        from hypervisor.guest_access import translate_load

        data = b""
        while len(data) < size:
            maddr = translate_load(self.vcpus[0], va + len(data), False)
            room = min(4096 - (maddr & 0xFFF), size - len(data))
            data += bytes(self.hv.memory.b[maddr : maddr + room])
        return data

    def pte_index(self, va: int) -> int:
        """Index in memory.q of the level-1 entry for an address of the two tables there are."""
        table = self.hole_l1 if va >= HOLES else self.l1
        return (table << 9) + (va >> 12 & 511)

    def pte(self, va: int) -> int:
        return self.hv.memory.q[self.pte_index(va)]

    def set_pte(self, va: int, entry: int) -> int:
        """HYPERVISOR_mmu_update of the level-1 entry for an address; returns the result."""
        return self.mmu_update(self.pte_index(va), entry)

    def mmu_update(self, index: int, entry: int) -> int:
        """HYPERVISOR_mmu_update of one entry, given by its index in memory.q; returns the result."""
        self.poke(self.spare, struct.pack("<QQ", index << 3, entry))
        return self.hypercall(MMU_UPDATE, self.spare, 1, 0, xen.DOMID_SELF)

    def pin_l1(self, mfn: int) -> int:
        """MMUEXT_PIN_L1_TABLE; returns the result."""
        self.poke(self.spare, struct.pack("<I4xQQ", xen.MMUEXT_PIN_L1_TABLE, mfn, 0))
        return self.hypercall(MMUEXT_OP, self.spare, 1, 0, xen.DOMID_SELF)

    # -- hypercalls -------------------------------------------------------------------------------------------------

    def hypercall(self, nr: int, *arguments: int, vcpu: int = 0) -> int:
        return self.vcpus[vcpu].cpu.hypercall(nr, *arguments)

    def raw(self, cmd: int, va: int, count: int, *, vcpu: int = 0) -> int:
        return self.hypercall(GRANT_TABLE_OP, cmd, va, count, vcpu=vcpu)

    def batch(self, cmd: int, layout: Layout, ops: list[Any], *, at: int | None = None, vcpu: int = 0) -> list[Any]:
        """Run a batch that must return 0; returns the structures as Xen left them."""
        va = self.args if at is None else at
        self.poke(va, b"".join(layout.pack(**op) for op in ops))
        assert self.raw(cmd, va, len(ops), vcpu=vcpu) == 0
        data = self.peek(va, layout.size * len(ops))
        return [layout.unpack_from(data, layout.size * index) for index in range(len(ops))]

    def one(self, cmd: int, layout: Layout, *, vcpu: int = 0, **fields: Any) -> Any:
        return self.batch(cmd, layout, [fields], vcpu=vcpu)[0]

    # -- grants -----------------------------------------------------------------------------------------------------

    def entry_at(self, ref: int) -> int:
        return (self.table.shared[ref // 512] << 12) + ref % 512 * 8

    def grant(self, ref: int, to: Guest | int, mfn: int, flags: int = abi.GTF_permit_access) -> None:
        """Write a version 1 entry."""
        domid = to if isinstance(to, int) else to.domid
        struct.pack_into("<HHI", self.hv.memory.b, self.entry_at(ref), flags, domid, mfn)

    def set_flags(self, ref: int, flags: int) -> None:
        struct.pack_into("<H", self.hv.memory.b, self.entry_at(ref), flags)

    def flags(self, ref: int) -> int:
        return struct.unpack_from("<H", self.hv.memory.b, self.entry_at(ref))[0]

    def entry(self, ref: int) -> tuple[int, int, int]:
        return struct.unpack_from("<HHI", self.hv.memory.b, self.entry_at(ref))

    def map(
        self, granter: Guest | int, ref: int, va: int = 0, flags: int = abi.GNTMAP_host_map, *, vcpu: int = 0
    ) -> Any:
        domid = granter if isinstance(granter, int) else granter.domid
        return self.one(
            abi.GNTTABOP_map_grant_ref,
            abi.gnttab_map_grant_ref,
            vcpu=vcpu,
            host_addr=va,
            flags=flags,
            ref=ref,
            dom=domid,
            status=0x55,
            handle=0xDEAD,
            dev_bus_addr=0x7777,
        )

    def unmap(self, handle: int, va: int = 0, bus: int = 0, *, vcpu: int = 0) -> int:
        return self.one(
            abi.GNTTABOP_unmap_grant_ref,
            abi.gnttab_unmap_grant_ref,
            vcpu=vcpu,
            host_addr=va,
            dev_bus_addr=bus,
            handle=handle,
            status=0x55,
        ).status

    def replace(self, handle: int, va: int, new: int) -> int:
        return self.one(
            abi.GNTTABOP_unmap_and_replace,
            abi.gnttab_unmap_and_replace,
            host_addr=va,
            new_addr=new,
            handle=handle,
            status=0x55,
        ).status

    def copy(self, source: tuple[int, int, int], dest: tuple[int, int, int], length: int, flags: int) -> int:
        """GNTTABOP_copy of one piece; an end is (reference or frame, domid, offset)."""
        return self.copies([(source, dest, length, flags)])[0]

    def copies(self, ops: list[tuple[tuple[int, int, int], tuple[int, int, int], int, int]]) -> list[int]:
        codec = struct.Struct("<QHH4xQHH4xHHh2x")
        self.poke(self.args, b"".join(codec.pack(*s, *d, length, flags, 0x55) for s, d, length, flags in ops))
        assert self.raw(abi.GNTTABOP_copy, self.args, len(ops)) == 0
        data = self.peek(self.args, codec.size * len(ops))
        return [fields[-1] for fields in codec.iter_unpack(data)]

    def transfer(self, mfn: int, to: Guest | int, ref: int) -> int:
        domid = to if isinstance(to, int) else to.domid
        return self.one(abi.GNTTABOP_transfer, abi.gnttab_transfer, mfn=mfn, domid=domid, ref=ref, status=0x55).status

    def setup_table(self, nr_frames: int, domid: int = xen.DOMID_SELF, frame_list: int | None = None) -> Any:
        return self.one(
            abi.GNTTABOP_setup_table,
            abi.gnttab_setup_table,
            dom=domid,
            nr_frames=nr_frames,
            status=0x55,
            frame_list=self.spare if frame_list is None else frame_list,
        ).status

    def query_size(self, domid: int = xen.DOMID_SELF) -> Any:
        return self.one(
            abi.GNTTABOP_query_size,
            abi.gnttab_query_size,
            dom=domid,
            nr_frames=0x7777,
            max_nr_frames=0x7777,
            status=0x55,
        )


class World:
    """The host. `guest()` makes domains 0, 1, 2, …; domain 0 is privileged."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.hv = Hypervisor(Machine(memory_mib=64), console=self.log.append)
        self.guests: list[Guest] = []

    def guest(self, *, privileged: bool | None = None, vcpus: int = 1, max_pages: int = 1000) -> Guest:
        domid = len(self.guests)
        guest = Guest(
            self, domid, privileged=domid == 0 if privileged is None else privileged, vcpus=vcpus, max_pages=max_pages
        )
        self.guests.append(guest)
        return guest

    def check(self) -> None:
        """Both accounts are right: that of grants, and that of all frames, device mappings included."""
        check_grants(self.hv)
        check_frames(self.hv)

    def leaks(self) -> list[str]:
        return [leak for domain in self.hv.domains.values() for leak in leaks(domain)]


@pytest.fixture
def world() -> Iterator[World]:
    """A host whose account of grants is checked at the end."""
    host = World()
    yield host
    host.check()


@pytest.fixture
def make_world() -> Callable[[], World]:
    return World


@pytest.fixture
def pair(world: World) -> SimpleNamespace:
    """Domain 0 and an ordinary domain 1; nothing may be left mapped between them at the end."""
    return SimpleNamespace(dom0=world.guest(), domu=world.guest(), world=world, hv=world.hv)
