"""The checks of lab 10: domains run on a host, and what they got is measured by Xen's books."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import trio

from hypervisor.abi import errno, xen
from hypervisor.abi import vcpu as vcpu_abi
from hypervisor.abi.cpu import Cpu
from hypervisor.sched.costs import Costs
from hypervisor.sched.policy import Policy
from labs.kit.bench import Bench, Dom, Refusing, Watched, boot_info, free_page
from labs.kit.check import Checks, Work, expect, expect_equal
from toolstack.host import Host
from toolstack.xl_config import parse_config

CHECKS = Checks()
check = CHECKS.check

MS = 1_000_000
Run = Generator[int, None, None]


def burn(ns: int, piece: int = MS) -> Run:
    """Compute for so long, in pieces."""
    while ns > 0:
        yield min(ns, piece)
        ns -= piece


# -- part 1 -----------------------------------------------------------------------------------------------------------


@check(15, "runstate")
def runstate(work: Work) -> None:
    """Xen keeps the account where it was told, and it is read as it stands there."""
    lab = work.load("scheduling")
    offset = 8 * work.rng.randrange(1, 400)
    pieces = [work.rng.randrange(1, 9) * MS for _ in range(5)]

    def program(cpu: Cpu, start: int) -> Run:
        info = boot_info(cpu, start)
        lab.register_runstate(cpu, free_page(info), free_page(info, 1) + offset)
        view = cpu.view(free_page(info, 1))[offset:]
        before_at = cpu.rdtsc()
        before = lab.read_runstate(view, before_at)
        for piece in pieces:
            yield from burn(piece)
        yield 0
        now = cpu.rdtsc()
        after = lab.read_runstate(view, now)
        expect_equal(after.state, 0, "the state of a vCPU that reads its own state (0 is running)")
        ran = after.times[0] - before.times[0]
        expect(abs(ran - sum(pieces)) < MS, f"a vCPU has computed for {sum(pieces)} ns, and times[0] grows by {ran}")
        expect(before.since <= after.since <= now, f"state_entry_time is {after.since}, at {now}")
        expect(abs(sum(after.times) - sum(before.times) - (now - before_at)) < 1000, "the four times do not add up")
        try:
            lab.register_runstate(Refusing(cpu, errno.EFAULT), free_page(info), free_page(info, 1))
        except OSError as error:
            expect_equal(error.errno, errno.EFAULT, "the errno of the OSError where Xen answers -EFAULT")
        else:
            expect(False, "where Xen answers -EFAULT, register_runstate raises no OSError")

    Bench().run_guests(Dom(program))


@check(10, "stolen")
def stolen(work: Work) -> None:
    """A vCPU knows how much of its time others have had."""
    lab = work.load("scheduling")
    others = work.rng.randrange(1, 4)
    found: list[tuple[float, float]] = []

    def program(cpu: Cpu, start: int) -> Run:
        info = boot_info(cpu, start)
        area = free_page(info, 1)
        lab.register_runstate(cpu, free_page(info), area)
        yield 0
        before, began, mine = lab.read_runstate(cpu.view(area), cpu.rdtsc()), cpu.rdtsc(), 0
        while cpu.rdtsc() < began + 300 * MS:
            yield MS
            mine += MS
        after = lab.read_runstate(cpu.view(area), cpu.rdtsc())
        found.append((lab.stolen(before, after), 1 - mine / (cpu.rdtsc() - began)))

    def other(cpu: Cpu, start: int) -> Run:
        yield from burn(2000 * MS)

    Bench().run_guests(Dom(program, ends_host=True), *(Dom(other) for _ in range(others)))
    told, wanted = found[0]
    expect(abs(told - wanted) < 0.02, f"stolen() is {told:.3f}, and beside {others} others {wanted:.3f} were lost")
    same = lab.Runstate(0, 5, (1, 2, 3, 4))
    expect_equal(lab.stolen(same, same), 0, "stolen() of no time at all")


@check(10, "nap")
def nap(work: Work) -> None:
    """A kernel without event channels sleeps until its time has come, and leaves the processor to others."""
    lab = work.load("scheduling")

    def program(cpu: Cpu, start: int) -> Run:
        watched, page = Watched(cpu), free_page(boot_info(cpu, start))
        assert cpu.hypercall(xen.HYPERVISOR_vcpu_op, vcpu_abi.VCPUOP_stop_periodic_timer, 0, 0) == 0
        for _ in range(5):
            began, span = cpu.rdtsc(), work.rng.randrange(2 * MS, 50 * MS)
            yield from lab.nap(watched, page, began + span)
            late = cpu.rdtsc() - began - span
            expect(0 <= late < MS, f"a nap of {span} ns ends {late} ns after its time")
        made = len(watched.calls)
        expect(made <= 10, f"five naps make {made} hypercalls: the kernel waits in a loop")
        try:
            yield from lab.nap(Refusing(cpu, errno.EFAULT), page, cpu.rdtsc() + MS)
        except OSError:
            return
        expect(False, "where Xen answers -EFAULT, nap() raises no OSError")

    Bench().run_guests(Dom(program))


# -- part 2 -----------------------------------------------------------------------------------------------------------


class Judged(Policy):
    """A policy of the hypervisor's that asks the submission."""

    preempts = True

    def __init__(self, stride: Any) -> None:
        self._stride = stride
        self._chosen: Any = None
        self._ran = 0
        self.failure: Exception | None = None

    def choose(self, runnable: Sequence[Any]) -> int:
        """Return the index of the vCPU that runs next."""
        if self.failure is not None:
            return 0
        try:
            return self._ask(runnable)
        except Exception as error:
            self.failure = error
            return 0

    def _ask(self, runnable: Sequence[Any]) -> int:
        if self._chosen is not None:
            self._stride.ran(self._chosen.domain.domid, self._chosen.time_running - self._ran)
        domids = [vcpu.domain.domid for vcpu in runnable]
        chosen = self._stride.choose(list(domids))
        expect(chosen in domids, f"choose({domids}) returns {chosen!r}, which does not want to run")
        self._chosen = runnable[domids.index(chosen)]
        self._ran = self._chosen.time_running
        return domids.index(chosen)


