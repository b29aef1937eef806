"""CPU policies: what processors are said to be, to toolstacks and to guests; and what a toolstack may ask for."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.abi import sysctl as sysctl_abi
from hypervisor.cpu_policy import DOMAIN, HOST, PV_DEFAULT, PV_MAX, RAW
from hypervisor.cpu_policy import features as fs
from hypervisor.cpu_policy.policy import ARCH_CAPABILITIES, EXTENDED, MAX_LEAVES, PLATFORM_INFO
from hypervisor.emulator.binding import is_installed

E2BIG, EEXIST, EFAULT, EINVAL, ENOBUFS, EOVERFLOW, EPERM, ERANGE = (
    -errno.E2BIG,
    -errno.EEXIST,
    -errno.EFAULT,
    -errno.EINVAL,
    -errno.ENOBUFS,
    -errno.EOVERFLOW,
    -errno.EPERM,
    -errno.ERANGE,
)
NA = fs.NO_SUBLEAF
NOWHERE = 0x700000
HEADER = Path("/usr/include/xen/arch-x86/cpufeatureset.h")
LEAVES, MSRS = 3, 10
"""The pages of dom0's that lists are in."""
LEAF, MSR = xen.xen_cpuid_leaf, xen.xen_msr_entry
NO_AES = 1 << 25


def policy_op(guest, cmd, domid=1, **fields):
    rc, left = guest.call(
        xen.HYPERVISOR_domctl,
        layout=abi.xen_domctl,
        cmd=cmd,
        interface_version=abi.XEN_DOMCTL_INTERFACE_VERSION,
        domain=domid,
        u={"cpu_policy": fields},
    )
    return rc, left.u.cpu_policy


def get(guest, domid=1, **fields):
    return policy_op(guest, abi.XEN_DOMCTL_get_cpu_policy, domid, **fields)


def put(guest, entries=(), registers=(), **fields):
    """set_cpu_policy of leaves and registers, as in the lists; returns the result and what is to blame."""
    guest.poke(guest.va(LEAVES), b"".join(struct.pack("<6I", *leaf) for leaf in entries))
    guest.poke(guest.va(MSRS), b"".join(struct.pack("<IIQ", *msr) for msr in registers))
    fields = {
        "nr_leaves": len(entries),
        "nr_msrs": len(registers),
        "leaves": guest.va(LEAVES),
        "msrs": guest.va(MSRS),
        **fields,
    }
    rc, left = policy_op(guest, abi.XEN_DOMCTL_set_cpu_policy, **fields)
    return rc, (left.err_leaf, left.err_subleaf, left.err_msr)


def leaf_of(guest, leaf, subleaf=NA, domid=1):
    """One leaf of the policy of domain 1, as a toolstack reads it."""
    return listed(guest, domid)[leaf, subleaf]


def listed(guest, domid=1):
    rc, left = get(guest, domid, nr_leaves=200, leaves=guest.va(LEAVES))
    assert (rc, left.nr_msrs) == (0, 2)
    raw = guest.peek(guest.va(LEAVES), left.nr_leaves * LEAF.size)
    return {(leaf, sub): tuple(rest) for leaf, sub, *rest in struct.iter_unpack("<6I", raw)}


