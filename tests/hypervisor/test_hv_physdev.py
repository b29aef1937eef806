"""physdev_op: interrupt lines, PIRQs and the ports they are bound to; what a machine without PCI bus answers."""

import pytest
from core_world import PHYSDEV_OP, SELF

from hypervisor.abi import errno, physdev, xen
from hypervisor.abi import event_channel as ev

EPERM, EINVAL, EFAULT, ENOSYS, ESRCH = -errno.EPERM, -errno.EINVAL, -errno.EFAULT, -errno.ENOSYS, -errno.ESRCH
EBUSY, EEXIST, ENODEV = -errno.EBUSY, -errno.EEXIST, -errno.ENODEV
SHARE = ev.BIND_PIRQ__WILL_SHARE
NOWHERE = 0x7FFF_0000_0000


class TestMapping:
    def test_a_line_becomes_a_port(self, pair):
        assert pair.dom0.map_pirq(9, 9) == 9
        port = pair.dom0.pirq(9)
        status = pair.dom0.status(port)
        assert (status.status, status.u.pirq) == (ev.EVTCHNSTAT_pirq, 9)
        pair.hv.machine.interrupts.raise_line(9)
        assert pair.dom0.acknowledge() == [port]
        assert pair.dom0.physdev(physdev.PHYSDEVOP_eoi, physdev.physdev_eoi, irq=9)[0] == 0

    def test_a_port_outlives_the_mapping_and_is_dead(self, pair):
        pair.dom0.map_pirq(9, 9)
        port = pair.dom0.pirq(9)
        assert pair.dom0.unmap_pirq(9) == 0
        pair.hv.machine.interrupts.raise_line(9)
        assert not pair.dom0.pending(port)
        assert pair.dom0.status(port).status == ev.EVTCHNSTAT_pirq
        assert pair.dom0.unmap_pirq(9) == EINVAL
        assert pair.dom0.map_pirq(9, 9) == EEXIST, "as long as the port is there"
        assert pair.dom0.close(port) == 0
        # With the mapping went the right to use the line.
        assert pair.dom0.map_pirq(9, 9) == EPERM

    def test_numbers_that_xen_chooses(self, pair):
        assert pair.dom0.map_pirq(9) == 16
        assert pair.dom0.map_pirq(9) == 16, "mapped already"
        assert pair.dom0.map_pirq(9, 9) == EEXIST
        assert pair.dom0.map_pirq(20) == 17
        assert pair.dom0.map_pirq(21, 16) == 16, "nothing is done, and nobody is told"
        assert pair.dom0.domain.pirqs[16].irq == 9

    def test_numbers_that_cannot_be(self, pair):
        for line in (-1, 24, 5000):
            assert pair.dom0.map_pirq(line) == EINVAL
        assert pair.dom0.map_pirq(0, 0) == EPERM, "the line of the machine's own timer"
        assert pair.dom0.map_pirq(9, 5000) == EINVAL
        for pirq in (9, -1, 5000):
            assert pair.dom0.unmap_pirq(pirq) == EINVAL
        assert pair.dom0.physdev(physdev.PHYSDEVOP_eoi, physdev.physdev_eoi, irq=9)[0] == EINVAL

    def test_a_device_makes_room_for_its_line(self, pair):
        pair.hv.machine.interrupts.plug_in(70)
        assert pair.dom0.map_pirq(70, 70) == 70
        assert pair.dom0.map_pirq(71, 71) == EINVAL

    def test_only_dom0_maps(self, pair):
        # For itself too: a driver domain has it done by the toolstack, which also gives it the right to the line.
        pair.domu.domain.irqs.add(9)
        for domid in (SELF, 0, 1):
            assert pair.domu.map_pirq(9, 9, domid) == EPERM
            assert pair.domu.unmap_pirq(9, domid) == EPERM
        pair.domu.domain.irqs.clear()
        assert pair.dom0.map_pirq(9, 9, domid=1) == 9
        assert pair.domu.domain.irqs == {9}
        assert pair.domu.pirq(9) > 0
        assert pair.dom0.map_pirq(9, 9, domid=77) == ESRCH

    @pytest.mark.parametrize("kind", [0, 3, 4])
    def test_no_device_has_message_signalled_interrupts(self, pair, kind):
        layout = physdev.physdev_map_pirq
        rc, op = pair.dom0.physdev(physdev.PHYSDEVOP_map_pirq, layout, domid=SELF, type=kind, index=-1, pirq=-1)
        assert (rc, op.pirq) == (ENODEV, -1)
        for unknown in (2, 5, -1):
            assert pair.dom0.physdev(physdev.PHYSDEVOP_map_pirq, layout, domid=SELF, type=unknown)[0] == EINVAL
            assert pair.domu.physdev(physdev.PHYSDEVOP_map_pirq, layout, domid=SELF, type=unknown)[0] == EPERM

    def test_free_numbers(self, pair):
        def free(guest, kind):
            rc, op = guest.physdev(physdev.PHYSDEVOP_get_free_pirq, physdev.physdev_get_free_pirq, type=kind)
            return op.pirq if rc == 0 else rc

        assert [free(pair.domu, physdev.MAP_PIRQ_TYPE_GSI) for _ in range(3)] == [16, 17, 18]
        assert [free(pair.domu, physdev.MAP_PIRQ_TYPE_MSI) for _ in range(2)] == [55, 54]
        assert free(pair.dom0, physdev.MAP_PIRQ_TYPE_GSI) == 16
        assert pair.domu.pirq(16) == EPERM, "it stands for no line"
        assert pair.dom0.unmap_pirq(16, 1) == EINVAL
        assert pair.dom0.map_pirq(9, 16) == 16
        while (number := free(pair.domu, physdev.MAP_PIRQ_TYPE_GSI)) >= 0:
            last = number
        assert (last, number) == (24, -errno.ENOSPC)


