"""Xen's own frames: nobody maps or writes them, not even dom0 in the name of DOMID_XEN; the M2P may be read."""

from __future__ import annotations

import pytest
from mm_world import RW, A, D, P, World

from hypervisor.abi import xen


@pytest.mark.parametrize("flags", [P | A, P | RW | A | D])
def test_dom0_maps_the_m2p_alone(world: World, flags: int) -> None:
    dom0, frames = world.dom0, world.hv.frames
    private = frames.alloc_xen()
    where = dom0.entry_at(dom0.new_page())
    assert dom0.set_entry(where, private << 12 | flags, xen.DOMID_XEN) < 0
    assert (dom0.set_entry(where, frames.m2p_mfn << 12 | flags, xen.DOMID_XEN) == 0) is not bool(flags & RW)
    dom0.set_entry(where, 0)
    frames.free_xen(private)


def test_dom0_clears_and_copies_none(world: World) -> None:
    dom0, frames = world.dom0, world.hv.frames
    private, other = frames.alloc_xen(), frames.alloc_xen()
    world.hv.memory.b[private << 12] = 7
    assert dom0.mmuext(xen.MMUEXT_CLEAR_PAGE, private, foreign=xen.DOMID_XEN) < 0
    assert dom0.mmuext(xen.MMUEXT_COPY_PAGE, private, other, foreign=xen.DOMID_XEN) < 0
    assert world.hv.memory.b[private << 12] == 7
    frames.free_xen(private)
    frames.free_xen(other)
