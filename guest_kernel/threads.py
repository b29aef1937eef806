"""Threads of the guest kernel: coroutines, and what they wait on.

A thread runs until it waits. What a thread yields to the scheduler (a *trap*) says how: a `WaitQueue` parks it there,
a `Burn` asks for nanoseconds of processor time, `RESCHEDULE` gives the other ready threads a turn, a `TakeOver` hands
the whole vCPU to another piece of code. Anything else comes from a library with a scheduler of its own, and the thread
gets a `GuestError` that names the line.

Upcall handlers run only where the vCPU gives the processor back to Xen, never between two waits of a thread.
So `if not condition: await queue.wait()` loses no wake-up, and no primitive here needs a lock.

Waking hands over: a woken thread gets the value of its `wake`, and a cancellation or a timeout that comes after the
wake waits for the thread's next wait. Nothing that was handed over is lost.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from guest_kernel.errors import Cancelled, GuestError, ThreadCancelled
from hypervisor.abi.cpu import Run

T = TypeVar("T")

FAILURES = BaseException
"""What ends a thread: whatever escapes from it, but for INTERRUPTS."""
INTERRUPTS = KeyboardInterrupt
"""What is not the guest's own, but a person's: it passes through to the host."""

KERNEL = "guest_kernel"
LOOPS = ("asyncio", "anyio", "curio", "trio")
"""Libraries that run coroutines themselves."""
REFUSED = "{where}awaits {what}; a guest awaits only its own kernel's awaitables"

SLICE_NS = 1_000_000
"""How long a thread computes before the next ready thread has its turn."""


@final
class WaitQueue:
    """Threads that wait for something, first come first served."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        self.waiters: list[Thread] = []

    @types.coroutine
    def wait(self) -> Generator[WaitQueue, Any, Any]:
        """Wait until woken; returns the value given to `wake`."""
        return (yield self)

    def wake(self, n: int = 1, value: Any = None) -> int:
        """Make up to `n` waiting threads ready, each with `value`; return how many there were. Callable anywhere."""
        waiters = self.waiters
        if n == 1:
            # (What most callers want; the same as below, without the counting.)
            if not waiters:
                return 0
            thread = waiters.pop(0)
            thread.queue = None
            thread.value = value
            enqueue = thread.enqueue
            enqueue(thread)
            return 1
        woken = 0
        while waiters and woken < n:
            woken += 1
            thread = waiters.pop(0)
            thread.queue = None
            thread.value = value
            thread.enqueue(thread)
        return woken

    def wake_all(self, value: Any = None) -> int:
        """Wake every waiting thread; return how many there were."""
        return self.wake(len(self.waiters), value)

    def __len__(self) -> int:
        return len(self.waiters)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<WaitQueue: {', '.join(thread.name for thread in self.waiters) or 'nobody'}>"


@final
class Parking(tuple[WaitQueue]):
    """`await Parking((queue,))` is `await queue.wait()` for who has to do so often: it is kept, and makes no generator.

    For queues whose `wake` hands over no value.
    """

    __slots__ = ()
    if TYPE_CHECKING:

        def __await__(self) -> Generator[WaitQueue, None, None]: ...

    else:
        __await__ = tuple.__iter__


@final
class Burn:
    """The trap of a thread that computes: `ns` nanoseconds of processor time, at most `SLICE_NS`."""

    __slots__ = ("ns",)

    def __init__(self, ns: int) -> None:
        self.ns = ns


@final
class TakeOver:
    """The trap of a thread that will not come back: the vCPU runs `code` from now on (shutdown, panic)."""

    __slots__ = ("code",)

    def __init__(self, code: Run) -> None:
        self.code = code


@final
class _Reschedule:
    """The trap of a thread that stays ready and lets the others go first."""


RESCHEDULE = _Reschedule()


@types.coroutine
def reschedule() -> Generator[_Reschedule, None, None]:
    """Let the other ready threads, and pending interrupts, go first."""
    yield RESCHEDULE


@types.coroutine
def burn(ns: int) -> Generator[Burn, None, None]:
    """Compute for `ns` nanoseconds, in slices, so that other threads and other domains get theirs."""
    while ns > 0:
        step = min(ns, SLICE_NS)
        yield Burn(step)
        ns -= step


@types.coroutine
def take_over(code: Run) -> Generator[TakeOver, None, None]:
    """Hand the vCPU to `code` for good."""
    yield TakeOver(code)
    raise GuestError("code that took the vCPU over has returned")