class TestBinding:
    def test_wants_it_mapped(self, pair):
        assert pair.dom0.pirq(5) == EPERM
        assert pair.domu.pirq(55) == EPERM
        assert pair.domu.pirq(56) == EINVAL
        assert pair.dom0.pirq(5000) == EINVAL

    def test_once(self, pair):
        pair.dom0.map_pirq(5, 5)
        port = pair.dom0.pirq(5)
        assert pair.dom0.pirq(5) == EEXIST
        assert pair.dom0.close(port) == 0
        assert pair.dom0.pirq(5) == port

    @pytest.mark.parametrize("flags", [(0, 0), (0, SHARE), (SHARE, 0)])
    def test_a_line_that_is_not_shared(self, pair, flags):
        pair.dom0.map_pirq(5, 5)
        pair.dom0.map_pirq(5, 5, domid=1)
        assert pair.dom0.pirq(5, flags[0]) > 0
        assert pair.domu.pirq(5, flags[1]) == EBUSY
        assert pair.domu.alloc() == 1
        assert pair.domu.domain.pirqs[5].channel is None

    def test_a_line_that_is(self, pair):
        query = physdev.physdev_irq_status_query
        pair.dom0.map_pirq(5, 5)
        pair.dom0.map_pirq(5, 20, domid=1)
        first, second = pair.dom0.pirq(5, SHARE), pair.domu.pirq(20, SHARE)
        assert pair.domu.physdev(physdev.PHYSDEVOP_irq_status_query, query, irq=20)[1].flags == 3
        pair.hv.machine.interrupts.raise_line(5)
        assert (pair.dom0.acknowledge(), pair.domu.acknowledge()) == ([first], [second])
        assert pair.dom0.close(first) == 0
        pair.hv.machine.interrupts.raise_line(5)
        assert pair.domu.acknowledge() == [second]
        assert pair.domu.physdev(physdev.PHYSDEVOP_irq_status_query, query, irq=20)[1].flags == 1
        pair.hv.domain_ops.kill(pair.domu.domain)
        assert pair.dom0.pirq(5) > 0, "the line is free"

    def test_an_unmapped_one_does_not_take_the_line_from_its_new_owner(self, pair):
        pair.dom0.map_pirq(5, 5)
        pair.dom0.map_pirq(5, 5, domid=1)
        old = pair.dom0.pirq(5)
        assert pair.dom0.unmap_pirq(5) == 0
        new = pair.domu.pirq(5)
        assert pair.dom0.close(old) == 0
        pair.hv.machine.interrupts.raise_line(5)
        assert pair.domu.acknowledge() == [new]

    def test_it_moves_between_vcpus(self, world):
        dom0 = world.guest(vcpus=2)
        dom0.map_pirq(5, 5)
        port = dom0.pirq(5)
        assert dom0.bind_vcpu(port, 1) == 0
        world.hv.machine.interrupts.raise_line(5)
        assert (dom0.upcall_pending(0), dom0.upcall_pending(1)) == (0, 1)


