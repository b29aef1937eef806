"""The control operations one by one: their answers, and what they look at before they ask who is calling."""

from __future__ import annotations

import struct

import pytest
from core_world import MS

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, memory, sched, xen
from hypervisor.mm.frame_table import PGT_writable_page
from hypervisor.rangeset import covers, deny, permit

E2BIG, EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, ESRCH = (
    -errno.E2BIG,
    -errno.EBUSY,
    -errno.EFAULT,
    -errno.EINVAL,
    -errno.ENODEV,
    -errno.ENOENT,
    -errno.ENOSYS,
    -errno.EOPNOTSUPP,
    -errno.EPERM,
    -errno.ESRCH,
)
NOWHERE = 0x700000
CREATE = {
    "max_vcpus": 1,
    "max_evtchn_port": 1023,
    "max_grant_frames": 4,
    "max_maptrack_frames": 4,
    "grant_opts": 1,
}


def domctl(guest, cmd, domid, **member):
    """Returns the result and what Xen left in the structure."""
    fields = {"cmd": cmd, "interface_version": abi.XEN_DOMCTL_INTERFACE_VERSION, "domain": domid, "u": member}
    return guest.call(xen.HYPERVISOR_domctl, layout=abi.xen_domctl, **fields)


def rc_of(guest, cmd, domid, **member):
    return domctl(guest, cmd, domid, **member)[0]


def create(guest, **changes):
    rc, op = domctl(guest, abi.XEN_DOMCTL_createdomain, 0, createdomain={**CREATE, **changes})
    return op.domain if rc == 0 else rc


class TestOrder:
    def test_who_calls_comes_before_what_is_asked(self, pair):
        for cmd in (0, 6, 999, 9999, abi.XEN_DOMCTL_pausedomain, abi.XEN_DOMCTL_assign_device):
            assert rc_of(pair.domu, cmd, 1) == EPERM
            assert rc_of(pair.domu, cmd, 77) == ESRCH
            assert rc_of(pair.dom0, cmd, 77) == ESRCH
        assert [rc_of(pair.dom0, cmd, 1) for cmd in (0, 6, 7, 8, 23, 87, 999, 1004, 9999)] == [ENOSYS] * 9

    @pytest.mark.parametrize(
        ("cmd", "member", "bad", "good"),
        [
            (
                abi.XEN_DOMCTL_ioport_permission,
                "ioport_permission",
                {"first_port": 5},
                {"first_port": 5, "nr_ports": 1},
            ),
            (abi.XEN_DOMCTL_irq_permission, "irq_permission", {"pirq": 5000}, {"pirq": 5}),
            (
                abi.XEN_DOMCTL_iomem_permission,
                "iomem_permission",
                {"first_mfn": 5, "nr_mfns": (1 << 64) - 2},
                {"first_mfn": 0x80000, "nr_mfns": 1},
            ),
            (
                abi.XEN_DOMCTL_memory_mapping,
                "memory_mapping",
                {"first_mfn": 1 << 40, "nr_mfns": 1},
                {"first_mfn": 0x80000, "nr_mfns": 1},
            ),
        ],
    )
    def test_some_look_at_their_arguments_first(self, pair, cmd, member, bad, good):
        assert rc_of(pair.domu, cmd, 1, **{member: bad}) == EINVAL
        assert rc_of(pair.domu, cmd, 1, **{member: good}) == EPERM
        assert rc_of(pair.dom0, cmd, 1, **{member: bad}) == EINVAL
        assert rc_of(pair.dom0, cmd, 1, **{member: good}) == 0

    def test_some_have_one_answer_for_everybody(self, pair):
        for guest in (pair.dom0, pair.domu):
            assert rc_of(guest, abi.XEN_DOMCTL_ioport_mapping, 1) == EOPNOTSUPP
            assert rc_of(guest, abi.XEN_DOMCTL_bind_pt_irq, 1) == EINVAL
            assert rc_of(guest, abi.XEN_DOMCTL_unbind_pt_irq, 1) == EINVAL
            assert rc_of(guest, abi.XEN_DOMCTL_get_device_group, 1) == EOPNOTSUPP
            assert rc_of(guest, abi.XEN_DOMCTL_set_target, 1, set_target={"target": 77}) == ESRCH
            assert rc_of(guest, abi.XEN_DOMCTL_set_target, 1, set_target={"target": 1}) == EINVAL
            assert rc_of(guest, abi.XEN_DOMCTL_set_target, 1, set_target={"target": 0}) == EOPNOTSUPP

    def test_what_a_pv_domain_on_this_machine_has_not(self, pair):
        answers = {
            abi.XEN_DOMCTL_assign_device: EOPNOTSUPP,
            abi.XEN_DOMCTL_test_assign_device: EOPNOTSUPP,
            abi.XEN_DOMCTL_deassign_device: EOPNOTSUPP,
            abi.XEN_DOMCTL_sethvmcontext: EINVAL,
            abi.XEN_DOMCTL_gethvmcontext: EINVAL,
            abi.XEN_DOMCTL_gethvmcontext_partial: EINVAL,
            abi.XEN_DOMCTL_debug_op: EINVAL,
            abi.XEN_DOMCTL_vmtrace_op: EINVAL,
            abi.XEN_DOMCTL_psr_cmt_op: ENODEV,
            abi.XEN_DOMCTL_psr_alloc: ENODEV,
            abi.XEN_DOMCTL_get_paging_mempool_size: EOPNOTSUPP,
            abi.XEN_DOMCTL_set_paging_mempool_size: EOPNOTSUPP,
            abi.XEN_DOMCTL_soft_reset: EINVAL,
        }
        assert {cmd: rc_of(pair.dom0, cmd, 1) for cmd in answers} == answers
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_psr_alloc, 1, psr_alloc={"cmd": 10}) == EOPNOTSUPP


