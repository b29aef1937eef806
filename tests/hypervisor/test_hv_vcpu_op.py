"""HYPERVISOR_vcpu_op, rule by rule (vcpu.h, and what Xen 4.17 answers)."""

from __future__ import annotations

import struct

import pytest
from bare_guest import HOLES
from core_world import CALLBACK, KERNEL, MS, SCHED_OP, SELECTOR, UPCALL_MASK, VCPU_OP

from hypervisor.abi import errno, sched, xen
from hypervisor.abi import vcpu as abi
from hypervisor.machine.memory import Memory
from hypervisor.time import TIME

EINVAL, ENOENT, ENOSYS, EFAULT, EEXIST, ENXIO = (
    -number for number in (errno.EINVAL, errno.ENOENT, errno.ENOSYS, errno.EFAULT, errno.EEXIST, errno.ENXIO)
)
NOWHERE = 0x700000
XEN = 0xFFFF800000000000


@pytest.fixture
def guest(pair):
    return pair.domu


def context(guest, **fields):
    """A vcpu_guest_context that starts at the program of vCPU 1."""
    registers = {"rip": KERNEL + 0x1000, "rflags": 0x200}
    control = (0, 0, 0, guest.l4 << 12, 0, 0, 0, 0)
    return {
        "flags": xen.VGCF_in_kernel,
        "user_regs": registers,
        "ctrlreg": control,
        "event_callback_eip": CALLBACK,
        **fields,
    }


def initialise(guest, vcpu=1, **fields):
    # Two pages long: the pages for arguments are next to each other.
    return guest.vcpu_op(abi.VCPUOP_initialise, vcpu, xen.vcpu_guest_context, **context(guest, **fields))


class TestWhich:
    @pytest.mark.parametrize("vcpu", [2, 31, 9999, 0xFFFFFFFF])
    def test_a_missing_vcpu_comes_before_an_unknown_operation(self, guest, vcpu):
        assert guest.vcpu_op(abi.VCPUOP_is_up, vcpu) == ENOENT
        assert guest.vcpu_op(99, vcpu) == ENOENT

    @pytest.mark.parametrize("op", [14, 99, 0xFFFFFFFF])
    def test_unknown_operation(self, guest, op):
        assert guest.hypercall(VCPU_OP, op, 0, NOWHERE) == ENOSYS


class TestInitialise:
    def test_takes_over_what_it_is_told(self, guest):
        assert initialise(guest) == 0
        vcpu = guest.vcpus[1]
        assert vcpu.context.rip == KERNEL + 0x1000
        assert vcpu.context.event_callback == CALLBACK
        assert guest.is_up(1) == 0

    def test_twice(self, guest):
        assert initialise(guest) == 0
        assert initialise(guest) == EEXIST

    def test_an_unreadable_context_is_noticed_first(self, guest):
        initialise(guest)
        assert guest.hypercall(VCPU_OP, abi.VCPUOP_initialise, 1, NOWHERE) == EFAULT

    def test_what_runs_already(self, guest):
        guest.vcpus[0].initialised = True
        assert initialise(guest, vcpu=0) == EEXIST

    @pytest.mark.parametrize(
        "fields",
        [
            {"ldt_ents": 8193},
            {"ldt_base": 0x1001, "ldt_ents": 1},
            {"gdt_ents": 8192},
            {"gdt_ents": 1, "gdt_frames": (1 << 40,) + (0,) * 15},
            {"ctrlreg": (0,) * 8},
            {"ctrlreg": (0, 0, 0, 1 << 50, 0, 0, 0, 0)},
            {"flags": 0},
            {"kernel_sp": 1 << 47},
            {"event_callback_eip": 1 << 63},
            {"fs_base": 0x8000_0000_0000_0000},
            {"user_regs": {"rip": 1 << 47}},
        ],
    )
    def test_what_cannot_be(self, guest, fields):
        assert initialise(guest, **fields) == EINVAL
        assert not guest.vcpus[1].initialised
        assert guest.vcpus[1].kernel_cr3 == guest.l4

    def test_zeroes(self, guest):
        guest.poke(guest.args, bytes(xen.vcpu_guest_context.size))
        assert guest.hypercall(VCPU_OP, abi.VCPUOP_initialise, 1, guest.args) == EINVAL

    def test_descriptor_tables(self, guest):
        frame = guest.alloc_table()
        assert initialise(guest, gdt_ents=16, gdt_frames=(frame,) + (0,) * 15, ldt_base=0x5000, ldt_ents=3) == 0
        state = guest.vcpus[1].context
        assert (state.gdt_frames, state.gdt_ents, state.ldt_base, state.ldt_ents) == ([frame], 16, 0x5000, 3)

    def test_a_gdt_is_given_back_if_the_rest_fails(self, guest):
        frame = guest.alloc_table()
        fields = {"gdt_ents": 16, "gdt_frames": (frame,) + (0,) * 15, "ctrlreg": (0, 0, 0, 1 << 50, 0, 0, 0, 0)}
        assert initialise(guest, **fields) == EINVAL
        assert guest.vcpus[1].context.gdt_frames == []