class TestTables:
    def test_who_may_have_a_feature_is_what_the_header_says(self):
        if not HEADER.exists():
            pytest.skip("Xen's public headers are not installed (apt install libxen-dev).")
        pattern = r"^XEN_CPUFEATURE\(\w+,\s*(\d+)\*32\+\s*(\d+)\)\s*/\*([\w!]*)"
        known, default, most = ([0] * fs.NR_WORDS for _ in range(3))
        for word, bit, letters in re.findall(pattern, HEADER.read_text(), re.MULTILINE):
            number = int(word) * 32 + int(bit)
            for table, wanted in ((known, letters), (default, set("A")), (most, set("Aa"))):
                if table is known or wanted & set(letters):
                    table[number >> 5] |= 1 << (number & 31)
        assert (tuple(known), tuple(default), tuple(most)) == (fs.KNOWN, fs.PV_DEFAULT, fs.PV_MAX)

    def test_the_machines_processor_claims_no_more_than_the_emulator_carries_out(self):
        if not is_installed():
            pytest.skip("Unicorn is not installed (pip install 'paravirt[emulator]').")
        import unicorn
        from unicorn import x86_const as x86

        engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        engine.mem_map(0x1000, 0x1000)
        engine.mem_write(0x1000, b"\x0f\xa2")
        features = {place[:2]: set() for place in fs.WORDS.values()}
        for leaf, subleaf, register in fs.WORDS.values():
            features[leaf, subleaf].add(register)
        for (leaf, subleaf), answer in RAW.leaves.items():
            engine.reg_write(x86.UC_X86_REG_EAX, leaf)
            engine.reg_write(x86.UC_X86_REG_ECX, subleaf & 0xFF if subleaf != NA else 0)
            engine.emu_start(0x1000, 0x1002)
            registers = (x86.UC_X86_REG_EAX, x86.UC_X86_REG_EBX, x86.UC_X86_REG_ECX, x86.UC_X86_REG_EDX)
            for register, number in enumerate(registers):
                native = engine.reg_read(number) & 0xFFFFFFFF
                if register in features.get((leaf, subleaf), ()):
                    assert answer[register] & ~native == 0, (leaf, subleaf, register)
                else:
                    assert answer[register] == native, (leaf, subleaf, register)

    def test_each_policy_is_within_the_one_before(self):
        def extra(policy, other):
            return [word & ~of_other for word, of_other in zip(policy.features(), other.features(), strict=True)]

        assert not any(extra(HOST, RAW))
        assert not any(extra(PV_DEFAULT, PV_MAX))
        assert not any(extra(DOMAIN, PV_DEFAULT))
        # What a guest may have that the machine has not: it is known not to matter.
        beyond = [0] * fs.NR_WORDS
        names = "X2APIC HTT CMP_LEGACY HYPERVISOR ARCH_CAPS RSBA MD_CLEAR FB_CLEAR RFDS_CLEAR"
        for number in fs.numbers(names):
            beyond[number >> 5] |= 1 << (number & 31)
        assert extra(PV_MAX, HOST) == beyond

    def test_a_feature_falls_with_what_it_stands_on(self):
        words = list(fs.KNOWN)
        fs.exclude(words, "SSE2")
        left = fs.sane(words)
        for name in ("SSE2", "SSE3", "SSSE3", "SSE4_2", "AESNI", "LM", "CX16", "PCID", "VAES", "LAHF_LM"):
            assert not fs.has(left, *fs.numbers(name)), name
        for name in ("SSE", "POPCNT", "AVX", "NX"):
            assert fs.has(left, *fs.numbers(name)), name
        fs.exclude(words, "ARCH_CAPS")
        assert fs.sane(words)[16:18] == [0, 0]


class TestReading:
    def test_how_long_the_lists_can_be(self, pair):
        rc, left = get(pair.dom0)
        assert (rc, left.nr_leaves, left.nr_msrs) == (0, MAX_LEAVES, 2)
        assert MAX_LEAVES == 120
        assert get(pair.domu)[0] == EPERM
        assert get(pair.dom0, 0)[0] == 0

    def test_the_list(self, pair):
        found = listed(pair.dom0)
        assert found == {(leaf, sub): registers for leaf, sub, registers in DOMAIN.serialise()}
        keys = list(found)
        assert keys[:3] == [(0, NA), (1, NA), (2, NA)]
        # The list of caches ends with one that is none; topology is empty; states are told by two leaves at least.
        assert [key for key in keys if key[0] in (4, 7, 0xB, 0xD)] == [
            *((4, sub) for sub in range(4)),
            (7, 0),
            (0xB, 0),
            (0xD, 0),
            (0xD, 1),
        ]
        assert keys[-11:] == [(0x40000000, NA), (0x40000100, NA), *((EXTENDED | index, NA) for index in range(9))]

    @pytest.mark.parametrize(("room", "rc"), [(0, ENOBUFS), (28, ENOBUFS), (29, 0), (0xFFFFFFFF, 0)])
    def test_room(self, pair, room, rc):
        at = pair.dom0.va(LEAVES)
        assert get(pair.dom0, nr_leaves=room, leaves=at)[0] == rc
        filled = pair.dom0.peek(at, LEAF.size * 29)
        assert bool(any(filled[-LEAF.size :])) is (rc == 0)

    def test_registers(self, pair):
        at = pair.dom0.va(MSRS)
        assert get(pair.dom0, nr_msrs=1, msrs=at)[0] == ENOBUFS
        rc, left = get(pair.dom0, nr_msrs=5, msrs=at)
        assert (rc, left.nr_msrs) == (0, 2)
        numbers = [entry[0] for entry in struct.iter_unpack("<IIQ", pair.dom0.peek(at, 32))]
        assert numbers == [PLATFORM_INFO, ARCH_CAPABILITIES]
        assert get(pair.dom0, nr_msrs=5, msrs=NOWHERE)[0] == EFAULT
        assert get(pair.dom0, nr_leaves=50, leaves=NOWHERE)[0] == EFAULT