class TestInfo:
    def test_the_next_one_answers_for_a_number_that_is_free(self, pair):
        third = create(pair.dom0)
        fourth = create(pair.dom0)
        pair.hv.domain_ops.kill(pair.hv.domains[third])
        rc, op = domctl(pair.dom0, abi.XEN_DOMCTL_getdomaininfo, third)
        assert (rc, op.domain, op.u.getdomaininfo.domain) == (0, fourth, fourth)
        rc, op = domctl(pair.dom0, abi.XEN_DOMCTL_getdomaininfo, 77)
        assert (rc, op.domain) == (ESRCH, 77)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_getdomaininfo, xen.DOMID_SELF) == EINVAL
        assert rc_of(pair.domu, abi.XEN_DOMCTL_getdomaininfo, xen.DOMID_FIRST_RESERVED) == EINVAL
        assert rc_of(pair.domu, abi.XEN_DOMCTL_getdomaininfo, third) == EPERM
        assert rc_of(pair.domu, abi.XEN_DOMCTL_getdomaininfo, 77) == ESRCH

    def test_what_it_tells(self, pair):
        domid = create(pair.dom0, arch={"emulation_flags": xen.XEN_X86_EMU_PIT})
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_setdebugging, domid, setdebugging={"enable": 1}) == 0
        told = domctl(pair.dom0, abi.XEN_DOMCTL_getdomaininfo, domid)[1].u.getdomaininfo
        assert told.arch_config.emulation_flags == xen.XEN_X86_EMU_PIT
        assert told.flags & abi.XEN_DOMINF_debugged
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_setdebugging, 0, setdebugging={"enable": 1}) == EINVAL

    def test_frames(self, pair):
        dom0, domu, hv = pair.dom0, pair.domu, pair.hv
        spare = domu.pages[5]
        domu.set_pte(domu.va(5), 0)
        assert domu.pin_l1(spare) == 0
        shared = domu.domain.shared_info_mfn
        asked = [domu.pages[0], domu.l1, domu.l4, spare, shared, dom0.pages[0], 0, 1 << 50]
        dom0.poke(dom0.va(0), struct.pack("<8Q", *asked))
        wanted = {"num": len(asked), "array": dom0.va(0)}
        assert rc_of(dom0, abi.XEN_DOMCTL_getpageframeinfo3, 1, getpageframeinfo3=wanted) == 0
        l1, l4, pinned = abi.XEN_DOMCTL_PFINFO_L1TAB, abi.XEN_DOMCTL_PFINFO_L4TAB, abi.XEN_DOMCTL_PFINFO_LPINTAB
        nothing = abi.XEN_DOMCTL_PFINFO_XTAB
        got = struct.unpack("<8Q", dom0.peek(dom0.va(0), 64))
        assert got == (0, l1, l4, l1 | pinned, nothing, nothing, nothing, nothing)
        assert hv.frames.type[domu.pages[0]] == PGT_writable_page
        for num, array, rc in ((1025, dom0.va(0), E2BIG), (1, NOWHERE, EFAULT), (0, NOWHERE, 0)):
            wanted = {"num": num, "array": array}
            assert rc_of(dom0, abi.XEN_DOMCTL_getpageframeinfo3, 1, getpageframeinfo3=wanted) == rc


