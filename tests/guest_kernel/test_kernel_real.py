"""The guest kernel on the real hypervisor: boot, memory growth, events and grants between domains, several vCPUs."""

from typing import Any

import pytest
from real_host import Guest, RealHost, run_guests

from guest_kernel.errors import OutOfMemory, XenError
from guest_kernel.kernel import Kernel
from guest_kernel.mm import neighbours
from guest_kernel.threads import Event, WaitQueue
from hypervisor.abi import grant_table as gnt
from hypervisor.abi.cpu import PageFault
from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot
from hypervisor.abi.xen import DOMID_SELF


def test_two_guests_boot_print_and_power_off() -> None:
    async def main(kernel: Kernel) -> None:
        kernel.console.write(f"{kernel.cmdline} {kernel.mm.nr_pages}\n")
        await kernel.sleep(3_000_000)
        kernel.console.write("done\n" + "x" * 5000 + "\n")

    guests = [Guest(main, cmdline="one"), Guest(main, mib=12, cmdline="two")]
    host = run_guests(*guests)
    assert [guest.reason for guest in guests] == [SHUTDOWN_poweroff] * 2
    assert guests[0].console.decode() == "one 2048\ndone\n" + "x" * 5000 + "\n"
    assert guests[1].console.decode().startswith("two 3072\n")
    assert list(host.hv.domains) == [0]


def test_neighbouring_pages_are_seen_in_one_piece() -> None:
    async def main(kernel: Kernel) -> None:
        mm, view = kernel.mm, kernel.cpu.view
        pages = mm.alloc_pages(600)
        size = 599 * 4096 + 100
        runs = mm.runs(pages, size)
        assert sum(map(len, runs)) == size
        assert 1 <= len(runs) < 10
        for number, page in enumerate(pages):
            page.i[0] = number
        data = b"".join(runs)
        assert [int.from_bytes(data[n << 12 : (n << 12) + 4], "little") for n in range(600)] == list(range(600))
        shuffled = [pages[n] for n in (4, 3, 7, 8, 9, 1)]
        runs = mm.runs(shuffled, 5 * 4096 + 1)
        assert [run.cast("B")[0] for run in runs] == [4, 3, 7, 1]
        assert [len(run) for run in runs] == [4096, 4096, 3 * 4096, 1]
        assert mm.runs(shuffled, 0) == ()

        scattered = mm.map_machine([pages[3].mfn, pages[4].mfn, pages[6].mfn])
        assert len(view(scattered.va + 5, 2 * 4096 - 5)) == 2 * 4096 - 5
        for address, length in ((scattered.va, 2 * 4096 + 1), (scattered.va + 4095, 4096 + 2), (scattered.va, -1)):
            with pytest.raises(ValueError, match=r"view of|one piece"):
                view(address, length)
        with pytest.raises(PageFault) as fault:
            view(scattered.va + 2 * 4096, 4097)
        assert fault.value.address == scattered.va + 3 * 4096
        mm.unmap_foreign(scattered)

    run_guests(Guest(main, mib=12))


def test_a_view_of_many_pages_ends_where_one_is_not_as_the_others() -> None:
    async def main(kernel: Kernel) -> None:
        mm, view = kernel.mm, kernel.cpu.view
        mfns = [page.mfn for page in mm.alloc_pages(1100)]
        start = max(neighbours(mfns), key=lambda run: run[1])[0]
        count = 900
        assert mfns[start : start + count] == list(range(mfns[start], mfns[start] + count))
        mapping = mm.map_machine(mfns[start : start + count])
        assert [len(piece) for piece in mapping.pieces] == [count * 4096]
        assert len(mapping) == count
        mapping[517][3] = 17
        assert mapping.pieces[0][517 * 4096 + 3] == 17

        def entry_of(page: int, mfn: int, flags: int) -> None:
            mm.update_va_mapping(mapping.va + page * 4096, mfn << 12 | flags)

        size, page = count * 4096, 700
        own = mfns[start + page]
        whole = view(mapping.va, size)
        for other, flags, error in ((own, 0x21, PageFault), (own, 0, PageFault), (own + 1, 0x63, ValueError)):
            entry_of(page, other, flags)
            with pytest.raises(error) as raised:
                view(mapping.va, size)
            if isinstance(raised.value, PageFault):
                assert raised.value.address == mapping.va + page * 4096
            assert len(view(mapping.va, page * 4096)) == page * 4096
        # Without the bits that the processor sets, it sets them.
        entry_of(page, own, 0x03)
        assert view(mapping.va, size) == whole
        whole.release()
        mm.unmap_foreign(mapping)
        assert mapping.pieces == []

    run_guests(Guest(main, mib=12))