class TestEndOfInterrupt:
    def test_status(self, pair):
        query = physdev.physdev_irq_status_query
        rc, op = pair.domu.physdev(physdev.PHYSDEVOP_irq_status_query, query, irq=0)
        assert (rc, op.flags) == (0, physdev.XENIRQSTAT_needs_eoi)
        for irq in (56, 0xFFFF, 0xFFFFFFFF):
            assert pair.domu.physdev(physdev.PHYSDEVOP_irq_status_query, query, irq=irq)[0] == EINVAL

    @pytest.mark.parametrize(("op", "unmasks"), [(17, True), (28, False)])
    def test_page_of_bits(self, pair, op, unmasks):
        dom0 = pair.dom0
        dom0.map_pirq(5, 5)
        port = dom0.pirq(5)
        for gmfn in (dom0.l4, 1 << 40, pair.domu.pages[0]):
            assert dom0.physdev(op, physdev.physdev_pirq_eoi_gmfn, gmfn=gmfn)[0] == EINVAL
        assert dom0.physdev(op, physdev.physdev_pirq_eoi_gmfn, gmfn=dom0.pages[1])[0] == 0
        assert dom0.physdev(op, physdev.physdev_pirq_eoi_gmfn, gmfn=dom0.pages[2])[0] == EBUSY
        dom0.mask(port)
        assert dom0.physdev(physdev.PHYSDEVOP_eoi, physdev.physdev_eoi, irq=5)[0] == 0
        assert dom0.masked(port) is not unmasks
        assert dom0.pin_l1(dom0.pages[1]) == EINVAL

    def test_old_notification(self, pair):
        assert pair.domu.hypercall(PHYSDEV_OP, physdev.PHYSDEVOP_IRQ_UNMASK_NOTIFY, NOWHERE) == 0


class TestPorts:
    @pytest.mark.parametrize(("iopl", "rc"), [(0, 0), (3, 0), (4, EINVAL)])
    def test_iopl(self, pair, iopl, rc):
        assert pair.domu.physdev(physdev.PHYSDEVOP_set_iopl, physdev.physdev_set_iopl, iopl=iopl)[0] == rc
        assert pair.domu.hypercall(PHYSDEV_OP, physdev.PHYSDEVOP_set_iopl, NOWHERE) == EFAULT

    @pytest.mark.parametrize(
        ("bitmap", "ports", "rc"),
        [(0, 0, 0), (0, 65536, 0), (0, 65537, EINVAL), (0xFFFF800000000000, 1, EINVAL), (1 << 47, 1, EINVAL)],
    )
    def test_iobitmap(self, pair, bitmap, ports, rc):
        layout = physdev.physdev_set_iobitmap
        assert pair.domu.physdev(physdev.PHYSDEVOP_set_iobitmap, layout, bitmap=bitmap, nr_ports=ports)[0] == rc


