"""Memory management put together: what the rest of the hypervisor calls, and the memory hypercalls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.errors import HypercallError, InvariantError
from hypervisor.guest_access import flush_all
from hypervisor.mm.descriptors import DescriptorTables
from hypervisor.mm.frame_table import (
    ERESTART,
    PINNED,
    FrameTable,
    Owner,
    PGT_l4_page_table,
    PGT_writable_page,
)
from hypervisor.mm.memory_op import MemoryOps
from hypervisor.mm.mmu_update import MmuUpdate
from hypervisor.mm.mmuext import MmuextOps
from hypervisor.mm.page_types import PageTypes
from hypervisor.mm.paging import Paging
from hypervisor.mm.reservation import Claims, Reservations
from hypervisor.mm.writable_tables import WritableTables
from hypervisor.mm.xen_pages import BEFORE_M2P, DOMAIN, VCPU, XenPages, boot_takes
from hypervisor.mm.xen_slots import PAGES_PER_VCPU, XenSlots
from hypervisor.preempt import Restart

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Handler, Hypervisor
    from hypervisor.mm.boot_memory import BootMemory
    from hypervisor.vcpu import VCpu

Held = tuple[int, int]
"""(mfn, type): one reference, and one type reference unless the type is 0."""

_BEFORE_NR, _AFTER_NR = bytes.fromhex("514153b8"), bytes.fromhex("0f05415b59c3")
"""A stub: push rcx, push r11, mov eax, nr; syscall, pop r11, pop rcx, ret."""
_IRET_STUB = bytes.fromhex("51415350b8170000000f05")
_IRET = 23
_STUB = 32


class MemoryManager:
    """Frames, page types and page tables of the host.

    `holders` are callables that list references which neither a page table nor this class accounts for, as device
    mappings of grants; `mm.check` asks them.
    """

    def __init__(self, hv: Hypervisor, boot: BootMemory | None = None) -> None:
        self.hv = hv
        self.frames = FrameTable(hv.memory, boot)
        self.xen_pages = XenPages(self.frames, counted=self.frames.boot.is_booted)
        self.xen_pages.boot(BEFORE_M2P)
        self.slots = XenSlots(self.frames)
        self.xen_pages.boot(boot_takes(hv.machine.nr_pcpus))
        self.types = PageTypes(hv, self.frames, self._fill_xen_slots)
        self.claims = Claims(self.frames)
        self.pinned: dict[int, dict[int, None]] = {}
        """Pinned page tables by domid, in the order of pinning."""
        self.held: dict[int, list[int]] = {}
        """Frames by domid that Xen itself writes to on the domain's behalf (vcpu_info areas): a writable reference."""
        self.holders: list[Callable[[], Iterable[Held]]] = []
        self.ldt_pages: dict[tuple[int, int], dict[int, int]] = {}
        """Frames of loaded LDTs that were used so far: by (domid, vCPU), then by page of the LDT."""
        self.descriptors = DescriptorTables(self)
        self.mmu_update = MmuUpdate(self)
        self.mmuext = MmuextOps(self)
        self.writable_tables = WritableTables(self)
        self.reservations = Reservations(self)
        self.memory_op = MemoryOps(self)
        self.frames.on_empty = self._on_empty
        self.hypercalls: dict[int, Handler] = {
            **self.mmu_update.hypercalls,
            **self.mmuext.hypercalls,
            **self.memory_op.hypercalls,
            **self.descriptors.hypercalls,
        }

    # -- the life of a domain ---------------------------------------------------------------------------------------

    def init_domain(self, domain: Domain) -> None:
        """Give a new domain its shared_info and its own part of the address space. Raises HypercallError(ENOMEM)."""
        mfn = self.frames.alloc_xen()
        if mfn < 0 or not self.xen_pages.take(domain.domid, len(DOMAIN)) or not self.slots.init_domain(domain.domid):
            if mfn >= 0:
                self.frames.free_xen(mfn)
            self.xen_pages.give_back(domain.domid)
            raise HypercallError(errno.ENOMEM)
        if self.xen_pages.counted:
            self.slots.map_area(domain.domid, 0)
        self.frames.share_with(mfn, domain)
        domain.shared_info_mfn = mfn
        domain.paging = Paging(self.frames, domain)
        self.pinned[domain.domid] = {}
        self.held[domain.domid] = []

    def init_vcpu(self, domid: int, vcpu_id: int) -> None:
        """Take what Xen keeps for a new vCPU. Raises HypercallError(ENOMEM)."""
        own = self.xen_pages
        if own.counted and not (
            own.take(domid, len(VCPU)) and self.slots.map_area(domid, (vcpu_id + 1) * PAGES_PER_VCPU)
        ):
            raise HypercallError(errno.ENOMEM)

    def relinquish(self, domain: Domain) -> Iterator[bool]:
        """Release all memory of a dying domain. What others still map stays until they let go (`holds_pages`).

        Done step by step: between two of them others may run, who find the domain dying. See `DomainOps.kill`.
        """
        self.claims.drop(domain)
        domain.paging.switch_off()
        for vcpu in domain.online_vcpus():
            self.drop_vcpu(vcpu)
            vcpu.old_tables.clear()
            yield from self._finish_partial(domain)
        flush_all(domain)
        held = self.held[domain.domid]
        while held:
            self.frames.put_page_and_type(held.pop())
        pinned = self.pinned[domain.domid]
        while pinned:
            self.unpin(next(reversed(pinned)), domain)
            yield from self._finish_partial(domain)
        self.frames.withdraw_lent(domain)
        yield from self.frames.release_allocated(domain)

    def drop_vcpu(self, vcpu: VCpu) -> None:
        """Let go of a vCPU's page table roots and descriptor tables: it is reset, or its domain dies.

        The release of the roots may leave tables behind.
        """
        self.descriptors.destroy(vcpu)
        roots, vcpu.kernel_cr3, vcpu.user_cr3 = (vcpu.kernel_cr3, vcpu.user_cr3), 0, 0
        vcpu.flush_tlb(None)
        for root in roots:
            if root:
                self.frames.let_go(root)

    def _finish_partial(self, domain: Domain) -> Iterator[bool]:
        """Release the tables of a domain whose validation or release was interrupted, now or long ago."""
        frames = self.frames
        others = [mfn for mfn in frames.leftovers if frames.owner(mfn) != domain.domid]
        interrupted = len(others) < len(frames.leftovers)
        frames.leftovers[:] = others
        yield interrupted
        while partial := [mfn for mfn in frames.partial if frames.owner(mfn) == domain.domid]:
            for mfn in partial:
                while frames.finish(mfn):
                    yield True

    def holds_pages(self, domain: Domain) -> bool:
        """Whether a frame of the domain still exists."""
        return self.frames.holds_pages(domain)

    def free_domain(self, domain: Domain) -> None:
        """Forget a domain that has no frames left; the grant table has given back its own."""
        self.frames.unshare(domain.shared_info_mfn)
        self.slots.free_domain(domain.domid)
        self.xen_pages.give_back(domain.domid)
        self.frames.forget(domain)
        del self.pinned[domain.domid], self.held[domain.domid]

    def _on_empty(self, owner: Owner) -> None:
        domain = self.hv.domains.get(owner.domid)
        if domain is not None and domain.is_dying:
            self.hv.domain_ops.reap(domain)

    # -- page tables ------------------------------------------------------------------------------------------------

    def take_table(self, mfn: int, domain: Domain, kind: int) -> int:
        """Take a reference and a type reference to a page table; returns 0 or a positive errno.

        With ERESTART nothing was taken, and another call goes on where this one was interrupted.
        """
        return self.frames.take_page_and_type(mfn, domain, kind)

    def put_old_tables(self, vcpu: VCpu) -> bool:
        """Go on to release what hypercalls of this vCPU left behind; False if that is interrupted again.

        To be called before anything else by every hypercall that can leave page tables behind.
        """
        tables = vcpu.old_tables
        while tables:
            if self.frames.finish(tables[-1]):
                return False
            tables.pop()
        return True

    def left_tables(self, vcpu: VCpu) -> bool:
        """Whether page tables are left to be released by `put_old_tables`, and so the hypercall must be continued."""
        leftovers = self.frames.leftovers
        if leftovers:
            vcpu.old_tables += leftovers
            leftovers.clear()
        return bool(vcpu.old_tables)

    def reset_vcpu(self, vcpu: VCpu, which: VCpu) -> None:
        """Let go of all that a vCPU of another domain holds, in a hypercall of `vcpu`. Raises Restart."""
        if not self.put_old_tables(vcpu):
            raise Restart
        self.drop_vcpu(which)
        vcpu.old_tables += which.old_tables
        which.old_tables.clear()
        if self.left_tables(vcpu):
            raise Restart

    def pin(self, mfn: int, domain: Domain, kind: int) -> int:
        """Keep a frame validated as a page table (MMUEXT_PIN_*); returns 0 or a positive errno, or ERESTART."""
        error = self.take_table(mfn, domain, kind)
        if error:
            return error
        flags = self.frames.flags
        if flags[mfn] & PINNED:
            self.frames.let_go(mfn)
            return errno.EINVAL
        if domain.is_dying:
            # It is pinned, and unpinned at once: nobody would come to undo it.
            self.frames.let_go(mfn)
            return 0
        flags[mfn] |= PINNED
        self.pinned[domain.domid][mfn] = None
        return 0

    def unpin(self, mfn: int, domain: Domain) -> int:
        """Undo `pin`; returns 0 or a positive errno. The release may be interrupted and leave a table behind."""
        frames = self.frames
        if mfn >= frames.frames or frames.owner(mfn) != domain.domid or not frames.flags[mfn] & PINNED:
            return errno.EINVAL
        frames.flags[mfn] &= ~PINNED
        del self.pinned[domain.domid][mfn]
        frames.let_go(mfn)
        return 0

    def load_root(self, vcpu: VCpu, root: int) -> None:
        """Make a frame the root of a vCPU's page tables in kernel mode.

        Raises HypercallError(EINVAL and others), and Restart. The release of the old root may leave tables behind.
        """
        if root != vcpu.kernel_cr3:
            self._take_root(root, vcpu.domain)
            if not _is_strict(vcpu.domain):
                self.slots.show_m2p(root)
            old, vcpu.kernel_cr3 = vcpu.kernel_cr3, root
            if self.ldt_pages:
                self.descriptors.drop_ldt(vcpu)
            vcpu.root_loaded()
            if old:
                self.frames.let_go(old)

    def load_user_root(self, vcpu: VCpu, root: int) -> None:
        """Make a frame the root in user mode, 0 for none. Raises HypercallError and Restart, as `load_root`."""
        if root != vcpu.user_cr3:
            if root:
                self._take_root(root, vcpu.domain)
                if _is_strict(vcpu.domain):
                    self.slots.hide_m2p(root)
            old, vcpu.user_cr3 = vcpu.user_cr3, root
            if old:
                self.frames.let_go(old)

    def _take_root(self, root: int, domain: Domain) -> None:
        # (A dying domain's vCPUs have let go of theirs for good.)
        error = errno.EINVAL if domain.is_dying else self.take_table(root, domain, PGT_l4_page_table)
        if error == ERESTART:
            raise Restart
        if error:
            raise HypercallError(error)

    def set_vm_assist(self, domain: Domain, bits: int) -> None:
        """Set all assists of a domain, as it gets its first vCPU's context.

        The roots that were checked before m2p_strict was asked for still lack the M2P.
        """
        was_strict, domain.vm_assist = _is_strict(domain), bits
        if _is_strict(domain) and not was_strict:
            for mfn in self.frames.pages(self.frames.page_list(domain)):
                if self.frames.type[mfn] == PGT_l4_page_table and self.frames.type_count[mfn]:
                    self.slots.show_m2p(mfn)

    def _fill_xen_slots(self, mfn: int) -> None:
        """Fill Xen's slots of a new root. The M2P is there at once only if the guest tells its roots apart by that."""
        domain = self.hv.domains.get(self.frames.owner(mfn))
        self.hv.forget_root(mfn)
        if domain is not None:
            for vcpu in domain.online_vcpus():
                vcpu.forget_root(mfn)
        self.slots.fill(mfn, with_m2p=domain is not None and _is_strict(domain))

    def put_page_from_l1e(self, entry: int) -> None:
        """Drop what an L1 entry held that was replaced."""
        self.types.put_l1(entry)

    # -- frames that Xen writes to ----------------------------------------------------------------------------------

    def get_writable_frame(self, domain: Domain, mfn: int) -> int:
        """Take a frame for Xen to write to as long as its domain lives. Raises HypercallError(EINVAL)."""
        if not self.frames.get_page_and_type(mfn, domain, PGT_writable_page):
            raise HypercallError(errno.EINVAL)
        self.held[domain.domid].append(mfn)
        return mfn

    def put_writable_frame(self, domain: Domain, mfn: int) -> None:
        """Let go of a frame that `get_writable_frame` returned."""
        self.held[domain.domid].remove(mfn)
        self.frames.put_page_and_type(mfn)

    def write_hypercall_page(self, domain: Domain, gmfn: int) -> None:
        """Fill a frame of a domain with the hypercall stubs. Raises HypercallError(EACCES)."""
        if not self.frames.get_page_and_type(gmfn, domain, PGT_writable_page):
            raise HypercallError(errno.EACCES)
        self.hv.memory.write(gmfn << 12, hypercall_page())
        self.frames.put_page_and_type(gmfn)


def _is_strict(domain: Domain) -> bool:
    """Whether the domain wants the M2P in the roots of its kernel only (VMASST_TYPE_m2p_strict).

    Else every root has it that was once loaded for the kernel.
    """
    return bool(domain.vm_assist >> xen.VMASST_TYPE_m2p_strict & 1)


def hypercall_page() -> bytes:
    """Return the page of stubs: 128 entries of 32 bytes, `call page + nr * 32` makes hypercall `nr`."""
    stubs = []
    for nr in range(4096 // _STUB):
        code = _BEFORE_NR + nr.to_bytes(4, "little") + _AFTER_NR if nr != _IRET else _IRET_STUB
        stubs.append(code.ljust(_STUB, b"\xcc"))
    page = b"".join(stubs)
    if len(page) != 4096:
        raise InvariantError("the hypercall page is not a page")
    return page
