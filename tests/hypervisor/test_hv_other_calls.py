"""The hypercalls behind which there is nothing: how far Xen judges a call before it says so."""

from __future__ import annotations

import struct

import pytest

from hypervisor.abi import domctl, errno, xen

E2BIG, EACCES, EBUSY, EFAULT, EINVAL, ENODATA, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, ESRCH = (
    -errno.E2BIG,
    -errno.EACCES,
    -errno.EBUSY,
    -errno.EFAULT,
    -errno.EINVAL,
    -errno.ENODATA,
    -errno.ENODEV,
    -errno.ENOENT,
    -errno.ENOSYS,
    -errno.EOPNOTSUPP,
    -errno.EPERM,
    -errno.ESRCH,
)
NOWHERE = 0x700000
BOTH = ("dom0", "domu")


@pytest.mark.parametrize("nr", [27, 38, 39, *range(50, 56), 62, 63, 64, 1 << 31, (1 << 32) - 1, 1 << 40])
def test_numbers_that_nobody_answers(pair, nr):
    for guest in (pair.dom0, pair.domu):
        assert guest.hypercall(nr, 0, 0, 0) == ENOSYS
        assert guest.hypercall(nr, NOWHERE, 1, 1) == ENOSYS


class TestHvmOp:
    def hvm(self, guest, op, data=b"", at=None):
        at = guest.args if at is None else at
        if data:
            guest.poke(at, data)
        return guest.hypercall(xen.HYPERVISOR_hvm_op, op, at)

    @pytest.mark.parametrize("who", BOTH)
    def test_parameters_are_hvm_domains(self, pair, who):
        guest = getattr(pair, who)
        for op in (0, 1):
            assert self.hvm(guest, op, at=NOWHERE) == EFAULT
            for domid, index, rc in ((xen.DOMID_SELF, 0, EINVAL), (77, 38, ESRCH), (77, 39, EINVAL), (0, 5, EINVAL)):
                assert self.hvm(guest, op, struct.pack("<HHIQ", domid, 0, index, 0)) == rc

    def test_other_operations(self, pair):
        dom0, domu = pair.dom0, pair.domu
        for guest in (dom0, domu):
            for op, rc in ((2, ENOSYS), (5, EINVAL), (12, ENOSYS), (23, EINVAL), (25, EOPNOTSUPP), (99, ENOSYS)):
                assert self.hvm(guest, op) == rc
                assert self.hvm(guest, op, at=NOWHERE) == rc
            assert (self.hvm(guest, 24), self.hvm(guest, 24, at=0)) == (EINVAL, 0)
            for op in (9, 10, 11, 15):
                assert self.hvm(guest, op, at=NOWHERE) == EFAULT
        assert self.hvm(domu, 15, struct.pack("<HHHHQ", 0, 0, 0, 0, 0)) == EPERM
        assert self.hvm(dom0, 15, struct.pack("<HHHHQ", 1, 0, 0, 0, 0)) == EINVAL
        assert self.hvm(domu, 9, struct.pack("<HHHHQ", xen.DOMID_SELF, 0, 0, 0, 0)) == EINVAL
        assert self.hvm(domu, 9, struct.pack("<HHHHQ", 0, 0, 0, 0, 0)) == EOPNOTSUPP

    def test_the_time(self, pair):
        assert self.hvm(pair.domu, 10) == 0
        assert struct.unpack("<Q", pair.domu.peek(pair.domu.args, 8)) == (pair.hv.now(),)

    @pytest.mark.parametrize(("event", "extra", "rc"), [(0xFFF, 28, 0), (0x1000, 0, EINVAL), (0, 29, EINVAL)])
    def test_trace_records(self, pair, event, extra, rc):
        assert self.hvm(pair.domu, 11, struct.pack("<HH28x", event, extra)) == rc


