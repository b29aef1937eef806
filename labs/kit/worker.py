"""Runs the checks of one lab on one submission, each in a process of its own.

A submission is a student's program: it may be wrong in any way. It may never end, print without end, take all memory,
end its process, or start others. So each check runs in a child of this process that has limits and a time, whose output
nobody waits for, and whose group is killed when it is over. What a child has to say of its check is one JSON object.

This is the program `python -m labs.kit.worker LAB DIRECTORY SEED PATIENCE`; it writes a line of JSON for each check.

It keeps accidents apart, and students who would rather grade themselves (`labs.kit.guard`), but not criminals: a
submission runs with the rights of the person who grades it. docs/teaching.md says what to do with strangers.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import secrets
import selectors
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import attrs

from labs.kit.check import Check, Miss, Work
from labs.kit.guard import Guard
from labs.kit.imports import forbidden_import
from labs.kit.seed import rng_for

MEMORY_LIMIT = 4 << 30
FILE_LIMIT = 64 << 20
GRACE = 2.0
"""Seconds in which a child can say which line it hangs at, before it is killed."""
MAX_OUTPUT = 4000
"""How much of what a submission prints is kept."""
MAX_REPLY = 1 << 20


def main(name: str, directory: str, seed: int, patience: float) -> None:
    """Run all checks, each with so many times its limit."""
    from labs.course import find

    lab = find(name)
    assert lab is not None, name
    _adopt_orphans()
    forbidden = forbidden_import(Path(directory).glob("*.py"), lab.allowed)
    checks = lab.checks().all
    guard = Guard(Path(directory), lab.allowed)
    for check in checks:
        check = attrs.evolve(check, limit=check.limit * patience)
        if forbidden:
            reply = {"name": check.name, "earned": False, "reason": forbidden, "output": ""}
        else:
            reply = run_check(check, lab.name, Path(directory), seed, guard)
            _end_orphans()
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def run_check(check: Check, lab: str, directory: Path, seed: int, guard: Guard) -> dict[str, Any]:
    """Run one check in a child; return `earned`, `reason`, `output`."""
    reply_in, reply_out = os.pipe()
    output_in, output_out = os.pipe()
    token = secrets.token_hex()
    pid = os.fork()
    if pid == 0:
        os.close(reply_in)
        os.close(output_in)
        _be_child(check, lab, directory, seed, reply_out, output_out, token, guard)
    os.close(reply_out)
    os.close(output_out)
    try:
        reply, output, status = _listen(pid, reply_in, output_in, check.limit + GRACE)
    except BaseException:
        # A person who does not want to wait: the child is in a session of its own, and hears nothing of that.
        os.killpg(pid, signal.SIGKILL)
        raise
    try:
        told = json.loads(reply)
        if not isinstance(told.get("earned"), bool) or not isinstance(told.get("reason"), str):
            raise ValueError
        if told["earned"] and told.get("token") != token:
            told = {"earned": False, "reason": "somebody other than the check has said that it is met"}
    except (ValueError, AttributeError):
        told = {"earned": False, "reason": _how_it_ended(status, check)}
    return {
        "name": check.name,
        "earned": told["earned"],
        "reason": told["reason"],
        "output": output.decode("utf-8", "replace"),
    }


def _how_it_ended(status: int | None, check: Check) -> str:
    if status is None:
        return f"no end after {check.limit:g} s"
    if os.WIFSIGNALED(status):
        return f"the process was killed by {signal.Signals(os.WTERMSIG(status)).name} before the check was over"
    return f"the process ended (exit status {os.WEXITSTATUS(status)}) before the check was over"


# -- the parent's side ------------------------------------------------------------------------------------------------


def _listen(pid: int, reply_in: int, output_in: int, limit: float) -> tuple[bytes, bytes, int | None]:
    """Hear a child out; return its reply, the beginning of its output, and how it ended (None: it had to be killed)."""
    deadline = time.monotonic() + limit
    kept = {reply_in: bytearray(), output_in: bytearray()}
    room = {reply_in: MAX_REPLY, output_in: MAX_OUTPUT}
    status: int | None = None
    with selectors.DefaultSelector() as selector:
        for fd in kept:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(min(left, 0.2)):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                kept[key.fd] += data[: room[key.fd] - len(kept[key.fd])]
            # A grandchild may hold the pipes open: the child's own end counts.
            ended, how = os.waitpid(pid, os.WNOHANG) if status is None else (0, 0)
            if ended:
                status = how
                deadline = min(deadline, time.monotonic() + 0.2)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        _, how = os.waitpid(pid, 0)
        status = how if time.monotonic() < deadline else None
    os.close(reply_in)
    os.close(output_in)
    return bytes(kept[reply_in]), bytes(kept[output_in]), status


PR_SET_CHILD_SUBREAPER = 36


def _adopt_orphans() -> None:
    """Become the parent of processes whose own has ended (prctl(2)): also of those that have left their group."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans() -> None:
    """Kill what a check has left behind: it has come to be ours. (Who is killed may have children: look again.)"""
    while orphans := _children():
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    """Return the processes whose parent this one is, by /proc/PID/stat."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name stands in brackets, and may hold anything; behind it come the state and the parent.
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


# -- the child's side -------------------------------------------------------------------------------------------------


def _be_child(
    check: Check, lab: str, directory: Path, seed: int, reply_out: int, output_out: int, token: str, guard: Guard
) -> NoReturn:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd, target in ((null, 0), (output_out, 1), (output_out, 2)):
        os.dup2(fd, target)
    os.close(output_out)
    limit = max(1, int(check.limit + GRACE) + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(directory)

    # Only who has the token can say that the check is met; nothing that a submission could exchange ever gets it.
    good = json.dumps({"earned": True, "reason": "", "token": token}).encode()
    del token
    work = Work(directory, rng_for(seed, lab, check.name))
    function, missed = check.function, Miss
    write, leave, dumps = os.write, os._exit, json.dumps

    def refuse(reason: str) -> NoReturn:
        with suppress(OSError):
            write(reply_out, dumps({"earned": False, "reason": reason}).encode())
        leave(0)

    def out_of_time(_signal: int, frame: FrameType | None) -> None:
        refuse(f"no end after {check.limit:g} s{_where(frame, directory)}")

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, check.limit)
    sys.dont_write_bytecode = True
    guard.close()
    try:
        function(work)
    except missed as miss:
        refuse(str(miss))
    except BaseException as error:
        refuse(explain(error, directory))
    reason = guard.broken()
    if reason:
        refuse(reason)
    write(reply_out, good)
    leave(0)


def explain(error: BaseException, directory: Path) -> str:
    """Say what a submission raised, and at which of its lines."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '?').name}:{error.lineno}: syntax error: {error.msg}"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == directory]
    where = f"{Path(lines[-1].filename).name}:{lines[-1].lineno}: " if lines else ""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, NotImplementedError):
        return f"{where}not written yet{': ' + text if text else ''}"
    return f"{where}{type(error).__name__}{': ' + text if text else ''}"


def _where(frame: FrameType | None, directory: Path) -> str:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent == directory:
            return f"; it was at {path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    except KeyboardInterrupt:
        _end_orphans()
        sys.exit(130)