@final
class Thread:
    """A coroutine with a name that the scheduler runs. Made by `Scheduler.spawn`."""

    __slots__ = (
        "_joiners",
        "cancelled",
        "coro",
        "done",
        "enqueue",
        "exception",
        "name",
        "panics",
        "pending",
        "queue",
        "raising",
        "result",
        "scheduler",
        "send",
        "value",
    )

    def __init__(self, scheduler: Scheduler, coro: Coroutine[Any, Any, Any], name: str, panics: bool) -> None:
        self.scheduler = scheduler
        self.coro = coro
        self.send = coro.send
        self.enqueue = scheduler.ready.append
        self.name = name
        self.panics = panics
        """Whether a failure that nobody waits for brings the kernel down."""
        self.value: Any = None
        """What the next step sends into the coroutine."""
        self.raising: BaseException | None = None
        """What the next step throws into the coroutine instead."""
        self.pending: list[BaseException] | None = None
        """Interruptions that came while the thread was not waiting; each is raised at a next wait."""
        self.queue: WaitQueue | None = None
        """Where the thread is parked."""
        self.done = False
        self.cancelled = False
        self.result: Any = None
        self.exception: BaseException | None = None
        self._joiners: WaitQueue | None = None

    async def join(self) -> Any:
        """Wait for the end of the thread; returns its result or raises its exception (ThreadCancelled if cancelled)."""
        if not self.done:
            if self._joiners is None:
                self._joiners = WaitQueue()
            await self._joiners.wait()
        if self.exception is not None:
            raise self.exception
        if self.cancelled:
            raise ThreadCancelled(f"thread {self.name} was cancelled")
        return self.result

    def cancel(self) -> None:
        """Raise `Cancelled` in the thread where it waits, now or at its next wait. A finished one stays as it is."""
        if not self.done and not self.cancelled:
            self.cancelled = True
            self.interrupt(Cancelled())

    def interrupt(self, exception: BaseException) -> None:
        """Raise `exception` in the thread where it waits; if it is not waiting, at its next wait."""
        queue = self.queue
        if queue is not None:
            queue.waiters.remove(self)
            self.queue = None
            self.raising = exception
            self.enqueue(self)
        elif not self.done:
            if self.pending is None:
                self.pending = []
            self.pending.append(exception)

    def withdraw(self, exception: BaseException) -> None:
        """Take back an interruption that has not been raised yet."""
        if self.pending is not None and exception in self.pending:
            self.pending.remove(exception)
            if not self.pending:
                self.pending = None

    def raise_pending(self) -> None:
        """Make the oldest pending interruption the one that the next step raises."""
        assert self.pending
        self.raising = self.pending.pop(0)
        if not self.pending:
            self.pending = None

    def finish(self, result: Any) -> None:
        """Record the result and wake who waits for it. Called by the scheduler."""
        self.cancelled = False
        self.result = result
        self._end()

    def fail(self, exception: BaseException) -> None:
        """Record how the thread failed; with nobody waiting for it that is a kernel panic. Called by the scheduler."""
        if isinstance(exception, Cancelled) and self.cancelled:
            self._end()
            return
        self.cancelled = False
        self.exception = exception = explain_foreign(exception)
        if not self._end() and self.panics:
            self.scheduler.on_failure(self, exception)

    def _end(self) -> int:
        self.done = True
        self.scheduler.threads.pop(self, None)
        return self._joiners.wake_all() if self._joiners is not None else 0

    def __repr__(self) -> str:
        state = "done" if self.done else "ready" if self.queue is None else "waiting"
        return f"<Thread {self.name}, {state}>"


def _noted(note: Callable[[str], None], thread: Thread) -> Callable[[Any], Any]:
    """Make the step of a thread that tells its name first."""
    send = thread.coro.send

    def step(value: Any) -> Any:
        note(thread.name)
        return send(value)

    return step


FailureHook = Callable[[Thread, BaseException], None]


