"""The smaller hypercalls and what all of them share: multicall, callbacks, version, console, privilege."""

from __future__ import annotations

import pytest
from core_world import KERNEL, SELF

from hypervisor.abi import callback, domctl, errno, platform, sysctl, xen
from hypervisor.abi import version as ver
from hypervisor.version import BUILD_ID

EINVAL, EPERM, ESRCH, ENOSYS, EFAULT, EACCES, ENOBUFS, E2BIG, EBUSY = (
    -number
    for number in (
        errno.EINVAL,
        errno.EPERM,
        errno.ESRCH,
        errno.ENOSYS,
        errno.EFAULT,
        errno.EACCES,
        errno.ENOBUFS,
        errno.E2BIG,
        errno.EBUSY,
    )
)
NOWHERE = 0x700000
XEN = 0xFFFF800000000000
NONCANONICAL = 1 << 47
MULTICALL, VERSION, CONSOLE = xen.HYPERVISOR_multicall, xen.HYPERVISOR_xen_version, xen.HYPERVISOR_console_io
U64 = 0xFFFFFFFFFFFFFFFF


class TestTable:
    @pytest.mark.parametrize("nr", [11, 47, 62, 63, 64, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 64, -1, -47, -64, -(1 << 80)])
    def test_unassigned_numbers(self, pair, nr):
        assert pair.domu.hypercall(nr, NOWHERE, NOWHERE) == ENOSYS

    @pytest.mark.parametrize("nr", ["29", None, 29.0, [29], b"\x1d"], ids=repr)
    def test_what_is_no_number(self, pair, nr):
        assert pair.domu.hypercall(nr, NOWHERE, NOWHERE) == ENOSYS


class TestMulticall:
    def calls(self, guest, *calls, at=None):
        """Returns the result of the multicall and those of the entries."""
        at = guest.args if at is None else at
        size = xen.multicall_entry.size
        for index, (op, *args) in enumerate(calls):
            entry = xen.multicall_entry.pack(op=op, result=0x77, args=(*args, *(0,) * (6 - len(args))))
            guest.poke(at + index * size, entry)
        rc = guest.hypercall(MULTICALL, at, len(calls))
        data = guest.peek(at, size * len(calls))
        return rc, [xen.multicall_entry.unpack_from(data, index * size).result for index in range(len(calls))]

    def test_runs_all_and_keeps_going_after_errors(self, pair):
        rc, results = self.calls(pair.domu, (VERSION, 0), (VERSION, 99), (63,), (VERSION, ver.XENVER_pagesize))
        assert (rc, results) == (0, [4 << 16 | 17, ENOSYS & U64, ENOSYS & U64, 4096])

    def test_keeps_the_arguments(self, pair):
        self.calls(pair.domu, (VERSION, 0, 1, 2, 3, 4, 5))
        assert xen.multicall_entry.unpack_from(pair.domu.peek(pair.domu.args, 64)).args == (0, 1, 2, 3, 4, 5)

    def test_nested(self, pair):
        assert self.calls(pair.domu, (MULTICALL, 0, 0)) == (0, [EINVAL & U64])

    def test_empty(self, pair):
        assert pair.domu.hypercall(MULTICALL, NOWHERE, 0) == 0
        assert pair.domu.hypercall(MULTICALL, XEN, 0) == EFAULT

    def test_count_is_a_32_bit_number(self, pair):
        assert pair.domu.hypercall(MULTICALL, pair.domu.args, 1 << 32) == 0

    def test_runs_until_an_entry_cannot_be_read(self, pair):
        guest = pair.domu
        last = guest.va(28) - xen.multicall_entry.size
        guest.poke(last, xen.multicall_entry.pack(op=VERSION, result=0x77, args=(0,) * 6))
        assert guest.hypercall(MULTICALL, last, 0xFFFFFFFF) == EFAULT
        assert xen.multicall_entry.unpack_from(guest.peek(last, 64)).result == 4 << 16 | 17

    def test_a_result_that_cannot_be_written(self, pair):
        guest = pair.domu
        guest.poke(guest.va(3), xen.multicall_entry.pack(op=VERSION, result=0x77, args=(0,) * 6))
        assert guest.set_pte(guest.va(3), guest.pages[3] << 12 | 0x65) == 0
        for vcpu in guest.vcpus:
            vcpu.tlb_w.clear()
        assert guest.hypercall(MULTICALL, guest.va(3), 1) == EFAULT
        assert xen.multicall_entry.unpack_from(guest.peek(guest.va(3), 64)).result == 0x77


