"""Lab 12, solved."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def load(path: Path) -> list[Record]:
    """Read a trace in JSON, one object a line."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def names(records: Sequence[Record]) -> dict[int, str]:
    """Return what the domains are called, by their numbers."""
    found = {record["domain"]: record["name"] for record in records if record["event"] == "domain_name"}
    return {0: "Domain-0", **found}


def hypercalls(records: Sequence[Record]) -> dict[int, dict[int, int]]:
    """Return how often each domain has made each hypercall."""
    counts: dict[int, dict[int, int]] = defaultdict(Counter)
    for record in records:
        if record["event"] == "hypercall":
            counts[record["domid"]][record["nr"]] += 1
    return {domid: dict(numbers) for domid, numbers in counts.items()}


def running(records: Sequence[Record]) -> dict[int, int]:
    """Return for how many ns each domain has run."""
    times: Counter[int] = Counter()
    for record in records:
        if record["event"] == "deschedule":
            times[record["domid"]] += record["ran_ns"]
    return dict(times)


def who_runs(records: Sequence[Record], time: int, pcpu: int = 0) -> int | None:
    """Return which domain runs on a processor at a time."""
    runs = None
    for record in records:
        if record["time"] > time:
            break
        if record["event"] == "schedule" and record["pcpu"] == pcpu:
            runs = record["domid"]
        elif record["event"] == "deschedule" and record["pcpu"] == pcpu:
            runs = None
    return runs


def event_latencies(records: Sequence[Record], domid: int) -> list[int]:
    """Return how many ns each event of a domain waited until the domain's next upcall."""
    waiting: list[int] = []
    found: list[int] = []
    for record in records:
        if record["domid"] != domid:
            continue
        if record["event"] == "evtchn_pending":
            waiting.append(record["time"])
        elif record["event"] == "upcall":
            found += [record["time"] - since for since in waiting]
            waiting = []
    return found


def scheduling_latency(records: Sequence[Record], domid: int) -> int:
    """Return the longest time that the domain's vCPU 0 was awake and waited for a processor."""
    since: int | None = None
    longest = 0
    for record in records:
        if record["domid"] != domid or record["vcpu"] != 0:
            continue
        if record["event"] == "wake" and since is None:
            since = record["time"]
        elif record["event"] == "schedule" and since is not None:
            longest = max(longest, record["time"] - since)
            since = None
    return longest


def still_mapped(records: Sequence[Record]) -> dict[int, set[int]]:
    """Return the handles of mappings that have not been undone at the end."""
    mapped: dict[int, set[int]] = defaultdict(set)
    for record in records:
        if record["event"] in ("gnttab_map", "gnttab_unmap") and record["status"] == 0:
            change = mapped[record["domid"]].add if record["event"] == "gnttab_map" else mapped[record["domid"]].discard
            change(record["handle"])
    return {domid: handles for domid, handles in mapped.items() if handles}


def culprit(records: Sequence[Record]) -> str:
    """Return the name of the domain that makes the most hypercalls for the time that it runs."""
    times = running(records)
    rates = {
        domid: sum(numbers.values()) / times[domid]
        for domid, numbers in hypercalls(records).items()
        if domid and times.get(domid)
    }
    return names(records)[max(rates, key=lambda domid: rates[domid])]