def test_a_destroyed_guest_leaves_nothing_behind() -> None:
    free: list[int] = []
    hosts: list[RealHost] = []

    async def main(kernel: Kernel) -> None:
        kernel.mm.alloc_pages(1500)
        kernel.grants.grant_access(0, kernel.mm.alloc_page())
        kernel.mm.map_machine([kernel.mm.alloc_page().mfn] * 3)
        free.append(hosts[0].hv.frames.free_frames)

    hosts.append(RealHost([Guest(main)]))
    before = hosts[0].hv.frames.free_frames
    hosts[0].run()
    assert free[0] < before
    assert hosts[0].hv.frames.free_frames == before


def test_failures_end_in_a_crash_with_the_traceback_on_the_console() -> None:
    async def failing(kernel: Kernel) -> None:
        await kernel.sleep(1000)
        raise ValueError("on purpose")

    async def rebooting(kernel: Kernel) -> None:
        await kernel.power.reboot()

    async def crashing(kernel: Kernel) -> None:
        await kernel.power.crash("enough")

    async def handler(kernel: Kernel) -> None:
        kernel.timers.add(kernel.monotonic_ns() + 10, lambda: {}["missing"])
        await kernel.never()

    guests = [Guest(failing), Guest(rebooting), Guest(crashing), Guest(handler)]
    run_guests(*guests)
    assert [guest.reason for guest in guests] == [SHUTDOWN_crash, SHUTDOWN_reboot, SHUTDOWN_crash, SHUTDOWN_crash]
    assert b"ValueError: on purpose" in guests[0].console
    assert b"enough" in guests[2].console
    assert b"KeyError: 'missing'" in guests[3].console


def test_all_memory_can_be_used_through_page_tables_made_on_demand() -> None:
    async def main(kernel: Kernel) -> None:
        mm = kernel.mm
        pages = []
        while mm.free_pages > 8:
            try:
                pages.append(mm.alloc_page())
            except OutOfMemory:
                break
        for page in pages:
            page.i[1023] = page.pfn
        for page in pages:
            assert page.i[1023] == page.pfn == mm.pfn_of(mm.virt_to_mfn(page.va))
        kernel.console.write(str(len(pages)))

    guest = Guest(main, mib=20)
    run_guests(guest)
    assert guest.reason == SHUTDOWN_poweroff, guest.console.decode()
    assert 20 * 256 - 60 < int(guest.console) < 20 * 256


def test_xen_refuses_what_a_guest_may_not_map() -> None:
    async def main(kernel: Kernel) -> None:
        with pytest.raises(XenError):
            kernel.mm.map_machine([kernel.mm.root])  # a page table, writable
        with pytest.raises(XenError):
            kernel.mm.map_machine([1])  # Xen's
        (view,) = kernel.mm.map_machine([kernel.mm.root], writable=False)
        assert view.readonly
        with pytest.raises(XenError):
            kernel.mm.map_foreign(0, [kernel.mm.alloc_page().mfn])

    guest = Guest(main)
    run_guests(guest)
    assert guest.reason == SHUTDOWN_poweroff, guest.console.decode()


