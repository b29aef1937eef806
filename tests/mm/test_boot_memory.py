"""Where Xen, its tables and the boot modules lie, and dom0 between them."""

import itertools

import pytest
from test_dom0_build import KERNEL

from hypervisor.abi import version, xen
from hypervisor.dom0_build import construct_dom0
from hypervisor.guest_access import copy_from_guest, read_u64
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine.machine import Machine
from hypervisor.mm.boot_memory import IMAGE_FRAMES, booted, tables_only
from hypervisor.mm.check import check

MODULE = bytes(range(256)) * 100


def test_a_pc_of_512_mib() -> None:
    boot = booted(0x1FFE0, [0x2A000, 0x2A000])
    assert boot.image == range(0x1FA00, 0x1FA00 + IMAGE_FRAMES)
    assert boot.modules == (range(0x1F9AC, 0x1F9D6), range(0x1F9D6, 0x1FA00))
    assert boot.frame_table == range(0x1F400, 0x1F800)
    assert boot.m2p == range(0x1F200, 0x1F400)
    assert boot.init == range(0x1FBB7, 0x1FC5B)
    assert list(boot.free()) == [
        range(0x100, 0x200),
        range(0x1FE00, 0x1FFDC),
        range(0x1FDA7, 0x1FE00),
        range(0x1FC72, 0x1FD71),
        range(0x1F800, 0x1F9AC),
        range(0x200, 0x1F200),
    ]


# What Xen 4.17.7 of Debian 12 takes for itself on a PC of 512 MiB with two processors, before it makes dom0, as
# (first frame, order): seen with a debugger, in QEMU.
SEEN = [
    *((0x1FDA7, 0), (0x1FD70, 0), (0x1FC73, 0), (0x1FFD0, 3), (0x1FC72, 0), (0x1FFDB, 0), (0x1FFDA, 0), (0x1FFD8, 1)),
    *((0x1FC77, 0), (0x1FC76, 0), (0x1FC75, 0), (0x1FC74, 0), (0x1F9AB, 0), (0x1F9AA, 0), (0x1F9A9, 0), (0x1FD40, 5)),
    *((0x1F9A8, 0), (0x1FDA8, 3), (0x1FD5B, 0), (0x1FD5A, 0), (0x1FDAF, 0), (0x1FDAE, 0), (0x1FD5F, 0), (0x1FC7C, 2)),
    *((0x1FC78, 2), (0x1FD5E, 0), (0x1FD5D, 0), (0x1F9A4, 2), (0x1FD5C, 0), (0x1F9A3, 0), (0x1FFC8, 3), (0x1F9A2, 0)),
    *((0x1F9A1, 0), (0x1F9A0, 0), (0x1FFC7, 0), (0x1FFC6, 0), (0x1FFC0, 2), (0x1FDBC, 2), (0x1FDB8, 2)),
]


def test_xens_own_pages_are_where_a_real_xen_has_them() -> None:
    machine = Machine(memory_mib=512, pcpus=2, has_firmware=True)
    hv = Hypervisor(machine, boot=booted(machine.memory.frames, [0x29380, 0x29380]))
    taken = {mfn + i for mfn, order in SEEN for i in range(1 << order)}
    given_back = {0x1FD5A, 0x1FD5B, 0x1FD5C, 0x1FD5D, 0x1FD5E, 0x1FD5F, 0x1FDAE, 0x1FDAF}  # the ends of two tables
    again = {mfn for mfn, order in SEEN if order == 0}
    taken -= given_back - again
    free = {mfn + i for mfn, count in hv.frames.heap.blocks() for i in range(count) if mfn >= 0x1F800}
    in_heap = {frame for piece in hv.frames.boot.free() for frame in piece if frame >= 0x1F800}
    assert in_heap - free == taken


def test_the_first_page_after_dom0_is_where_a_real_xen_finds_it() -> None:
    hv, _ = host(0x29380, 0x29380, pcpus=2, vcpus=2)
    pages = [hv.frames.alloc_xen() for _ in range(2)]
    assert pages == [0x1FC5A, 0x1FBB7]
    for mfn in pages:
        hv.frames.free_xen(mfn)