class TestUpAndDown:
    def test_up_wants_it_initialised(self, guest):
        assert guest.vcpu_op(abi.VCPUOP_up, 1) == EINVAL

    def test_up_of_what_is_up(self, pair, guest):
        guest.runs(lambda cpu: iter([0]))
        assert guest.is_up(0) == 1
        assert guest.vcpu_op(abi.VCPUOP_up, 0) == 0

    def test_down_of_what_is_down(self, guest):
        guest.vcpus[0].pause_flags = 0
        assert guest.vcpu_op(abi.VCPUOP_down, 1) == 0
        assert guest.is_up(1) == 0

    def test_runs_from_its_context_once_up(self, pair, guest):
        order = []

        def boot(cpu):
            assert initialise(guest) == 0
            yield 1000
            order.append("up")
            assert guest.vcpu_op(abi.VCPUOP_up, 1) == 0
            assert guest.is_up(1) == 1
            yield MS
            while True:
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                yield 0

        def second(cpu):
            order.append(cpu.vcpu_id)
            while True:
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                yield 0

        guest.domain.text[KERNEL + 0x1000] = second
        guest.runs(boot)
        pair.world.run(until=10 * MS)
        assert order == ["up", 1]

    def test_online_from_the_start_counts_as_up_and_never_runs(self, pair, guest):
        ran = []

        def second(cpu):
            ran.append(cpu.vcpu_id)
            yield 0

        def boot(cpu):
            assert initialise(guest, flags=xen.VGCF_in_kernel | xen.VGCF_online) == 0
            assert guest.is_up(1) == 1
            assert guest.vcpu_op(abi.VCPUOP_up, 1) == 0
            while True:
                yield MS

        guest.domain.text[KERNEL + 0x1000] = second
        guest.runs(boot)
        pair.world.run(until=20 * MS)
        assert ran == []

    def test_after_down_and_up_it_goes_on_behind_the_call(self, pair, guest):
        order = []

        def boot(cpu):
            initialise(guest)
            guest.vcpu_op(abi.VCPUOP_up, 1)
            while guest.is_up(1):
                yield MS
            order.append("is down")
            guest.vcpu_op(abi.VCPUOP_up, 1)
            while True:
                yield 5 * MS

        def second(cpu):
            order.append("goes down")
            cpu.hypercall(VCPU_OP, abi.VCPUOP_down, 1, 0)
            yield 0
            order.append("goes on")
            while True:
                yield 5 * MS

        guest.domain.text[KERNEL + 0x1000] = second
        guest.runs(boot)
        pair.world.run(until=60 * MS)
        assert order == ["goes down", "is down", "goes on"]

    def test_down_and_up_of_oneself_in_one_go(self, pair, guest):
        order = []

        def boot(cpu):
            guest.vcpus[1].pause_flags &= ~2
            cpu.hypercall(VCPU_OP, abi.VCPUOP_down, 0, 0)
            cpu.hypercall(VCPU_OP, abi.VCPUOP_up, 0, 0)
            yield 0
            order.append("on")
            guest.shutdown(0)
            yield 0

        guest.runs(boot)
        pair.world.run()
        assert order == ["on"]

    def test_the_last_one_takes_the_domain_with_it(self, pair, guest):
        guest.runs(lambda cpu: iter([0]))
        assert guest.vcpu_op(abi.VCPUOP_down, 0) == 0
        assert guest.domain.shutdown_code == sched.SHUTDOWN_poweroff


