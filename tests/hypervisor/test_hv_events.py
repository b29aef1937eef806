"""Event channels, two-level ABI: the operations, rule by rule (event_channel.h, and what Xen 4.17 answers)."""

from __future__ import annotations

import pytest
from core_world import EVTCHN_OP, MASK, PENDING, SELF

from hypervisor.abi import errno, xen
from hypervisor.abi import event_channel as ev

NOWHERE = 0x700000
XEN = 0xFFFF800000000000
EINVAL, EPERM, ESRCH, ENOENT, EEXIST, ENOSPC, ENOSYS, EFAULT, EBUSY, EOPNOTSUPP = (
    -number
    for number in (
        errno.EINVAL,
        errno.EPERM,
        errno.ESRCH,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOSPC,
        errno.ENOSYS,
        errno.EFAULT,
        errno.EBUSY,
        errno.EOPNOTSUPP,
    )
)


def connect(pair):
    """A channel between domain 0 and domain 1; returns their ports, nothing pending."""
    remote = pair.domu.alloc(0)
    local = pair.dom0.bind(1, remote)
    pair.dom0.acknowledge()
    pair.domu.acknowledge()
    return local, remote


class TestBindInterdomain:
    def test_raises_the_local_end_only(self, pair):
        remote = pair.domu.alloc(0)
        local = pair.dom0.bind(1, remote)
        assert pair.dom0.pending(local)
        assert (pair.dom0.selector(), pair.dom0.upcall_pending()) == (1, 1)
        assert not pair.domu.pending(remote)
        assert (pair.domu.selector(), pair.domu.upcall_pending()) == (0, 0)

    def test_a_masked_local_end_becomes_pending_and_no_more(self, pair):
        remote = pair.domu.alloc(0)
        pair.dom0.mask(1)
        assert pair.dom0.bind(1, remote) == 1
        assert pair.dom0.pending(1)
        assert (pair.dom0.selector(), pair.dom0.upcall_pending()) == (0, 0)

    def test_both_ends_tell_of_each_other(self, pair):
        local, remote = connect(pair)
        here, there = pair.dom0.status(local), pair.domu.status(remote)
        assert (here.status, here.u.interdomain.dom, here.u.interdomain.port) == (2, 1, remote)
        assert (there.status, there.u.interdomain.dom, there.u.interdomain.port) == (2, 0, local)

    def test_only_once(self, pair):
        _, remote = connect(pair)
        assert pair.dom0.bind(1, remote) == EINVAL

    def test_loopback(self, pair):
        port = pair.domu.alloc()
        other = pair.domu.bind(SELF, port)
        assert pair.domu.status(port).u.interdomain.port == other
        assert pair.domu.status(port).u.interdomain.dom == 1

    def test_not_to_a_port_for_another_domain(self, pair):
        port = pair.dom0.alloc(77)
        assert pair.domu.bind(0, port) == EINVAL

    def test_not_to_the_port_that_it_would_get_itself(self, pair):
        assert pair.domu.bind(SELF, 1) == EINVAL

    @pytest.mark.parametrize("port", [0, 5, 5000, 0xFFFFFFFF])
    def test_not_to_what_is_no_unbound_port(self, pair, port):
        assert pair.domu.bind(0, port) == EINVAL
        assert pair.domu.alloc() == 1  # the local port was given back

    @pytest.mark.parametrize("domid", [77, xen.DOMID_IO, xen.DOMID_XEN, xen.DOMID_INVALID])
    def test_not_to_a_missing_domain(self, pair, domid):
        assert pair.domu.bind(domid, 1) == ESRCH