class TestCreate:
    def test_emulated_devices(self, pair):
        assert create(pair.dom0, arch={"emulation_flags": xen.XEN_X86_EMU_LAPIC}) == EOPNOTSUPP

    def test_pools(self, pair):
        assert create(pair.dom0, cpupool_id=1) == ESRCH

    def test_flags_that_mean_nothing_for_pv(self, pair):
        assert create(pair.dom0, flags=abi.XEN_DOMCTL_CDF_oos_off) > 0


class TestAccess:
    def iomem(self, guest, domid, first, count, allow=1):
        wanted = {"first_mfn": first, "nr_mfns": count, "allow_access": allow}
        return rc_of(guest, abi.XEN_DOMCTL_iomem_permission, domid, iomem_permission=wanted)

    def test_registers_of_devices(self, pair):
        dom0, domu = pair.dom0, pair.domu
        frame = 0xF0000
        entry = frame << 12 | 0x67
        hole = 0x400000
        assert domu.set_pte(hole, entry) == EPERM
        assert self.iomem(dom0, 1, frame, 2) == 0
        assert domu.set_pte(hole, entry) == 0
        assert domu.set_pte(hole, 0) == 0
        assert self.iomem(dom0, 1, frame, 1, allow=0) == 0
        assert domu.set_pte(hole, entry) == EPERM
        assert domu.set_pte(hole, entry + 0x1000) == 0
        assert domu.set_pte(hole, 0) == 0

    def test_nobody_gives_what_he_has_not(self, pair):
        assert self.iomem(pair.dom0, 1, 0xFEE00, 1) == EPERM
        assert self.iomem(pair.dom0, 1, 0xFEBFF, 3) == EPERM
        pair.dom0.domain.ioports = deny(pair.dom0.domain.ioports, range(0x20, 0x22))
        wanted = {"first_port": 0x1F, "nr_ports": 2, "allow_access": 1}
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_ioport_permission, 1, ioport_permission=wanted) == EPERM
        assert pair.domu.domain.ioports == []

    def test_sets_of_ranges(self):
        ranges = permit(permit([], range(4, 8)), range(10, 12))
        assert permit(ranges, range(8, 10)) == [range(4, 12)]
        assert permit(ranges, range(2)) == [range(2), range(4, 8), range(10, 12)]
        assert deny(permit(ranges, range(6, 11)), range(5, 11)) == [range(4, 5), range(11, 12)]
        assert covers(ranges, range(5, 8))
        assert not covers(ranges, range(7, 11))


