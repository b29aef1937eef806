"""Event channels: dispatch, masking, binding."""

import pytest
from fake_cpu import STORE_PORT, Booted, FakeMachine, run

from guest_kernel.errors import XenError
from guest_kernel.kernel import Kernel
from guest_kernel.threads import WaitQueue
from hypervisor.abi import xen
from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff


def fake(kernel: Kernel) -> FakeMachine:
    assert isinstance(kernel.cpu, FakeMachine)
    return kernel.cpu


def test_handlers_run_at_the_next_yield_each_once_lowest_port_first() -> None:
    async def main(kernel: Kernel) -> None:
        ran: list[int] = []
        ports = [kernel.events.alloc_unbound(0, lambda: None) for _ in range(130)]
        for port in ports:
            kernel.events.set_handler(port, lambda port=port: ran.append(port))  # type: ignore[misc]
        chosen = [ports[129], ports[0], ports[64], ports[63], ports[1]]
        for port in chosen:
            fake(kernel).raise_event(port)
        assert ran == []
        await kernel.yield_()
        await kernel.yield_()
        await kernel.sleep(1)
        assert ran == sorted(chosen)

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_an_event_wakes_a_thread_of_a_blocked_vcpu() -> None:
    woken: list[object] = []

    async def main(kernel: Kernel) -> None:
        queue = WaitQueue()
        kernel.events.adopt(STORE_PORT, lambda: queue.wake(1, "event") and None)
        woken.append(await queue.wait())

    booted = Booted(main)
    booted.run()
    assert booted.machine.blocked
    assert woken == []
    booted.machine.raise_event(STORE_PORT)
    booted.run()
    assert woken == ["event"]
    assert booted.machine.shutdown == SHUTDOWN_poweroff


def test_masked_events_are_remembered() -> None:
    async def main(kernel: Kernel) -> None:
        ran: list[int] = []
        port = kernel.events.alloc_unbound(0, lambda: ran.append(1))
        kernel.events.mask(port)
        fake(kernel).raise_event(port)
        await kernel.sleep(1)
        assert ran == []
        assert kernel.events.is_pending(port)
        kernel.events.unmask(port)
        await kernel.sleep(1)
        assert ran == [1]
        assert not kernel.events.is_pending(port)

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_an_event_during_its_own_handler_is_not_lost() -> None:
    async def main(kernel: Kernel) -> None:
        runs = 0

        def handler() -> None:
            nonlocal runs
            runs += 1
            if runs < 4:
                fake(kernel).raise_event(port)

        port = kernel.events.alloc_unbound(0, handler)
        fake(kernel).raise_event(port)
        await kernel.sleep(1)
        await kernel.sleep(1)
        assert runs == 4

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_unbind_closes_and_a_reused_port_gets_its_own_handler() -> None:
    async def main(kernel: Kernel) -> None:
        ran: list[str] = []
        port = kernel.events.alloc_unbound(0, lambda: ran.append("old"))
        fake(kernel).raise_event(port)
        kernel.events.unbind(port)
        await kernel.sleep(1)
        assert port not in fake(kernel).ports
        again = kernel.events.alloc_unbound(0, lambda: ran.append("new"))
        assert again == port
        fake(kernel).raise_event(port)
        await kernel.sleep(1)
        assert ran == ["new"]
        with pytest.raises(XenError, match="EVTCHNOP_close: -EINVAL"):
            kernel.events.unbind(4000)

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_notify_sends_and_reports_a_bad_port() -> None:
    async def main(kernel: Kernel) -> None:
        port = kernel.events.alloc_unbound(0, lambda: None)
        kernel.events.notify(port)
        assert fake(kernel).sent[-1] == port
        with pytest.raises(XenError, match="port 99: -EINVAL") as caught:
            kernel.events.notify(99)
        assert caught.value.errno == 22

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_ipi_reaches_its_handler() -> None:
    async def main(kernel: Kernel) -> None:
        ran: list[int] = []
        port = kernel.events.bind_ipi(0, lambda: ran.append(1))
        kernel.events.notify(port)
        await kernel.sleep(1)
        assert ran == [1]

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_a_failing_handler_is_a_panic() -> None:
    async def main(kernel: Kernel) -> None:
        port = kernel.events.alloc_unbound(0, lambda: [][1])
        fake(kernel).raise_event(port)
        await kernel.never()

    machine = run(main)
    assert machine.shutdown == SHUTDOWN_crash
    output = machine.read_console().decode()
    assert "an event handler failed" in output
    assert "IndexError" in output


def test_every_port_begins_masked() -> None:
    async def main(kernel: Kernel) -> None:
        words = fake(kernel).frame(fake(kernel).shared_mfn).cast("Q")
        mask = xen.shared_info.offset("evtchn_mask") >> 3
        unmasked = [port for port in range(4096) if not words[mask + (port >> 6)] >> (port & 63) & 1]
        assert unmasked == sorted(kernel.events.bound())

    assert run(main).shutdown == SHUTDOWN_poweroff


@pytest.mark.parametrize("closer", [0, 1, 2])
def test_ports_are_closed_while_their_events_are_being_handled(closer: int) -> None:
    """XSA-331, XSA-441: a handler closes all three pending ports, its own too; no handler of a closed one runs."""

    async def main(kernel: Kernel) -> None:
        ran: list[int] = []
        ports = [kernel.events.alloc_unbound(0, lambda: None) for _ in range(3)]

        def handler(number: int) -> None:
            ran.append(number)
            if number == closer:
                for port in ports:
                    kernel.events.unbind(port)

        for number, port in enumerate(ports):
            kernel.events.set_handler(port, lambda number=number: handler(number))  # type: ignore[misc]
            fake(kernel).raise_event(port)
        await kernel.sleep(1)
        assert ran == list(range(closer + 1))
        assert not [port for port in ports if port in kernel.events.bound()]
        again = kernel.events.alloc_unbound(0, lambda: ran.append(77))
        fake(kernel).raise_event(again)
        await kernel.sleep(1)
        assert ran[-1] == 77

    assert run(main).shutdown == SHUTDOWN_poweroff
