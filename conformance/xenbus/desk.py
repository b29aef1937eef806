"""A desk: where one domain's thread leaves work for another domain's, and waits until it is done.

Both are coroutines of the same simulator, so the work is handed over outside of the simulated host: it is the check's
hand there, and no part of what is judged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, final

from conformance.kit.check import Failure
from guest_kernel.kernel import Kernel

LOOK_NS: Final = 200_000
SOON: Final = 300
"""Looks at a desk without work after which it is looked at less often: somebody waits in vain."""
SELDOM_NS: Final = 5_000_000
PATIENCE_NS: Final = 5_000_000_000
"""Virtual time after which a domain counts as not running any more."""

Work = Callable[[Kernel], Awaitable[Any]]


@final
class _Job:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    async def run(self, kernel: Kernel) -> None:
        try:
            self.result = await self.work(kernel)
        except Exception as error:
            self.error = error
        self.done = True


@final
class Desk:
    """Work for one domain."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kernel: Kernel | None = None
        """The kernel of the domain, once it runs."""
        self.closed = False
        self._jobs: deque[_Job] = deque()

    async def serve(self, kernel: Kernel) -> None:
        """Do the work as it comes, each piece in a thread of its own, until the desk is closed."""
        self.kernel = kernel
        idle = 0
        while not self.closed:
            idle = 0 if self._jobs else idle + 1
            while self._jobs:
                kernel.spawn(self._jobs.popleft().run(kernel), f"work for {self.name}")
            await kernel.sleep(LOOK_NS if idle < SOON else SELDOM_NS)

    async def ask(self, asker: Kernel, work: Work) -> Any:
        """Have work done; return what it returns. Raises what it raises, and Failure if nobody does it."""
        job = _Job(work)
        self._jobs.append(job)
        for _ in range(PATIENCE_NS // LOOK_NS):
            if job.done:
                break
            await asker.sleep(LOOK_NS)
        else:
            raise Failure(f"The {self.name} does not run any more.")
        if job.error is not None:
            raise job.error
        return job.result