def compete(lab: Any, weights: dict[int, int], *uses: Callable[[Bench, Cpu], Run]) -> None:
    """Run programs as domains 1, 2, ... under the submission's scheduler, until the first one ends."""
    policy = Judged(lab.Stride(weights, 100))
    bench = Bench(policy=policy, costs=Costs(switch=0))

    def make(use: Callable[[Bench, Cpu], Run]) -> Callable[[Cpu, int], Run]:
        def program(cpu: Cpu, start: int) -> Run:
            yield from use(bench, cpu)

        return program

    doms = [Dom(make(use)) for use in uses]
    doms[0].ends_host = True
    try:
        bench.run_guests(*doms)
    finally:
        if policy.failure is not None:
            raise policy.failure


def got(bench: Bench, domid: int) -> int:
    """Return how many ns a domain has run."""
    vcpu = bench.hv.domains[domid].vcpu(0)
    assert vcpu is not None
    return vcpu.time_running


@check(20, "shares")
def shares(work: Work) -> None:
    """Domains that compute all the time get their shares, to the percent."""
    lab = work.load("scheduling")
    weights = {domid: work.rng.randrange(50, 1000) for domid in (1, 2, 3)}
    spans: dict[int, int] = {}

    def burner(bench: Bench, cpu: Cpu) -> Run:
        yield from burn(3000 * MS)

    def measured(bench: Bench, cpu: Cpu) -> Run:
        while cpu.rdtsc() < 100 * MS:
            yield MS
        spans.update({domid: -got(bench, domid) for domid in weights})
        while cpu.rdtsc() < 1300 * MS:
            yield MS
        for domid in weights:
            spans[domid] += got(bench, domid)

    compete(lab, weights, measured, burner, burner)
    for domid, weight in weights.items():
        found, wanted = spans[domid] / sum(spans.values()), weight / sum(weights.values())
        told = f"of the weights {list(weights.values())}, domain {domid} with {weight}"
        expect(abs(found - wanted) < 0.02, f"{told} got {found:.1%} of the processor, and should get {wanted:.1%}")


