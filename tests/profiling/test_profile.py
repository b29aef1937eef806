"""A profile must add up: its parts to what vCPUs ran, and that to what Xen's books say of them."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hypervisor.abi import grant_table, sched, xen
from hypervisor.abi import tracepoints as tp
from hypervisor.sched.costs import Costs, costs_for_trace, costs_from_trace
from hypervisor.trace import read_trace
from hypervisor.vcpu import VPF_BLOCKED
from toolstack.cli import main
from toolstack.host import Host
from toolstack.profiling.profile import COMPUTING, STRETCH, SWITCH, YIELDING, Profile
from toolstack.profiling.speedscope import format_speedscope
from toolstack.xl_config import load_config

COSTS = Costs(hypercall=10, run=100, switch=1000)
SCHEMA = os.environ.get("PARAVIRT_SPEEDSCOPE", "")
"""The `file-format-schema.json` of the npm package speedscope."""


def profiled(*records: tuple[Any, ...], costs: Costs = COSTS) -> Profile:
    profile = Profile(costs)
    profile.add_all(records)
    profile.finish()
    return profile


def parts(profile: Profile, domid: int = 1, vcpu_id: int = 0) -> dict[tuple[str, ...], tuple[int, int]]:
    return {stack: (s.ns, s.count) for stack, s in profile.vcpus()[domid, vcpu_id].stacks.items() if s.ns}


def call(time: int, nr: int, *arguments: int, rc: int = 0, domid: int = 1) -> tuple[Any, ...]:
    return (time, domid, 0, tp.HYPERCALL, nr, *arguments, *[0] * (5 - len(arguments)), rc)


SEND = xen.HYPERVISOR_event_channel_op, 4


def test_a_turn_is_divided_into_switch_stretches_hypercalls_and_computing() -> None:
    profile = profiled(
        (0, 1, 0, tp.SCHEDULE, 0),
        (0, 1, 0, tp.THREAD, "main"),
        call(10, *SEND),
        # The stretch ends, with 5000 ns of computing: 1000 + 100 + 5000.
        (6110, 1, 0, tp.UPCALL, 1),
        call(6120, *SEND),
        (6120, 1, 0, tp.THREAD, "other"),
        call(6130, *SEND),
        call(6140, xen.HYPERVISOR_sched_op, sched.SCHEDOP_block),
        (6140, 1, 0, tp.DESCHEDULE, 0, 6240, VPF_BLOCKED),
    )
    name = "event_channel_op EVTCHNOP_send"
    assert parts(profile) == {
        (SWITCH,): (1000, 1),
        (STRETCH,): (200, 2),
        ("thread main", COMPUTING): (5000, 1),
        ("thread main", name): (10, 1),
        ("event handlers", name): (10, 1),
        ("thread other", name): (10, 1),
        ("run loop", "sched_op SCHEDOP_block"): (10, 1),
    }
    assert profile.vcpus()[1, 0].ran == 6240


def test_who_comes_back_pays_for_no_switch_and_waits_are_told_apart() -> None:
    profile = profiled(
        (0, 1, 0, tp.SCHEDULE, 0),
        (0, 1, 0, tp.DESCHEDULE, 0, 1100, VPF_BLOCKED),
        (2100, 1, 0, tp.WAKE),
        (2600, 1, 0, tp.SCHEDULE, 0),
        (2600, 1, 0, tp.DESCHEDULE, 0, 100, 0),
        (2700, 2, 0, tp.SCHEDULE, 0),
        (2700, 2, 0, tp.DESCHEDULE, 0, 1100, VPF_BLOCKED),
        (3800, 1, 0, tp.SCHEDULE, 0),
        (3800, 1, 0, tp.DESCHEDULE, 0, 1100, VPF_BLOCKED),
    )
    vcpu = profile.vcpus()[1, 0]
    assert (vcpu.ran, vcpu.waited, vcpu.blocked, vcpu.turns) == (2300, 500 + 1100, 1000, 3)
    assert parts(profile)[(SWITCH,)] == (2000, 2)
    assert parts(profile, 2)[(SWITCH,)] == (1000, 1)


def test_the_entries_of_a_multicall_have_one_price_together() -> None:
    costs = Costs(hypercall=10, run=100, switch=0, hypercalls={xen.HYPERVISOR_mmu_update: 7})
    profile = profiled(
        (0, 1, 0, tp.SCHEDULE, 0),
        call(17, xen.HYPERVISOR_mmu_update),
        call(24, xen.HYPERVISOR_mmu_update),
        call(24, xen.HYPERVISOR_multicall, 0, 2),
        (24, 1, 0, tp.DESCHEDULE, 0, 124, VPF_BLOCKED),
        costs=costs,
    )
    assert parts(profile) == {
        ("guest code", "multicall", "mmu_update"): (14, 2),
        ("guest code", "multicall"): (10, 1),
        ("guest code", COMPUTING): (100, 1),
    }


def test_copies_are_charged_to_the_call_that_made_them() -> None:
    costs = Costs(hypercall=10, run=100, switch=0, grant_copy_page=4096)
    profile = profiled(
        (0, 1, 0, tp.SCHEDULE, 0),
        (510, 1, 0, tp.GNTTAB_COPY, "", "", 300, 0),
        (510, 1, 0, tp.GNTTAB_COPY, "", "", 200, 0),
        call(510, xen.HYPERVISOR_grant_table_op, grant_table.GNTTABOP_copy),
        (510, 1, 0, tp.DESCHEDULE, 0, 610, VPF_BLOCKED),
        costs=costs,
    )
    assert parts(profile)["guest code", "grant_table_op GNTTABOP_copy"] == (510, 1)


def test_a_guest_that_yields_does_not_compute() -> None:
    profile = profiled(
        (0, 1, 0, tp.SCHEDULE, 0),
        (0, 1, 0, tp.THREAD, "main"),
        call(10, xen.HYPERVISOR_sched_op, sched.SCHEDOP_yield),
        (10, 1, 0, tp.DESCHEDULE, 0, 51110, 0),
    )
    assert parts(profile)["thread main", YIELDING] == (50000, 1)


def test_where_no_threads_are_known_there_are_no_handlers() -> None:
    """Of machine code no record tells when it has come back from its event callback."""
    profile = profiled(
        (0, 1, 0, tp.SCHEDULE, 0),
        (0, 1, 0, tp.UPCALL, 1),
        call(10, *SEND),
        (10, 1, 0, tp.DESCHEDULE, 0, 5010, VPF_BLOCKED),
    )
    assert parts(profile) == {
        (SWITCH,): (1000, 1),
        ("guest code", "event_channel_op EVTCHNOP_send"): (10, 1),
        ("guest code", COMPUTING): (4000, 1),
    }


def test_a_trace_may_begin_and_end_in_the_middle_of_a_turn() -> None:
    profile = profiled(
        call(10, *SEND),
        (10, 1, 0, tp.DESCHEDULE, 0, 700, 0),
        (800, 2, 0, tp.SCHEDULE, 0),
        call(900, *SEND, domid=2),
    )
    assert profile.vcpus()[1, 0].ran == 700
    assert profile.vcpus()[2, 0].ran == 100


def test_costs_survive_a_trace() -> None:
    costs = Costs(hypercall=1, run=2, switch=3, hypercalls={4: 5})
    assert costs_from_trace(costs_for_trace(costs)) == costs
    assert costs_from_trace(None) is None
    assert costs_from_trace({"hypercall": "many"}) is None


GUESTS = {
    "thinker": """
        for _ in range(5):
            await self.cpu(ns=2_000_000)
            await self.sleep(0.001)
    """,
    "talker": """
        other = self.kernel.spawn(self.cpu(ns=1_500_000), name="side")
        disk = await self.disk("xvda")
        for sector in range(20):
            await disk.read(sector, 1)
        await other.join()
    """,
}


@pytest.fixture
def configs(tmp_path: Path) -> list[Path]:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    for name, body in GUESTS.items():
        code = "from guest_kernel.guest import Guest\n\nclass Main(Guest):\n    async def main(self):\n"
        (tmp_path / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        (tmp_path / f"{name}.cfg").write_text(
            f'name = "{name}"\nmemory = 4\nkernel = "{name}.py"\n'
            + ('disk = ["format=raw,vdev=xvda,access=rw,target=disk.img"]\n' if name == "talker" else "")
        )
    return [tmp_path / f"{name}.cfg" for name in GUESTS]


@pytest.mark.parametrize("pcpus", [1, 2, 3])
async def test_the_profile_of_a_run_agrees_with_xens_books(configs: list[Path], pcpus: int, tmp_path: Path) -> None:
    host = Host(pcpus=pcpus, profile=True, trace_file=tmp_path / "host.trace", trace_threads=True)
    result = await host.run([load_config(path) for path in configs])
    assert result.exit_code == 0
    profile = host.profile
    assert profile is not None
    for domain in result.domains:
        vcpu = profile.vcpus()[domain.domid, 0]
        assert vcpu.ran == domain.usage.cpu_ns
        assert sum(spent.ns for spent in vcpu.stacks.values()) == vcpu.ran
        assert vcpu.ran + vcpu.waited + vcpu.blocked <= profile.end
        assert profile.domain_name(domain.domid) == domain.name
        calls = [s.count for stack, s in vcpu.stacks.items() if not stack[-1].startswith("[")]
        assert sum(calls) == domain.usage.hypercalls
    thinker, talker = result.domains[1].domid, result.domains[2].domid
    # (A pCPU that is called away from a computing guest and comes back begins a stretch of which no record tells.)
    unseen = 0 if pcpus == 1 else 10 * Costs().run
    assert 0 <= parts(profile, thinker)["thread main", COMPUTING][0] - 10_000_000 <= unseen
    assert 0 <= parts(profile, talker)["thread side", COMPUTING][0] - 1_500_000 <= unseen
    # The same from the file.
    header, records = read_trace(tmp_path / "host.trace")
    costs = costs_from_trace(header["about"]["costs"])
    assert costs == Costs()
    again = profiled(*records, costs=costs)
    assert again.vcpus() == profile.vcpus()
    assert again.domain_name(thinker) == "thinker"


async def test_who_looks_changes_nothing(configs: list[Path], tmp_path: Path) -> None:
    plain = await Host(seed=3).run([load_config(path) for path in configs])
    seen = await Host(seed=3, profile=True).run([load_config(path) for path in configs])
    assert [domain.usage for domain in plain.domains] == [domain.usage for domain in seen.domains]
    assert plain.virtual_ns == seen.virtual_ns


def test_the_flame_graph_is_what_speedscope_documents(configs: list[Path], tmp_path: Path) -> None:
    out, trace = tmp_path / "profile.json", tmp_path / "host.trace"
    command = ["run", "--quiet", "--profile", str(out), "--trace", str(trace), "--trace-threads", *map(str, configs)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "thread side" in done.output
    assert COMPUTING in done.output
    check_speedscope(json.loads(out.read_text()), ["all domains", "Domain-0", "thinker", "talker"])
    again = tmp_path / "again.json"
    done = CliRunner().invoke(main, ["profile", str(trace), "--by", "cost", "-o", str(again)])
    assert done.exit_code == 0, done.output
    assert SWITCH in done.output
    check_speedscope(json.loads(again.read_text()), ["all domains", "Domain-0", "thinker", "talker"])
    first, second = (json.loads(path.read_text()) for path in (out, again))
    assert first | {"name": ""} == second | {"name": ""}


def check_speedscope(file: Any, names: list[str]) -> None:
    """The rules of the schema that concern us; all of them, where the schema is at hand."""
    if SCHEMA:
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.validate(file, json.loads(Path(SCHEMA).read_text()))
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = file["shared"]["frames"]
    assert all(set(frame) == {"name"} and isinstance(frame["name"], str) for frame in frames)
    assert [profile["name"] for profile in file["profiles"]] == names
    for profile in file["profiles"]:
        assert set(profile) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert (profile["type"], profile["unit"], profile["startValue"]) == ("sampled", "nanoseconds", 0)
        assert len(profile["samples"]) == len(profile["weights"]) > 0
        assert profile["endValue"] == sum(profile["weights"])
        assert all(0 <= frame < len(frames) for stack in profile["samples"] for frame in stack)
    assert file["profiles"][0]["endValue"] == sum(profile["endValue"] for profile in file["profiles"][1:])


def test_an_empty_profile_is_a_file_too() -> None:
    file = json.loads(format_speedscope(Profile(COSTS), "nothing"))
    assert file["profiles"] == [
        {"type": "sampled", "name": "all domains", "unit": "nanoseconds", "startValue": 0, "endValue": 0}
        | {"samples": [], "weights": []}
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["profile", "missing.trace"], "cannot read the trace"),
        (["profile", __file__], "is not a trace"),
        (["run", "--time", "real", "--profile", "x.json", "thinker.cfg"], "a profile is of virtual time"),
        (["run", "--trace-threads", "thinker.cfg"], "--trace-threads"),
    ],
)
def test_mistakes_are_one_sentence(
    configs: list[Path], arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(configs[0].parent)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1
