"""Where Xen, its tables and the boot modules lie, and dom0 between them."""

import itertools

import pytest
from test_dom0_build import KERNEL

from hypervisor.abi import xen
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
    assert list(boot.free()) == [
        range(0x100, 0x1F200),
        range(0x1F800, 0x1F9AC),
        range(0x1FA00 + IMAGE_FRAMES, 0x1FFE0),
    ]


@pytest.mark.parametrize("frames", [0x2000, 0x2345, 0x40000, 1 << 22])
@pytest.mark.parametrize("modules", [(), (1,), (4096, 0, 12345678)])
def test_nothing_overlaps(frames: int, modules: tuple[int, ...]) -> None:
    for boot in (booted(frames, modules), tables_only(frames)):
        taken = [boot.m2p, boot.frame_table, boot.image, *boot.modules]
        places = sorted((*filter(None, taken), *boot.free()), key=lambda place: place.start)
        assert all(before.stop == after.start for before, after in itertools.pairwise(places))
        assert (places[0].start, places[-1].stop) == (256, frames)
        assert boot.m2p.start % 512 == len(boot.m2p) % 512 == 0
        assert len(boot.m2p) * 512 >= frames


def test_no_room() -> None:
    with pytest.raises(ValueError, match="needs more than 8192 KiB"):
        booted(2048, [])
    with pytest.raises(ValueError, match="needs more than 65536 KiB"):
        booted(16384, [60 << 20])


def host(*modules: int) -> tuple[Hypervisor, list[int]]:
    """Boot dom0 with 64 MiB on a PC of 512 MiB; returns the p2m too."""
    machine = Machine(memory_mib=512, has_firmware=True)
    hv = Hypervisor(machine, boot=booted(machine.memory.frames, modules))
    domain = hv.domain_ops.create(0, max_vcpus=1, is_privileged=True)
    hv.domain_ops.add_vcpu(domain, 0)
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
    # The kernel's file and the other modules are free memory again.
    for index in (0, 2):
        assert all(hv.frames.heap.is_free(mfn) for mfn in hv.frames.boot.modules[index])
    assert all(hv.frames.owner(mfn) == 0 for mfn in module)