@check(10, "default weight")
def default_weight(work: Work) -> None:
    """A domain without a weight of its own has the default one."""
    lab = work.load("scheduling")
    default = work.rng.randrange(10, 500)
    stride = lab.Stride({1: 2 * default}, default)
    turns = {1: 0, 7: 0}
    for _ in range(300):
        chosen = stride.choose([1, 7])
        turns[chosen] += 1
        stride.ran(chosen, MS)
    expect(abs(turns[1] - 200) <= 2, f"with weights of 2:1, the turns of 300 are {turns[1]} and {turns[7]}")


@check(15, "sleepers")
def sleepers(work: Work) -> None:
    """Who has slept does not get the time back that he did not want."""
    lab = work.load("scheduling")
    stride = lab.Stride({}, 100)
    for _ in range(work.rng.randrange(500, 2000)):
        stride.ran(stride.choose([1]), MS)
    turns = []
    for _ in range(100):
        chosen = stride.choose([1, 2])
        turns.append(chosen)
        stride.ran(chosen, MS)
    expect(2 in turns[:3], "a domain that has just come has to wait for more than two turns")
    expect(45 <= turns.count(1) <= 55, f"of 100 turns after domain 2 has come, domain 1 gets {turns.count(1)}")
    for _ in range(1000):
        stride.ran(stride.choose([2]), MS)
    turns = []
    for _ in range(100):
        chosen = stride.choose([1, 2])
        turns.append(chosen)
        stride.ran(chosen, MS)
    expect(45 <= turns.count(2) <= 55, f"of 100 turns after domain 1 has slept, domain 2 gets {turns.count(2)}")


# -- part 3 -----------------------------------------------------------------------------------------------------------

BURNER = """
from guest_kernel.guest import Guest

class Burner(Guest):
    async def main(self):
        while self.kernel.monotonic_ns() < {end}:
            await self.cpu(ns=1_000_000)
"""
END_NS = 3000 * MS


def measure(settings: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Run domains with these weights and caps under credit2; return which part of the time each has run."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "burner.py").write_text(BURNER.format(end=END_NS))
        configs = []
        for domain, (weight, cap) in settings.items():
            text = f'name = "{domain}"\nmemory = 8\nkernel = "burner.py"\ncpu_weight = {weight}\ncap = {cap}\n'
            configs.append(parse_config(text, f"{domain}.cfg", root))
        host = Host(scheduler="credit2")
        trio.run(host.run, configs)
        return {domain: host.results[domain].usage.cpu_ns / END_NS for domain in settings}


def judge(lab: Any, wanted: dict[str, float]) -> None:
    """See whether settings give the shares that are wanted."""
    made = lab.settings(dict(wanted))
    expect_equal(sorted(made), sorted(wanted), "the domains in what settings() returns")
    for weight, cap in made.values():
        expect(isinstance(weight, int) and 1 <= weight <= 65535, f"a weight is {weight!r}: from 1 to 65535, please")
        expect(isinstance(cap, int) and 0 <= cap <= 100, f"a cap is {cap!r}: from 0 to 100, please")
    for domain, found in measure(made).items():
        told = f"with {made}, {domain} gets {found:.1%} of the processor"
        expect(abs(found - wanted[domain]) < 0.03, f"{told}, and should get {wanted[domain]:.1%}")


@check(10, "weights")
def weights(work: Work) -> None:
    """The whole processor is shared out, by weights."""
    parts = [work.rng.randrange(2, 9) for _ in range(3)]
    judge(work.load("scheduling"), {f"vm{number}": part / sum(parts) for number, part in enumerate(parts)})


@check(10, "caps")
def caps(work: Work) -> None:
    """A part of the processor stays idle, by caps."""
    judge(
        work.load("scheduling"), {"small": work.rng.randrange(5, 20) / 100, "large": work.rng.randrange(30, 60) / 100}
    )