class TestCallbacks:
    CALLBACK_OP, SET_CALLBACKS = xen.HYPERVISOR_callback_op, xen.HYPERVISOR_set_callbacks

    def register(self, guest, kind, address=KERNEL):
        layout = callback.callback_register
        return guest.call(self.CALLBACK_OP, callback.CALLBACKOP_register, layout=layout, type=kind, address=address)[0]

    def unregister(self, guest, kind):
        layout = callback.callback_unregister
        return guest.call(self.CALLBACK_OP, callback.CALLBACKOP_unregister, layout=layout, type=kind)[0]

    @pytest.mark.parametrize(
        ("kind", "rc"), [(0, 0), (1, 0), (2, 0), (3, ENOSYS), (4, 0), (5, 0), (6, ENOSYS), (7, 0), (99, ENOSYS)]
    )
    def test_register(self, pair, kind, rc):
        assert self.register(pair.domu, kind) == rc

    @pytest.mark.parametrize(
        ("kind", "rc"),
        [
            (0, EINVAL),
            (1, EINVAL),
            (2, EINVAL),
            (3, ENOSYS),
            (4, 0),
            (5, EINVAL),
            (6, ENOSYS),
            (7, EINVAL),
            (8, ENOSYS),
        ],
    )
    def test_unregister(self, pair, kind, rc):
        assert self.unregister(pair.domu, kind) == rc

    def test_of_the_calling_vcpu(self, pair):
        self.register(pair.domu, callback.CALLBACKTYPE_event, 0x1234000)
        assert pair.domu.vcpus[0].context.event_callback == 0x1234000
        assert pair.domu.vcpus[1].context.event_callback == 0

    def test_not_canonical(self, pair):
        self.register(pair.domu, 0, 0x5000)
        assert self.register(pair.domu, 0, NONCANONICAL) == EINVAL
        assert pair.domu.hypercall(self.SET_CALLBACKS, NONCANONICAL, 0x6000, 0x7000) == 0
        context = pair.domu.vcpus[0].context
        assert (context.event_callback, context.failsafe_callback, context.syscall_callback) == (0x5000, 0x6000, 0x7000)

    def test_unreadable_argument_and_unknown_operation(self, pair):
        assert pair.domu.hypercall(self.CALLBACK_OP, callback.CALLBACKOP_register, NOWHERE) == EFAULT
        assert pair.domu.hypercall(self.CALLBACK_OP, 9, NOWHERE) == ENOSYS


