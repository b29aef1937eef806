"""Each fault does what the menu says of it, to its victim and to nobody else; and the host is as it was afterwards."""

import textwrap
from pathlib import Path

import pytest
import trio

from hypervisor.abi import tracepoints as tp
from hypervisor.trace import read_trace
from toolstack.console_log import ConsoleLog
from toolstack.errors import UsageError
from toolstack.faults import MENU, parse_fault
from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.soak import run_trial
from toolstack.soak.dice import roll
from toolstack.soak.journal import SLOT_SECTORS, Journal, content
from toolstack.soak.trial import GUESTS
from toolstack.xl_config import load_config


class Bench:
    """One guest with a disk and an interface, one fault."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []

    def run(self, body: str, *faults: str, trace: Path | None = None, **settings: str) -> HostResult:
        code = "from guest_kernel.guest import Guest\n\nclass Main(Guest):\n    async def main(self):\n"
        (self.directory / "g.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        (self.directory / "g.img").write_bytes(bytes(1 << 20))
        config = self.directory / "g.cfg"
        config.write_text(
            'name = "g"\nmemory = 8\nkernel = "g.py"\nvif = [""]\n'
            'disk = ["format=raw,vdev=xvda,access=rw,target=g.img"]\n'
            + "".join(f"{key} = {value}\n" for key, value in settings.items())
        )
        self.host = Host(
            consoles=ConsoleLog(self.lines.append),
            faults=[parse_fault(fault) for fault in faults],
            trace_file=trace,
        )
        result = trio.run(self.host.run, [load_config(config)])
        assert self.host.leaks() == []
        return result

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


READS = """
disk = await self.disk("xvda")
for number in range(40):
    try:
        await disk.read(number * 8, 8)
        self.print("read", number)
    except Exception as error:
        self.print("failed", number, error)
    await self.sleep(0.001)
