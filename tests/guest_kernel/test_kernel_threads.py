"""Threads, what they wait on, and what happens to those that await something else."""

import asyncio
from typing import Any

import pytest
import trio
from fake_cpu import Booted, FakeMachine, run

from guest_kernel.errors import Cancelled, GuestError, ThreadCancelled
from guest_kernel.kernel import Kernel
from guest_kernel.threads import Event, Lock, Mailbox, MailboxEmpty, MailboxFull, Parking, Semaphore, WaitQueue
from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff


def test_threads_run_in_the_order_of_their_spawning_and_join_gives_their_result() -> None:
    log: list[str] = []

    async def child(name: str) -> str:
        log.append(f"{name} begins")
        await kernel_of["it"].yield_()
        log.append(f"{name} ends")
        return name.upper()

    kernel_of: dict[str, Kernel] = {}

    async def main(kernel: Kernel) -> None:
        kernel_of["it"] = kernel
        threads = [kernel.spawn(child(name), name) for name in "abc"]
        assert [await thread.join() for thread in threads] == ["A", "B", "C"]
        assert [thread.done for thread in threads] == [True] * 3

    machine = run(main)
    assert log == [f"{name} {what}" for what in ("begins", "ends") for name in "abc"]
    assert machine.shutdown == SHUTDOWN_poweroff


def test_a_joiner_gets_the_exception() -> None:
    async def child() -> None:
        raise ValueError("broken")

    async def main(kernel: Kernel) -> None:
        thread = kernel.spawn(child())
        with pytest.raises(ValueError, match="broken"):
            await thread.join()
        kept = kernel.spawn(child(), panics=False)
        await kernel.sleep(1)
        with pytest.raises(ValueError, match="broken"):
            await kept.join()

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_a_failure_that_nobody_waits_for_is_a_panic() -> None:
    async def child() -> None:
        raise ValueError("broken")

    async def main(kernel: Kernel) -> None:
        kernel.spawn(child(), "ring server")
        await kernel.sleep(10**9)
        raise AssertionError("the domain should be gone")

    machine = run(main)
    output = machine.read_console().decode()
    assert machine.shutdown == SHUTDOWN_crash
    assert "thread ring server failed" in output
    assert "ValueError: broken" in output


def test_wake_hands_values_over_in_order() -> None:
    got: list[tuple[str, int]] = []

    async def main(kernel: Kernel) -> None:
        queue = WaitQueue()

        async def waiter(name: str) -> None:
            got.append((name, await queue.wait()))

        threads = [kernel.spawn(waiter(name)) for name in "abc"]
        await kernel.yield_()
        assert len(queue) == 3
        assert queue.wake(2, 7) == 2
        assert queue.wake_all(8) == 1
        assert queue.wake(1, 9) == 0
        for thread in threads:
            await thread.join()

    run(main)
    assert got == [("a", 7), ("b", 7), ("c", 8)]


def test_a_value_that_was_handed_over_survives_a_cancellation() -> None:
    async def main(kernel: Kernel) -> None:
        queue = WaitQueue()
        seen: list[Any] = []

        async def waiter() -> None:
            seen.append(await queue.wait())
            await queue.wait()

        thread = kernel.spawn(waiter())
        await kernel.yield_()
        queue.wake(1, "mine")
        thread.cancel()
        with pytest.raises(ThreadCancelled):
            await thread.join()
        assert seen == ["mine"]
        assert len(queue) == 0

    run(main)


def test_parking_is_waiting() -> None:
    """Over and over with the same object, by several threads, also for one that is cancelled meanwhile."""

    async def main(kernel: Kernel) -> None:
        queue = WaitQueue()
        parking = Parking((queue,))
        log: list[str] = []

        async def waiter(name: str) -> None:
            for _ in range(2):
                assert await parking is None
                log.append(name)

        threads = [kernel.spawn(waiter(name)) for name in "abc"]
        await kernel.yield_()
        assert (len(queue), log) == (3, [])
        threads[1].cancel()
        with pytest.raises(ThreadCancelled):
            await threads[1].join()
        for _ in range(2):
            assert queue.wake_all() == 2
            await kernel.yield_()
        assert log == ["a", "c", "a", "c"]
        for thread in (threads[0], threads[2]):
            await thread.join()
        assert len(queue) == 0

    run(main)