class TestVersion:
    def text(self, guest, op, size):
        guest.poke(guest.args, b"\x5a" * (size + 1))
        assert guest.hypercall(VERSION, op, guest.args) == 0
        data = guest.peek(guest.args, size + 1)
        assert data[size] == 0x5A
        return data[:size]

    def test_4_17(self, pair):
        assert pair.domu.hypercall(VERSION, ver.XENVER_version) == 4 << 16 | 17
        assert self.text(pair.domu, ver.XENVER_extraversion, ver.XEN_EXTRAVERSION_LEN) == b".7".ljust(16, b"\0")

    def test_strings_are_filled_up_with_zeroes(self, pair):
        for op, size in (
            (ver.XENVER_capabilities, ver.XEN_CAPABILITIES_INFO_LEN),
            (ver.XENVER_changeset, ver.XEN_CHANGESET_INFO_LEN),
            (ver.XENVER_compile_info, ver.xen_compile_info.size),
        ):
            assert b"\x5a" not in self.text(pair.domu, op, size)

    def test_commandline(self, pair):
        # No more than the word itself is written.
        assert self.text(pair.domu, ver.XENVER_commandline, 1024) == b"<denied>\0".ljust(1024, b"Z")
        assert self.text(pair.dom0, ver.XENVER_commandline, 1024) == bytes(1024)

    def test_handle(self, pair):
        pair.domu.domain.handle = bytes(range(16))
        assert self.text(pair.domu, ver.XENVER_guest_handle, 16) == bytes(range(16))

    @pytest.mark.parametrize(
        ("length", "rc"), [(0, EINVAL), (4, ENOBUFS), (19, ENOBUFS), (20, 20), (64, 20), (0xFFFFFFFF, 20)]
    )
    def test_build_id(self, pair, length, rc):
        guest = pair.dom0
        guest.poke(guest.args, length.to_bytes(4, "little") + b"\x5a" * 64)
        assert guest.hypercall(VERSION, ver.XENVER_build_id, guest.args) == rc
        assert guest.peek(guest.args + 4, 21) == (BUILD_ID + b"\x5a" if rc == 20 else b"\x5a" * 21)

    def test_build_id_is_not_for_domus(self, pair):
        assert pair.domu.hypercall(VERSION, ver.XENVER_build_id, NOWHERE) == EPERM
        assert pair.dom0.hypercall(VERSION, ver.XENVER_build_id, 0) == 20

    def features(self, guest, index=0):
        return guest.call(VERSION, ver.XENVER_get_features, layout=ver.xen_feature_info, submap_idx=index, submap=0x55)

    def test_features(self, pair):
        pair.dom0.domain.vm_assist |= 1 << xen.VMASST_TYPE_pae_extended_cr3
        assert self.features(pair.dom0)[1].submap == 0x228F0
        assert self.features(pair.domu)[1].submap == 0x220E0
        for index in (1, 2, 3, 0xFFFFFFFF):
            rc, info = self.features(pair.domu, index)
            assert (rc, info.submap) == (EINVAL, 0x55)

    def test_pagesize(self, pair):
        assert pair.domu.hypercall(VERSION, ver.XENVER_pagesize, 0) == 4096
        assert pair.domu.hypercall(VERSION, ver.XENVER_pagesize, 8) == EINVAL

    @pytest.mark.parametrize("op", [1, 2, 3, 4, 5, 6, 8, 9])
    def test_unwritable_argument(self, pair, op):
        assert pair.domu.hypercall(VERSION, op, NOWHERE) == EFAULT

    @pytest.mark.parametrize("op", [11, 99, 0xFFFFFFFF])
    def test_unknown(self, pair, op):
        assert pair.domu.hypercall(VERSION, op, NOWHERE) == ENOSYS


class TestVmAssist:
    @pytest.mark.parametrize(
        ("cmd", "kind", "rc"),
        [(0, 2, 0), (0, 5, 0), (0, 6, EINVAL), (0, 31, EINVAL), (1, 0, 0), (1, 6, EINVAL), (1, 32, 0), (2, 2, ENOSYS)],
    )
    def test_kinds(self, pair, cmd, kind, rc):
        assert pair.domu.hypercall(xen.HYPERVISOR_vm_assist, cmd, kind) == rc

    @pytest.mark.parametrize("kind", [64, 99, 0xFFFFFFFF])
    def test_the_kind_is_looked_at_before_the_command(self, pair, kind):
        assert pair.domu.hypercall(xen.HYPERVISOR_vm_assist, 99, kind) == EINVAL


