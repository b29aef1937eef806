"""Hand-made domains that do nothing but make hypercalls, on a real hypervisor: no kernel, no builder, no toolstack."""

from __future__ import annotations

import struct
from typing import Any

from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu, Run
from hypervisor.abi.layout import Layout
from hypervisor.errors import InvariantError
from hypervisor.event_channel.check import check_events
from hypervisor.grant_table.check import check_grants
from hypervisor.guest_access import translate_load
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.machine import Machine
from hypervisor.mm.check import check as check_frames

MMU_UPDATE = xen.HYPERVISOR_mmu_update
MMUEXT_OP = xen.HYPERVISOR_mmuext_op
DATA_PAGES = 24
HOLES = 0x400000
"""Guest virtual address of 512 pages without a mapping, with page tables present."""
SCRATCH_PAGES = 4
RW_PAGE = 0x067
U64 = 0xFFFFFFFFFFFFFFFF


class NoProgram:
    """What the vCPUs of a domain execute that is a guest in Python, and is never run."""

    name = "bare"
    virt_base = virt_entry = 0

    def boot(self, cpu: Cpu, start_info: int) -> Run:
        raise AssertionError("this domain has no program")

    def unload(self) -> None:
        """There is no code."""


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
        self.domain.image = NoProgram()
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

    def alloc(self) -> int:
        """One more frame, mapped nowhere."""
        return self.hv.frames.alloc(self.domain)

    # -- memory -----------------------------------------------------------------------------------------------------

    def poke(self, va: int, data: bytes) -> None:
        """Store as the guest itself would."""
        for index in range(0, len(data), 4096 - (va & 0xFFF) or 4096):
            part = data[index : index + 4096 - ((va + index) & 0xFFF)]
            maddr = translate_load(self.vcpus[0], va + index, True)
            self.hv.memory.b[maddr : maddr + len(part)] = part

    def peek(self, va: int, size: int) -> bytes:
        """Load as the guest itself would; raises PageFault."""
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

    def call(self, nr: int, *front: int, layout: Layout, on: int = 0, **fields: Any) -> tuple[int, Any]:
        """Make a hypercall whose last argument points to one structure; returns the result and what Xen left there.

        It is made on vCPU number `on`.
        """
        self.poke(self.args, layout.pack(**fields))
        rc = self.hypercall(nr, *front, self.args, vcpu=on)
        return rc, layout.unpack_from(self.peek(self.args, layout.size))


class World:
    """The host. `guest()` makes domains 0, 1, 2, …; domain 0 is privileged."""

    guest_type: type[Guest] = Guest

    def __init__(self, *, pcpus: int = 1, **options: Any) -> None:
        self.log: list[bytes] = []
        self.hv = Hypervisor(Machine(memory_mib=64, pcpus=pcpus), console=self.log.append, **options)
        self.guests: list[Any] = []

    def guest(self, *, privileged: bool | None = None, vcpus: int = 1, max_pages: int = 1000) -> Any:
        domid = len(self.guests)
        guest = self.guest_type(
            self, domid, privileged=domid == 0 if privileged is None else privileged, vcpus=vcpus, max_pages=max_pages
        )
        self.guests.append(guest)
        return guest

    def check(self) -> None:
        """All accounts are right: of event channels, of grants, and of all frames, device mappings included."""
        try:
            check_events(self.hv)
            check_grants(self.hv)
            check_frames(self.hv)
        except InvariantError as error:
            # pytest does not get over what is no Exception when it comes from a fixture.
            raise AssertionError(str(error)) from error