class TestIoApic:
    def read(self, guest, reg, base=0xFEC00000):
        rc, op = guest.physdev(physdev.PHYSDEVOP_apic_read, physdev.physdev_apic, apic_physbase=base, reg=reg)
        return op.value if rc == 0 else rc

    def write(self, guest, reg, value, base=0xFEC00000):
        layout = physdev.physdev_apic
        return guest.physdev(physdev.PHYSDEVOP_apic_write, layout, apic_physbase=base, reg=reg, value=value)[0]

    def test_reading(self, pair):
        assert self.read(pair.dom0, 1) == 0x170020
        assert self.read(pair.dom0, 0x10) == 1 << 16
        assert self.read(pair.dom0, 0xFF) == 0
        assert self.read(pair.dom0, 1, base=0x1000) == EINVAL
        assert self.read(pair.domu, 1) == self.read(pair.domu, 1, base=0x1000) == EPERM
        assert pair.domu.hypercall(PHYSDEV_OP, physdev.PHYSDEVOP_apic_read, NOWHERE) == EFAULT

    def test_an_unmasked_pin_maps_the_pirq_in_its_vector(self, pair):
        assert self.write(pair.dom0, 0x10 + 2 * 9, 0x1F) == 0
        assert pair.dom0.domain.pirqs[0x1F].irq == 9
        assert pair.dom0.pirq(0x1F) > 0
        assert self.read(pair.dom0, 0x10 + 2 * 9) == 0x1F
        assert self.write(pair.dom0, 0x10 + 2 * 8, 0x10020) == 0
        assert 0x20 not in pair.dom0.domain.pirqs

    def test_what_cannot_be_written(self, pair):
        assert self.write(pair.dom0, 1, 5) == 0, "only entries are, and of those the low halves"
        assert self.write(pair.dom0, 0x11, 5) == 0
        assert self.write(pair.dom0, 0x10, 0x200) == EINVAL
        assert self.write(pair.dom0, 0x10 + 48, 0) == EINVAL
        assert self.write(pair.dom0, 0x10, 0, base=0) == EINVAL
        assert self.write(pair.domu, 0x10, 0) == EPERM
        assert pair.dom0.domain.pirqs == {}

    def test_vectors_are_lines(self, pair):
        alloc, layout = physdev.PHYSDEVOP_alloc_irq_vector, physdev.physdev_irq
        rc, op = pair.dom0.physdev(alloc, layout, irq=77)
        assert (rc, op.vector) == (0, 77)
        assert pair.domu.physdev(alloc, layout, irq=77)[0] == EPERM

    def test_setup_gsi(self, pair):
        setup, layout = physdev.PHYSDEVOP_setup_gsi, physdev.physdev_setup_gsi
        assert [pair.dom0.physdev(setup, layout, gsi=gsi)[0] for gsi in (0, 23, 24, -1)] == [0, 0, EINVAL, EINVAL]
        assert [pair.domu.physdev(setup, layout, gsi=gsi)[0] for gsi in (0, 24)] == [EPERM, EINVAL]