class TestSend:
    def test_reaches_the_other_end(self, pair):
        local, remote = connect(pair)
        assert pair.dom0.send(local) == 0
        assert pair.domu.pending(remote)
        assert not pair.dom0.pending(local)
        assert pair.domu.acknowledge() == [remote]

    def test_is_lost_on_an_unbound_port(self, pair):
        port = pair.domu.alloc(0)
        assert pair.domu.send(port) == 0
        assert not pair.domu.pending(port)

    def test_is_lost_after_the_peer_has_closed(self, pair):
        local, remote = connect(pair)
        assert pair.domu.close(remote) == 0
        assert pair.dom0.send(local) == 0
        assert not pair.domu.pending(remote)

    def test_to_oneself_by_ipi(self, pair):
        port = pair.domu.ipi(1)
        assert pair.domu.send(port) == 0
        assert pair.domu.pending(port)
        assert (pair.domu.upcall_pending(0), pair.domu.upcall_pending(1)) == (0, 1)

    def test_not_on_a_virq(self, pair):
        assert pair.domu.send(pair.domu.virq(xen.VIRQ_DEBUG)) == EINVAL

    @pytest.mark.parametrize("port", [0, 9, 63, 64, 4095, 4096, 0xFFFFFFFF])
    def test_not_on_what_is_no_port(self, pair, port):
        assert pair.domu.send(port) == EINVAL

    def test_argument_across_pages(self, pair):
        local, remote = connect(pair)
        at = pair.dom0.va(1) - 2
        pair.dom0.poke(at, local.to_bytes(4, "little"))
        assert pair.dom0.hypercall(EVTCHN_OP, ev.EVTCHNOP_send, at) == 0
        assert pair.domu.pending(remote)

    def test_command_is_a_32_bit_number(self, pair):
        local, remote = connect(pair)
        pair.dom0.poke(pair.dom0.args, local.to_bytes(4, "little"))
        assert pair.dom0.hypercall(EVTCHN_OP, 0xABC00000000 | ev.EVTCHNOP_send, pair.dom0.args) == 0
        assert pair.domu.pending(remote)

    @pytest.mark.parametrize("where", [NOWHERE, XEN, 1 << 47])
    def test_unreadable_argument(self, pair, where):
        assert pair.domu.hypercall(EVTCHN_OP, ev.EVTCHNOP_send, where) == EFAULT


class TestChain:
    """pending bit → selector → upcall flag: each link is pulled by the one before it, once."""

    def test_a_pending_port_is_not_raised_again(self, pair):
        local, remote = connect(pair)
        pair.dom0.send(local)
        pair.domu.set_selector(0)
        pair.domu.set_upcall_pending(0)
        assert pair.dom0.send(local) == 0
        assert (pair.domu.selector(), pair.domu.upcall_pending()) == (0, 0)
        assert pair.domu.pending(remote)

    def test_a_set_selector_bit_stops_the_chain(self, pair):
        local, remote = connect(pair)
        pair.domu.set_selector(1)
        pair.dom0.send(local)
        assert pair.domu.pending(remote)
        assert pair.domu.upcall_pending() == 0

    def test_the_selector_names_the_word(self, pair):
        ports = [pair.domu.alloc(0) for _ in range(130)]
        local = pair.dom0.bind(1, ports[-1])
        pair.dom0.send(local)
        assert pair.domu.selector() == 1 << (ports[-1] >> 6) == 4

    def test_masked(self, pair):
        local, remote = connect(pair)
        pair.domu.mask(remote)
        pair.dom0.send(local)
        assert pair.domu.pending(remote)
        assert (pair.domu.selector(), pair.domu.upcall_pending()) == (0, 0)


class TestUnmask:
    def test_raises_what_is_pending(self, pair):
        local, remote = connect(pair)
        pair.domu.mask(remote)
        pair.dom0.send(local)
        assert pair.domu.unmask(remote) == 0
        assert not pair.domu.masked(remote)
        assert (pair.domu.selector(), pair.domu.upcall_pending()) == (1, 1)

    def test_only_on_the_edge(self, pair):
        local, remote = connect(pair)
        pair.dom0.send(local)
        pair.domu.set_selector(0)
        pair.domu.set_upcall_pending(0)
        assert pair.domu.unmask(remote) == 0
        assert (pair.domu.selector(), pair.domu.upcall_pending()) == (0, 0)

    @pytest.mark.parametrize("port", [0, 20])
    def test_leaves_free_ports_alone(self, pair, port):
        pair.domu.mask(port)
        pair.domu.set_bit(PENDING, port, True)
        assert pair.domu.unmask(port) == 0
        assert pair.domu.masked(port)
        assert pair.domu.upcall_pending() == 0

    def test_out_of_range(self, pair):
        assert pair.domu.unmask(64) == EINVAL