class TestPrivileged:
    def test_privilege_comes_first(self, pair):
        for nr in (xen.HYPERVISOR_kexec_op, xen.HYPERVISOR_hypfs_op, xen.HYPERVISOR_arch_0):
            assert pair.domu.hypercall(nr, 99, NOWHERE) == EPERM

    def test_kexec(self, pair):
        def kexec(op, data=b"", at=pair.dom0.args):
            pair.dom0.poke(pair.dom0.args, data.ljust(200, b"\0"))
            return pair.dom0.hypercall(xen.HYPERVISOR_kexec_op, op, at)

        assert kexec(99, at=NOWHERE) == 0
        for op in range(7):
            assert kexec(op, at=NOWHERE) == EFAULT
        for kind, start, unload in ((0, ENOENT, 0), (1, ENOENT, 0), (2, EINVAL, EINVAL)):
            data = bytes([kind])
            assert (kexec(0, data), kexec(2, data), kexec(5, data), kexec(6, data)) == (start, unload, unload, unload)
        assert (kexec(1), kexec(4)) == (ENOSYS, ENOSYS)
        assert kexec(3, struct.pack("<iiQQ", 0, 0, 5, 5)) == 0
        assert struct.unpack("<iiQQ", pair.dom0.peek(pair.dom0.args, 24)) == (0, 0, 0, 0)
        assert kexec(3, struct.pack("<i", 7)) == EINVAL

    def test_hypfs(self, pair):
        def hypfs(*args):
            return pair.dom0.hypercall(xen.HYPERVISOR_hypfs_op, *args)

        assert hypfs(0) == 1
        assert [hypfs(0, *args) for args in ((1,), (0, 1), (0, 0, 1), (0, 0, 0, 1))] == [EINVAL] * 4
        at = pair.dom0.args
        pair.dom0.poke(at, b"/params\0")
        assert hypfs(1, at, 8, 0, 0) == ENOSYS
        assert [hypfs(1, at, length) for length in (0, 7, 9, 1025)] == [EINVAL] * 4
        assert hypfs(1, at + 1, 7) == EINVAL  # no path from the root
        assert hypfs(1, NOWHERE, 8) == EFAULT

    def test_machine_checks(self, pair):
        dom0 = pair.dom0
        assert dom0.hypercall(xen.HYPERVISOR_arch_0, NOWHERE) == EFAULT
        dom0.poke(dom0.args, bytes(152))
        assert dom0.hypercall(xen.HYPERVISOR_arch_0, dom0.args) == EACCES
        dom0.poke(dom0.args, struct.pack("<II", 1, 0x01ECC003))
        assert dom0.hypercall(xen.HYPERVISOR_arch_0, dom0.args) == ENOSYS


class TestForEverybody:
    @pytest.mark.parametrize("who", BOTH)
    def test_performance_counters(self, pair, who):
        guest = getattr(pair, who)
        assert [guest.hypercall(xen.HYPERVISOR_xenpmu_op, op, NOWHERE) for op in (0, 99)] == [EOPNOTSUPP] * 2
        xenoprof = [guest.hypercall(xen.HYPERVISOR_xenoprof_op, op, NOWHERE) for op in (18, -1, 1, 17, 0)]
        assert xenoprof == [EINVAL, EINVAL, EPERM, EPERM, EFAULT]
        assert guest.hypercall(xen.HYPERVISOR_xenoprof_op, 0, guest.args) == ENODEV

    def test_device_models(self, pair):
        def dm_op(domid, count, at=pair.dom0.args):
            return pair.dom0.hypercall(xen.HYPERVISOR_dm_op, domid, count, at)

        assert [dm_op(77, count, NOWHERE) for count in (0, 1 << 32, 1, 3)] == [ENODATA, ENODATA, EFAULT, E2BIG]
        assert [dm_op(domid, 2) for domid in (77, xen.DOMID_SELF, 0, 1)] == [ESRCH, ESRCH, EPERM, EINVAL]

    def test_the_rest_of_a_paging_operation(self, pair):
        layout = domctl.xen_domctl
        version = domctl.XEN_DOMCTL_INTERFACE_VERSION

        def go_on(guest, cmd, domid, version=version):
            fields = {"cmd": cmd, "interface_version": version, "domain": domid}
            return guest.call(xen.HYPERVISOR_arch_1, layout=layout, **fields)[0]

        shadow = domctl.XEN_DOMCTL_shadow_op
        assert pair.domu.hypercall(xen.HYPERVISOR_arch_1, NOWHERE) == EFAULT
        assert (go_on(pair.domu, shadow, 1, 1), go_on(pair.domu, 1, 1)) == (EOPNOTSUPP, EOPNOTSUPP)
        assert (go_on(pair.domu, shadow, 77), go_on(pair.domu, shadow, 1)) == (ESRCH, EPERM)
        assert (go_on(pair.dom0, shadow, 0), go_on(pair.dom0, shadow, 1)) == (EINVAL, EBUSY)