class TestPci:
    def test_functions_are_reported_and_withdrawn(self, pair):
        device = {"seg": 0, "bus": 1, "devfn": 8}
        add, remove = physdev.PHYSDEVOP_pci_device_add, physdev.PHYSDEVOP_pci_device_remove
        dom0 = pair.dom0
        assert dom0.physdev(remove, physdev.physdev_pci_device, **device)[0] == ENODEV
        assert dom0.physdev(physdev.PHYSDEVOP_restore_msi_ext, physdev.physdev_pci_device, **device)[0] == ENODEV
        assert dom0.physdev(add, physdev.physdev_pci_device_add, **device)[0] == 0
        assert dom0.physdev(physdev.PHYSDEVOP_restore_msi_ext, physdev.physdev_pci_device, **device)[0] == 0
        assert dom0.physdev(physdev.PHYSDEVOP_restore_msi, physdev.physdev_restore_msi, bus=1, devfn=8)[0] == 0
        assert dom0.physdev(physdev.PHYSDEVOP_prepare_msix, physdev.physdev_pci_device, **device)[0] == ENODEV
        assert dom0.physdev(remove, physdev.physdev_pci_device, **device)[0] == 0
        assert pair.domu.physdev(add, physdev.physdev_pci_device_add, **device)[0] == EPERM
        assert pair.domu.physdev(remove, physdev.physdev_pci_device, **device)[0] == EPERM

    def test_the_old_way(self, pair):
        old, extended = physdev.physdev_manage_pci, physdev.physdev_manage_pci_ext
        assert pair.dom0.physdev(physdev.PHYSDEVOP_manage_pci_add, old, bus=2)[0] == 0
        assert pair.dom0.physdev(physdev.PHYSDEVOP_manage_pci_remove, old, bus=2)[0] == 0
        assert pair.dom0.physdev(physdev.PHYSDEVOP_manage_pci_remove, old, bus=2)[0] == ENODEV
        assert pair.dom0.physdev(physdev.PHYSDEVOP_manage_pci_add_ext, extended, is_extfn=2)[0] == EINVAL
        assert pair.domu.physdev(physdev.PHYSDEVOP_manage_pci_add_ext, extended, is_extfn=2)[0] == EINVAL
        assert pair.domu.physdev(physdev.PHYSDEVOP_manage_pci_add_ext, extended, is_extfn=1)[0] == EPERM

    def test_configuration_space(self, pair):
        op, layout = physdev.PHYSDEVOP_pci_mmcfg_reserved, physdev.physdev_pci_mmcfg_reserved
        assert pair.domu.hypercall(PHYSDEV_OP, op, NOWHERE) == EPERM
        assert pair.dom0.hypercall(PHYSDEV_OP, op, NOWHERE) == EFAULT
        assert [pair.dom0.physdev(op, layout, flags=flags)[0] for flags in (1, 2)] == [ENODEV, EINVAL]

    def test_debug_port(self, pair):
        assert pair.domu.hypercall(PHYSDEV_OP, physdev.PHYSDEVOP_dbgp_op, NOWHERE) == EPERM
        assert pair.dom0.hypercall(PHYSDEV_OP, physdev.PHYSDEVOP_dbgp_op, NOWHERE) == EFAULT
        assert pair.dom0.physdev(physdev.PHYSDEVOP_dbgp_op, physdev.physdev_dbgp_op)[0] == 0


@pytest.mark.parametrize("cmd", [0, 1, 11, 18, 22, 32, 33, 0xFFFFFFFF])
def test_unknown(pair, cmd):
    assert pair.domu.hypercall(PHYSDEV_OP, cmd, NOWHERE) == ENOSYS


@pytest.mark.parametrize("cmd", [5, 6, 7, 12, 13, 14, 15, 16, 17, 19, 20, 21, 23, 25, 26, 27, 28, 30, 31])
def test_pointers_come_before_privilege(pair, cmd):
    assert pair.domu.hypercall(PHYSDEV_OP, cmd, NOWHERE) == EFAULT


def test_the_old_form_of_the_hypercall(pair):
    old = xen.HYPERVISOR_physdev_op_compat
    layout = physdev.physdev_op
    rc, op = pair.domu.call(old, layout=layout, cmd=5, u={"irq_status_query": {"irq": 3}})
    assert (rc, op.u.irq_status_query.flags) == (0, 1)
    assert pair.domu.call(old, layout=layout, cmd=6, u={"set_iopl": {"iopl": 4}})[0] == EINVAL
    assert pair.domu.call(old, layout=layout, cmd=99)[0] == ENOSYS
    assert pair.domu.hypercall(old, NOWHERE) == EFAULT