class TestAlloc:
    @pytest.mark.parametrize("remote", [77, xen.DOMID_IO, xen.DOMID_INVALID])
    def test_never_looks_whether_the_remote_exists(self, pair, remote):
        port = pair.domu.alloc(remote)
        assert port == 1
        assert (pair.domu.status(port).status, pair.domu.status(port).u.unbound.dom) == (1, remote)

    @pytest.mark.parametrize("domid", [77, xen.DOMID_IO, xen.DOMID_XEN])
    def test_in_a_missing_domain(self, pair, domid):
        assert pair.dom0.alloc(0, dom=domid) == ESRCH

    def test_by_dom0_in_another(self, pair):
        port = pair.dom0.alloc(SELF, dom=1)
        assert pair.domu.status(port).u.unbound.dom == 0

    def test_not_by_a_domu_in_another(self, pair):
        assert pair.domu.alloc(1, dom=0) == EPERM
        assert pair.hv.domains[0].active_ports == 0

    def test_by_a_stub_domain_for_its_target(self, pair):
        pair.domu.domain.target = pair.dom0.domain
        assert pair.domu.alloc(1, dom=0) == 1

    def test_lowest_free_port(self, pair):
        ports = [pair.domu.alloc() for _ in range(5)]
        assert ports == [1, 2, 3, 4, 5]
        pair.domu.close(4)
        pair.domu.close(2)
        assert [pair.domu.alloc() for _ in range(3)] == [2, 4, 6]

    def test_inherits_the_stale_mask_bit(self, pair):
        port = pair.domu.alloc()
        pair.domu.mask(port)
        pair.domu.close(port)
        assert pair.domu.alloc() == port
        assert pair.domu.masked(port)

    def test_does_not_touch_the_pending_bit(self, pair):
        pair.domu.set_bit(PENDING, 1, True)
        assert pair.domu.alloc() == 1
        assert pair.domu.pending(1)

    def test_unreadable_argument(self, pair):
        assert pair.domu.hypercall(EVTCHN_OP, ev.EVTCHNOP_alloc_unbound, NOWHERE) == EFAULT

    def test_not_in_a_dying_domain(self, pair):
        held = pair.domu.pages[0]
        assert pair.hv.frames.get_page(held, pair.domu.domain)
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert pair.dom0.alloc(0, dom=1) == EINVAL
        pair.hv.frames.put_page(held)
        assert pair.dom0.alloc(0, dom=1) == ESRCH


class TestClose:
    def test_clears_pending_and_leaves_the_mask(self, pair):
        local, remote = connect(pair)
        pair.domu.mask(remote)
        pair.dom0.send(local)
        assert pair.domu.close(remote) == 0
        assert not pair.domu.pending(remote)
        assert pair.domu.masked(remote)

    def test_peer_becomes_unbound_for_the_same_remote(self, pair):
        local, remote = connect(pair)
        pair.domu.close(remote)
        assert (pair.dom0.status(local).status, pair.dom0.status(local).u.unbound.dom) == (1, 1)
        assert pair.domu.bind(0, local) == remote

    def test_the_peers_pending_bit_stays(self, pair):
        local, remote = connect(pair)
        pair.domu.send(remote)
        pair.domu.close(remote)
        assert pair.dom0.pending(local)

    def test_twice(self, pair):
        port = pair.domu.alloc()
        assert pair.domu.close(port) == 0
        assert pair.domu.close(port) == EINVAL

    @pytest.mark.parametrize("port", [0, 64, 4096])
    def test_what_is_no_port(self, pair, port):
        assert pair.domu.close(port) == EINVAL

    def test_notifies_vcpu_0_afterwards(self, pair):
        port = pair.domu.alloc()
        pair.domu.bind_vcpu(port, 1)
        pair.domu.close(port)
        assert pair.domu.status(port).vcpu == 0

    def test_of_the_domain_with_its_death(self, pair):
        local, _ = connect(pair)
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert pair.dom0.status(local).status == 1
        assert pair.dom0.send(local) == 0


class TestReset:
    def test_closes_all_and_leaves_masks(self, pair):
        local, remote = connect(pair)
        virq = pair.domu.virq(xen.VIRQ_CONSOLE)
        pair.domu.mask(remote)
        pair.dom0.send(local)
        assert pair.domu.reset() == 0
        assert [pair.domu.status(port).status for port in (remote, virq)] == [0, 0]
        assert pair.domu.masked(remote)
        assert not pair.domu.pending(remote)
        assert pair.dom0.status(local).status == 1
        assert pair.domu.virq(xen.VIRQ_CONSOLE) == 1

    def test_by_number(self, pair):
        assert pair.domu.reset(1) == 0

    def test_of_another_domain_wants_it_paused(self, pair):
        port = pair.domu.alloc()
        pair.hv.domain_ops.unpause(pair.domu.domain)
        assert pair.dom0.reset(1) == EINVAL
        pair.hv.domain_ops.pause(pair.domu.domain)
        assert pair.dom0.reset(1) == 0
        assert pair.domu.status(port).status == 0

    def test_not_by_a_domu(self, pair):
        assert pair.domu.reset(0) == EPERM

    @pytest.mark.parametrize("domid", [77, xen.DOMID_IO])
    def test_of_a_missing_domain(self, pair, domid):
        assert pair.dom0.reset(domid) == ESRCH

    def test_continuation_is_not_for_guests(self, pair):
        port = pair.domu.alloc()
        assert pair.domu.event(14, ev.evtchn_reset, dom=SELF)[0] == EBUSY
        assert pair.domu.event(14, ev.evtchn_reset, dom=0)[0] == EPERM
        assert pair.domu.status(port).status == 1