@pytest.mark.parametrize("frames", [0x2000, 0x2345, 0x40000, 1 << 22])
@pytest.mark.parametrize("modules", [(), (1,), (4096, 0, 12345678)])
def test_nothing_overlaps(frames: int, modules: tuple[int, ...]) -> None:
    for boot in (booted(frames, modules), tables_only(frames)):
        taken = [boot.m2p, boot.frame_table, boot.early, *boot.modules]
        assert all(any(set(part) <= set(whole) for whole in boot.taken) for part in filter(None, taken))
        places = sorted((*boot.taken, *boot.free()), key=lambda place: place.start)
        assert all(before.stop == after.start for before, after in itertools.pairwise(places))
        assert (places[0].start, places[-1].stop) == (256, frames)
        assert boot.m2p.start % 512 == len(boot.m2p) % 512 == 0
        assert len(boot.m2p) * 512 >= frames


def test_no_room() -> None:
    with pytest.raises(ValueError, match="needs more than 8192 KiB"):
        booted(2048, [])
    with pytest.raises(ValueError, match="needs more than 65536 KiB"):
        booted(16384, [60 << 20])


def host(*modules: int, pcpus: int = 1, vcpus: int = 1) -> tuple[Hypervisor, list[int]]:
    """Boot dom0 with 64 MiB on a PC of 512 MiB; returns the p2m too."""
    machine = Machine(memory_mib=512, pcpus=pcpus, has_firmware=True)
    hv = Hypervisor(machine, boot=booted(machine.memory.frames, modules))
    domain = hv.domain_ops.create(0, max_vcpus=vcpus, is_privileged=True)
    for vcpu_id in range(vcpus):
        hv.domain_ops.add_vcpu(domain, vcpu_id)
    construct_dom0(hv, domain, KERNEL, "", MODULE if len(modules) > 1 else None, 0x4000)
    check(hv)
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    info = xen.start_info.unpack_from(copy_from_guest(vcpu, vcpu.context.rsi, xen.start_info.size))
    if len(modules) > 1:
        assert copy_from_guest(vcpu, info.mod_start, info.mod_len) == MODULE
    return hv, [read_u64(vcpu, info.mfn_list + pfn * 8) for pfn in range(0x4000)]


def test_where_dom0_lies() -> None:
    _, p2m = host(50000)
    # What is mapped at first is the highest block of 4 MiB, then come ever smaller blocks, as large as they fit.
    assert p2m[:0x400] == list(range(0x1EC00, 0x1F000))
    assert p2m[0x400:0x2400] == list(range(0x1C000, 0x1E000))
    assert p2m[0x2400:0x3400] == list(range(0x1B000, 0x1C000))
    assert p2m[0x3400:0x3C00] == list(range(0x1E000, 0x1E800))
    assert p2m[0x3C00:] == list(range(0x1E800, 0x1EC00))


def test_a_module_stays_where_it_was_loaded() -> None:
    hv, p2m = host(50000, len(MODULE), 9000)
    module = hv.frames.boot.modules[1]
    first = p2m.index(module.start)
    assert p2m[first : first + len(module)] == list(module)
    assert p2m[:first] + p2m[first + len(module) : 0x400 + len(module)] == list(range(0x1EC00, 0x1F000))
    # The kernel's file and the other modules are free memory again, or some of dom0's last pages.
    for index in (0, 2):
        assert all(hv.frames.heap.is_free(mfn) or hv.frames.owner(mfn) == 0 for mfn in hv.frames.boot.modules[index])
    assert all(hv.frames.owner(mfn) == 0 for mfn in module)


def test_a_booted_pc_has_svm_and_xen_says_so() -> None:
    hv, _ = host(50000)
    vcpu = hv.domains[0].vcpu(0)
    assert vcpu is not None
    at = 0xFFFFFFFF80000000
    assert hv.table[xen.HYPERVISOR_xen_version](vcpu, version.XENVER_capabilities, at, 0, 0, 0) == 0
    told = copy_from_guest(vcpu, at, version.XEN_CAPABILITIES_INFO_LEN)
    assert told.rstrip(b"\0") == b"xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