class TestWriting:
    def test_a_feature_can_be_taken_away_but_not_given(self, pair):
        a, b, c, d = leaf_of(pair.dom0, 1)
        assert c & NO_AES
        assert not c & 1 << 28
        assert put(pair.dom0, [(1, NA, a, b, (c & ~NO_AES) | 1 << 28, d)])[0] == 0
        assert leaf_of(pair.dom0, 1) == (a, b, c & ~NO_AES, d)
        # Others are as they were.
        assert DOMAIN.get(1)[2] & NO_AES
        assert leaf_of(pair.dom0, 1, domid=0)[2] & NO_AES

    def test_what_a_domain_saw_elsewhere_it_may_keep(self, pair):
        a, b, c, d = leaf_of(pair.dom0, 1)
        assert put(pair.dom0, [(1, NA, a, b, c | 1 << 21, d)], [(ARCH_CAPABILITIES, 0, 1 << 2 | 1)])[0] == 0
        assert leaf_of(pair.dom0, 1)[2] == c | 1 << 21
        # RSBA it may have; RDCL_NO the machine has not.
        assert get(pair.dom0, nr_msrs=2, msrs=pair.dom0.va(MSRS))[0] == 0
        assert [entry[2] for entry in struct.iter_unpack("<IIQ", pair.dom0.peek(pair.dom0.va(MSRS), 32))] == [0, 4]

    def test_the_vendor_says_which_leaves_there_are(self, pair):
        amd = struct.unpack("<3I", b"AuthcAMDenti")
        assert put(pair.dom0, [(0, NA, 0xD, *amd)])[0] == 0
        assert leaf_of(pair.dom0, EXTENDED) == (EXTENDED | 8, *amd)
        one = leaf_of(pair.dom0, 1)
        assert leaf_of(pair.dom0, EXTENDED | 1)[3] & fs.COMMON_1D == one[3] & fs.COMMON_1D
        assert leaf_of(pair.dom0, 2) == (0, 0, 0, 0)

    def test_fewer_leaves(self, pair):
        _, b, c, d = leaf_of(pair.dom0, 0)
        assert put(pair.dom0, [(0, NA, 4, b, c, d), (EXTENDED, NA, EXTENDED | 1, 0, 0, 0)])[0] == 0
        found = listed(pair.dom0)
        assert max(leaf for leaf, _ in found if leaf < 0x40000000) == 4
        assert max(leaf for leaf, _ in found) == EXTENDED | 1

    @pytest.mark.parametrize(
        ("leaf", "subleaf"),
        [
            *((0xE, NA), (1, 0), (4, 6), (4, NA), (7, 3), (0xB, 2), (0xD, 63), (0x40000000, 0), (0x40000001, NA)),
            *((EXTENDED | 0x22, NA), (EXTENDED | 1, 0), (0xFFFFFFFF, NA)),
        ],
    )
    def test_leaves_that_there_is_no_room_for(self, pair, leaf, subleaf):
        assert put(pair.dom0, [(0, NA, 1, 2, 3, 4), (leaf, subleaf, 0, 0, 0, 0)]) == (ERANGE, (leaf, subleaf, NA))
        assert leaf_of(pair.dom0, 0) == DOMAIN.get(0)

    @pytest.mark.parametrize(
        ("leaves", "msrs", "rc", "blame"),
        [
            ([(0, NA, 0xE, 0, 0, 0)], [], EINVAL, (0, NA, NA)),
            ([(7, 0, 3, 0, 0, 0)], [], EINVAL, (7, 0, NA)),
            ([(EXTENDED, NA, EXTENDED | 9, 0, 0, 0)], [], EINVAL, (EXTENDED, NA, NA)),
            ([], [(PLATFORM_INFO, 0, 1 << 31)], EINVAL, (NA, NA, PLATFORM_INFO)),
            ([], [(PLATFORM_INFO, 1, 0)], EINVAL, (NA, NA, PLATFORM_INFO)),
            ([], [(PLATFORM_INFO, 0, 1 << 32)], EOVERFLOW, (NA, NA, PLATFORM_INFO)),
            ([], [(0x10, 0, 0)], ERANGE, (NA, NA, 0x10)),
            # Leaves are looked at first.
            ([(1, 0, 0, 0, 0, 0)], [(0x10, 0, 0)], ERANGE, (1, 0, NA)),
        ],
    )
    def test_what_cannot_be(self, pair, leaves, msrs, rc, blame):
        assert put(pair.dom0, leaves, msrs) == (rc, blame)

    def test_lists_that_are_none(self, pair):
        nobody = NA, NA, NA
        assert put(pair.dom0, nr_leaves=MAX_LEAVES + 1) == (E2BIG, nobody)
        assert put(pair.dom0, nr_msrs=3) == (E2BIG, nobody)
        assert put(pair.dom0, nr_leaves=1, leaves=NOWHERE) == (EFAULT, nobody)
        assert put(pair.dom0, nr_msrs=1, msrs=NOWHERE) == (EFAULT, nobody)
        assert put(pair.dom0, leaves=NOWHERE, msrs=NOWHERE)[0] == 0

    def test_only_before_a_domain_runs(self, pair):
        assert policy_op(pair.dom0, abi.XEN_DOMCTL_set_cpu_policy, 0)[0] == EINVAL
        assert put(pair.domu)[0] == EPERM
        pair.hv.domain_ops.unpause(pair.domu.domain)
        pair.hv.domain_ops.pause(pair.domu.domain)
        assert put(pair.dom0)[0] == EEXIST


