"""Have a guest execute random machine code: `python tests/fuzz/instructions.py --rounds 1000 --seed 1`.

Each round is a host of its own in a process of its own: an instruction that ends the process, or never ends, is found
as well. A failure prints the seed of its round, which repeats it (`--rounds 1 --seed ROUND`), and the last snippet.
"""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from unittest.mock import patch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(folder) for folder in (TESTS / "fuzz", TESTS / "emulator", TESTS, TESTS.parent)]
LONGEST_S = 120


def one_round(seed: str) -> tuple[int, str]:
    """Run a round in another process; returns how many snippets were entered, and what went wrong or nothing."""
    from fuzz_code import SNIPPETS, CodeRound

    # The machine's memory is shared with that process, so that one can look into it when it has died.
    with patch("hypervisor.machine.memory.mmap.MAP_PRIVATE", mmap.MAP_SHARED):
        one = CodeRound(seed)
    child = os.fork()
    if not child:
        signal.alarm(LONGEST_S)
        try:
            one.run()
            one.close()
        except BaseException:
            traceback.print_exc(limit=-4)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    entered = min(one.entered, SNIPPETS)
    if not status:
        return entered, ""
    how = os.waitstatus_to_exitcode(status)
    reason = (
        "an exception" if how == 1 else f"no end within {LONGEST_S} s" if how == -signal.SIGALRM else f"signal {-how}"
    )
    return entered, f"round {seed}: {reason} after {entered} snippets, the last being {one.snippet(entered - 1).hex()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--keep-going", action="store_true", help="report failures and go on with the next round")
    options = parser.parse_args()
    started = time.monotonic()
    snippets = failures = index = 0
    while index < options.rounds:
        entered, failure = one_round(options.seed if index == 0 else f"{options.seed}.{index}")
        snippets += entered
        index += 1
        if failure:
            print(failure, flush=True)
            failures += 1
            if not options.keep_going:
                break
    seconds = time.monotonic() - started
    print(f"{snippets} snippets on {index} hosts in {seconds:.0f} s, {failures} failures")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