def pair(left: Any, right: Any) -> tuple[Guest, Guest]:
    """Two guests whose programs get a shared dictionary, which stands for xenstore."""
    shared: dict[str, Any] = {}

    async def left_main(kernel: Kernel) -> None:
        await left(kernel, shared)

    async def right_main(kernel: Kernel) -> None:
        while "ready" not in shared:
            await kernel.sleep(10_000)
        await right(kernel, shared)
        shared["done"] = True

    return Guest(left_main), Guest(right_main)


async def done(kernel: Kernel, shared: dict[str, Any]) -> None:
    while "done" not in shared:
        await kernel.sleep(10_000)


def test_events_cross_domains() -> None:
    counts = {"left": 0, "right": 0}

    async def left(kernel: Kernel, shared: dict[str, Any]) -> None:
        queue = WaitQueue()
        port = kernel.events.alloc_unbound(2, lambda: queue.wake() and None)
        shared.update(port=port, ready=True)
        while "done" not in shared:
            await queue.wait()
            counts["left"] += 1
            kernel.events.notify(port)

    async def right(kernel: Kernel, shared: dict[str, Any]) -> None:
        queue = WaitQueue()
        port = kernel.events.bind_interdomain(1, shared["port"], lambda: queue.wake() and None)
        await kernel.sleep(1)
        for _ in range(100):
            kernel.events.notify(port)
            await queue.wait()
            counts["right"] += 1
        shared["done"] = True
        kernel.events.notify(port)
        kernel.events.unbind(port)

    guests = pair(left, right)
    run_guests(*guests)
    assert [guest.reason for guest in guests] == [SHUTDOWN_poweroff] * 2
    assert counts["right"] == 100
    assert counts["left"] >= 101


def test_grants_are_mapped_copied_and_taken_back() -> None:
    async def left(kernel: Kernel, shared: dict[str, Any]) -> None:
        grants = kernel.grants
        pages = kernel.mm.alloc_pages(200)
        for number, page in enumerate(pages):
            page.q[0] = number
        refs = [grants.grant_access(2, page) for page in pages]
        read_only = grants.grant_access(2, pages[0], readonly=True)
        other = grants.grant_access(0, pages[0])
        shared.update(refs=refs, read_only=read_only, other=other, mfn=pages[3].mfn, ready=True)
        while "mapped" not in shared:
            await kernel.sleep(10_000)
        assert grants.is_in_use(refs[5])
        assert not grants.end_access(refs[5])
        shared["seen"] = True
        await done(kernel, shared)
        assert pages[7].q[1] == 77
        assert bytes(pages[8].view[100:105]) == b"hello"
        assert grants.end_access_many([*refs, read_only, other]) == []

    async def right(kernel: Kernel, shared: dict[str, Any]) -> None:
        grants, refs = kernel.grants, shared["refs"]
        mapped = grants.map_refs(1, refs)
        assert [grant.status for grant in mapped] == [0] * 200
        assert [grant.view.cast("Q")[0] for grant in mapped] == list(range(200))
        assert kernel.mm.virt_to_mfn(mapped[3].va) == shared["mfn"]
        mapped[7].view.cast("Q")[1] = 77
        shared["mapped"] = True
        while "seen" not in shared:
            await kernel.sleep(10_000)
        va = mapped[0].va
        grants.unmap(mapped)
        grants.unmap(mapped)  # a second time nothing is left to do
        with pytest.raises(PageFault):
            kernel.mm.view(va)

        mixed = grants.map_refs(1, [refs[0], shared["other"], 400, shared["read_only"]])
        assert [grant.status for grant in mixed] == [0, gnt.GNTST_general_error, gnt.GNTST_general_error, -1]
        (reading,) = grants.map_refs(1, [shared["read_only"]], writable=False)
        assert reading.view.readonly
        grants.unmap([*mixed, reading])

        pinned = grants.map_device(1, [refs[3], 100_000, refs[4]])
        assert [status for status, _, _ in pinned] == [0, gnt.GNTST_bad_gntref, 0]
        assert pinned[0][2] == shared["mfn"] << 12
        good = [(handle, maddr) for status, handle, maddr in pinned if not status]
        assert grants.unmap_device(good) == [0, 0]
        assert grants.unmap_device(good) == [gnt.GNTST_bad_handle] * 2

        page = kernel.mm.alloc_page()
        page.view[:5] = b"hello"
        to_ref = (page.mfn, DOMID_SELF, 0, refs[8], 1, 100, 5, gnt.GNTCOPY_dest_gref)
        from_ref = (refs[150], 1, 0, page.mfn, DOMID_SELF, 64, 8, gnt.GNTCOPY_source_gref)
        beyond = (refs[150], 1, 4090, page.mfn, DOMID_SELF, 64, 8, gnt.GNTCOPY_source_gref)
        assert grants.copy([to_ref, beyond, from_ref]) == [0, gnt.GNTST_bad_copy_arg, 0]
        assert page.q[8] == 150
        assert grants.copy([from_ref] * 300) == [0] * 300
        assert grants.copy([]) == []

    guests = pair(left, right)
    host = run_guests(*guests)
    assert [guest.reason for guest in guests] == [SHUTDOWN_poweroff] * 2, host.consoles()


