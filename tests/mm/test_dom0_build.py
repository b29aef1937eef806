"""Dom0 as it finds itself at its first instruction."""

import struct
from typing import Any

import attrs
import pytest

from hypervisor.abi import xen
from hypervisor.dom0_build import BuildError, construct_dom0
from hypervisor.domain import Domain
from hypervisor.guest_access import copy_from_guest, read_u64, translate_load
from hypervisor.hypervisor import Hypervisor
from hypervisor.kernel_image import LoadSegment, PvKernel
from hypervisor.machine.machine import Machine
from hypervisor.mm.check import check
from hypervisor.mm.frame_table import PINNED
from hypervisor.mm.manager import hypercall_page
from hypervisor.vcpu import VPF_DOWN

BASE = 0xFFFFFFFF80000000


KERNEL = PvKernel(
    virt_base=BASE,
    virt_entry=BASE + 0x101000,
    segments=(LoadSegment(BASE + 0x100000, b"text" * 3000, 12000), LoadSegment(BASE + 0x104321, b"data" * 100, 4096)),
)


def host() -> tuple[Hypervisor, Domain]:
    hv = Hypervisor(Machine(memory_mib=48))
    domain = hv.domain_ops.create(0, max_vcpus=1, is_privileged=True)
    hv.domain_ops.add_vcpu(domain, 0)
    return hv, domain


def test_what_dom0_finds() -> None:
    hv, domain = host()
    module = bytes(range(256)) * 100
    layout = construct_dom0(hv, domain, KERNEL, "console=hvc0 earlyprintk", module, 8192)
    check(hv)
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    state = vcpu.context
    assert state.rip == KERNEL.virt_entry
    assert state.rsp == state.kernel_sp == layout.stack_pointer
    info = xen.start_info.unpack_from(copy_from_guest(vcpu, state.rsi, xen.start_info.size))
    assert info.magic.rstrip(b"\0") == b"xen-3.0-x86_64"
    assert info.nr_pages == domain.tot_pages == 8192
    assert info.shared_info == domain.shared_info_mfn << 12
    assert info.flags == 0x303
    assert info.pt_base == layout.va(layout.tables.pfn)
    assert info.nr_pt_frames == layout.tables.pages == 5
    assert bytes(info.cmd_line).rstrip(b"\0") == b"console=hvc0 earlyprintk"
    assert copy_from_guest(vcpu, info.mod_start, info.mod_len) == module
    for segment in KERNEL.segments:
        assert copy_from_guest(vcpu, segment.address, segment.size) == segment.contents.ljust(segment.size, b"\0")
    for pfn in (0, 77, 8191):
        mfn = read_u64(vcpu, info.mfn_list + pfn * 8)
        assert hv.frames.owner(mfn) == 0
        assert hv.memory.q[translate_load(vcpu, xen.MACH2PHYS_VIRT_START + mfn * 8, False) >> 3] == pfn
    root = read_u64(vcpu, info.mfn_list + layout.tables.pfn * 8)
    assert vcpu.kernel_cr3 == root
    assert hv.frames.flags[root] & PINNED
    tables = struct.unpack(f"<{layout.tables.pages}Q", copy_from_guest(vcpu, info.mfn_list + layout.tables.pfn * 8, 40))
    assert sum(bool(hv.frames.flags[mfn] & PINNED) for mfn in tables) == 1
    assert not vcpu.pause_flags & VPF_DOWN
    assert domain.pause_count == 1
    assert domain.max_pages == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("cmdline", "pages", "message"),
    [
        ("x" * 1024, 8192, "command line has 1024 bytes"),
        ("", 200, "has 200 pages, its kernel needs"),
        ("", 1 << 16, "256 MiB of memory, but the host has"),
    ],
)
def test_what_cannot_be_built(cmdline: str, pages: int, message: str) -> None:
    hv, domain = host()
    with pytest.raises(BuildError, match=message):
        construct_dom0(hv, domain, KERNEL, cmdline, None, pages)
    assert domain.tot_pages == 0
    check(hv)