def test_cancel_reaches_a_thread_that_has_not_begun_and_leaves_a_finished_one_alone() -> None:
    async def main(kernel: Kernel) -> None:
        async def nothing() -> int:
            return 1

        thread = kernel.spawn(nothing())
        thread.cancel()
        await kernel.yield_()
        # A first step is no wait: the thread ran to its end.
        assert thread.done
        thread.cancel()
        assert await thread.join() == 1

    run(main)


def test_cancelled_may_be_caught_for_clean_up_and_wait_in_it() -> None:
    async def main(kernel: Kernel) -> None:
        order: list[str] = []

        async def worker() -> None:
            try:
                await kernel.sleep(10**12)
            except Cancelled:
                order.append("cancelled")
                await kernel.sleep(1000)
                order.append("cleaned")
                raise

        thread = kernel.spawn(worker())
        await kernel.sleep(1)
        thread.cancel()
        thread.cancel()
        with pytest.raises(ThreadCancelled):
            await thread.join()
        assert order == ["cancelled", "cleaned"]

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_wait_for_times_out_and_leaves_no_timer_or_waiter() -> None:
    async def main(kernel: Kernel) -> None:
        queue = WaitQueue()
        begin = kernel.monotonic_ns()
        with pytest.raises(TimeoutError):
            await kernel.wait_for(queue.wait(), 5_000)
        assert kernel.monotonic_ns() - begin == 5_000
        assert len(queue) == 0

        async def soon() -> int:
            await kernel.sleep(10)
            return 3

        assert await kernel.wait_for(soon(), 1_000_000) == 3
        # Nested: the outer one is shorter and must not be taken for the inner one.
        with pytest.raises(TimeoutError, match="500 ns"):
            await kernel.wait_for(kernel.wait_for(queue.wait(), 10**9), 500)
        await kernel.sleep(2 * 10**9)

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_a_wake_just_before_the_timeout_wins() -> None:
    async def main(kernel: Kernel) -> None:
        queue = WaitQueue()
        kernel.timers.add(kernel.monotonic_ns() + 1_000, lambda: queue.wake(1, "in time") and None)
        assert await kernel.wait_for(queue.wait(), 1_000) == "in time"
        await kernel.sleep(10)  # would raise a left-over interruption

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_event_lock_semaphore() -> None:
    async def main(kernel: Kernel) -> None:
        event, lock, permits = Event(), Lock(), Semaphore(2)
        inside = 0
        peak = 0
        order: list[int] = []

        async def worker(number: int) -> None:
            nonlocal inside, peak
            await event.wait()
            async with permits:
                inside += 1
                peak = max(peak, inside)
                await kernel.sleep(100)
                inside -= 1
            async with lock:
                assert lock.locked()
                await kernel.sleep(10)
                order.append(number)

        threads = [kernel.spawn(worker(number)) for number in range(5)]
        await kernel.yield_()
        assert inside == 0
        event.set()
        assert event.is_set()
        for thread in threads:
            await thread.join()
        assert (peak, order) == (2, [0, 1, 2, 3, 4])
        event.clear()
        assert not event.is_set()
        with pytest.raises(RuntimeError):
            lock.release()

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_mailbox_is_bounded_and_fair() -> None:
    async def main(kernel: Kernel) -> None:
        box: Mailbox[int] = Mailbox(2)
        with pytest.raises(MailboxEmpty):
            box.get_nowait()
        box.put_nowait(1)
        box.put_nowait(2)
        with pytest.raises(MailboxFull):
            box.put_nowait(3)
        putter = kernel.spawn(box.put(3))
        await kernel.yield_()
        assert not putter.done
        assert [await box.get() for _ in range(3)] == [1, 2, 3]
        await putter.join()
        getter = kernel.spawn(box.get())
        await kernel.yield_()
        box.put_nowait(4)
        assert len(box) == 0
        assert await getter.join() == 4

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_computing_threads_take_turns() -> None:
    turns: list[str] = []

    async def main(kernel: Kernel) -> None:
        async def burner(name: str) -> None:
            for _ in range(2):
                await kernel.cpu_burn(1_000_000)
                turns.append(name)

        for thread in [kernel.spawn(burner(name)) for name in "ab"]:
            await thread.join()

    machine = run(main)
    assert turns == ["a", "b", "a", "b"]
    assert machine.burnt == 4_000_000


