"""A trace in the formats of others: they must say what the trace says, and other programs must read them."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from hypervisor.abi import trace as xentrace
from hypervisor.abi import tracepoints as tp
from hypervisor.trace import read_records
from toolstack.cli import main
from toolstack.trace_formats.json_lines import format_json
from toolstack.trace_formats.perfetto import DEVICE_TRACKS, PCPUS, format_perfetto
from toolstack.trace_formats.text import format_trace
from toolstack.trace_formats.timeline import Timeline
from toolstack.trace_formats.xentrace import ARGUMENTS, format_xentrace

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = (sys.executable, "-c", "from toolstack.cli import main; main()")
XENALYZE = shutil.which("xenalyze")
RUNS = {
    "one": ("--pcpus", "1"),
    "two": ("--pcpus", "2"),
    "random": ("--pcpus", "3", "--schedule", "random:5"),
}
COMPLAINTS = re.compile(r"strange|fatal|warning|error|skew|not updating|unexpected|not processing", re.IGNORECASE)


@pytest.fixture(scope="module", params=RUNS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of two guests with a disk and a network, on one pCPU and on several."""
    directory = tmp_path_factory.mktemp(request.param)
    shutil.copytree(ROOT / "examples" / "first-host", directory, dirs_exist_ok=True)
    with (directory / "guest1.img").open("wb") as image:
        image.truncate(1 << 20)
    command = [*RUN, "run", "--quiet", "--trace", "host.trace", *RUNS[request.param], "guest1.cfg", "guest2.cfg"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "host.trace"


@pytest.fixture
def records(file: Path) -> list[list[Any]]:
    return list(read_records(file))


def test_the_timeline_never_goes_back(records: list[list[Any]]) -> None:
    pcpus: dict[int, int] = {}
    changed: dict[tuple[int, int], int] = {}
    timeline = Timeline()
    placed = 0
    for record, found in zip(records, timeline.follow(iter(records)), strict=True):
        placed += 1
        assert (found.who, found.kind, list(found.fields)) == ((record[1], record[2]), record[3], record[4:])
        assert found.time >= record[0]
        assert found.time >= pcpus.get(found.pcpu, 0)
        pcpus[found.pcpu] = found.time
        if found.kind in (tp.SCHEDULE, tp.DESCHEDULE, tp.WAKE):
            assert found.time >= changed.get(found.who, 0)
            changed[found.who] = found.time
        if found.kind == tp.HYPERCALL:
            assert timeline.running[found.pcpu] == found.who
    assert placed == len(records) > 1000


def test_the_timeline_moves_no_record_far(records: list[list[Any]]) -> None:
    """It may only put straight what the clocks of several pCPUs disagree on: the cost of a stretch or two."""
    far = [
        found
        for record, found in zip(records, Timeline().follow(records), strict=True)
        if found.time > record[0] + 10_000
    ]
    assert far == []


def test_json_says_all_of_it(records: list[list[Any]]) -> None:
    lines = [json.loads(line) for line in format_json(records)]
    assert len(lines) == len(records)
    for line, (time, domid, vcpu_id, kind, *fields) in zip(lines, records, strict=True):
        name, labels = tp.KINDS[kind]
        assert (line["time"], line["domid"], line["vcpu"], line["event"]) == (time, domid, vcpu_id, name)
        for label, value in zip(labels, fields, strict=True):
            assert line[label] == (value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value)


def test_no_field_hides_what_every_line_has() -> None:
    for name, labels in tp.KINDS.values():
        assert not {"time", "domid", "vcpu", "event"} & set(labels), name


def test_json_of_a_record_of_the_future() -> None:
    assert [json.loads(line) for line in format_json([[5, 1, 0, 999, "x", b"\xff"]])] == [
        {"time": 5, "domid": 1, "vcpu": 0, "event": "kind-999", "field4": "x", "field5": "\\xff"}
    ]


# -- Xen's own -------------------------------------------------------------------------------------------------------


def unpack(data: bytes) -> list[tuple[int, int, int, list[int]]]:
    """The records of a xentrace file: (pCPU, event, time stamp, data)."""
    found, at = [], 0
    while at < len(data):
        event, pcpu, size = struct.unpack_from("<III", data, at)
        assert event == xentrace.TRC_TRACE_CPU_CHANGE | 2 << 28
        at += 12
        end = at + size
        while at < end:
            head, stamp = struct.unpack_from("<IQ", data, at)
            assert head & xentrace.TRC_HD_CYCLE_FLAG
            count = head >> 28 & 7
            found.append((pcpu, head & (1 << 28) - 1, stamp, list(struct.unpack_from(f"<{count}I", data, at + 12))))
            at += 12 + 4 * count
        assert at == end
    return found


def test_the_windows_of_xentrace(records: list[list[Any]]) -> None:
    found = unpack(b"".join(format_xentrace(records)))
    stamps: dict[int, int] = defaultdict(lambda: 1)
    for pcpu, _, stamp, _ in found:
        assert stamp >= stamps[pcpu]
        stamps[pcpu] = stamp
    assert len(stamps) == len({record[4] for record in records if record[3] == tp.SCHEDULE})


def test_xentrace_has_the_hypercalls(records: list[list[Any]]) -> None:
    found = unpack(b"".join(format_xentrace(records)))
    calls = [data for _, event, _, data in found if event == xentrace.TRC_PV_HYPERCALL_V2]
    expected: Counter[tuple[int, ...]] = Counter()
    for _, _, _, kind, *fields in records:
        if kind == tp.HYPERCALL:
            nr, *arguments = fields
            expected[nr, *(arguments[index] & 0xFFFFFFFF for index in ARGUMENTS.get(nr, ()))] += 1
    assert Counter((data[0] & 0xFFFFF, *data[1:]) for data in calls) == expected
    for data in calls:
        present = [index for index in range(6) if data[0] >> 20 + 2 * index & 3]
        assert present == list(ARGUMENTS.get(data[0] & 0xFFFFF, ()))


def test_runstates_of_xentrace_are_a_chain(records: list[list[Any]]) -> None:
    """In the order of time, each change begins where the one before ended, and a pCPU runs one vCPU at a time."""
    found = unpack(b"".join(format_xentrace(records)))
    states: dict[int, int] = {}
    running: dict[int, int] = {}
    order = sorted(range(len(found)), key=lambda index: (found[index][2], index))
    for pcpu, event, _, data in (found[index] for index in order):
        if event & ~0xFF0 != xentrace.TRC_SCHED_RUNSTATE_CHANGE or event >> 12 & 0xF != 1:
            continue
        old, new = event >> 8 & 3, event >> 4 & 3
        who = data[0]
        assert states.get(who, old) == old, hex(who)
        states[who] = new
        if old == 0:
            assert running.pop(pcpu, who) == who
        if new == 0:
            assert pcpu not in running
            running[pcpu] = who
    assert len(states) > 3


@pytest.mark.skipif(XENALYZE is None, reason="no xenalyze here (Debian: xen-utils-common)")
@pytest.mark.parametrize("what", ["--summary", "--dump-all"])
def test_xenalyze_reads_it_without_a_complaint(file: Path, what: str, tmp_path: Path) -> None:
    assert XENALYZE is not None
    records = list(read_records(file))
    binary = tmp_path / "xentrace"
    binary.write_bytes(b"".join(format_xentrace(records)))
    done = subprocess.run([XENALYZE, "--cpu-hz", "1G", what, binary], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert [line for line in (done.stdout + done.stderr).splitlines() if COMPLAINTS.search(line)] == []
    calls = Counter((record[1], record[4]) for record in records if record[3] == tp.HYPERCALL)
    if what == "--summary":
        shown = {}
        for domain in re.split(r"^\|-- Domain ", done.stdout, flags=re.MULTILINE)[1:]:
            for nr, count in re.findall(r"^ +\w+ +\[ *(\d+)\]: +(\d+)$", domain, flags=re.MULTILINE):
                shown[int(domain.split()[0]), int(nr)] = int(count)
        assert shown == dict(calls)
    else:
        assert len(re.findall(r" hypercall ", done.stdout)) == sum(calls.values())


# -- Perfetto --------------------------------------------------------------------------------------------------------


def perfetto(records: list[list[Any]]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(b"".join(format_perfetto(records)))["traceEvents"]
    return events


TIME = {"type": "number", "minimum": 0}
TRACK = {"pid": {"type": "integer", "minimum": 0}, "tid": {"type": "integer", "minimum": 0}}
TEXT = {"type": "string", "minLength": 1}


def phase(letter: str, properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The schema of an event: what it has, and nothing else."""
    properties = {"ph": {"const": letter}, "name": TEXT, **properties}
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


NAMED = {"type": "object", "properties": {"name": TEXT}, "required": ["name"], "additionalProperties": False}
WHAT = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
FLOW = {"cat": TEXT, "ts": TIME, "id": {"type": "integer"}, **TRACK}
TRACE_EVENTS = {
    "type": "object",
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "traceEvents": {
            "type": "array",
            "items": {
                "oneOf": [
                    phase("M", {"args": NAMED, **TRACK, "name": {"const": "thread_name"}}),
                    phase("M", {"args": NAMED, "pid": TRACK["pid"], "name": {"const": "process_name"}}),
                    phase("X", {"cat": TEXT, "ts": TIME, "dur": TIME, **TRACK}),
                    phase("i", {"cat": TEXT, "ts": TIME, "s": {"enum": ["g", "p", "t"]}, "args": WHAT, **TRACK}),
                    phase("s", FLOW),
                    phase("f", {**FLOW, "bp": {"const": "e"}}),
                ]
            },
        },
    },
    "required": ["displayTimeUnit", "traceEvents"],
    "additionalProperties": False,
}
"""The trace-event format (Catapult's document of that name), as far as we use it: the phases M, X, i, s, f."""


def test_perfetto_keeps_to_the_schema(file: Path) -> None:
    jsonschema.validate(json.loads(b"".join(format_perfetto(read_records(file)))), TRACE_EVENTS)


def test_perfetto_names_a_track_before_it_is_used(records: list[list[Any]]) -> None:
    tracks = set()
    for event in perfetto(records):
        if event["name"] == "thread_name":
            tracks.add((event["pid"], event["tid"]))
        elif event["ph"] != "M":
            assert (event["pid"], event["tid"]) in tracks
    assert {pid for pid, _ in tracks} >= {0, 1, 2, PCPUS}
    assert any(tid >= DEVICE_TRACKS for _, tid in tracks)


def test_perfetto_arrows_begin_and_end_in_a_slice(records: list[list[Any]]) -> None:
    """Perfetto binds an end of an arrow to the slice that encloses it on its track, and drops it if there is none."""
    events = perfetto(records)
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], round(event["ts"] + event["dur"], 3)))
    ends = [event for event in events if event["ph"] in "sf"]
    assert len(ends) > 100
    for event in ends:
        spans = slices[event["pid"], event["tid"]]
        assert any(begin <= event["ts"] < end for begin, end in spans), event


def test_perfetto_turns_do_not_overlap(records: list[list[Any]]) -> None:
    ends: dict[tuple[int, int], float] = {}
    turns = [event for event in perfetto(records) if event["ph"] == "X" and event["cat"] == "sched"]
    for event in sorted(turns, key=lambda event: (event["ts"], event["dur"])):
        track = event["pid"], event["tid"]
        assert event["ts"] >= round(ends.get(track, 0), 3)
        ends[track] = event["ts"] + event["dur"]
    assert len(turns) == 2 * sum(record[3] == tp.SCHEDULE for record in records)


def test_perfetto_arrows_go_from_notification_to_upcall(records: list[list[Any]]) -> None:
    events = perfetto(records)
    begun = {event["id"]: event for event in events if event["ph"] == "s"}
    ended = [event for event in events if event["ph"] == "f"]
    assert len(begun) == sum(record[3] == tp.EVTCHN_PENDING for record in records)
    assert ended
    for event in ended:
        assert event["ts"] >= begun[event["id"]]["ts"] - 10
    upcalls = {(event["pid"], event["tid"], event["ts"]) for event in events if event["name"] == "upcall"}
    assert {(event["pid"], event["tid"], event["ts"]) for event in ended} <= upcalls


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "json", "perfetto", "xentrace"])
def test_the_command_writes_each(file: Path, form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["trace", str(file), "--format", form, "-o", str(out)])
    assert (done.exit_code, done.output) == (0, "")
    shown = CliRunner().invoke(main, ["trace", str(file), "--format", form])
    assert shown.stdout_bytes == out.read_bytes()
    if form == "text":
        assert out.read_text() == "".join(line + "\n" for line in format_trace(read_records(file)))


def test_the_trace_is_not_overwritten(file: Path) -> None:
    before = file.read_bytes()
    done = CliRunner().invoke(main, ["trace", str(file), "--format", "json", "-o", str(file)])
    assert (done.exit_code, done.output) == (2, f"paravirt: {str(file)!r} is the trace itself\n")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "csv"], "'csv' is not one of 'text', 'json', 'perfetto', 'xentrace'"),
        (["-o", "no/where"], "cannot write 'no/where': No such file or directory"),
        (["-o", "/dev/full"], "cannot write '/dev/full': No space left on device"),
    ],
)
def test_mistakes_at_the_command(file: Path, arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, ["trace", str(file), *arguments])
    assert done.exit_code == 2
    assert sentence in done.output