class TestVcpuInfo:
    def register(self, guest, mfn, offset, vcpu=0, on=0):
        return guest.vcpu_op(
            abi.VCPUOP_register_vcpu_info, vcpu, abi.vcpu_register_vcpu_info, mfn=mfn, offset=offset, on=on
        )

    @pytest.mark.parametrize("offset", [4, 63, 4096 - 56, 4096, 0xFFFFFFF8])
    def test_misaligned_or_across_the_page(self, guest, offset):
        assert self.register(guest, guest.pages[0], offset) == ENXIO

    @pytest.mark.parametrize("offset", [0, 8, 64, 4096 - 64])
    def test_anywhere_else(self, guest, offset):
        assert self.register(guest, guest.pages[0], offset) == 0
        assert guest.vcpus[0].info == (guest.pages[0] << 12) + offset

    def test_not_twice(self, guest):
        assert self.register(guest, guest.pages[0], 0) == 0
        assert self.register(guest, guest.pages[1], 0) == EINVAL

    def test_time_stamps_are_renewed_even_if_it_is_refused(self, guest):
        at = (guest.vcpus[1].info + xen.vcpu_info.offset("time.version")) >> 2
        before = guest.hv.memory.i[at]
        assert self.register(guest, guest.pages[0], 4, vcpu=1) == ENXIO
        assert self.register(guest, 1 << 40, 0, vcpu=1) == EINVAL
        assert guest.hv.memory.i[at] == before + 4

    def test_bad_frames(self, pair, guest):
        for mfn in (1 << 40, pair.dom0.pages[0], guest.l1):
            assert self.register(guest, mfn, 0) == EINVAL

    def test_old_contents_are_copied_and_everything_is_pending(self, guest):
        cr2 = xen.vcpu_info.offset("arch.cr2")
        guest.hv.memory.q[(guest.vcpus[0].info + cr2) >> 3] = 0x1111
        assert self.register(guest, guest.pages[0], 64) == 0
        info = xen.vcpu_info.unpack_from(guest.peek(guest.va(0) + 64, xen.vcpu_info.size))
        assert (info.evtchn_upcall_pending, info.evtchn_upcall_mask) == (1, 1)
        assert info.evtchn_pending_sel == 0xFFFFFFFFFFFFFFFF
        assert info.arch.cr2 == 0x1111
        assert info.time.version == 2

    def test_the_old_place_is_never_touched_again(self, guest):
        old = guest.vcpus[0].info
        self.register(guest, guest.pages[0], 0)
        before = bytes(guest.hv.memory.b[old : old + 64])
        guest.acknowledge()
        guest.send(guest.ipi())
        guest.hv.time.update_time(guest.vcpus[0], 5_000_000_000)
        assert guest.upcall_pending() == 1
        assert bytes(guest.hv.memory.b[old : old + 64]) == before

    def test_of_another_vcpu_only_while_that_is_down(self, pair, guest):
        assert self.register(guest, guest.pages[0], 0, vcpu=1) == 0
        guest.vcpus[0].pause_flags = 0
        assert self.register(guest, guest.pages[1], 0, vcpu=0, on=1) == EINVAL

    def test_wakes_a_blocked_vcpu(self, guest):
        guest.vcpus[0].pause_flags |= 1
        self.register(guest, guest.pages[0], 0)
        assert not guest.vcpus[0].pause_flags & 1

    def test_the_page_is_held_until_the_domain_dies(self, guest):
        frames = guest.hv.frames
        before = frames.count[guest.pages[0]]
        self.register(guest, guest.pages[0], 0)
        assert frames.count[guest.pages[0]] == before + 1