class TestConsole:
    def test_dom0_writes(self, pair):
        pair.dom0.poke(pair.dom0.args, b"hello, " * 50)
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_write, 350, pair.dom0.args) == 0
        assert b"".join(pair.world.log) == b"hello, " * 50

    def test_what_comes_before_a_hole_is_printed(self, pair):
        last = pair.dom0.va(28) - 200
        pair.dom0.poke(last, b"a" * 200)
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_write, 300, last) == EFAULT
        assert set(b"".join(pair.world.log)) == {ord("a")}

    def test_nothing_from_nowhere(self, pair):
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_write, 0, NOWHERE) == 0

    def test_dom0_reads_what_is_typed(self, pair):
        port = pair.dom0.virq(xen.VIRQ_CONSOLE)
        pair.hv.console_io.feed(b"typed")
        assert pair.dom0.acknowledge() == [port]
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_read, 3, pair.dom0.args) == 3
        assert pair.dom0.peek(pair.dom0.args, 3) == b"typ"
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_read, 100, NOWHERE) == EFAULT
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_read, 100, pair.dom0.args) == 2
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_read, 100, pair.dom0.args) == 0
        assert pair.dom0.hypercall(CONSOLE, xen.CONSOLEIO_read, 1 << 31, pair.dom0.args) == E2BIG

    @pytest.mark.parametrize("cmd", [0, 1, 2, 0xFFFFFFFF])
    def test_not_for_domus(self, pair, cmd):
        assert pair.domu.hypercall(CONSOLE, cmd, 1, NOWHERE) == EPERM

    @pytest.mark.parametrize("cmd", [2, 0xFFFFFFFF])
    def test_unknown(self, pair, cmd):
        assert pair.dom0.hypercall(CONSOLE, cmd, 1, NOWHERE) == ENOSYS


CONTROL = [
    (xen.HYPERVISOR_domctl, domctl.xen_domctl, domctl.XEN_DOMCTL_INTERFACE_VERSION),
    (xen.HYPERVISOR_sysctl, sysctl.xen_sysctl, sysctl.XEN_SYSCTL_INTERFACE_VERSION),
    (xen.HYPERVISOR_platform_op, platform.xen_platform_op, platform.XENPF_INTERFACE_VERSION),
]


@pytest.mark.parametrize(("nr", "layout", "version"), CONTROL, ids=["domctl", "sysctl", "platform_op"])
class TestOrderOfChecks:
    """The pointer, the version of the interface, (the domain,) the caller's privilege, the operation."""

    def test_order(self, pair, nr, layout, version):
        for guest in (pair.dom0, pair.domu):
            assert guest.hypercall(nr, NOWHERE) == EFAULT
            assert guest.call(nr, layout=layout, cmd=9999, interface_version=version + 1)[0] == EACCES
        assert pair.domu.call(nr, layout=layout, cmd=9999, interface_version=version)[0] == EPERM
        assert pair.dom0.call(nr, layout=layout, cmd=9999, interface_version=version)[0] == ENOSYS

    def test_a_missing_domain_comes_before_privilege(self, pair, nr, layout, version):
        if nr != xen.HYPERVISOR_domctl:
            return
        for domid in (77, SELF):
            fields = {"cmd": domctl.XEN_DOMCTL_pausedomain, "interface_version": version, "domain": domid}
            assert pair.domu.call(nr, layout=layout, **fields)[0] == ESRCH


def test_enable_bits_of_port_breakpoints_are_put_aside_as_they_are(pair):
    guest, set_register = pair.domu, xen.HYPERVISOR_set_debugreg
    # Number 0 is on an instruction, number 1 on a port. It needs CR4.DE, once any of them is enabled.
    assert guest.hypercall(set_register, 7, 0x0020_0400) == 0
    assert guest.hypercall(set_register, 7, 0x0020_0402) == -errno.EPERM
    guest.vcpus[0].context.cr4 |= 8
    assert guest.hypercall(set_register, 7, 0x0020_0402) == 0
    assert guest.hypercall(xen.HYPERVISOR_get_debugreg, 7) == 0x0020_0402
    assert guest.hypercall(set_register, 7, 0x0020_0408) == 0
    assert guest.hypercall(xen.HYPERVISOR_get_debugreg, 7) == 0x0020_0408
    assert guest.vcpus[0].context.debugreg[7] == 0x0020_0400