def test_two_builds_are_the_same() -> None:
    images = []
    for _ in range(2):
        hv, domain = host()
        construct_dom0(hv, domain, KERNEL, "same", b"module", 4096)
        images.append(hv.memory.b.tobytes())
    assert images[0] == images[1]


def test_the_hypercall_page_and_the_old_magic() -> None:
    hv, domain = host()
    kernel = attrs.evolve(KERNEL, hypercall_page=BASE + 0x102000, pae=True)
    construct_dom0(hv, domain, kernel, "", None, 4096)
    check(hv)
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    assert copy_from_guest(vcpu, BASE + 0x102000, 4096) == hypercall_page()
    info = xen.start_info.unpack_from(copy_from_guest(vcpu, vcpu.context.rsi, xen.start_info.size))
    assert info.magic.rstrip(b"\0") == b"xen-3.0-x86_64p"
    assert domain.vm_assist >> xen.VMASST_TYPE_pae_extended_cr3 & 1


def test_where_the_first_block_ends() -> None:
    hv, domain = host()
    module = bytes(5000)
    layout = construct_dom0(hv, domain, KERNEL, "", module, 8192)
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    info = xen.start_info.unpack_from(copy_from_guest(vcpu, vcpu.context.rsi, xen.start_info.size))
    # All that is mapped but the module is one block of a power of two.
    assert layout.mapped_pages == 1024
    assert (info.first_p2m_pfn, info.nr_p2m_frames) == (1024 + 2, 0)


@pytest.mark.parametrize("p2m_base", [0x8000000000, 0x7FFFFFF000, BASE - 0x4000, 0xFFFFFF7FFFFFF000])
def test_p2m_list_and_module_outside_of_the_mapping(p2m_base: int) -> None:
    hv, domain = host()
    kernel = attrs.evolve(KERNEL, p2m_base=p2m_base, unmapped_module=True)
    module = b"module" * 1000
    layout = construct_dom0(hv, domain, kernel, "", module, 2048)
    check(hv)
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    info = xen.start_info.unpack_from(copy_from_guest(vcpu, vcpu.context.rsi, xen.start_info.size))
    assert info.mfn_list == p2m_base
    assert info.flags == 0x303 | xen.SIF_MOD_START_PFN
    assert (info.mod_start, info.mod_len) == (1024, 6000)
    assert info.first_p2m_pfn == 1026
    assert info.nr_p2m_frames == 4 + layout.p2m_tables.pages
    for index in range(2):
        mfn = read_u64(vcpu, p2m_base + (1024 + index) * 8)
        assert bytes(hv.memory.frame(mfn)).rstrip(b"\0") == module[index * 4096 : (index + 1) * 4096]
    mfns = [read_u64(vcpu, p2m_base + pfn * 8) for pfn in range(2048)]
    assert len(set(mfns)) == 2048
    assert all(hv.frames.owner(mfn) == 0 for mfn in mfns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"can_be_dom0": False}, "SUPPORTED_FEATURES do not name dom0"),
        ({"features_required": 1 << 3}, "requires supervisor_mode_kernel"),
        ({"hypercall_page": BASE - 4096}, "wants its hypercall page at 0xffffffff7ffff000"),
        ({"hypercall_page": BASE + (1 << 30)}, "wants its hypercall page at"),
        ({"p2m_base": 0xFFFF800000000000}, "may not map its p2m list"),
    ],
)
def test_kernels_that_cannot_be_dom0(changes: dict[str, Any], message: str) -> None:
    hv, domain = host()
    with pytest.raises(BuildError, match=message):
        construct_dom0(hv, domain, attrs.evolve(KERNEL, **changes), "", None, 4096)
    assert domain.tot_pages == 0


def test_a_later_segment_clears_what_an_earlier_one_left() -> None:
    hv, domain = host()
    segments = (LoadSegment(BASE, b"x" * 9000, 9000), LoadSegment(BASE + 100, b"y", 5000))
    kernel = PvKernel(virt_base=BASE, virt_entry=BASE, segments=segments)
    construct_dom0(hv, domain, kernel, "", None, 4096)
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    assert copy_from_guest(vcpu, BASE, 9000) == b"x" * 100 + b"y" + bytes(4999) + b"x" * 3900
