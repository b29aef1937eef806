"""Random faults, many seeds: does a host keep what it has acknowledged, does it forget nothing, are others unharmed?

    trial = run_trial(seed=7)
    trial.problems      # sentences; none, or there is a bug

`worker` is what the guests do, `dice` chooses the faults, `trial` runs one seed and judges it.
"""

from toolstack.soak.trial import Trial, run_trial

__all__ = ["Trial", "run_trial"]