class TestScheduling:
    def params(self, guest, cmd, domid=1, **credit2):
        wanted = {"sched_id": abi.XEN_SCHEDULER_CREDIT2, "cmd": cmd, "u": {"credit2": credit2}}
        rc, op = domctl(guest, abi.XEN_DOMCTL_scheduler_op, domid, scheduler_op=wanted)
        return rc or (op.u.scheduler_op.u.credit2.weight, op.u.scheduler_op.u.credit2.cap)

    def test_credit2(self, pair):
        get, put = abi.XEN_DOMCTL_SCHEDOP_getinfo, abi.XEN_DOMCTL_SCHEDOP_putinfo
        assert self.params(pair.dom0, get) == (256, 0)
        assert self.params(pair.dom0, put, weight=512, cap=200) == (512, 200)
        assert self.params(pair.dom0, get) == (512, 200)
        assert self.params(pair.dom0, put, weight=300, cap=201) == EINVAL  # two vCPUs
        assert self.params(pair.dom0, get) == (300, 200)
        assert self.params(pair.dom0, put) == (0, 0)
        assert self.params(pair.dom0, get) == (300, 0)
        for cmd in (abi.XEN_DOMCTL_SCHEDOP_getvcpuinfo, abi.XEN_DOMCTL_SCHEDOP_putvcpuinfo, 4):
            assert self.params(pair.dom0, cmd) == EINVAL
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_scheduler_op, 1, scheduler_op={"sched_id": 5, "cmd": get}) == EINVAL

    def affinity(self, guest, cmd, flags, hard=None, soft=None, *, vcpu=0, nr_bits=16):
        """Returns the result, or the masks that Xen wrote."""
        if hard is not None:
            guest.poke(guest.va(0), struct.pack("<H", hard))
        if soft is not None:
            guest.poke(guest.va(0) + 8, struct.pack("<H", soft))
        bitmaps = [{"bitmap": guest.va(0) + at, "nr_bits": nr_bits} for at in (0, 8)]
        wanted = {"vcpu": vcpu, "flags": flags, "cpumap_hard": bitmaps[0], "cpumap_soft": bitmaps[1]}
        rc = rc_of(guest, cmd, 1, vcpuaffinity=wanted)
        return rc or tuple(struct.unpack("<H", guest.peek(guest.va(0) + at, 2))[0] for at in (0, 8))

    def test_vcpu_affinity(self, pair):
        dom0 = pair.dom0
        get, put = abi.XEN_DOMCTL_getvcpuaffinity, abi.XEN_DOMCTL_setvcpuaffinity
        assert self.affinity(dom0, get, 3, 0, 0) == (1, 1)
        assert self.affinity(dom0, put, 3, 0xFF, 0) == (1, 0)
        assert self.affinity(dom0, get, 3, 0xAAAA, 0x5555) == (1, 0)
        assert self.affinity(dom0, put, 1, 0xFFFE) == EINVAL  # none of the machine's
        assert self.affinity(dom0, get, 1, 0)[0] == 1
        assert self.affinity(dom0, get, 0) == EINVAL
        assert self.affinity(dom0, get, 1, vcpu=2) == EINVAL
        domid = create(dom0)
        wanted = {"vcpu": 0, "flags": 1, "cpumap_hard": {"bitmap": dom0.va(0), "nr_bits": 8}}
        assert rc_of(dom0, get, domid, vcpuaffinity=wanted) == ESRCH
        wanted["cpumap_hard"] = {"bitmap": 0, "nr_bits": 8}
        assert rc_of(dom0, get, 1, vcpuaffinity=wanted) == EINVAL
        wanted["cpumap_hard"] = {"bitmap": NOWHERE, "nr_bits": 8}
        assert rc_of(dom0, get, 1, vcpuaffinity=wanted) == EFAULT

    def test_a_huge_bitmap(self, pair):
        """As many bits as the guest says are zeroed, until its memory ends."""
        bitmap = {"bitmap": pair.dom0.spare, "nr_bits": (1 << 32) - 1}
        wanted = {"vcpu": 0, "flags": 1, "cpumap_hard": bitmap}
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_getvcpuaffinity, 1, vcpuaffinity=wanted) == EFAULT

    def test_node_affinity(self, pair):
        dom0 = pair.dom0

        def nodes(cmd, domid, value=0):
            dom0.poke(dom0.va(0), struct.pack("<Q", value))
            rc = rc_of(dom0, cmd, domid, nodeaffinity={"nodemap": {"bitmap": dom0.va(0), "nr_bits": 64}})
            return rc or struct.unpack("<Q", dom0.peek(dom0.va(0), 8))[0]

        get, put = abi.XEN_DOMCTL_getnodeaffinity, abi.XEN_DOMCTL_setnodeaffinity
        assert nodes(get, 1) == 1
        assert nodes(get, create(dom0)) == (1 << 64) - 1
        assert nodes(put, 1, 2) == EINVAL
        assert nodes(put, 1, 3) == 3
        assert nodes(get, 1) == 3
        assert nodes(put, 1, (1 << 64) - 1) == (1 << 64) - 1
        assert nodes(get, 1) == 1


