"""The guest of `benchmarks/bytecodes.py`: reads its disk, and counts what all of the host does for some reads."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from guest_kernel.block import BlockDevice
from guest_kernel.guest import Guest

WARM = 200
"""Rounds of requests before it is counted: the interpreter, and caches of ours, have learned what they can by then."""


class Tally:
    """Bytecodes that are executed, by code and line."""

    def __init__(self) -> None:
        self.found: Counter[tuple[CodeType, int]] = Counter()

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        """Count one: what `sys.settrace` is given."""
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.found[frame.f_code, frame.f_lineno or 0] += 1
        return self.trace

    def start(self) -> None:
        """Count from here on, in the callers as well."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            frame.f_trace = self.trace
            frame.f_trace_opcodes = True
            frame = frame.f_back
        sys.settrace(self.trace)

    def stop(self) -> None:
        """Count no more."""
        sys.settrace(None)

    def write(self, path: str) -> None:
        """Leave the counts outside of the simulated host: function, file, line, how many."""
        found = [(code.co_qualname, code.co_filename, line, count) for (code, line), count in self.found.items()]
        Path(path).write_text(json.dumps(found))


class Counting(Guest):
    """Arguments (`extra`): requests at a time, sectors of each, how many are counted, where the result is to go."""

    async def main(self) -> None:
        depth, sectors, requests = map(int, self.args[:3])
        disk = await self.disk("xvda")
        self.tally = Tally()
        self.started = 0
        self.first = WARM * depth
        self.last = self.first + requests
        threads = [self.kernel.spawn(self.read(disk, sectors), f"reader {number}") for number in range(depth)]
        for thread in threads:
            await thread.join()
        self.tally.write(self.args[3])

    async def read(self, disk: BlockDevice, sectors: int) -> None:
        """Read until all have been counted."""
        while self.started <= self.last:
            if self.started == self.first:
                self.tally.start()
            if self.started == self.last:
                self.tally.stop()
            self.started += 1
            await disk.read(self.started * sectors % (disk.sectors - sectors) // 8 * 8, sectors)
