"""The last words of a program that nothing can interrupt.

A guest may make one call into compiled code that takes for ever: `sum(range(10**12))`. No signal handler of Python's
runs before it comes back, so neither the watchdog nor Ctrl-C reaches the guest. What still runs is a thread of
`faulthandler` that needs no interpreter: when `beat` has not been called for long enough, it writes down where the
program is. A second process reads that, waits a little for another beat (the program may only have been stopped, and
goes on), and if there is none says in one sentence where the program is, and kills it. Otherwise it has nothing to say
and ends with the program.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress

SECONDS = 60.0
"""Longer than any single call of the simulator's own: clearing memory, writing a disk's data out."""
GRACE = 5.0
"""How long to wait for another sign of life after the program has missed its time."""
BEAT = b"\0"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = tuple(
    os.path.join(ROOT, name, "") for name in ("backends", "frontends", "guest_kernel", "hypervisor", "toolstack")
)
LIBRARY = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "")
PLACE = re.compile(r'^ *File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>\S+)')


class LastWords:
    """`with LastWords() as last_words`: have somebody say it if `last_words.beat()` is not called any more.

    Watching begins with the first `beat`. The sentence goes to this program's standard error.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._pipe = -1
        self._reader: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LastWords:
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        # In a session of its own: Ctrl-C is not meant for it.
        command = [sys.executable, "-I", "-S", __file__, f"{self._seconds:g}"]
        self._reader = subprocess.Popen(command, stdin=reading, stdout=subprocess.DEVNULL, start_new_session=True)
        os.close(reading)
        return self

    def beat(self) -> None:
        """Say that the program can be interrupted: all is well for another while."""
        # Without a reader, or with one that is too busy to read, there is nobody to be told.
        with suppress(OSError):
            os.write(self._pipe, BEAT)
        faulthandler.dump_traceback_later(self._seconds, file=self._pipe)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        os.close(self._pipe)
        assert self._reader is not None
        self._reader.wait()


def sentence(dump: str, seconds: str) -> str:
    """Return what to tell a person of a traceback (innermost frame first) by faulthandler."""
    places = [match for match in map(PLACE.match, dump.splitlines()) if match is not None]
    # The innermost line of the guest's own, who may have called a library; if the simulator hangs, where that is.
    inner = list(itertools.takewhile(lambda place: not place["file"].startswith(OURS), places))
    own = [place for place in inner if not place["file"].startswith((LIBRARY, "<frozen"))]
    where = next(iter(own or places), None)
    at = "" if where is None else f" at {os.path.basename(where['file'])}:{where['line']} in {where['function']}"
    return (
        f"paravirt: a call{at} has not come back for {seconds} s and nothing can interrupt it: "
        "the host is ended, without shutting its domains down"
    )


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped a process (Ctrl-Z, a debugger), so that it cannot give a sign of life."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return False


def main() -> None:
    """Listen to the program that has started this one, until it ends or has to be ended."""
    pid, seconds = os.getppid(), sys.argv[1]
    grace = min(GRACE, float(seconds))
    heard = b""  # since the last beat
    while True:
        if select.select([0], [], [], grace if heard else None)[0]:
            data = os.read(0, 65536)
            if not data:
                return
            heard = (heard + data).rpartition(BEAT)[2]
        elif os.getppid() != pid:
            return
        elif not is_stopped(pid):
            print(sentence(heard.decode("utf-8", "replace"), seconds), file=sys.stderr, flush=True)
            os.kill(pid, signal.SIGKILL)
            return


if __name__ == "__main__":
    main()