class TestVirtualNuma:
    """Two nodes, a vCPU on each, three ranges of memory."""

    DISTANCES = struct.pack("<4I", 10, 20, 20, 10)
    RANGES = b"".join(struct.pack("<QQII", at << 20, at + 1 << 20, 0, at & 1) for at in range(3))

    def topology(self, dom0, **changes):
        arrays = {
            "vdistance": self.DISTANCES,
            "vmemrange": self.RANGES,
            "vcpu_to_vnode": struct.pack("<2I", 0, 1),
            "vnode_to_pnode": struct.pack("<2I", 0, 63),
        }
        told = {"nr_vnodes": 2, "nr_vmemranges": 3, "nr_vcpus": 2}
        for slot, (name, data) in enumerate(arrays.items()):
            told[name] = dom0.va(0) + slot * 512
            dom0.poke(told[name], changes.pop(name, data))
        return rc_of(dom0, abi.XEN_DOMCTL_setvnumainfo, 1, vnuma={**told, **changes})

    def ask(self, guest, domid=xen.DOMID_SELF, **changes):
        fields = {"domid": domid, "nr_vnodes": 2, "nr_vcpus": 4, "nr_vmemranges": 3}
        for slot, name in enumerate(("vdistance", "vcpu_to_vnode", "vmemrange")):
            fields[name] = {"h": guest.va(0) + 2048 + slot * 512}
        op, layout = memory.XENMEM_get_vnumainfo, memory.xen_vnuma_topology_info
        return guest.call(xen.HYPERVISOR_memory_op, op, layout=layout, **{**fields, **changes})

    def test_the_domain_gets_what_it_was_given(self, pair):
        dom0, domu = pair.dom0, pair.domu
        assert self.ask(domu)[0] == EOPNOTSUPP
        assert self.topology(dom0) == 0
        for guest, domid in ((domu, xen.DOMID_SELF), (dom0, 1)):
            rc, told = self.ask(guest, domid)
            assert (rc, told.nr_vnodes, told.nr_vcpus, told.nr_vmemranges) == (0, 2, 2, 3)
            assert guest.peek(guest.va(0) + 2048, 16) == self.DISTANCES
            assert guest.peek(guest.va(0) + 2560, 8) == struct.pack("<2I", 0, 1)
            assert guest.peek(guest.va(0) + 3072, 72) == self.RANGES
        assert self.ask(dom0)[0] == EOPNOTSUPP

    @pytest.mark.parametrize("small", [{"nr_vnodes": 1}, {"nr_vcpus": 1}, {"nr_vmemranges": 2}])
    def test_an_array_that_is_too_small_is_told_the_size(self, pair, small):
        assert self.topology(pair.dom0) == 0
        rc, told = self.ask(pair.domu, **small)
        assert (rc, told.nr_vnodes, told.nr_vcpus, told.nr_vmemranges) == (-errno.ENOBUFS, 2, 2, 3)

    @pytest.mark.parametrize(
        ("change", "rc"),
        [
            ({"nr_vcpus": 1}, EINVAL),
            ({"pad": 1}, EINVAL),
            ({"nr_vnodes": 0}, EINVAL),
            ({"nr_vnodes": 33}, EINVAL),
            ({"nr_vmemranges": 171}, EINVAL),
            ({"vcpu_to_vnode": struct.pack("<2I", 0, 2)}, E2BIG),
            ({"vnode_to_pnode": struct.pack("<2I", 0, 64)}, E2BIG),
        ],
    )
    def test_what_cannot_be(self, pair, change, rc):
        assert self.topology(pair.dom0, **change) == rc
        assert self.ask(pair.domu)[0] == EOPNOTSUPP

    def test_arrays_must_be_there(self, pair):
        told = {"nr_vnodes": 1, "nr_vcpus": 2, "vdistance": NOWHERE}
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_setvnumainfo, 1, vnuma=told) == EFAULT
        assert self.topology(pair.dom0) == 0
        assert self.ask(pair.domu, vmemrange={"h": NOWHERE})[0] == EFAULT


class TestVcpus:
    def test_the_context_of_ones_own_other_vcpu(self, world):
        dom0 = world.guest(vcpus=2)
        where = dom0.va(0)

        def get(vcpu):
            return rc_of(dom0, abi.XEN_DOMCTL_getvcpucontext, 0, vcpucontext={"vcpu": vcpu, "ctxt": where})

        assert (get(0), get(1), get(2)) == (EINVAL, -errno.ENODATA, EINVAL)
        dom0.vcpus[1].initialised = True
        assert get(1) == 0
        where = NOWHERE
        assert get(1) == EFAULT

    def test_triggers(self, pair):
        """An NMI waits for the one vCPU; buttons are none of a PV domain's."""

        def send(trigger, vcpu):
            return rc_of(pair.dom0, abi.XEN_DOMCTL_sendtrigger, 1, sendtrigger={"trigger": trigger, "vcpu": vcpu})

        assert send(abi.XEN_DOMCTL_SENDTRIGGER_NMI, 1) == 0
        assert [vcpu.nmi_pending for vcpu in pair.domu.vcpus] == [False, True]
        assert send(abi.XEN_DOMCTL_SENDTRIGGER_NMI, 2) == ESRCH
        assert [send(trigger, 0) for trigger in range(1, 6)] == [ENOSYS, ENOSYS, EINVAL, EINVAL, ENOSYS]

    def test_the_time_stamp_counter(self, pair):
        rc, op = domctl(pair.dom0, abi.XEN_DOMCTL_gettscinfo, 1)
        told = op.u.tsc_info
        assert (rc, told.tsc_mode, told.gtsc_khz, told.incarnation) == (0, 0, 1_000_000, 1)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_settscinfo, 1, tsc_info={"tsc_mode": 2, "incarnation": 4}) == 0
        told = domctl(pair.dom0, abi.XEN_DOMCTL_gettscinfo, 1)[1].u.tsc_info
        assert (told.tsc_mode, told.gtsc_khz, told.elapsed_nsec, told.incarnation) == (2, 0, 0, 5)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_settscinfo, 1, tsc_info={"tsc_mode": 1}) == ENOSYS
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_settscinfo, 1, tsc_info={"tsc_mode": 3}) == EINVAL
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_gettscinfo, 0) == EINVAL


