"""The checks of lab 12: a submission's numbers, compared with Xen's books and with what is known of a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labs.kit.check import Checks, Work, expect_equal
from labs.measuring.scenario import Measured, measured

CHECKS = Checks()
check = CHECKS.check

Record = dict[str, Any]


def loaded(work: Work) -> tuple[Any, Measured, list[Record]]:
    """Return the submission, a host that has run, and its trace as the submission reads it."""
    lab = work.load("measure")
    host = measured(work.rng)
    path = Path("host.json")
    path.write_text("\n".join(host.lines) + "\n", encoding="utf-8")
    return lab, host, lab.load(path)


def event(time: int, domid: int, name: str, **fields: Any) -> Record:
    """Return a record."""
    return {"time": time, "domid": domid, "vcpu": 0, "event": name, **fields}


@check(10, "load")
def load(work: Work) -> None:
    """The trace is read, every line of it."""
    _, host, records = loaded(work)
    expect_equal(len(records), len(host.lines), "the number of records")
    at = work.rng.randrange(len(records))
    expect_equal(records[at], json.loads(host.lines[at]), f"record {at}")


@check(5, "names")
def names(work: Work) -> None:
    """Domains are called by their names."""
    lab, host, records = loaded(work)
    wanted = {number: name for name, number in host.numbers.items()}
    expect_equal(lab.names(records), wanted, "names()")


@check(15, "hypercalls")
def hypercalls(work: Work) -> None:
    """Hypercalls are counted, for each domain as many as Xen has counted."""
    lab, host, records = loaded(work)
    found = lab.hypercalls(records)
    for name, number in host.numbers.items():
        total = sum(found.get(number, {}).values())
        expect_equal(total, host.report[name].usage.hypercalls, f"the number of hypercalls of {name}")
    made = {domid: {nr: sum(_is_call(one, domid, nr) for one in records) for nr in (17, 29)} for domid in found}
    for domid, wanted in made.items():
        for nr, times in wanted.items():
            expect_equal(found[domid].get(nr, 0), times, f"how often domain {domid} made hypercall {nr}")


def _is_call(record: Record, domid: int, nr: int) -> bool:
    return bool(record["event"] == "hypercall" and record["domid"] == domid and record["nr"] == nr)


@check(15, "running")
def running(work: Work) -> None:
    """The time that each domain has run is what Xen has charged it for."""
    lab, host, records = loaded(work)
    found = lab.running(records)
    for name, number in host.numbers.items():
        expect_equal(found.get(number, 0), host.report[name].usage.cpu_ns, f"how many ns {name} has run")


@check(15, "who_runs")
def who_runs(work: Work) -> None:
    """Who runs at a moment is found from who came and went before."""
    lab = work.load("measure")
    records, turns, now = [], [], 100
    for _ in range(60):
        domid, length = work.rng.randrange(4), work.rng.randrange(10, 500)
        pcpu = work.rng.randrange(2)
        records.append(event(now, domid, "schedule", pcpu=pcpu))
        records.append(event(now + 3, domid, "hypercall", nr=17, rc=0))
        records.append(event(now + length, domid, "deschedule", pcpu=pcpu, ran_ns=length, flags=0))
        turns.append((now, now + length, domid, pcpu))
        now += length + work.rng.choice([0, 50])
    for _ in range(200):
        time, pcpu = work.rng.randrange(now + 100), work.rng.randrange(2)
        wanted = next((who for start, end, who, on in turns if on == pcpu and start <= time < end), None)
        expect_equal(lab.who_runs(records, time, pcpu), wanted, f"who_runs() at {time} on processor {pcpu}")
    for start, end, who, pcpu in turns:
        expect_equal(lab.who_runs(records, start, pcpu), who, f"who_runs() at {start}, where a turn begins,")
        expect_equal(lab.who_runs(records, end - 1, pcpu), who, f"who_runs() at {end - 1}, just before a turn ends,")


@check(10, "event_latencies")
def event_latencies(work: Work) -> None:
    """Each event is paired with the upcall that serves it."""
    lab = work.load("measure")
    records, wanted, now = [], [], 0
    for _ in range(80):
        count = work.rng.randrange(1, 4)
        pending = []
        for _ in range(count):
            now += work.rng.randrange(1, 300)
            pending.append(now)
            records.append(event(now, 5, "evtchn_pending", port=work.rng.randrange(9)))
            if work.rng.random() < 0.3:
                records.append(event(now, 6, "upcall", ready=1))
                records.append(event(now, 6, "evtchn_pending", port=2))
        now += work.rng.randrange(1, 1000)
        records.append(event(now, 5, "upcall", ready=1))
        wanted += [now - since for since in pending]
    records.append(event(now + 5, 5, "evtchn_pending", port=1))
    expect_equal(lab.event_latencies(records, 5), wanted, "event_latencies()")
    expect_equal(lab.event_latencies(records, 7), [], "event_latencies() of a domain without events")


@check(10, "scheduling_latency")
def scheduling_latency(work: Work) -> None:
    """The longest wait for a processor is found."""
    lab = work.load("measure")
    records = [event(1, 3, "schedule", pcpu=0), event(2, 3, "deschedule", pcpu=0, ran_ns=1, flags=2)]
    longest, now = 0, 10
    for _ in range(60):
        now += work.rng.randrange(1, 100)
        since = now
        records.append(event(now, 3, "wake"))
        records.append(event(now + 1, 4, "schedule", pcpu=1))
        now += work.rng.randrange(2, 1000)
        records.append(event(now, 3, "wake"))
        now += work.rng.randrange(2, 1000)
        records.append(event(now, 3, "schedule", pcpu=0))
        longest = max(longest, now - since)
        records.append(event(now + 7, 3, "deschedule", pcpu=0, ran_ns=7, flags=0))
        records.append(event(now + 5000, 3, "schedule", pcpu=0))
        now += 5001
    records.append(event(now, 3, "wake"))
    expect_equal(lab.scheduling_latency(records, 3), longest, "scheduling_latency()")
    expect_equal(lab.scheduling_latency(records, 9), 0, "scheduling_latency() of a domain that never waits")


@check(10, "still_mapped")
def still_mapped(work: Work) -> None:
    """What is mapped at the end is the sum of what was mapped and unmapped before."""
    lab = work.load("measure")
    records: list[Record] = []
    wanted: dict[int, set[int]] = {0: set(), 2: set()}
    for time in range(400):
        domid = work.rng.choice([0, 2])
        handle, status = work.rng.randrange(30), work.rng.choice([0, 0, 0, -1])
        if handle in wanted[domid]:
            records.append(event(time, domid, "gnttab_unmap", handle=handle, status=status))
            wanted[domid] -= set() if status else {handle}
        else:
            fields = {"granter": 5, "ref": 9, "flags": 2, "handle": handle, "status": status}
            records.append(event(time, domid, "gnttab_map", **fields))
            wanted[domid] |= set() if status else {handle}
    found = {domid: set(handles) for domid, handles in lab.still_mapped(records).items()}
    expect_equal(found, {domid: handles for domid, handles in wanted.items() if handles}, "still_mapped()")
    expect_equal(lab.still_mapped([]), {}, "still_mapped() of nothing")


@check(10, "culprit")
def culprit(work: Work) -> None:
    """The domain that makes too many hypercalls is found, though another one makes more of them."""
    lab, host, records = loaded(work)
    expect_equal(lab.culprit(records), host.culprit, "culprit()")