class TestRange:
    def test_grows_by_64(self, pair):
        assert pair.domu.status(63).status == 0
        assert pair.domu.status(64) == EINVAL
        ports = [pair.domu.alloc() for _ in range(64)]
        assert ports[-1] == 64
        assert pair.domu.status(127).status == 0
        assert pair.domu.status(128) == EINVAL

    def test_4095_ports(self, pair):
        assert [pair.domu.alloc() for _ in range(4095)] == list(range(1, 4096))
        assert pair.domu.alloc() == ENOSPC
        assert pair.domu.bind(0, 5000) == ENOSPC  # full comes before a bad remote port
        assert pair.domu.virq(xen.VIRQ_TIMER) == ENOSPC
        assert pair.domu.status(4096) == EINVAL
        pair.domu.close(100)
        assert pair.domu.alloc() == 100

    def test_limit_of_the_domain(self, pair):
        pair.domu.domain.max_evtchn_port = 10
        assert [pair.domu.alloc() for _ in range(11)] == [*range(1, 11), ENOSPC]


class TestVirq:
    @pytest.mark.parametrize("virq", range(24))
    def test_all_bind_on_vcpu_0(self, pair, virq):
        port = pair.domu.virq(virq)
        status = pair.domu.status(port)
        assert (status.status, status.u.virq, status.vcpu) == (4, virq, 0)
        assert pair.domu.virq(virq) == EEXIST

    @pytest.mark.parametrize("virq", range(24))
    def test_on_vcpu_1_only_those_per_vcpu(self, pair, virq):
        per_vcpu = virq in (xen.VIRQ_TIMER, xen.VIRQ_DEBUG, xen.VIRQ_XENOPROF, xen.VIRQ_XENPMU)
        result = pair.domu.virq(virq, 1)
        assert result > 0 if per_vcpu else result == EINVAL

    def test_number_is_looked_at_before_the_vcpu(self, pair):
        assert pair.domu.virq(24, 9999) == EINVAL
        assert pair.domu.virq(xen.VIRQ_CONSOLE, 9999) == EINVAL
        assert pair.domu.virq(xen.VIRQ_TIMER, 9999) == ENOENT

    def test_of_both_vcpus_apart(self, pair):
        ports = [pair.domu.virq(xen.VIRQ_DEBUG, vcpu) for vcpu in (0, 1)]
        pair.hv.events.send_virq(pair.domu.vcpus[1], xen.VIRQ_DEBUG)
        assert [pair.domu.pending(port) for port in ports] == [False, True]

    def test_can_be_bound_again_after_close(self, pair):
        port = pair.domu.virq(xen.VIRQ_TIMER)
        pair.domu.close(port)
        assert pair.domu.virq(xen.VIRQ_TIMER) == port

    def test_a_global_one_goes_to_the_vcpu_it_was_moved_to(self, pair):
        port = pair.domu.virq(xen.VIRQ_CONSOLE)
        assert pair.domu.bind_vcpu(port, 1) == 0
        pair.hv.events.send_virq(pair.domu.vcpus[0], xen.VIRQ_CONSOLE)
        assert (pair.domu.upcall_pending(0), pair.domu.upcall_pending(1)) == (0, 1)
        assert pair.domu.close(port) == 0
        assert pair.domu.virq(xen.VIRQ_CONSOLE) == port

    def test_dom_exc_when_a_domain_ends(self, pair):
        port = pair.dom0.virq(xen.VIRQ_DOM_EXC)
        pair.hv.domain_ops.unpause(pair.domu.domain)
        pair.domu.shutdown(0)
        assert pair.dom0.acknowledge() == [port]
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert pair.dom0.acknowledge() == [port]