class Scheduler:
    """The ready queue and the live threads of one domain; its vCPUs share it."""

    def __init__(self, on_failure: FailureHook) -> None:
        self.ready: deque[Thread] = deque()
        self.threads: dict[Thread, None] = {}
        self.current: Thread | None = None
        """The thread whose code is running; None in upcall handlers only if no thread has run yet."""
        self.on_failure = on_failure
        self.ending = False
        self.note: Callable[[str], None] | None = None
        """Told the name of each thread when it gets the vCPU; to be set before there are threads."""

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str = "", *, panics: bool = True) -> Thread:
        """Start a thread. It first runs when the spawning thread waits.

        An exception that escapes from it is raised by the `join` that waits for it; if none does, it is a kernel
        panic, unless `panics` is False (then the exception is kept for a later `join`).
        """
        thread = Thread(self, coro, name or getattr(coro, "__qualname__", "thread"), panics)
        if self.note is not None:
            thread.send = _noted(self.note, thread)
        self.threads[thread] = None
        self.ready.append(thread)
        return thread

    def running(self) -> Thread:
        """Return the thread whose code is running."""
        assert self.current is not None, "no thread has run yet"
        return self.current

    def trapped(self, thread: Thread, trap: object) -> Run | None:
        """Do what a step's trap asks for, parking apart; return code for the vCPU to run now, if that is what it is."""
        if thread.done:
            return None
        if trap is RESCHEDULE or type(trap) is WaitQueue:  # the latter only with an interruption pending
            if thread.pending is not None:
                thread.raise_pending()
            self.ready.append(thread)
        elif type(trap) is Burn:
            return self._burning(thread, trap.ns)
        elif type(trap) is TakeOver:
            self.ready.clear()
            return trap.code
        else:
            thread.raising = GuestError(describe_foreign(thread.coro, trap))
            self.ready.appendleft(thread)
        return None

    def take_over(self, code: Run) -> None:
        """Let `code` have the vCPU before any other thread runs, for good. Only the first call counts."""
        if not self.ending:
            self.ending = True
            self.ready.appendleft(Thread(self, take_over(code), "end", False))
        else:
            code.close()

    def _burning(self, thread: Thread, ns: int) -> Run:
        yield ns
        if thread.pending is not None:
            thread.raise_pending()
        self.ready.append(thread)

    def step(self, thread: Thread) -> object:
        """Throw into `thread` what it is to raise, run it to its next wait and return its trap; None if it ended."""
        exception = thread.raising
        assert exception is not None
        thread.raising = None
        self.current = thread
        if self.note is not None:
            self.note(thread.name)
        try:
            return thread.coro.throw(exception)
        except StopIteration as stop:
            thread.finish(stop.value)
        except INTERRUPTS:
            raise
        except FAILURES as failure:
            thread.fail(failure)
        return None

    def destroy(self) -> None:
        """Close every thread: the domain is gone, none of them will run again."""
        self.ready.clear()
        for thread in list(self.threads):
            thread.done = True
            try:
                thread.coro.close()
            except INTERRUPTS:
                raise
            except FAILURES:
                # The machine below this code no longer exists: a `finally` that still wants to wait or to make a
                # hypercall fails here, and there is nobody left to tell.
                continue
        self.threads.clear()


class Event:
    """A flag to wait for."""

    __slots__ = ("_flag", "_queue")

    def __init__(self) -> None:
        self._flag = False
        self._queue = WaitQueue()

    def set(self) -> None:
        """Raise the flag and wake all who wait for it."""
        if not self._flag:
            self._flag = True
            self._queue.wake_all()

    def clear(self) -> None:
        """Lower the flag."""
        self._flag = False

    def is_set(self) -> bool:
        """Return whether the flag is up."""
        return self._flag

    async def wait(self) -> None:
        """Return once the flag is up. A flag that was up for a moment is enough."""
        if not self._flag:
            await self._queue.wait()


class Semaphore:
    """A number of permits; handed to waiting threads in their order."""

    __slots__ = ("_permits", "_queue")

    def __init__(self, permits: int) -> None:
        if permits < 0:
            raise ValueError(f"a semaphore cannot begin with {permits} permits")
        self._permits = permits
        self._queue = WaitQueue()

    async def acquire(self) -> None:
        """Take a permit, waiting for one if there is none."""
        if self._permits:
            self._permits -= 1
        else:
            await self._queue.wait()

    def release(self) -> None:
        """Give a permit back: the first waiting thread gets it."""
        if not self._queue.wake():
            self._permits += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *exc: object) -> None:
        self.release()


class Lock:
    """Mutual exclusion over waits: `async with lock:`. Handed over in order of arrival; not reentrant."""

    __slots__ = ("_locked", "_queue")

    def __init__(self) -> None:
        self._locked = False
        self._queue = WaitQueue()

    def locked(self) -> bool:
        """Return whether somebody holds the lock."""
        return self._locked

    async def acquire(self) -> None:
        """Take the lock, waiting for it if it is held."""
        if self._locked:
            await self._queue.wait()
        self._locked = True

    def release(self) -> None:
        """Hand the lock to the first waiting thread, or free it. Raises RuntimeError if nobody holds it."""
        if not self._locked:
            raise RuntimeError("release of a lock that nobody holds")
        if not self._queue.wake():
            self._locked = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *exc: object) -> None:
        self.release()


class MailboxFull(Exception):
    """`put_nowait` on a mailbox that holds as many items as it may."""