self.print("done after", self.kernel.monotonic_ns() // 1_000_000, "ms")
"""


def test_without_faults_nothing_is_there(bench: Bench) -> None:
    result = bench.run(READS)
    assert result.faults == []
    assert bench.host.hv.events.wire is None
    assert "failed" not in bench.text


def test_lost_events_stall_the_victim(bench: Bench) -> None:
    result = bench.run(READS, "event-drop:at=10ms")
    assert result.failures
    assert result.faults[0].struck > 0
    assert "read 3" in bench.text
    assert "done" not in bench.text


def test_late_events_only_cost_time(bench: Bench) -> None:
    bench.run(READS)
    prompt = int(bench.text.rpartition("after ")[2].split()[0])
    bench.lines.clear()
    result = bench.run(READS, "event-delay:at=5ms:by=2ms")
    late = int(bench.text.rpartition("after ")[2].split()[0])
    assert not result.failures
    assert late > prompt + 40
    assert "failed" not in bench.text


@pytest.mark.parametrize("fault", ["event-duplicate", "event-storm:every=50us"])
def test_spurious_events_change_nothing(bench: Bench, fault: str) -> None:
    result = bench.run(READS, fault)
    assert not result.failures
    assert result.faults[0].struck > 100
    assert bench.text.count("read ") == 40


def test_failing_grants_fail_single_requests(bench: Bench) -> None:
    body = READS.replace('disk = await self.disk("xvda")\n', 'disk = await self.disk("xvda")\nawait self.sleep(0.01)\n')
    result = bench.run(body, "grant-fail:at=5ms:count=3:probability=1")
    assert not result.failures
    assert 1 <= bench.text.count("failed") <= 3
    assert bench.text.count("| read ") + bench.text.count("| failed ") == 40


def test_a_failing_disk(bench: Bench) -> None:
    result = bench.run(READS, "disk-fail:at=10ms:for=5ms:probability=1")
    assert not result.failures
    assert bench.text.count("failed") == result.faults[0].struck == 5


def test_a_slow_disk(bench: Bench) -> None:
    bench.run(READS, "disk-slow:by=3ms")
    assert int(bench.text.rpartition("after ")[2].split()[0]) > 40 * 4


WRITES = """
disk = await self.disk("xvda")
for number in range(30):
    try:
        await disk.write(number * 8, bytes([number]) * 4096)
        self.print("wrote", number)
    except Exception as error:
        self.print("failed", number)
"""


def test_a_full_disk(bench: Bench) -> None:
    bench.run(WRITES, "disk-full:sectors=80")
    assert bench.text.count("wrote") == 10
    assert bench.text.count("failed") == 20


def test_a_torn_disk(bench: Bench) -> None:
    bench.run(WRITES, "disk-torn:writes=10")
    assert bench.text.count("failed") == 3
    image = (bench.directory / "g.img").read_bytes()
    assert image[9 * 4096 : 10 * 4096] == bytes([9]) * 2048 + bytes(2048)


@pytest.mark.parametrize(("fault", "reason"), [("kill-domain", "destroyed"), ("crash-domain", "crash")])
def test_ends(bench: Bench, fault: str, reason: str) -> None:
    result = bench.run(READS, f"{fault}:at=12ms")
    assert result.domains[1].reason == reason
    assert "read 5" in bench.text
    assert "done" not in bench.text


def test_an_end_at_a_named_moment(bench: Bench) -> None:
    bench.run(READS, "kill-domain:at=vbd-connected")
    assert "read 3" not in bench.text
    result = bench.run(READS, "crash-domain:at=hypercall#150")
    assert result.domains[1].usage.hypercalls in range(150, 160)


def test_a_pause(bench: Bench) -> None:
    result = bench.run(READS, "pause-domain:at=10ms:for=300ms")
    assert not result.failures
    assert int(bench.text.rpartition("after ")[2].split()[0]) > 300
    assert bench.text.count("read ") == 40


def test_a_failing_backend_is_heard_of(bench: Bench) -> None:
    result = bench.run(READS, "kill-backend:at=10ms")
    assert not result.failures
    assert "failed 20" in bench.text


def test_xenstored_comes_back(bench: Bench) -> None:
    body = """
    store = self.kernel.xenbus
    await store.write("data/one", "1")
    seen = []
    async def look(path, token):
        seen.append(path)
    await self.sleep(0.02)
    start = self.kernel.monotonic_ns()
    await store.write("data/two", "2")
    self.print("waited", (self.kernel.monotonic_ns() - start) // 1_000_000)
    self.print("has", await store.read("data/one"), await store.read("data/two"))
    """
    result = bench.run(body, "kill-xenstored:at=15ms:for=50ms")
    assert not result.failures
    assert int(bench.text.partition("waited ")[2].split()[0]) in range(40, 50)
    assert "has 1 2" in bench.text


def test_ports_run_out_for_a_while(bench: Bench) -> None:
    body = """
    from guest_kernel.errors import XenError
    for moment in range(3):
        await self.sleep(0.01)
        try:
            port = self.kernel.events.alloc_unbound(0, lambda: None)
            self.print("port")
            self.kernel.events.unbind(port)
        except XenError as error:
            self.print("none:", error)
    """
    bench.run(body, "exhaust-ports:at=15ms:for=10ms")
    assert [line.partition("| ")[2][:4] for line in bench.lines if "port" in line or "none" in line] == [
        "port",
        "none",
        "port",
    ]


def test_a_grant_table_that_does_not_grow(bench: Bench) -> None:
    body = """
    from guest_kernel.errors import GrantError
    taken = 0
    await self.sleep(0.002)
    try:
        for taken in range(2000):
            self.kernel.grants.take_ref()
    except GrantError as error:
        self.print("no more after", taken, type(error).__name__)
    """
    bench.run(body, "exhaust-grants:at=1ms")
    assert int(bench.text.partition("no more after ")[2].split()[0]) < 512


def test_no_memory_for_a_new_guest(bench: Bench) -> None:
    result = bench.run(READS, "exhaust-memory")
    assert not result.domains[1].lives
    assert result.exit_code == 1


def test_a_used_up_quota(bench: Bench) -> None:
    body = """
    from guest_kernel.xenbus import XenstoreError
    for moment in range(3):
        await self.sleep(0.01)
        try:
            await self.kernel.xenbus.write(f"data/mine{moment}", "x")
            self.print("wrote", moment)
        except XenstoreError as error:
            self.print("refused", moment, error)
    """
    bench.run(body, "exhaust-quota:at=15ms:for=10ms")
    assert "wrote 0" in bench.text
    assert "refused 1" in bench.text
    assert "ENOSPC" in bench.text or "EQUOTA" in bench.text
    assert "wrote 2" in bench.text


@pytest.mark.parametrize("side", ["frontend", "backend"])
def test_an_end_that_does_not_post(bench: Bench, side: str) -> None:
    result = bench.run(READS, f"stop-posting:at=10ms:side={side}")
    assert "read 5" in bench.text
    assert "done" not in bench.text
    assert result.domains[1].failed


def test_slots_that_change(bench: Bench) -> None:
    result = bench.run(READS, "ring-mutate:at=5ms:probability=1:count=20")
    assert result.faults[0].struck == 20


def test_a_partition_ends(tmp_path: Path) -> None:
    trial = run_trial(5, ["partition:domain=victim1:at=5ms:for=20ms"])
    assert trial.problems == []
    assert trial.struck > 0


def test_a_fault_is_in_the_trace(bench: Bench, tmp_path: Path) -> None:
    bench.run(READS, "kill-domain:at=12ms", trace=tmp_path / "t")
    faults = [record for record in read_trace(tmp_path / "t")[1] if record[3] == tp.FAULT]
    assert [(record[1], record[4]) for record in faults] == [(1, "kill-domain")]
    assert faults[0][0] == 12_000_000


def test_the_same_seed_does_the_same(bench: Bench, tmp_path: Path) -> None:
    for name in ("a", "b"):
        bench.run(READS, "event-delay:probability=0.3", "disk-fail:probability=0.2", trace=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_victim_that_nobody_knows(bench: Bench) -> None:
    with pytest.raises(UsageError, match="there is no guest 'h'"):
        bench.run(READS, "event-drop:domain=h")


# -- the soak -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MENU)
def test_each_fault_alone(name: str) -> None:
    """The bystander and the other victim get everything done, and nothing acknowledged is lost."""
    keys = MENU[name].keys
    text = name + (":domain=victim1" if "domain" in keys else "") + (":at=8ms" if "at" in keys else "")
    trial = run_trial(1, [text])
    assert trial.problems == []
    assert trial.struck > 0


def test_some_seeds() -> None:
    trials = [run_trial(seed) for seed in range(12)]
    assert [trial for trial in trials if trial.problems] == []
    assert run_trial(3) == trials[3]


def test_dice_make_faults_that_can_be() -> None:
    names = set()
    for seed in range(300):
        for text in roll(seed, list(GUESTS), 3):
            spec = parse_fault(text)
            names.add(spec.name)
            assert spec.domain != GUESTS[-1]
    assert names == set(MENU)


def test_a_backend_that_lies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that acknowledges writes which it has thrown away."""
    from hypervisor.machine.backing import RawFile

    original = RawFile.writev
    count = 0

    def lossy(self: RawFile, views: list[memoryview], offset: int, size: int) -> int:
        nonlocal count
        count += 1
        return 0 if count % 20 == 0 else original(self, views, offset, size)

    monkeypatch.setattr(RawFile, "writev", lossy)
    trial = run_trial(1, ["event-delay:domain=victim1"])
    assert any("was acknowledged and flushed" in problem for problem in trial.problems)
    assert trial.command in ("paravirt soak --verbose --seeds 1 --fault event-delay:domain=victim1",)


def test_a_journal_judges() -> None:
    journal = Journal(2)
    slot = journal.slots[5]
    slot.stored, slot.attempts = 3, [4, 5]
    assert journal.judge(5, content(2, 5, 3), allow_torn=False) == ""
    assert journal.judge(5, content(2, 5, 5), allow_torn=False) == ""
    assert "version 2" in journal.judge(5, content(2, 5, 2), allow_torn=True)
    assert "version 0" in journal.judge(5, bytes(SLOT_SECTORS * 512), allow_torn=True)
    mixed = content(2, 5, 3)[:1024] + content(2, 5, 4)[1024:]
    assert journal.judge(5, mixed, allow_torn=True) == ""
    assert "pieces" in journal.judge(5, mixed, allow_torn=False)
    assert "nobody" in journal.judge(5, content(2, 6, 3), allow_torn=True)
    assert "nobody" in journal.judge(5, content(1, 5, 3), allow_torn=True)