class TestBindVcpu:
    def test_moves(self, pair):
        local, remote = connect(pair)
        assert pair.domu.bind_vcpu(remote, 1) == 0
        pair.dom0.send(local)
        assert (pair.domu.upcall_pending(0), pair.domu.upcall_pending(1)) == (0, 1)
        assert pair.domu.status(remote).vcpu == 1

    def test_a_pending_port_is_not_raised_on_the_new_vcpu(self, pair):
        local, remote = connect(pair)
        pair.dom0.send(local)
        pair.domu.bind_vcpu(remote, 1)
        assert (pair.domu.selector(1), pair.domu.upcall_pending(1)) == (0, 0)

    def test_unbound_ports_too_and_it_stays_when_bound(self, pair):
        port = pair.domu.alloc(0)
        assert pair.domu.bind_vcpu(port, 1) == 0
        pair.dom0.bind(1, port)
        assert pair.domu.status(port).vcpu == 1

    def test_not_per_vcpu_virqs_nor_ipis(self, pair):
        assert pair.domu.bind_vcpu(pair.domu.virq(xen.VIRQ_TIMER), 1) == EINVAL
        assert pair.domu.bind_vcpu(pair.domu.ipi(), 1) == EINVAL

    def test_the_vcpu_is_looked_at_before_the_port(self, pair):
        assert pair.domu.bind_vcpu(4096, 9999) == ENOENT
        assert pair.domu.bind_vcpu(4096, 1) == EINVAL
        assert pair.domu.bind_vcpu(0, 1) == EINVAL
        assert pair.domu.bind_vcpu(9, 1) == EINVAL


class TestIpi:
    def test_several_per_vcpu(self, pair):
        assert [pair.domu.ipi(0), pair.domu.ipi(0), pair.domu.ipi(1)] == [1, 2, 3]
        status = pair.domu.status(3)
        assert (status.status, status.vcpu) == (5, 1)

    @pytest.mark.parametrize("vcpu", [2, 9999, 0xFFFFFFFF])
    def test_missing_vcpu(self, pair, vcpu):
        assert pair.domu.ipi(vcpu) == ENOENT

    def test_nobody_else_can_bind_to_it(self, pair):
        assert pair.domu.bind(SELF, pair.domu.ipi()) == EINVAL


class TestStatus:
    def test_free_and_port_0(self, pair):
        assert [pair.domu.status(port).status for port in (0, 7)] == [0, 0]

    def test_of_another_domain(self, pair):
        port = pair.domu.alloc(0)
        assert pair.dom0.status(port, 1).status == 1
        port = pair.dom0.alloc(1)
        assert pair.domu.status(port, 0) == EPERM
        assert pair.domu.status(64, 0) == EINVAL  # the port is looked at first

    @pytest.mark.parametrize("domid", [77, xen.DOMID_IO])
    def test_of_a_missing_domain(self, pair, domid):
        assert pair.dom0.status(1, domid) == ESRCH


class TestOperations:
    @pytest.mark.parametrize("op", [99, 15, 0xFFFFFFFF])
    def test_unknown_even_with_a_bad_pointer(self, pair, op):
        assert pair.domu.hypercall(EVTCHN_OP, op, NOWHERE) == ENOSYS

    def test_fifo_operations_in_two_level_mode(self, pair):
        port = pair.domu.alloc()
        set_priority = ev.EVTCHNOP_set_priority
        for number in (port, 30):
            for priority in (0, 16):
                rc, _ = pair.domu.event(set_priority, ev.evtchn_set_priority, port=number, priority=priority)
                assert rc == ENOSYS
        assert pair.domu.event(set_priority, ev.evtchn_set_priority, port=64)[0] == EINVAL
        assert pair.domu.event(ev.EVTCHNOP_expand_array, ev.evtchn_expand_array)[0] == EOPNOTSUPP
        assert pair.domu.hypercall(EVTCHN_OP, ev.EVTCHNOP_expand_array, NOWHERE) == EFAULT

    def test_old_form_of_the_hypercall(self, pair):
        old = xen.HYPERVISOR_event_channel_op_compat
        unbound = {"alloc_unbound": {"dom": SELF, "remote_dom": 0}}
        rc, op = pair.domu.call(old, layout=ev.evtchn_op, cmd=ev.EVTCHNOP_alloc_unbound, u=unbound)
        assert (rc, op.u.alloc_unbound.port) == (0, 1)
        assert pair.domu.call(old, layout=ev.evtchn_op, cmd=ev.EVTCHNOP_send, u={"send": {"port": 1}})[0] == 0
        assert pair.domu.call(old, layout=ev.evtchn_op, cmd=ev.EVTCHNOP_reset)[0] == ENOSYS
        assert pair.domu.hypercall(old, NOWHERE) == EFAULT

    def test_shared_info_at_first(self, pair):
        memory, base = pair.hv.memory, pair.domu.domain.shared_info_mfn << 12
        for at in (PENDING, MASK):
            assert not any(memory.b[base + at : base + at + 512])
        masks = [memory.b[base + n * xen.vcpu_info.size + 1] for n in range(32)]
        assert masks == [1] * 32