class MailboxEmpty(Exception):
    """`get_nowait` on an empty mailbox."""


class Mailbox(Generic[T]):
    """A queue between threads, or from an upcall handler to a thread; `limit` items at most (None: any number)."""

    __slots__ = ("_getters", "_items", "_putters", "limit")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._items: list[T] = []
        self._getters = WaitQueue()
        self._putters: WaitQueue | None = None

    def put_nowait(self, item: T) -> None:
        """Add an item. Raises MailboxFull when there is no room. Callable from upcall handlers."""
        if self._getters.waiters:
            self._getters.wake(1, item)
            return
        if self.limit is not None and len(self._items) >= self.limit:
            raise MailboxFull(f"{self.limit} items wait already")
        self._items.append(item)

    async def put(self, item: T) -> None:
        """Add an item, waiting for room."""
        while self.limit is not None and len(self._items) >= self.limit:
            if self._putters is None:
                self._putters = WaitQueue()
            await self._putters.wait()
        self.put_nowait(item)

    def get_nowait(self) -> T:
        """Take the oldest item. Raises MailboxEmpty when there is none."""
        if not self._items:
            raise MailboxEmpty("no item waits")
        item = self._items.pop(0)
        if self._putters is not None:
            self._putters.wake()
        return item

    async def get(self) -> T:
        """Take the oldest item, waiting for one."""
        if self._items:
            return self.get_nowait()
        item: T = await self._getters.wait()
        return item

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        return True


def describe_foreign(coro: Coroutine[Any, Any, Any], trap: object) -> str:
    """Say in one sentence which line of the guest awaits what, for a coroutine suspended on a foreign `trap`."""
    frames = _frames(coro)
    library = _package(type(trap).__module__)
    if library == "builtins" and frames and is_library(frames[-1]):
        library = _package(frames[-1].f_globals["__name__"])
    what = f"an object of type {type(trap).__name__}" if library == "builtins" else library
    own = [frame for frame in frames if _is_guests(frame, library)] or frames
    where = f"{os.path.basename(own[-1].f_code.co_filename)}:{own[-1].f_lineno}: " if own else ""
    return REFUSED.format(where=where, what=what)


def explain_foreign(failure: BaseException) -> BaseException:
    """Return what a thread failed with; instead of an event loop's complaint that it does not run, the sentence above.

    Some of asyncio's functions look for their loop before they await anything, and raise RuntimeError.
    """
    if type(failure) is not RuntimeError:
        return failure
    frames = [(frame, line) for frame, line in traceback.walk_tb(failure.__traceback__)]
    if not frames or _package(frames[-1][0].f_globals["__name__"]) not in LOOPS:
        return failure
    own = [place for place in frames if not is_library(place[0]) and _package(place[0].f_globals["__name__"]) != KERNEL]
    where = f"{os.path.basename(own[-1][0].f_code.co_filename)}:{own[-1][1]}: " if own else ""
    explained = GuestError(REFUSED.format(where=where, what=_package(frames[-1][0].f_globals["__name__"])))
    explained.__cause__ = failure
    return explained


def _is_guests(frame: types.FrameType, library: str) -> bool:
    """Return whether a frame can hold the line to name: the guest's own, and no generator behind an `__await__`."""
    kernel_or_library = _package(frame.f_globals["__name__"]) in (library, KERNEL)
    return not kernel_or_library and not frame.f_code.co_flags & inspect.CO_GENERATOR


def _package(module: str) -> str:
    """Return the name that users know a module's package by: `asyncio` for `_asyncio`, `trio` for `trio._core`."""
    package = module.partition(".")[0]
    return package[1:] if package.startswith("_") and not package.startswith("__") else package


def is_library(frame: types.FrameType) -> bool:
    """Return whether a frame runs installed code, not the guest's own."""
    parts = frame.f_code.co_filename.split(os.sep)
    package = frame.f_globals["__name__"].partition(".")[0]
    return package in sys.stdlib_module_names or "site-packages" in parts or "dist-packages" in parts


def _frames(awaited: Any) -> list[types.FrameType]:
    """Return the frames of a suspended coroutine, outermost first, down the chain of what each awaits."""
    frames = []
    while awaited is not None:
        prefix = {types.CoroutineType: "cr", types.GeneratorType: "gi", types.AsyncGeneratorType: "ag"}.get(
            type(awaited)
        )
        if prefix is None:
            break
        frame = getattr(awaited, prefix + "_frame")
        if frame is not None:
            frames.append(frame)
        awaited = getattr(awaited, "gi_yieldfrom" if prefix == "gi" else prefix + "_await")
    return frames