class TestRestOfTheState:
    def test_entries_of_32_bit_user_code(self, pair):
        context = pair.domu.vcpus[1].context
        get, put = abi.XEN_DOMCTL_get_ext_vcpucontext, abi.XEN_DOMCTL_set_ext_vcpucontext
        wanted = {"vcpu": 1, "size": 32, "sysenter_callback_eip": 0x1000, "syscall32_callback_eip": 0x2000}
        wanted["syscall32_disables_events"] = 1
        assert rc_of(pair.dom0, put, 1, ext_vcpucontext=wanted) == 0
        assert (context.sysenter_callback, context.syscall32_callback) == (0x1000, 0x2000)
        told = domctl(pair.dom0, get, 1, ext_vcpucontext={"vcpu": 1})[1].u.ext_vcpucontext
        assert (told.size, told.sysenter_callback_eip, told.syscall32_callback_eip) == (64, 0x1000, 0x2000)
        assert (told.sysenter_disables_events, told.syscall32_disables_events) == (0, 1)
        for bad in ({"size": 31}, {"sysenter_callback_eip": 1 << 47}, {"syscall32_callback_eip": 1 << 63}):
            assert rc_of(pair.dom0, put, 1, ext_vcpucontext={**wanted, **bad}) == EINVAL
        assert rc_of(pair.dom0, put, 1, ext_vcpucontext={**wanted, "vcpu": 2}) == ESRCH
        assert rc_of(pair.dom0, put, 0, ext_vcpucontext={**wanted, "vcpu": 0}) == ESRCH
        assert rc_of(pair.dom0, get, 0, ext_vcpucontext={"vcpu": 0}) == ESRCH

    def test_xsave(self, pair):
        dom0 = pair.dom0
        get, put = abi.XEN_DOMCTL_getvcpuextstate, abi.XEN_DOMCTL_setvcpuextstate

        def state(cmd, **fields):
            rc, op = domctl(dom0, cmd, 1, vcpuextstate=fields)
            return rc or (op.u.vcpuextstate.xfeature_mask, op.u.vcpuextstate.size)

        at = dom0.va(0)
        dom0.poke(at, bytes(range(16)))
        assert state(get) == state(get, buffer=at) == (0, 16)
        assert dom0.peek(at, 2) == b"\0\1"
        assert [state(get, buffer=at, size=size) for size in (15, 100)] == [EINVAL, (0, 16)]
        assert dom0.peek(at, 16) == bytes(16)
        assert state(get, buffer=NOWHERE, size=16) == EFAULT
        assert [state(put, buffer=at, size=size) for size in (15, 16, 17)] == [EINVAL, (0, 16), EINVAL]
        dom0.poke(at + 8, b"\1")
        assert [state(put, buffer=place, size=16) for place in (at, NOWHERE)] == [EINVAL, EFAULT]
        assert [state(get, vcpu=2), state(put, vcpu=2)] == [ESRCH, ESRCH]

    def test_msrs(self, pair):
        def msrs(cmd, **fields):
            rc, op = domctl(pair.dom0, cmd, 1, vcpu_msrs=fields)
            return rc or op.u.vcpu_msrs.msr_count

        get, put = abi.XEN_DOMCTL_get_vcpu_msrs, abi.XEN_DOMCTL_set_vcpu_msrs
        assert (msrs(get), msrs(get, msrs=NOWHERE, msr_count=5)) == (7, 0)
        assert [msrs(put, msrs=NOWHERE, msr_count=count) for count in (0, 1, 8)] == [0, EFAULT, EINVAL]
        assert msrs(put, msrs=pair.dom0.va(0), msr_count=1) == EINVAL
        assert rc_of(pair.dom0, get, 0, vcpu_msrs={"vcpu": 0}) == EINVAL

    def test_a_debugger_pauses_one_vcpu(self, pair):
        pause, unpause = abi.XEN_DOMCTL_gdbsx_pausevcpu, abi.XEN_DOMCTL_gdbsx_unpausevcpu
        ran = []

        def program(_cpu):
            while len(ran) < 1000:
                ran.append(pair.hv.now())
                yield MS

        def one(cmd, vcpu=0):
            return rc_of(pair.dom0, cmd, 1, gdbsx_pauseunp_vcpu={"vcpu": vcpu})

        pair.domu.runs(program)
        pair.world.run(until=3 * MS)
        assert (one(pause), one(unpause)) == (EBUSY, EBUSY)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_pausedomain, 1) == 0
        assert (one(pause), one(pause), one(pause, 2), one(unpause), one(unpause, 1)) == (0, 0, EINVAL, 0, EINVAL)
        told = domctl(pair.dom0, abi.XEN_DOMCTL_gdbsx_domstatus, 1)[1].u.gdbsx_domstatus
        assert (told.paused, told.vcpu_id) == (1, 0xFFFFFFFF)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_unpausedomain, 1) == 0
        before = len(ran)
        pair.world.run(until=10 * MS)
        assert len(ran) == before
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_pausedomain, 1) == 0
        assert one(unpause) == 0
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_unpausedomain, 1) == 0
        pair.world.run(until=20 * MS)
        assert len(ran) > before


