"""Many runs on this machine: a few worker processes, each of which has one run at a time."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Sequence

import trio

from toolstack.sweep.grid import Run
from toolstack.sweep.scenario import Source
from toolstack.sweep.worker import LOST, TIMEOUT, Row, job_of, worker_command

Report = Callable[[Run, Row], None]
"""Told of each run when it is over."""
CHUNK = 1 << 16


class _Worker:
    """One process, started when there is something to do."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._process: trio.Process | None = None
        self._received = bytearray()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this object is of use
        """What the process has to complain about."""

    async def simulate(self, run: Run, limit: float | None) -> Row:
        """Have a run done. A worker that dies of it, or is too late, is replaced for the next one."""
        try:
            if self._process is None:
                await self._start()
            with trio.move_on_after(math.inf if limit is None else limit):
                row: Row = json.loads(await self._ask(job_of(self._source, run)))
                return row
        except (trio.BrokenResourceError, EOFError):
            return {"outcome": LOST, "message": f"its process has died ({await self._autopsy()})"}
        await self.end()
        return {"outcome": TIMEOUT, "message": f"it was not over after {limit:g} s of wall-clock time"}

    async def _start(self) -> None:
        self._process = await trio.lowlevel.open_process(
            worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._received.clear()
        await self._line()

    async def _ask(self, job: str) -> bytes:
        assert self._process is not None
        assert self._process.stdin is not None
        await self._process.stdin.send_all(job.encode() + b"\n")
        return await self._line()

    async def _line(self) -> bytes:
        """Return the next line that the process writes. Raises EOFError."""
        assert self._process is not None
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            data = await self._process.stdout.receive_some(CHUNK)
            if not data:
                raise EOFError
            self._received += data
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        return bytes(line)

    async def _autopsy(self) -> str:
        """Say how the process ended: `exit code 1: ImportError: …`, `signal 9`."""
        code = await self.end()
        self._errors.seek(0)
        lines = self._errors.read()[-CHUNK:].decode("utf-8", "backslashreplace").splitlines()
        self._errors.truncate(0)
        return ": ".join([f"signal {-code}" if code < 0 else f"exit code {code}", *lines[-1:]])

    async def end(self) -> int:
        """End the process, whatever it does; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with trio.CancelScope(shield=True):
            process.kill()
            code = await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()
        return code

    def close(self) -> None:
        """Give up what outlives a process."""
        self._errors.close()


async def run_locally(source: Source, runs: Sequence[Run], jobs: int, limit: float | None, report: Report) -> None:
    """Do the runs, `jobs` at a time. Cancelled, it leaves no process behind."""
    waiting = deque(runs)

    async def work() -> None:
        worker = _Worker(source)
        try:
            while waiting:
                run = waiting.popleft()
                report(run, await worker.simulate(run, limit))
        finally:
            await worker.end()
            worker.close()

    async with trio.open_nursery() as nursery:
        for _ in range(min(jobs, len(runs))):
            nursery.start_soon(work)
