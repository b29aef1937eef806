"""Throw random hypercalls at the hypervisor: `python tests/fuzz/hypercalls.py --calls 1000000 --seed 1`.

Two hostile domains and a hostile dom0 take turns, in rounds of some hundred calls on a new host each. No exception may
leave the door, every result must be a 64-bit number, the hypervisor's accounts must hold, a bystander must not be
touched, and destroying all domains at the end must leave nothing. A failure prints the seed of its round, which
repeats it: `--calls 600 --seed ROUND`, and the last calls in words.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:3]]


def main() -> int:
    from fuzz_round import CHECK_EVERY, ROUND, FuzzFailure, Round

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--round", type=int, default=ROUND, help="calls on one host")
    parser.add_argument("--check-every", type=int, default=CHECK_EVERY, help="calls between two looks at all accounts")
    parser.add_argument("--keep-going", action="store_true", help="report failures and go on with the next round")
    options = parser.parse_args()
    started = time.monotonic()
    done, failures, index = 0, 0, 0
    results: Counter[tuple[int, int]] = Counter()
    while done < options.calls:
        one = Round(options.seed if index == 0 else f"{options.seed}.{index}", options.check_every)
        try:
            one.run(min(options.round, options.calls))
        except FuzzFailure as failure:
            print(failure, flush=True)
            failures += 1
            if not options.keep_going:
                raise
        done += max(1, one.calls)
        results += one.results
        index += 1
    seconds = time.monotonic() - started
    print(f"{done} calls on {index} hosts in {seconds:.0f} s, {failures} failures")
    for number in sorted({number for number, _ in results if 0 <= number < 64}):
        own = {error: count for (nr, error), count in results.items() if nr == number}
        print(f"  hypercall {number:2}: {sum(own.values()):8} calls, {own.get(0, 0) / sum(own.values()):4.0%} accepted")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