class TestManyVcpus:
    """vCPUs from number 32 on have no vcpu_info until they register one."""

    @pytest.fixture
    def guest(self, world):
        world.guest()
        return world.guest(vcpus=40)

    def test_cannot_be_started_before(self, guest):
        assert initialise(guest, vcpu=35) == EINVAL
        op = abi.vcpu_register_vcpu_info
        assert guest.vcpu_op(abi.VCPUOP_register_vcpu_info, 35, op, mfn=guest.pages[0], offset=128) == 0
        info = guest.vcpus[35].info
        memory = guest.hv.memory
        assert (memory.b[info], memory.b[info + UPCALL_MASK]) == (1, 1)
        assert memory.q[(info + SELECTOR) >> 3] == 0xFFFFFFFFFFFFFFFF
        assert initialise(guest, vcpu=35) == 0

    def test_events_for_them_hurt_nobody(self, guest):
        page_zero = bytes(guest.hv.memory.frame(0))
        guest.send(guest.ipi(39))
        assert bytes(guest.hv.memory.frame(0)) == page_zero


class TestRunstate:
    def get(self, guest, vcpu=0):
        rc, info = guest.call(VCPU_OP, abi.VCPUOP_get_runstate_info, vcpu, layout=abi.vcpu_runstate_info)
        assert rc == 0
        return info

    def test_adds_up_to_the_age(self, pair, guest):
        def program(cpu):
            while True:
                yield 3 * MS
                guest.poll([], timeout=pair.hv.now() + 7 * MS)
                yield 0

        guest.runs(program)
        pair.world.run(until=100 * MS)
        info = self.get(guest)
        assert sum(info.time) == pair.hv.clock.now
        assert 30 * MS <= info.time[abi.RUNSTATE_running] <= 33 * MS
        assert info.time[abi.RUNSTATE_blocked] >= 60 * MS

    def test_being_paused_is_neither_blocked_nor_waiting(self, pair, guest):
        """Kernels take the time that they were runnable or offline for stolen."""
        ops = pair.hv.domain_ops

        def program(cpu):
            while True:
                guest.poll([], timeout=pair.hv.now() + 1 * MS)
                yield 0

        guest.runs(program)
        pair.world.run(until=10 * MS)
        before = self.get(guest).time[abi.RUNSTATE_offline]
        ops.pause(guest.domain)
        pair.world.run(until=50 * MS)
        info = self.get(guest)
        assert info.state == abi.RUNSTATE_offline
        ops.unpause(guest.domain)
        pair.world.run(until=60 * MS)
        info = self.get(guest)
        # (The poll that it slept in went on to its end first.)
        assert 38 * MS <= info.time[abi.RUNSTATE_offline] - before <= 40 * MS
        assert info.time[abi.RUNSTATE_blocked] >= 18 * MS
        assert sum(info.time) == pair.hv.clock.now

    def test_states(self, pair, guest):
        states = []

        def program(cpu):
            states.append((self.get(guest, 0).state, self.get(guest, 1).state))
            guest.poll([], timeout=10 * MS)
            yield 0
            guest.shutdown(0)
            yield 0

        guest.runs(program)
        pair.world.run(until=5 * MS)
        states.append((self.get(guest, 0).state, self.get(guest, 1).state))
        assert states == [
            (abi.RUNSTATE_running, abi.RUNSTATE_offline),
            (abi.RUNSTATE_blocked, abi.RUNSTATE_offline),
        ]

    def area(self, guest, address, vcpu=0):
        layout = abi.vcpu_register_runstate_memory_area
        return guest.vcpu_op(abi.VCPUOP_register_runstate_memory_area, vcpu, layout, addr={"p": address})

    def test_area_addresses(self, guest):
        for address in (NOWHERE, HOLES, 0, guest.va(1) + 3):
            assert self.area(guest, address) == 0
        assert self.area(guest, XEN) == EFAULT
        assert self.area(guest, 1 << 47) == EFAULT
        assert self.area(guest, guest.va(1), vcpu=2) == ENOENT

    def test_area_is_kept_up_to_date(self, pair, guest):
        seen = []

        def read():
            return abi.vcpu_runstate_info.unpack_from(guest.peek(guest.va(1), abi.vcpu_runstate_info.size))

        def program(cpu):
            assert self.area(guest, guest.va(1)) == 0
            while True:
                seen.append(read().state)
                yield 2 * MS
                guest.poll([], timeout=pair.hv.now() + 5 * MS)
                yield 0

        guest.runs(program)
        pair.world.run(until=3 * MS)
        asleep = read()
        assert asleep.state == abi.RUNSTATE_blocked
        pair.world.run(until=30 * MS)
        assert set(seen) == {abi.RUNSTATE_running}
        assert read().time[abi.RUNSTATE_blocked] > asleep.time[abi.RUNSTATE_blocked]
        assert not read().state_entry_time >> 63

    def test_with_the_update_flag(self, guest, monkeypatch):
        guest.domain.vm_assist |= 1 << xen.VMASST_TYPE_runstate_update_flag
        self.area(guest, guest.va(1))
        in_flux = []
        original = Memory.write

        def write(memory, maddr, data):
            original(memory, maddr, data)
            in_flux.append(struct.unpack_from("<Q", guest.peek(guest.va(1), 48), 8)[0] >> 63)

        monkeypatch.setattr(Memory, "write", write)
        guest.hv.time.switched_out(guest.vcpus[0], 1000)
        assert in_flux == [1, 1, 0]


