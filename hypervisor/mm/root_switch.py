"""mmuext_op as a kernel makes it that turns to another process: the kernel's root, then the user's, both known.

Linux does so twice for each place in its own code that it changes while it boots, which are ten thousand. What
`mmuext`, `manager` and `frame_table` do for it is written out here; whatever is not the usual goes to the general form,
before anything has been changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.guest_access import walk_read
from hypervisor.mm.frame_table import MAX_COUNT, VALIDATED, PGT_l4_page_table

if TYPE_CHECKING:
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_OP = xen.mmuext_op.size
_WORDS = _OP // 8
_LAST_IN_PAGE = 4096 - 2 * _OP
_U32 = 0xFFFF_FFFF
M2P_STRICT = 1 << xen.VMASST_TYPE_m2p_strict


def make_root_switch(mm: MemoryManager, general: Handler) -> Handler:  # noqa: C901 - see above
    """Return the handler of mmuext_op: `general`, with a short cut."""
    frames, words, preempt = mm.frames, mm.hv.memory.q, mm.hv.preempt
    nr_frames, owners, kinds, flags = frames.frames, frames.owner_tag, frames.type, frames.flags
    counts, type_counts = frames.count, frames.type_count

    def is_known(root: int, tag: int) -> bool:
        """Whether a frame is the root of page tables already, and can be once more."""
        return (
            root < nr_frames
            and owners[root] == tag
            and kinds[root] == PGT_l4_page_table
            and flags[root] & VALIDATED != 0
            and 0 < type_counts[root] < MAX_COUNT
            and 0 < counts[root] < MAX_COUNT
        )

    def exchange(old: int, new: int) -> bool:
        """Drop the references of a loaded root to one frame, and take those to another; False if one is the last."""
        if old:
            held, typed = counts[old], type_counts[old]
            if held < 2 or typed < 2:
                return False
            counts[old], type_counts[old] = held - 1, typed - 1
        if new:
            counts[new] += 1
            type_counts[new] += 1
        return True

    def mmuext_op(vcpu: VCpu, ops: int, count: int, done_ptr: int, domid: int, a5: int) -> int:  # noqa: C901
        offset = ops & 0xFFF
        if (
            count != 2
            or domid != xen.DOMID_SELF
            or done_ptr
            or vcpu.old_tables
            or offset & 7
            or offset > _LAST_IN_PAGE
            or preempt.forced is not None
            or vcpu.must_interrupt()
        ):
            return general(vcpu, ops, count, done_ptr, domid, a5)
        page = ops >> 12
        base = vcpu.tlb_r.get(page)
        if base is None:
            base = walk_read(vcpu, ops)
        at = base + offset >> 3
        domain, root, user = vcpu.domain, words[at + 1], words[at + _WORDS + 1]
        tag = domain.domid + 1
        if (
            words[at] & _U32 != xen.MMUEXT_NEW_BASEPTR
            or words[at + _WORDS] & _U32 != xen.MMUEXT_NEW_USER_BASEPTR
            or domain.is_dying
            or not is_known(root, tag)
            or (user and not is_known(user, tag))
        ):
            return general(vcpu, ops, count, done_ptr, domid, a5)
        is_strict = domain.vm_assist & M2P_STRICT
        if root != vcpu.kernel_cr3:
            if not exchange(vcpu.kernel_cr3, root):
                return general(vcpu, ops, count, done_ptr, domid, a5)
            vcpu.kernel_cr3 = root
            if not is_strict:
                mm.slots.show_m2p(root)
            if mm.ldt_pages:
                mm.descriptors.drop_ldt(vcpu)
            vcpu.root_loaded()
            # The second operation is read by way of the new page tables.
            now = vcpu.tlb_r.get(page)
            if now is None:
                now = walk_read(vcpu, ops)
            if now != base:
                return general(vcpu, ops + _OP, 1, 0, domid, a5)
        if user != vcpu.user_cr3:
            if not exchange(vcpu.user_cr3, user):
                return general(vcpu, ops + _OP, 1, 0, domid, a5)
            vcpu.user_cr3 = user
            if user and is_strict:
                mm.slots.hide_m2p(user)
        return 0

    return mmuext_op