def test_a_busy_guest_yields_to_xen_and_keeps_its_timers() -> None:
    async def main(kernel: Kernel) -> None:
        done = Event()

        async def sleeper() -> None:
            await kernel.sleep(3_000_000)
            done.set()

        kernel.spawn(sleeper())
        begin = kernel.monotonic_ns()
        while not done.is_set():
            await kernel.cpu_burn(500_000)
        assert 3_000_000 <= kernel.monotonic_ns() - begin <= 4_000_000

    assert run(main).shutdown == SHUTDOWN_poweroff


class Odd:
    def __await__(self) -> Any:
        yield 42


async def awaits_trio() -> None:
    await trio.sleep(1)  # line of trio


async def awaits_asyncio() -> None:
    await asyncio.sleep(0)  # line of asyncio


async def awaits_odd() -> None:
    await Odd()  # line of odd


def line_of(mark: str) -> int:
    with open(__file__) as source:
        return next(number for number, line in enumerate(source, 1) if line.endswith(f"# line of {mark}\n"))


@pytest.mark.parametrize(
    ("function", "mark", "what"),
    [
        (awaits_trio, "trio", "trio"),
        (awaits_asyncio, "asyncio", "asyncio"),
        (awaits_odd, "odd", "an object of type int"),
    ],
)
async def test_foreign_awaitables_are_refused_with_their_line(function: Any, mark: str, what: str) -> None:
    """Runs inside of trio, as guests do: there trio's functions get as far as their own scheduler's trap."""

    async def main(kernel: Kernel) -> None:
        with pytest.raises(GuestError) as caught:
            await function()
        where = f"test_kernel_threads.py:{line_of(mark)}"
        assert str(caught.value) == f"{where}: awaits {what}; a guest awaits only its own kernel's awaitables"
        # It was raised inside, at the line itself.
        assert caught.traceback[-1].frame.code.name != "main"
        await kernel.sleep(5)

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_destroying_a_domain_closes_its_threads_quietly() -> None:
    ended: list[str] = []

    async def main(kernel: Kernel) -> None:
        async def stubborn() -> None:
            try:
                await kernel.sleep(10**15)
            finally:
                ended.append("stubborn")
                await kernel.sleep(1)

        kernel.spawn(stubborn())
        kernel.spawn(kernel.never())
        await kernel.never()

    booted = Booted(main, FakeMachine())
    booted.run(until=10**6)
    kernel = booted.kernel
    assert len(kernel.scheduler.threads) == 3
    booted.code.close()
    kernel.destroy()
    assert ended == ["stubborn"]
    assert not kernel.scheduler.threads


def test_interrupting_the_host_passes_through_the_guest() -> None:
    async def main(kernel: Kernel) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(main)


def test_a_guest_that_exits_ends_itself_and_not_the_host() -> None:
    """Also the way in which a guest that never yields is ended: SystemExit is no Exception that it could swallow."""

    async def in_a_thread(kernel: Kernel) -> None:
        try:
            raise SystemExit("enough")
        except Exception:
            await kernel.never()

    async def in_a_handler(kernel: Kernel) -> None:
        def handler() -> None:
            raise SystemExit("enough")

        kernel.timers.add(kernel.monotonic_ns(), handler)
        await kernel.never()

    for main in (in_a_thread, in_a_handler):
        machine = run(main)
        assert machine.shutdown == SHUTDOWN_crash
        assert b"SystemExit: enough" in machine.read_console()