class TestHost:
    def sysctl(self, guest, cmd, member, **fields):
        rc, left = guest.call(
            xen.HYPERVISOR_sysctl,
            layout=sysctl_abi.xen_sysctl,
            cmd=cmd,
            interface_version=sysctl_abi.XEN_SYSCTL_INTERFACE_VERSION,
            u={member: fields},
        )
        return rc, getattr(left.u, member)

    def policy(self, guest, **fields):
        return self.sysctl(guest, sysctl_abi.XEN_SYSCTL_get_cpu_policy, "cpu_policy", **fields)

    def featureset(self, guest, **fields):
        return self.sysctl(guest, sysctl_abi.XEN_SYSCTL_get_cpu_featureset, "cpu_featureset", **fields)

    @pytest.mark.parametrize(
        ("index", "expected"), [(0, RAW), (1, HOST), (2, PV_MAX), (4, PV_DEFAULT), (3, None), (5, None)]
    )
    def test_policies(self, pair, index, expected):
        at = pair.dom0.va(LEAVES)
        rc, left = self.policy(pair.dom0, index=index, nr_leaves=200, leaves=at, nr_msrs=2, msrs=pair.dom0.va(MSRS))
        assert (rc, left.nr_msrs) == (0, 2)
        raw = pair.dom0.peek(at, left.nr_leaves * LEAF.size)
        found = [(leaf, sub, tuple(rest)) for leaf, sub, *rest in struct.iter_unpack("<6I", raw)]
        # Those of HVM guests are empty.
        empty = [(leaf, NA, (0, 0, 0, 0)) for leaf in (0, 0x40000000, 0x40000100, EXTENDED)]
        assert found == (list(expected.serialise()) if expected else empty)

    def test_what_is_no_policy(self, pair):
        assert [self.policy(pair.dom0, index=index)[0] for index in (6, 0xFFFFFFFF)] == [EINVAL] * 2
        assert self.policy(pair.dom0, index=1, _rsvd=1)[0] == EINVAL
        assert self.policy(pair.domu, index=1)[0] == EPERM

    def test_the_number_of_leaves_is_told_even_if_the_registers_do_not_fit(self, pair):
        fields = {"nr_leaves": 200, "leaves": pair.dom0.va(LEAVES), "nr_msrs": 1, "msrs": pair.dom0.va(MSRS)}
        rc, left = self.policy(pair.dom0, index=1, **fields)
        assert (rc, left.nr_leaves, left.nr_msrs) == (ENOBUFS, 29, 1)
        rc, left = self.policy(pair.dom0, index=1, **(fields | {"nr_leaves": 5}))
        assert (rc, left.nr_leaves) == (ENOBUFS, 5)

    def test_feature_sets(self, pair):
        assert self.featureset(pair.dom0, index=99)[1].nr_features == fs.NR_WORDS
        at = pair.dom0.va(LEAVES)
        for index, policy in {0: RAW, 1: HOST, 2: PV_DEFAULT, 4: PV_MAX}.items():
            rc, left = self.featureset(pair.dom0, index=index, nr_features=99, features=at)
            assert (rc, left.nr_features) == (0, fs.NR_WORDS)
            assert list(struct.unpack("<19I", pair.dom0.peek(at, 76))) == policy.features()
        rc, left = self.featureset(pair.dom0, index=1, nr_features=3, features=at)
        assert (rc, left.nr_features) == (ENOBUFS, 3)
        assert self.featureset(pair.dom0, index=6, nr_features=3, features=at)[0] == EINVAL
        assert self.featureset(pair.dom0, index=1, nr_features=3, features=NOWHERE)[0] == EFAULT