class TestEvents:
    def test_a_virq_of_the_hosts_for_another_domain(self, pair):
        """XEN_DOMCTL_set_virq_handler: what xenstored's domain needs to learn of domains' ends."""
        virq = xen.VIRQ_DOM_EXC
        ports = [guest.virq(virq) for guest in (pair.dom0, pair.domu)]
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_set_virq_handler, 1, set_virq_handler={"virq": virq}) == 0
        pair.hv.events.send_global_virq(virq)
        assert (pair.dom0.pending(ports[0]), pair.domu.pending(ports[1])) == (False, True)
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert pair.dom0.pending(ports[0])
        for bad in (xen.VIRQ_TIMER, 24):
            assert rc_of(pair.dom0, abi.XEN_DOMCTL_set_virq_handler, 0, set_virq_handler={"virq": bad}) == EINVAL

    @pytest.mark.parametrize("reason", [sched.SHUTDOWN_suspend, sched.SHUTDOWN_poweroff])
    def test_subscribing_to_suspends(self, pair, reason):
        exc = pair.dom0.virq(xen.VIRQ_DOM_EXC)
        theirs = pair.domu.alloc(remote=0)
        mine = pair.dom0.bind(1, theirs)
        pair.dom0.clear(mine)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_subscribe, 1, subscribe={"port": theirs}) == 0
        pair.hv.domain_ops.shutdown(pair.domu.domain, reason)
        suspended = reason == sched.SHUTDOWN_suspend
        assert (pair.dom0.pending(mine), pair.dom0.pending(exc)) == (suspended, not suspended)

    @pytest.mark.parametrize("port", [0, 5, 4096, 0xFFFFFFFF])
    def test_subscribing_with_a_port_that_is_none(self, pair, port):
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_subscribe, 1, subscribe={"port": port}) == 0
        pair.hv.domain_ops.shutdown(pair.domu.domain, sched.SHUTDOWN_suspend)
        assert pair.domu.domain.shutting_down


class TestEnd:
    def test_resuming_forgets_an_announced_reason(self, pair):
        pair.domu.domain.shutdown_code = 1
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_resumedomain, 1) == 0
        assert pair.domu.domain.shutdown_code == -1
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_resumedomain, 0) == EINVAL

    def test_a_soft_reset_is_no_pv_domains_way(self, pair):
        pair.hv.domain_ops.shutdown(pair.domu.domain, sched.SHUTDOWN_soft_reset)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_soft_reset, 1) == EINVAL
        assert any(b"soft reset" in line for line in pair.world.log)


def test_the_hypercall_page(pair):
    def init(gmfn):
        return rc_of(pair.dom0, abi.XEN_DOMCTL_hypercall_init, 1, hypercall_init={"gmfn": gmfn})

    assert init(pair.domu.pages[0]) == 0
    assert pair.domu.peek(pair.domu.va(0), 4) == b"\x51\x41\x53\xb8"
    assert (init(pair.domu.l1), init(pair.dom0.pages[0]), init(1 << 40)) == (EPERM, EINVAL, EINVAL)
    pair.world.run(until=MS)


