"""Many seeds, in as many processes as there are processors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context

from toolstack.soak.trial import MOST_FAULTS, Trial, run_trial


def run_trials(
    seeds: Sequence[int], faults: Sequence[str] | None = None, most: int = MOST_FAULTS, jobs: int = 1
) -> Iterator[Trial]:
    """Run the seeds and yield what came of each, as it is done. What a process raises is raised here."""
    one = partial(run_trial, faults=faults, most=most)
    if jobs == 1 or len(seeds) == 1:
        yield from map(one, seeds)
        return
    # (Not forked: a process with threads of its own may hold locks in which the other would stick.)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(one, seed) for seed in seeds]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
