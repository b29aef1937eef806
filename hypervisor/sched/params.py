"""What a toolstack asks for a domain's vCPUs: which pCPUs and nodes they may use, and like."""

from __future__ import annotations

import attrs


@attrs.define
class SchedulingParams:
    """Of one domain."""

    pool: int = 0
    """The pool of pCPUs that it is in."""
    nodes: int | None = None
    """NUMA nodes, as a mask; None follows the vCPUs."""
    hard: dict[int, int] = attrs.Factory(dict)
    soft: dict[int, int] = attrs.Factory(dict)
    """Masks of pCPUs by vCPU number: where it may run, where it would rather run. None said is all of them."""