class TestTimeArea:
    def register(self, guest, address):
        layout = abi.vcpu_register_time_memory_area
        return guest.vcpu_op(abi.VCPUOP_register_vcpu_time_memory_area, 0, layout, addr={"p": address})

    def test_holds_a_copy(self, guest):
        assert self.register(guest, guest.va(2)) == 0
        for now in (0, 3_000_000_000):
            guest.hv.time.update_time(guest.vcpus[0], now)
            info = guest.vcpus[0].info + TIME
            copy = guest.peek(guest.va(2), 32)
            assert copy == bytes(guest.hv.memory.b[info : info + 32])
            assert copy[0] % 2 == 0

    def test_addresses(self, guest):
        assert [self.register(guest, address) for address in (0, NOWHERE, XEN, 1 << 47)] == [0, 0, EFAULT, EFAULT]


class TestNmi:
    def test_nothing_without_a_handler(self, guest):
        assert guest.vcpu_op(abi.VCPUOP_send_nmi, 0) == 0
        assert guest.hypercall(VCPU_OP, abi.VCPUOP_send_nmi, 0, 1) == EINVAL

    def test_physical_ids_are_for_pinned_vcpus(self, pair):
        assert pair.dom0.vcpu_op(abi.VCPUOP_get_physid, 0) == EINVAL
        assert pair.dom0.sched(sched.SCHEDOP_pin_override, sched.sched_pin_override, pcpu=0) == 0
        rc, answer = pair.dom0.call(VCPU_OP, abi.VCPUOP_get_physid, 0, layout=abi.vcpu_get_physid)
        assert (rc, answer.phys_id) == (0, 0)


class TestRoots:
    def root(self, guest):
        """A copy of the guest's root table."""
        mfn = guest.hv.frames.alloc(guest.domain)
        guest.hv.memory.q[(mfn << 9) : (mfn << 9) + 256] = guest.hv.memory.q[(guest.l4 << 9) : (guest.l4 << 9) + 256]
        return mfn

    def test_that_of_user_mode_is_taken_too(self, pair):
        guest = pair.domu
        user = self.root(guest)
        assert initialise(guest, ctrlreg=(0, user << 12, 0, guest.l4 << 12, 0, 0, 0, 0)) == 0
        assert (guest.vcpus[1].kernel_cr3, guest.vcpus[1].user_cr3) == (guest.l4, user)
        assert guest.hv.frames.type_count[user] == 1

    def test_that_of_user_mode_must_be_one(self, pair):
        guest = pair.domu
        assert initialise(guest, ctrlreg=(0, guest.pages[3] << 12, 0, guest.l4 << 12, 0, 0, 0, 0)) == EINVAL
        assert (guest.vcpus[1].user_cr3, guest.vcpus[1].initialised) == (0, False)

    def test_the_first_vcpu_brings_the_assists(self, pair):
        guest = pair.domu
        assists = 1 << xen.VMASST_TYPE_m2p_strict | 1 << xen.VMASST_TYPE_writable_pagetables
        assert initialise(guest, vm_assist=assists) == 0
        assert guest.domain.vm_assist == 0
        root = self.root(guest)
        assert guest.hv.mm.pin(root, guest.domain, 4) == 0
        assert guest.hv.memory.q[(root << 9) + 256] == 0
        assert initialise(guest, vcpu=0, vm_assist=assists) == 0
        assert guest.domain.vm_assist == assists
        assert guest.hv.memory.q[(root << 9) + 256]