class TestDebuggersMemory:
    def memory(self, pair, address, size=16, *, write=0, buffer=None, table=0, domid=1):
        member = {
            "gva": address,
            "uva": pair.dom0.va(7) if buffer is None else buffer,
            "len": size,
            "gwr": write,
            "pgd3val": table,
            "remain": 0x77,
        }
        rc, op = domctl(pair.dom0, abi.XEN_DOMCTL_gdbsx_guestmemio, domid, gdbsx_guest_memio=member)
        return rc, op.u.gdbsx_guest_memio.remain

    def test_reading_and_writing(self, pair):
        domu, dom0 = pair.domu, pair.dom0
        at = domu.va(5) - 8
        domu.poke(at, bytes(range(16)))
        assert self.memory(pair, at) == (0, 0)
        assert dom0.peek(dom0.va(7), 16) == bytes(range(16))
        dom0.poke(dom0.va(7), b"breakpoints here")
        pair.hv.memory.written[domu.pages[5]] = 0
        assert self.memory(pair, at, write=1) == (0, 0)
        assert domu.peek(at, 16) == b"breakpoints here"
        # Code that was there is translated anew.
        assert pair.hv.memory.written[domu.pages[5]] == 1
        assert self.memory(pair, NOWHERE, 0) == (0, 0)

    def test_through_a_table_of_the_kernels_own(self, pair):
        domu, dom0 = pair.domu, pair.dom0
        domu.poke(domu.va(2), b"module")
        assert self.memory(pair, domu.va(2), 6, table=domu.l2 << 12 | 0x67) == (0, 0)
        assert dom0.peek(dom0.va(7), 6) == b"module"
        assert self.memory(pair, domu.va(2), 6, table=1 << 45) == (EFAULT, 0x77)

    def test_a_read_only_page_can_be_written_but_no_page_table(self, pair):
        domu = pair.domu
        pte = domu.pte(domu.va(4))
        assert domu.set_pte(domu.va(4), pte & ~2) == 0
        assert self.memory(pair, domu.va(4), write=1) == (0, 0)
        # Its own L1 table, mapped read-only.
        assert domu.set_pte(domu.va(3), domu.l1 << 12 | 0x25) == 0
        assert self.memory(pair, domu.va(3)) == (0, 0)
        assert self.memory(pair, domu.va(3), write=1) == (EFAULT, 0x77)

    def test_what_is_not_mapped(self, pair):
        domu = pair.domu
        last = domu.va(27)
        domu.poke(last, b"x" * 4096)
        assert self.memory(pair, last + 4088, 16) == (EFAULT, 0x77)
        assert pair.dom0.peek(pair.dom0.va(7), 8) == b"x" * 8
        for address in (NOWHERE, 0, 1 << 47, 0xFFFF800000000000, (1 << 64) - 8):
            assert self.memory(pair, address)[0] == EFAULT
        assert self.memory(pair, domu.va(5), buffer=NOWHERE)[0] == EFAULT
        assert self.memory(pair, domu.va(5), buffer=NOWHERE, write=1)[0] == EFAULT

    def test_of_whom(self, pair):
        domid = create(pair.dom0)
        # It has no vCPU yet, and so no address space.
        assert self.memory(pair, 0x1000, domid=domid)[0] == EFAULT
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_destroydomain, domid) == 0
        assert rc_of(pair.domu, abi.XEN_DOMCTL_gdbsx_guestmemio, 1) == EPERM


class TestWatchers:
    """Those of PV domains are told that there is nothing to see."""

    def test_the_version_is_for_everybody(self, pair):
        for guest in (pair.dom0, pair.domu):
            for domid in (0, 1, xen.DOMID_INVALID):
                member = {"op": abi.XEN_VM_EVENT_GET_VERSION}
                rc, op = domctl(guest, abi.XEN_DOMCTL_vm_event_op, domid, vm_event_op=member)
                assert (rc, op.u.vm_event_op.u.version) == (0, 7)
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_vm_event_op, 77, vm_event_op=member) == ESRCH

    def test_rings(self, pair):
        def ring(op, mode=abi.XEN_DOMCTL_VM_EVENT_OP_MONITOR, domid=1, guest=pair.dom0):
            return rc_of(guest, abi.XEN_DOMCTL_vm_event_op, domid, vm_event_op={"op": op, "mode": mode})

        assert [ring(op) for op in (0, 1, 2, 4, 99)] == [EOPNOTSUPP, EINVAL, ENODEV, ENOSYS, ENOSYS]
        assert [ring(0, mode) for mode in (0, 1, 3, 4)] == [ENOSYS] * 4
        assert (ring(0, domid=0), ring(0, guest=pair.domu), ring(0, domid=xen.DOMID_INVALID)) == (EINVAL, EPERM, ESRCH)
        domid = create(pair.dom0)
        assert ring(0, domid=domid) == EINVAL
        assert rc_of(pair.dom0, abi.XEN_DOMCTL_destroydomain, domid) == 0

    def test_events(self, pair):
        def monitor(op, event=0, domid=1, guest=pair.dom0):
            return domctl(guest, abi.XEN_DOMCTL_monitor_op, domid, monitor_op={"op": op, "event": event})

        assert [monitor(op, event)[0] for op in (0, 1) for event in (0, 31, 32, 99)] == 2 * [
            EOPNOTSUPP,
            EOPNOTSUPP,
            EINVAL,
            EINVAL,
        ]
        rc, op = monitor(abi.XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES, 5)
        assert (rc, op.u.monitor_op.event) == (0, 0)
        assert [monitor(op)[0] for op in (3, 4, 5, 99)] == [EINVAL, 0, EOPNOTSUPP, EOPNOTSUPP]
        assert (monitor(0, domid=0)[0], monitor(0, guest=pair.domu)[0]) == (EPERM, EPERM)
        assert [rc_of(pair.dom0, abi.XEN_DOMCTL_set_access_required, domid) for domid in (1, 0)] == [0, EPERM]
