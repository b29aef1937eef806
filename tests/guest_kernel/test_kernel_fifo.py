"""The kernel's side of the FIFO event ABI, on the real hypervisor."""

from typing import Any

import pytest
from real_host import Guest, run_guests

from guest_kernel.events_fifo import FifoPorts
from guest_kernel.kernel import Kernel
from guest_kernel.threads import Event
from hypervisor.abi.event_channel import EVTCHNOP_set_priority, evtchn_set_priority
from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff
from toolstack.xc import Xc


def run(main: Any, **options: Any) -> Guest:
    guest = Guest(main, **options)
    host = run_guests(guest, pcpus=2)
    assert guest.reason == SHUTDOWN_poweroff, host.consoles()
    return guest


def test_it_is_used_when_xen_has_it() -> None:
    async def main(kernel: Kernel) -> None:
        assert isinstance(kernel.events._ports, FifoPorts)

    run(main)


def test_more_ports_than_two_levels_have(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Xc.create_domain.__kwdefaults__
    monkeypatch.setattr(Xc.create_domain, "__kwdefaults__", {**defaults, "max_evtchn_port": 131071})
    ran: list[int] = []

    async def main(kernel: Kernel) -> None:
        events = kernel.events
        first = events.bind_ipi(0, lambda: None)
        ports = [events.bind_ipi(0, lambda n=n: ran.append(n)) for n in range(5000)]  # type: ignore[misc]
        assert ports == list(range(first + 1, first + 5001))
        order = [4999, 0, 1023, 1024, 3000, 7]
        for number in order:
            events.notify(ports[number])
        await kernel.sleep(1000)
        assert ran == order
        for port in ports:
            events.unbind(port)
        assert events.bind_ipi(0, lambda: None) == ports[0]
        assert len(kernel.events.bound()) < 20

    run(main)


def test_order_and_priorities() -> None:
    async def main(kernel: Kernel) -> None:
        ran: list[str] = []
        events = kernel.events
        ports = {name: events.bind_ipi(0, lambda name=name: ran.append(name)) for name in "abcd"}  # type: ignore[misc]

        def set_priority(name: str, priority: int) -> None:
            kernel.hypercalls.event_channel(
                EVTCHNOP_set_priority, evtchn_set_priority, "set_priority", port=ports[name], priority=priority
            )

        async def send(names: str) -> str:
            ran.clear()
            for name in names:
                events.notify(ports[name])
            await kernel.sleep(1000)
            return "".join(ran)

        assert await send("dcba") == "dcba"
        set_priority("a", 0)
        set_priority("b", 15)
        assert await send("bcda") == "acdb"

        # More urgent than what is left, though it came in between.
        def urgent() -> None:
            ran.append("c")
            events.notify(ports["a"])

        events.set_handler(ports["c"], urgent)
        assert await send("bcd") == "cadb"
        assert await send("ab") == "ab"

    run(main)


def test_masking_and_closing() -> None:
    async def main(kernel: Kernel) -> None:
        ran: list[str] = []
        events = kernel.events
        first = events.bind_ipi(0, lambda: ran.append("first"))
        second = events.bind_ipi(0, lambda: ran.append("second"))
        events.mask(second)
        events.notify(second)
        events.notify(first)
        await kernel.sleep(1000)
        assert ran == ["first"]
        assert events.is_pending(second)
        events.unmask(second)
        await kernel.sleep(1000)
        assert ran == ["first", "second"]
        assert not events.is_pending(second)
        # Masked when it is on the queue already: it is taken off and remembered.
        events.notify(first)
        events.mask(first)
        await kernel.sleep(1000)
        assert ran == ["first", "second"]
        events.unmask(first)
        await kernel.sleep(1000)
        assert ran == ["first", "second", "first"]
        # A handler that closes the port whose turn is next.
        events.set_handler(first, lambda: events.unbind(second))
        events.notify(first)
        events.notify(second)
        await kernel.sleep(1000)
        assert ran == ["first", "second", "first"]
        assert events.bind_ipi(0, lambda: None) == second

    run(main)


def test_each_vcpu_has_its_queues() -> None:
    async def main(kernel: Kernel) -> None:
        done = Event()
        where: list[int] = []

        def handler() -> None:
            where.append(kernel.cpu.vcpu_id)
            done.set()

        await kernel.sleep(1_000_000)
        port = kernel.events.alloc_unbound(0x7FF0, handler)
        local = kernel.events.bind_interdomain(0x7FF0, port, handler)
        await kernel.sleep(1000)
        for vcpu_id in (2, 0, 1):
            kernel.events.move(local, vcpu_id)
            where.clear()
            done.clear()
            kernel.events.notify(port)
            await kernel.wait_for(done.wait(), 10**9)
            assert set(where) == {vcpu_id}

    run(main, vcpus=3)


def test_a_handler_that_fails_ends_the_domain() -> None:
    async def main(kernel: Kernel) -> None:
        def handler() -> None:
            raise RuntimeError("in a handler")

        kernel.events.notify(kernel.events.bind_ipi(0, handler))
        await kernel.never()

    guest = Guest(main)
    run_guests(guest)
    assert guest.reason == SHUTDOWN_crash
    assert b"in a handler" in guest.console
