"""What a driver domain's disk controller may reach: its domain's frames, and those it has mapped through grants."""

from types import SimpleNamespace
from typing import Any

from hypervisor.hypervisor import Hypervisor
from hypervisor.iommu import mapped_frames
from hypervisor.machine.machine import Machine
from hypervisor.mm.frame_table import PGT_l1_page_table, PGT_writable_page

LINE = 64


def two_domains() -> tuple[Hypervisor, Any, Any]:
    hv = Hypervisor(Machine(memory_mib=64))
    domains = []
    for domid in (1, 2):
        domain = hv.domain_ops.create(domid, max_vcpus=1)
        domain.max_pages = 16
        hv.domain_ops.add_vcpu(domain, 0)
        domains.append(domain)
    return hv, *domains


def writable(hv: Hypervisor, domain: Any) -> int:
    """A frame of a domain that has been mapped writable, as all are that a guest uses for data."""
    mfn: int = hv.frames.alloc(domain)
    assert hv.frames.take_type(mfn, PGT_writable_page) == 0
    hv.frames.put_page_type(mfn)
    return mfn


def test_a_device_does_not_reach_page_tables() -> None:
    """What a guest may not write a device of its may not either: in Xen's IOMMU such a frame is not mapped."""
    hv, driver, guest = two_domains()
    hv.iommu.assign(LINE, driver)
    allowed, reach = hv.iommu.context(LINE), hv.iommu.reach(LINE)
    assert allowed is not None
    assert reach is not None
    neighbours = sorted(writable(hv, driver) for _ in range(3))
    assert neighbours == list(range(neighbours[0], neighbours[0] + 3))
    table = neighbours[1]
    hv.memory.frame(table)[:] = bytes(4096)
    assert reach(neighbours[0], 3)
    assert hv.frames.take_type(table, PGT_l1_page_table) == 0
    assert not allowed(table)
    assert not reach(table, 1)
    assert not reach(neighbours[0], 3)
    assert reach(neighbours[0], 1)
    hv.frames.put_page_type(table)
    assert not reach(table, 1), "it is a page table until it becomes something else"
    assert hv.frames.take_type(table, PGT_writable_page) == 0
    assert reach(neighbours[0], 3)
    hv.frames.put_page_type(table)
    assert not allowed(hv.frames.alloc(driver)), "nobody has mapped it yet"
    hv.domain_ops.kill(driver)
    hv.domain_ops.kill(guest)


def test_dom0s_devices_reach_everything_and_a_driver_domains_only_its_own() -> None:
    hv, driver, guest = two_domains()
    mine, theirs = writable(hv, driver), writable(hv, guest)
    assert hv.iommu.context(LINE) is None

    hv.iommu.assign(LINE, driver)
    allowed = hv.iommu.context(LINE)
    assert allowed is not None
    assert allowed(mine)
    assert not allowed(theirs)
    assert not allowed(driver.shared_info_mfn - 1000)
    assert not allowed(hv.frames.frames)

    hv.iommu.release(LINE, guest)
    assert hv.iommu.context(LINE) is not None, "only the domain that has a device gives it back"
    hv.domain_ops.kill(driver)
    hv.domain_ops.kill(guest)


def test_neighbours_are_in_reach_if_all_of_them_are() -> None:
    hv, driver, guest = two_domains()
    assert hv.iommu.reach(LINE) is None
    driver.irqs.add(LINE)
    hv.iommu.assign(LINE, driver)
    reach = hv.iommu.reach(LINE)
    assert reach is not None
    mine = sorted(writable(hv, driver) for _ in range(4))
    theirs = hv.frames.alloc(guest)
    assert mine == list(range(mine[0], mine[0] + 4))
    assert reach(mine[0], 4)
    assert reach(mine[3], 1)
    assert not reach(mine[0] - 1, 2)
    assert not reach(theirs, 1)
    assert not reach(min(mine[3], theirs), 2)
    # What is granted to the domain is in reach for as long as it is mapped, and what is not its own any more is not.
    table, maptrack = SimpleNamespace(mfn=[theirs]), driver.grant_table.maptrack
    maptrack.table, maptrack.ref, maptrack.flags = [table], [0], [2]  # type: ignore[list-item]
    assert reach(theirs, 1)
    maptrack.table, maptrack.ref, maptrack.flags = [], [], []
    assert not reach(theirs, 1)
    hv.domain_ops.kill(driver)
    assert hv.iommu.reach(LINE) is None
    assert not reach(mine[0], 4)
    hv.domain_ops.kill(guest)


def test_a_dead_driver_domain_has_no_devices() -> None:
    hv, driver, guest = two_domains()
    driver.irqs.add(LINE)
    hv.iommu.assign(LINE, driver)
    hv.domain_ops.kill(driver)
    assert hv.iommu.context(LINE) is None
    hv.domain_ops.kill(guest)


def test_mapped_frames_are_those_of_live_handles() -> None:
    table = SimpleNamespace(mfn=[100, 101, 102])
    maptrack = SimpleNamespace(flags=[2, 0, 1], table=[table, table, table], ref=[2, 1, 0])
    domain: Any = SimpleNamespace(grant_table=SimpleNamespace(maptrack=maptrack))
    assert mapped_frames(domain) == {102, 100}