def test_several_vcpus_compute_at_the_same_time() -> None:
    times: dict[int, int] = {}

    def program(vcpus: int) -> Any:
        async def main(kernel: Kernel) -> None:
            begin = kernel.monotonic_ns()
            threads = [kernel.spawn(kernel.cpu_burn(20_000_000)) for _ in range(4)]
            for thread in threads:
                await thread.join()
            times[vcpus] = kernel.monotonic_ns() - begin

        return main

    for vcpus in (1, 2, 4):
        guest = Guest(program(vcpus), vcpus=vcpus)
        host = run_guests(guest, pcpus=4)
        assert guest.reason == SHUTDOWN_poweroff, host.consoles()
    assert times[1] >= 80_000_000
    assert 40_000_000 <= times[2] < 44_000_000
    assert 20_000_000 <= times[4] < 24_000_000


def test_threads_of_several_vcpus_share_everything() -> None:
    async def main(kernel: Kernel) -> None:
        seen: dict[int, int] = {}
        finished = Event()
        left = 30

        async def worker(number: int) -> None:
            nonlocal left
            for _ in range(5):
                vcpu_id = kernel.cpu.vcpu_id
                await kernel.cpu_burn(300_000 + 7_000 * number)
                seen[vcpu_id] = seen.get(vcpu_id, 0) + 1
                await kernel.sleep(10_000 * (number % 7))
            left -= 1
            if not left:
                finished.set()

        for number in range(30):
            kernel.spawn(worker(number))
        await kernel.wait_for(finished.wait(), 10**10)
        assert sum(seen.values()) == 150
        assert sorted(seen) == [0, 1, 2]
        assert min(seen.values()) > 25
        with pytest.raises(TimeoutError):
            await kernel.wait_for(kernel.never(), 1_000_000)

    guest = Guest(main, vcpus=3)
    host = run_guests(guest, pcpus=4)
    assert guest.reason == SHUTDOWN_poweroff, host.consoles()


def test_a_panic_on_a_secondary_vcpu_ends_the_domain() -> None:
    async def main(kernel: Kernel) -> None:
        async def worker() -> None:
            while True:
                await kernel.cpu_burn(1_000_000)
                if kernel.cpu.vcpu_id == 1:
                    raise RuntimeError("on the second one")

        for _ in range(3):
            kernel.spawn(worker())
        await kernel.never()

    guest = Guest(main, vcpus=2)
    run_guests(guest, pcpus=2)
    assert guest.reason == SHUTDOWN_crash
    assert b"on the second one" in guest.console


def test_the_same_run_gives_the_same_times() -> None:
    def once() -> list[bytes]:
        async def main(kernel: Kernel) -> None:
            for _ in range(20):
                await kernel.sleep(kernel.rng.randrange(1_000_000))
                kernel.console.write(f"{kernel.monotonic_ns()}\n")

        guests = [Guest(main), Guest(main, vcpus=2)]
        run_guests(*guests, pcpus=2)
        return [guest.console for guest in guests]

    assert once() == once()
