"""The life of domains: domctl, sysctl, pausing, shutdown, destruction (domctl.h, sysctl.h)."""

from __future__ import annotations

import pytest
from core_world import KERNEL, MS, SCHED_OP, World

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, sched, xen
from hypervisor.abi import sysctl as sysctl_abi
from hypervisor.abi import vcpu as vcpu_abi
from hypervisor.abi.cpu import GeneralProtectionFault
from hypervisor.errors import HypercallError
from hypervisor.machine.timers import Timers

EINVAL, EPERM, ESRCH, ENOSYS, EFAULT, EEXIST, ENODATA, EOVERFLOW, EOPNOTSUPP = (
    -number
    for number in (
        errno.EINVAL,
        errno.EPERM,
        errno.ESRCH,
        errno.ENOSYS,
        errno.EFAULT,
        errno.EEXIST,
        errno.ENODATA,
        errno.EOVERFLOW,
        errno.EOPNOTSUPP,
    )
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
    """Returns the result and what Xen left in the union."""
    fields = {"cmd": cmd, "interface_version": abi.XEN_DOMCTL_INTERFACE_VERSION, "domain": domid, "u": member}
    rc, op = guest.call(xen.HYPERVISOR_domctl, layout=abi.xen_domctl, **fields)
    return rc, op


def create(guest, domid=0, **changes):
    rc, op = domctl(guest, abi.XEN_DOMCTL_createdomain, domid, createdomain={**CREATE, **changes})
    return op.domain if rc == 0 else rc


def info(guest, domid):
    rc, op = domctl(guest, abi.XEN_DOMCTL_getdomaininfo, domid, getdomaininfo={})
    return op.u.getdomaininfo if rc == 0 else rc


class TestCreate:
    def test_numbers_count_upwards(self, pair):
        assert [create(pair.dom0), create(pair.dom0)] == [2, 3]
        pair.hv.domain_ops.kill(pair.hv.domains[2])
        assert create(pair.dom0) == 4
        assert create(pair.dom0, 2) == 2
        assert create(pair.dom0, 2) == EEXIST

    def test_numbers_out_of_range_are_as_none(self, pair):
        assert create(pair.dom0, xen.DOMID_FIRST_RESERVED) == 2

    def test_leaves_it_paused_without_anything(self, pair):
        domain = create(pair.dom0)
        state = info(pair.dom0, domain)
        assert state.flags == 0xFFFF0000 | abi.XEN_DOMINF_paused
        assert (state.nr_online_vcpus, state.max_vcpu_id, state.tot_pages) == (0, abi.XEN_INVALID_MAX_VCPU_ID, 0)

    @pytest.mark.parametrize(
        "changes",
        [
            {"flags": abi.XEN_DOMCTL_CDF_hvm},
            {"flags": 1 << 31},
            {"max_vcpus": 0},
            {"max_vcpus": 8193},
            {"grant_opts": 0},
            {"grant_opts": 3},
            {"grant_opts": 0x11},
            {"max_grant_frames": 0},
            {"max_grant_frames": 65},
            {"max_maptrack_frames": 1025},
            {"flags": abi.XEN_DOMCTL_CDF_s3_integrity},
            {"flags": abi.XEN_DOMCTL_CDF_iommu},
            {"flags": abi.XEN_DOMCTL_CDF_vpmu},
            {"iommu_opts": 1},
            {"vmtrace_size": 4096},
            {"arch": {"emulation_flags": 1 << 11}},
            {"arch": {"misc_flags": 2}},
        ],
    )
    def test_what_cannot_be(self, pair, changes):
        free = pair.hv.frames.free_frames
        assert create(pair.dom0, **changes) == EINVAL
        assert list(pair.hv.domains) == [0, 1]
        assert pair.hv.frames.free_frames == free

    @pytest.mark.parametrize("version", [1, 2])
    def test_highest_version_of_grants(self, pair, version):
        domid = create(pair.dom0, grant_opts=version)
        assert pair.hv.domains[domid].grant_table.max_version == version

    def test_defaults_of_the_host(self, pair):
        domid = create(pair.dom0, max_grant_frames=-1, max_maptrack_frames=-1, max_evtchn_port=0xFFFFFFFF)
        assert pair.hv.domains[domid].max_evtchn_port == 0x7FFFFFFF

    def test_not_by_a_domu(self, pair):
        assert create(pair.domu) == EPERM

    def test_nothing_is_left_when_memory_is_short(self, pair):
        frames = pair.hv.frames
        hog = pair.dom0.domain
        hog.max_pages = 1 << 30
        while frames.free_frames > 1:
            frames.alloc(hog)
        with pytest.raises(HypercallError):
            pair.hv.domain_ops.create(5, max_vcpus=1)
        assert frames.free_frames == 1
        assert 5 not in pair.hv.domains
        pair.world.check()


class TestVcpus:
    def test_all_at_once(self, pair):
        domid = create(pair.dom0, max_vcpus=3)
        assert domctl(pair.dom0, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus={"max": 2})[0] == EINVAL
        assert domctl(pair.dom0, abi.XEN_DOMCTL_max_vcpus, domid, max_vcpus={"max": 3})[0] == 0
        assert info(pair.dom0, domid).max_vcpu_id == 2
        rc, op = domctl(pair.dom0, abi.XEN_DOMCTL_getvcpuinfo, domid, getvcpuinfo={"vcpu": 2})
        assert (rc, op.u.getvcpuinfo.online, op.u.getvcpuinfo.cpu_time) == (0, 0, 0)

    def test_numbers(self, pair):
        domid = create(pair.dom0, max_vcpus=2)
        for vcpu, rc in ((0, ESRCH), (2, EINVAL)):
            assert domctl(pair.dom0, abi.XEN_DOMCTL_getvcpuinfo, domid, getvcpuinfo={"vcpu": vcpu})[0] == rc
            assert domctl(pair.dom0, abi.XEN_DOMCTL_setvcpucontext, domid, vcpucontext={"vcpu": vcpu})[0] == EINVAL

    def context(self, pair, **fields):
        """Put a context for domain 1 into dom0's memory; returns its address."""
        control = (0, 0, 0, pair.domu.l4 << 12, 0, 0, 0, 0)
        flags = xen.VGCF_in_kernel | xen.VGCF_online
        raw = xen.vcpu_guest_context.pack(**{"flags": flags, "ctrlreg": control, **fields})
        pair.dom0.poke(pair.dom0.va(0), raw)
        return pair.dom0.va(0)

    def set(self, pair, vcpu, at):
        return domctl(pair.dom0, abi.XEN_DOMCTL_setvcpucontext, 1, vcpucontext={"vcpu": vcpu, "ctxt": at})[0]

    def test_context_there_and_back(self, pair):
        registers = {"rip": KERNEL, "rsp": 0x2000, "rsi": 0x3000, "rflags": 0x200}
        assert self.set(pair, 0, self.context(pair, user_regs=registers, kernel_sp=0x5000)) == 0
        assert pair.domu.is_up(0) == 1
        where = pair.dom0.va(4)
        get = abi.XEN_DOMCTL_getvcpucontext
        assert domctl(pair.dom0, get, 1, vcpucontext={"vcpu": 0, "ctxt": where})[0] == 0
        layout = xen.vcpu_guest_context
        found = layout.unpack_from(pair.dom0.peek(where, layout.size))
        assert (found.user_regs.rip, found.user_regs.rsi, found.kernel_sp) == (KERNEL, 0x3000, 0x5000)
        assert found.ctrlreg[3] == pair.domu.l4 << 12
        assert domctl(pair.dom0, get, 1, vcpucontext={"vcpu": 1, "ctxt": where})[0] == ENODATA

    def test_none_of_ones_own(self, pair):
        for cmd in (abi.XEN_DOMCTL_setvcpucontext, abi.XEN_DOMCTL_getvcpucontext):
            assert domctl(pair.dom0, cmd, 0, vcpucontext={"vcpu": 0})[0] == EINVAL
        assert domctl(pair.dom0, abi.XEN_DOMCTL_max_vcpus, 0, max_vcpus={"max": 1})[0] == EINVAL

    def test_a_vcpu_that_was_reset_starts_afresh(self, pair):
        """A null context forgets the vCPU; the next one brings it up with a new door to Xen."""
        guest, lives = pair.domu, []

        def program(cpu):
            lives.append(cpu.hypercall(xen.HYPERVISOR_xen_version, 0))
            while True:
                guest.poll([], timeout=0)
                yield 0

        guest.runs(program)
        pair.world.run(until=MS)
        assert self.set(pair, 0, 0) == 0
        assert not guest.vcpu_op(vcpu_abi.VCPUOP_is_up, 0, on=1)
        assert guest.vcpus[0].kernel_cr3 == 0
        assert guest.domain.pollers == 0
        assert self.set(pair, 0, self.context(pair, user_regs={"rip": KERNEL})) == 0
        pair.world.run(until=2 * MS)
        assert lives == [4 << 16 | 17] * 2

    def test_a_new_context_replaces_what_runs(self, pair):
        guest, order = pair.domu, []

        def first(cpu):
            while True:
                order.append("first")
                yield MS

        def second(cpu):
            while True:
                order.append("second")
                yield MS

        guest.runs(first)
        guest.domain.text[KERNEL + 0x5000] = second
        pair.world.run(until=2 * MS)
        assert self.set(pair, 0, self.context(pair, user_regs={"rip": KERNEL + 0x5000})) == 0
        at = len(order)
        pair.world.run(until=5 * MS)
        assert set(order[:at]) == {"first"}
        assert set(order[at:]) == {"second"}


class TestPause:
    def test_is_counted(self, pair):
        pause, unpause = abi.XEN_DOMCTL_pausedomain, abi.XEN_DOMCTL_unpausedomain
        assert domctl(pair.dom0, unpause, 1)[0] == 0  # from its creation
        assert domctl(pair.dom0, unpause, 1)[0] == EINVAL
        assert [domctl(pair.dom0, pause, 1)[0] for _ in range(256)] == [0] * 255 + [EOVERFLOW]
        assert info(pair.dom0, 1).flags & abi.XEN_DOMINF_paused
        assert domctl(pair.dom0, pause, 0)[0] == EINVAL

    @pytest.mark.parametrize("pcpus", [1, 2])
    def test_takes_effect_at_once_and_loses_nothing(self, pcpus):
        world = World(pcpus=pcpus)
        dom0, domu = world.guest(), world.guest()
        ran = []

        def worker(cpu):
            while True:
                ran.append(cpu.rdtsc())
                yield 100_000

        def boss(cpu):
            yield 2 * MS
            domctl(dom0, abi.XEN_DOMCTL_pausedomain, 1)
            paused = world.hv.now()
            count = len(ran)
            yield 5 * MS
            assert len(ran) == count
            domctl(dom0, abi.XEN_DOMCTL_unpausedomain, 1)
            yield 5 * MS
            assert len(ran) > count
            assert all(when <= paused or when >= paused + 5 * MS for when in ran)
            dom0.shutdown(0)
            yield 0

        domu.runs(worker)
        dom0.runs(boss)
        world.run()
        assert world.hv.shutdown_reason == 0
        world.check()
        world.hv.domain_ops.kill(domu.domain)

    def test_of_a_waiting_vcpu_takes_it_off_the_queue(self, pair):
        def program(cpu):
            while True:
                yield 0

        pair.domu.runs(program)
        vcpu = pair.domu.vcpus[0]
        assert list(pair.hv.sched.run_queue) == [vcpu]
        pair.hv.domain_ops.pause(pair.domu.domain)
        assert not pair.hv.sched.run_queue
        pair.hv.domain_ops.unpause(pair.domu.domain)
        assert list(pair.hv.sched.run_queue) == [vcpu]

    def test_of_a_blocked_vcpu(self, pair):
        pair.hv.domain_ops.unpause(pair.domu.domain)
        pair.domu.vcpus[0].pause_flags = 0
        pair.domu.block()
        pair.hv.domain_ops.pause(pair.domu.domain)
        pair.hv.domain_ops.unpause(pair.domu.domain)
        assert not pair.hv.sched.run_queue
        pair.hv.domain_ops.pause(pair.domu.domain)
        pair.domu.set_upcall_mask(1)
        pair.domu.send(pair.domu.ipi())
        assert not pair.hv.sched.run_queue
        pair.hv.domain_ops.unpause(pair.domu.domain)
        assert len(pair.hv.sched.run_queue) == 1


class TestInfo:
    def test_flags(self, pair):
        states = []

        def program(cpu):
            states.append(info(pair.dom0, 1).flags)
            pair.domu.poll([])
            yield 0
            pair.domu.shutdown(5)
            yield 0

        pair.domu.runs(program)
        pair.world.run(until=MS)
        states.append(info(pair.dom0, 1).flags)
        pair.hv.sched.wake(pair.domu.vcpus[0])
        pair.world.run(until=2 * MS)
        states.append(info(pair.dom0, 1).flags & ~abi.XEN_DOMINF_blocked)
        none = 0xFFFF0000
        assert states == [
            none | abi.XEN_DOMINF_running,
            none | abi.XEN_DOMINF_blocked,
            5 << 16 | abi.XEN_DOMINF_shutdown,
        ]

    def test_list(self, pair):
        domids = [create(pair.dom0) for _ in range(5)]
        size = abi.xen_domctl_getdomaininfo.size
        wanted = {"first_domain": 1, "max_domains": 3, "buffer": pair.dom0.va(0)}
        fields = {
            "cmd": sysctl_abi.XEN_SYSCTL_getdomaininfolist,
            "interface_version": sysctl_abi.XEN_SYSCTL_INTERFACE_VERSION,
            "u": {"getdomaininfolist": wanted},
        }
        rc, op = pair.dom0.call(xen.HYPERVISOR_sysctl, layout=sysctl_abi.xen_sysctl, **fields)
        assert (rc, op.u.getdomaininfolist.num_domains) == (0, 3)
        data = pair.dom0.peek(pair.dom0.va(0), 3 * size)
        found = [abi.xen_domctl_getdomaininfo.unpack_from(data, index * size).domain for index in range(3)]
        assert found == [1, *domids[:2]]

    def test_a_xenstore_domain_may_look(self, pair):
        domid = create(pair.dom0, flags=abi.XEN_DOMCTL_CDF_xs_domain)
        assert info(pair.dom0, domid).flags & abi.XEN_DOMINF_xs_domain
        assert info(pair.domu, 0) == EPERM
        pair.domu.domain.is_xenstore = True
        assert info(pair.domu, 0).domain == 0
        assert domctl(pair.domu, abi.XEN_DOMCTL_pausedomain, 0)[0] == EPERM


class TestSettings:
    def test_max_mem(self, pair):
        assert domctl(pair.dom0, abi.XEN_DOMCTL_max_mem, 1, max_mem={"max_memkb": 4096})[0] == 0
        assert info(pair.dom0, 1).max_pages == 1024

    def test_handle(self, pair):
        handle = bytes(range(16))
        assert domctl(pair.dom0, abi.XEN_DOMCTL_setdomainhandle, 1, setdomainhandle={"handle": handle})[0] == 0
        assert bytes(info(pair.dom0, 1).handle) == handle

    @pytest.mark.parametrize(("size", "rc"), [(64, 0), (32, EOPNOTSUPP), (16, EINVAL)])
    def test_width(self, pair, size, rc):
        assert domctl(pair.dom0, abi.XEN_DOMCTL_set_address_size, 1, address_size={"size": size})[0] == rc

    def test_ports_and_lines(self, pair):
        def ports(first, count, allow):
            wanted = {"first_port": first, "nr_ports": count, "allow_access": allow}
            return domctl(pair.dom0, abi.XEN_DOMCTL_ioport_permission, 1, ioport_permission=wanted)[0]

        domain = pair.domu.domain
        assert ports(0x100, 16, 1) == 0
        assert ports(0x104, 4, 0) == 0
        assert [port for port in range(0x200) if domain.may_use_port(port)] == [
            *range(0x100, 0x104),
            *range(0x108, 0x110),
        ]
        assert (ports(0, 0, 1), ports(0xFFFF, 2, 1)) == (EINVAL, EINVAL)

        # What the processor has found permitted once it looks up again when permissions have changed.
        outl, written = pair.domu.vcpus[0].cpu.outl, []
        pair.hv.machine.ports.writers[0x100] = lambda port, value: written.append((port, value))
        outl(0x100, -1)
        outl(0x100, 1 << 40 | 7)
        assert ports(0x200, 4, 1) == 0
        outl(0x100, 1)
        assert ports(0x100, 1, 0) == 0
        for port in (0x100, 0x99, -1, 1 << 70):
            with pytest.raises(GeneralProtectionFault):
                outl(port, 2)
        outl(0x101, 3)  # nothing is there
        assert written == [(0x100, 0xFFFF_FFFF), (0x100, 7), (0x100, 1)]
        del pair.hv.machine.ports.writers[0x100]

        def line(pirq, allow):
            wanted = {"pirq": pirq, "allow_access": allow}
            return domctl(pair.dom0, abi.XEN_DOMCTL_irq_permission, 1, irq_permission=wanted)[0]

        assert (line(9, 1), domain.irqs) == (0, {9})
        assert (line(9, 0), domain.irqs) == (0, set())
        assert line(5000, 1) == EINVAL

    def test_time_offset(self, pair):
        pair.domu.runs(lambda cpu: iter([0]))
        memory, base = pair.hv.memory, pair.domu.domain.shared_info_mfn << 12
        seconds = (base + xen.shared_info.offset("wc_sec")) >> 2
        before = memory.i[seconds]
        wanted = {"time_offset_seconds": 3600}
        assert domctl(pair.dom0, abi.XEN_DOMCTL_settimeoffset, 1, settimeoffset=wanted)[0] == 0
        assert memory.i[seconds] == before + 3600
        assert memory.i[(base + xen.shared_info.offset("wc_version")) >> 2] == 4

    def test_what_x86_has_not(self, pair):
        for cmd in (abi.XEN_DOMCTL_vuart_op, abi.XEN_DOMCTL_cacheflush, abi.XEN_DOMCTL_mem_sharing_op):
            assert domctl(pair.dom0, cmd, 1)[0] == ENOSYS


class TestEnd:
    def test_destroying(self, pair):
        image = pair.domu.runs(lambda cpu: iter([0]))
        assert domctl(pair.dom0, abi.XEN_DOMCTL_destroydomain, 0)[0] == EINVAL
        assert domctl(pair.dom0, abi.XEN_DOMCTL_destroydomain, 1)[0] == 0
        assert list(pair.hv.domains) == [0]
        assert image.unloaded == 1
        assert domctl(pair.dom0, abi.XEN_DOMCTL_destroydomain, 1)[0] == ESRCH

    def test_lives_on_dead_while_a_page_is_held(self, pair):
        frames = pair.hv.frames
        page = pair.domu.pages[3]
        assert frames.get_page(page, pair.domu.domain)
        pair.hv.domain_ops.unpause(pair.domu.domain)
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert info(pair.dom0, 1).flags == 0xFFFF0000 | abi.XEN_DOMINF_dying
        frames.put_page(page)
        assert list(pair.hv.domains) == [0]

    def test_a_dead_guests_code_reaches_nothing(self, pair):
        ends = []

        def program(cpu):
            try:
                while True:
                    yield MS
            finally:
                ends.append(cpu.hypercall(xen.HYPERVISOR_xen_version, 0))

        pair.domu.runs(program)
        pair.world.run(until=3 * MS)
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert ends == [ENOSYS]

    def test_resuming_what_has_suspended(self, pair):
        order = []

        def program(cpu):
            pair.domu.shutdown(sched.SHUTDOWN_suspend)
            yield 0
            order.append("resumed")
            pair.domu.shutdown(0)
            yield 0

        pair.domu.runs(program)
        pair.world.run(until=MS)
        assert order == []
        assert domctl(pair.dom0, abi.XEN_DOMCTL_resumedomain, 1)[0] == 0
        pair.world.run(until=2 * MS)
        assert order == ["resumed"]
        assert pair.domu.domain.shutdown_code == 0

    @pytest.mark.leaves_live_host("dom0 goes while the other still runs")
    @pytest.mark.parametrize("reason", [0, 1, 3])
    def test_dom0s_end_is_the_hosts(self, pair, reason):
        ran = []

        def program(cpu):
            pair.dom0.shutdown(reason)
            yield 0

        def other(cpu):
            while True:
                ran.append(pair.hv.stopped)
                yield 1000

        pair.domu.runs(other)
        pair.dom0.runs(program)
        pair.world.run()
        assert pair.hv.stopped
        assert pair.hv.shutdown_reason == reason
        assert pair.hv.sched.drain(100) == Timers.NEVER
        assert True not in ran

    def test_a_crash_of_dom0_too(self, pair):
        def program(cpu):
            yield 1000
            raise RuntimeError("panic")

        pair.dom0.runs(program)
        pair.world.run()
        assert (pair.hv.stopped, pair.hv.shutdown_reason) == (True, sched.SHUTDOWN_crash)
        log = b"".join(pair.world.log)
        assert b"RuntimeError: panic" in log
        assert b"Hardware Dom0 crashed" in log

    def test_switching_off(self, pair):
        ends = []

        def program(cpu):
            try:
                while True:
                    cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                    yield 0
            finally:
                ends.append(cpu.hypercall(xen.HYPERVISOR_xen_version, 0))

        images = [pair.dom0.runs(program), pair.domu.runs(program)]
        pair.world.run(until=MS)
        pair.hv.switch_off()
        assert ends == [ENOSYS] * 2
        assert [image.unloaded for image in images] == [1, 1]
