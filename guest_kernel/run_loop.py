"""What a vCPU does all day: run the ready threads, and block when there are none."""

from __future__ import annotations

from guest_kernel.threads import FAILURES, INTERRUPTS, Scheduler, WaitQueue
from hypervisor.abi.cpu import Run

PASS_STEPS = 64
"""At most so many steps of threads lie between two points where Xen can take the processor or deliver an upcall."""


def run_threads(scheduler: Scheduler) -> Run:
    """Run threads for ever. The hottest loop of a guest: locals, and one test for each thing that can happen."""
    ready = scheduler.ready
    next_thread = ready.popleft
    while True:
        if not ready:
            # Blocked until there is. Upcalls come at the yield only, so nothing can become ready between the test and
            # the block. An event that is pending already makes Xen return at once.
            yield ready
            continue
        steps = len(ready)
        if steps > PASS_STEPS:
            steps = PASS_STEPS
        while steps:
            steps -= 1
            thread = next_thread()
            if thread.raising is None:
                scheduler.current = thread
                try:
                    send = thread.send
                    trap = send(thread.value)
                except StopIteration as stop:
                    thread.finish(stop.value)
                    continue
                except INTERRUPTS:
                    raise
                except FAILURES as failure:
                    thread.fail(failure)
                    continue
            else:
                trap = scheduler.step(thread)
            if type(trap) is WaitQueue and thread.pending is None:
                trap.waiters.append(thread)
                thread.queue = trap
            else:
                code = scheduler.trapped(thread, trap)
                if code is not None:
                    yield from code
                    break
        else:
            if ready:
                yield 0
