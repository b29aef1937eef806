"""What a toolstack asks of the scheduler for a domain: weight and cap, and which pCPUs and nodes it likes.

The numbers are those of credit2, which is what this hypervisor says it is (sched_id); they are kept and told again, and
the run queue does not look at them.
"""

from __future__ import annotations

import attrs

DEFAULT_WEIGHT = 256
ALL_CPUS = -1
"""As a mask of pCPUs: every bit is set."""


@attrs.define
class SchedulingParams:
    """Of one domain."""

    weight: int = DEFAULT_WEIGHT
    cap: int = 0
    """Percent of one pCPU; 0 is no limit."""
    nodes: int | None = None
    """NUMA nodes, as a mask; None follows the vCPUs."""
    hard: dict[int, int] = attrs.Factory(dict)
    soft: dict[int, int] = attrs.Factory(dict)
    """Masks of pCPUs by vCPU number: where it may run, where it would rather run. None said is all of them."""
