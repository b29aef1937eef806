"""Lab 12: measuring. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import json  # noqa: F401
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def load(path: Path) -> list[Record]:
    """Read a trace in JSON, one object a line."""
    raise NotImplementedError("json.loads, line by line")


def names(records: Sequence[Record]) -> dict[int, str]:
    """Return what the domains are called, by their numbers. Domain 0 is Domain-0, which no event says."""
    raise NotImplementedError("domain_name")


def hypercalls(records: Sequence[Record]) -> dict[int, dict[int, int]]:
    """Return how often each domain has made each hypercall: {domain: {number: times}}."""
    raise NotImplementedError("count")


def running(records: Sequence[Record]) -> dict[int, int]:
    """Return for how many ns each domain has run, all its vCPUs together."""
    raise NotImplementedError("ran_ns of deschedule")


def who_runs(records: Sequence[Record], time: int, pcpu: int = 0) -> int | None:
    """Return which domain runs on a processor at a time (ns); None if nobody does.

    A domain runs from its `schedule`, that moment included, to its `deschedule`, that moment not included.
    """
    raise NotImplementedError("go through the events up to that time")


def event_latencies(records: Sequence[Record], domid: int) -> list[int]:
    """Return how many ns each event of a domain waited until the domain's next upcall, in the order of the events.

    One upcall serves all that have become pending before it. Events without an upcall behind them do not count. The
    domain has one vCPU.
    """
    raise NotImplementedError("remember what waits; an upcall ends it")


def scheduling_latency(records: Sequence[Record], domid: int) -> int:
    """Return the longest time (ns) that the domain's vCPU 0 was awake and waited for a processor: `wake` to `schedule`.

    0 if it never had to. Only those that have both count; a second `wake` before the `schedule` changes nothing.
    """
    raise NotImplementedError("pairs, and the maximum")


def still_mapped(records: Sequence[Record]) -> dict[int, set[int]]:
    """Return the handles of mappings that have not been undone at the end: {domain that has them mapped: handles}.

    Operations that failed (status not 0) have done nothing. Handles are used again. Domains without any are not there.
    """
    raise NotImplementedError("a set for each domain, that grows and shrinks")


def culprit(records: Sequence[Record]) -> str:
    """Return the name of the domain, other than domain 0, that makes the most hypercalls for the time that it runs."""
    raise NotImplementedError("count, and divide")
