"""The checks of lab 5. The submission's event channels are those of domUs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from guest_kernel.symbols import SYMBOLS
from hypervisor.abi import event_channel as ev
from hypervisor.abi import sched, vcpu, xen
from hypervisor.abi.cpu import Cpu
from labs.kit.bench import Bench, Dom, Watched, boot_info, free_page
from labs.kit.check import Checks, Work, expect, expect_equal

CHECKS = Checks()
check = CHECKS.check

CALLBACK = SYMBOLS["event_callback.0"]
PENDING, MASK = 2048, 2560
Run = Generator[int, None, Any]


class Scene:
    """What a check's kernel has; its `events` are the submission's."""

    def __init__(self, lab: Any, bench: Bench, dom: Dom, cpu: Cpu, start: int) -> None:
        self.hv, self.lab = bench.hv, lab
        self.domid = dom.domid
        self.watched = Watched(cpu)
        self.info = boot_info(cpu, start)
        va = free_page(self.info, 1)
        entry = self.info.shared_info | 3
        assert cpu.hypercall(xen.HYPERVISOR_update_va_mapping, va, entry, xen.UVMF_INVLPG) == 0
        self.shared = cpu.view(va)
        self.words = self.shared.cast("Q")
        self.shared[MASK : MASK + 512] = b"\xff" * 512
        self.shared[1] = 1
        # No tick that would wake us: who sleeps is woken by what he waits for.
        assert cpu.hypercall(xen.HYPERVISOR_vcpu_op, vcpu.VCPUOP_stop_periodic_timer, 0, 0) == 0
        self.page = free_page(self.info, 2)
        self.cpu = cpu
        self.events = lab.Events(self.watched, free_page(self.info), self.shared)

    def operate(self, command: int, layout: Any, **members: Any) -> Any:
        """Make an event channel operation that is not the submission's."""
        layout.pack_into(self.cpu.view(self.page), 0, **members)
        result = self.cpu.hypercall(xen.HYPERVISOR_event_channel_op, command, self.page)
        assert result == 0, result
        return layout.unpack_from(self.cpu.view(self.page))

    def bind_ipi(self) -> int:
        """Return a port to oneself."""
        return int(self.operate(ev.EVTCHNOP_bind_ipi, ev.evtchn_bind_ipi, vcpu=0).port)

    def raise_event(self, port: int) -> None:
        """Send on a port, past the submission."""
        self.operate(ev.EVTCHNOP_send, ev.evtchn_send, port=port)

    def status(self, port: int) -> Any:
        """Return what Xen says of a port."""
        return self.operate(ev.EVTCHNOP_status, ev.evtchn_status, dom=xen.DOMID_SELF, port=port)

    def is_pending(self, port: int) -> bool:
        """Return a port's pending bit."""
        return bool(self.words[PENDING // 8 + port // 64] >> port % 64 & 1)

    def is_masked(self, port: int) -> bool:
        """Return a port's mask bit."""
        return bool(self.words[MASK // 8 + port // 64] >> port % 64 & 1)


def kernels(lab: Any, *uses: Callable[[Scene], Any]) -> list[Any]:
    """Run each of `uses` (generator functions, or plain ones) as a kernel; return what they return."""
    bench = Bench()
    found: list[Any] = [None] * len(uses)
    doms: list[Dom] = []

    def make(number: int) -> Callable[[Cpu, int], Generator[int, None, None]]:
        def program(cpu: Cpu, start: int) -> Generator[int, None, None]:
            made = uses[number](Scene(lab, bench, doms[number], cpu, start))
            if isinstance(made, Generator):
                made = yield from made
            found[number] = made

        return program

    doms.extend(Dom(make(number)) for number in range(len(uses)))
    bench.run_guests(*doms)
    return found


def pause(turns: int = 3) -> Run:
    """Let upcalls come."""
    for _ in range(turns):
        yield 0


@check(10, "ports")
def ports(work: Work) -> None:
    """Ports are made, bound to each other and closed, by Xen's books."""
    lab = work.load("events")
    rendezvous: dict[str, int] = {}

    def first(scene: Scene) -> Run:
        port = scene.events.alloc_unbound(2)
        found = scene.status(port)
        expect_equal(found.status, ev.EVTCHNSTAT_unbound, "the status of the port that alloc_unbound returns")
        expect_equal(found.u.unbound.dom, 2, "the domain that may bind to it")
        rendezvous["port"] = port
        while "done" not in rendezvous:
            yield 1000
        expect_equal(scene.status(port).status, ev.EVTCHNSTAT_unbound, "the status after the other end has closed its")
        scene.events.close(port)
        expect_equal(scene.status(port).status, ev.EVTCHNSTAT_closed, "the status of a port after close()")

    def second(scene: Scene) -> Run:
        while "port" not in rendezvous:
            yield 1000
        port = scene.events.bind_interdomain(1, rendezvous["port"])
        found = scene.status(port)
        expect_equal(found.status, ev.EVTCHNSTAT_interdomain, "the status of the port that bind_interdomain returns")
        expect_equal(found.u.interdomain.port, rendezvous["port"], "the port at its other end")
        try:
            scene.events.bind_interdomain(1, 1000)
        except lab.XenError as error:
            expect_equal(error.errno, 22, "the errno for a port that does not exist")
        else:
            expect(False, "binding to a port that does not exist raises no XenError")
        scene.events.close(port)
        rendezvous["done"] = 1

    kernels(lab, first, second)


@check(20, "upcall")
def upcall(work: Work) -> None:
    """Everything that is pending is handled by one upcall, over several words, each port once."""
    lab = work.load("events")

    def use(scene: Scene) -> Run:
        numbers = [scene.bind_ipi() for _ in range(150)]
        heard: list[int] = []
        for port in numbers:
            scene.events.on(port, lambda port=port: heard.append(port))
        scene.events.install(CALLBACK)
        chosen = work.rng.sample(numbers, 25)
        for port in chosen:
            scene.raise_event(port)
        yield from pause(1)
        expect_equal(sorted(heard), sorted(chosen), "the ports whose handlers were called by the upcall")
        left = [port for port in chosen if scene.is_pending(port)]
        expect(not left, f"port {left[:1]} is still pending after its handler was called")
        yield from pause()
        expect_equal(len(heard), len(chosen), "the number of calls, though nothing more has happened,")
        expect_equal(scene.words[1], 0, "evtchn_pending_sel after the upcall")

    kernels(lab, use)


@check(15, "edges")
def edges(work: Work) -> None:
    """An event that comes while the handler of its port runs is not lost."""
    lab = work.load("events")
    wanted = work.rng.randrange(5, 20)

    def use(scene: Scene) -> Run:
        port, calls = scene.bind_ipi(), [0]

        def handler() -> None:
            calls[0] += 1
            if calls[0] < wanted:
                scene.raise_event(port)

        scene.events.on(port, handler)
        scene.events.install(CALLBACK)
        scene.raise_event(port)
        yield from pause(wanted + 5)
        expect_equal(calls[0], wanted, "how often a handler runs that raises its own event again each time,")

    kernels(lab, use)


@check(10, "mask")
def mask(work: Work) -> None:
    """A masked port is quiet, and what came meanwhile is delivered when it is unmasked."""
    lab = work.load("events")

    def use(scene: Scene) -> Run:
        first, second = scene.bind_ipi(), scene.bind_ipi()
        heard: list[int] = []
        scene.events.on(first, lambda: heard.append(first))
        scene.events.on(second, lambda: heard.append(second))
        scene.events.install(CALLBACK)
        scene.events.mask(first)
        expect(scene.is_masked(first), "mask() leaves the port's bit in evtchn_mask clear")
        expect(not scene.is_masked(second), "mask() masks another port, too")
        scene.raise_event(first)
        scene.raise_event(second)
        yield from pause()
        expect_equal(heard, [second], "the ports heard of, with the first one masked,")
        scene.events.unmask(first)
        yield from pause()
        expect_equal(heard, [second, first], "the ports heard of after unmasking")

    kernels(lab, use)


@check(10, "install")
def install(work: Work) -> None:
    """What was pending before the callback was registered is handled; upcalls come."""
    lab = work.load("events")

    def use(scene: Scene) -> Run:
        port, heard = scene.bind_ipi(), []
        scene.events.on(port, lambda: heard.append(port))
        scene.raise_event(port)
        yield from pause()
        expect(not heard, "a handler was called before install()")
        scene.events.install(CALLBACK)
        yield from pause()
        expect_equal(heard, [port], "the ports heard of after install(), one event being pending before,")

    kernels(lab, use)


@check(10, "strangers")
def strangers(work: Work) -> None:
    """A port without handler, and bits that somebody else has set, do no harm."""
    lab = work.load("events")

    def use(scene: Scene) -> Run:
        known, unknown = scene.bind_ipi(), scene.bind_ipi()
        heard: list[int] = []
        scene.events.on(known, lambda: heard.append(known))
        scene.events.install(CALLBACK)
        scene.operate(ev.EVTCHNOP_unmask, ev.evtchn_unmask, port=unknown)
        stray = work.rng.randrange(1000, 4000)
        scene.words[MASK // 8 + stray // 64] = 0
        scene.words[PENDING // 8 + stray // 64] |= 1 << stray % 64
        scene.words[1] |= 1 << stray // 64
        scene.raise_event(unknown)
        scene.raise_event(known)
        yield from pause()
        expect_equal(heard, [known], "the ports heard of")
        expect(not scene.is_pending(unknown), "a port without handler stays pending")

    kernels(lab, use)


@check(15, "wait")
def wait(work: Work) -> None:
    """Two domains pass a ball to and fro, and sleep in between."""
    lab = work.load("events")
    rounds = work.rng.randrange(40, 80)
    rendezvous: dict[str, int] = {}
    balls = {1: 0, 2: 0}

    def player(scene: Scene, port: int, serves: bool) -> Run:
        events, caught = scene.events, [0]

        def catch() -> None:
            caught[0] += 1

        events.on(port, catch)
        # A port that has just been bound is pending: that is not the ball yet.
        yield from pause(2)
        caught[0] = 0
        rendezvous[f"ready{scene.domid}"] = 1
        while len(rendezvous) < 3:
            yield 1000
        for number in range(rounds):
            if serves:
                balls[scene.domid] += 1
                events.send(port)
            yield from events.wait(lambda number=number: caught[0] > number)
            if not serves:
                balls[scene.domid] += 1
                events.send(port)
        blocked = len(scene.watched.results(xen.HYPERVISOR_sched_op, sched.SCHEDOP_block))
        expect(blocked >= rounds // 2, f"in {rounds} rounds the kernel blocked {blocked} times: it waits in a loop")

    def first(scene: Scene) -> Run:
        scene.events.install(CALLBACK)
        port = scene.events.alloc_unbound(2)
        rendezvous["port"] = port
        yield from player(scene, port, serves=True)

    def second(scene: Scene) -> Run:
        scene.events.install(CALLBACK)
        while "port" not in rendezvous:
            yield 1000
        port = scene.events.bind_interdomain(1, rendezvous["port"])
        yield from player(scene, port, serves=False)

    kernels(lab, first, second)
    expect_equal(balls, {1: rounds, 2: rounds}, "how often each has thrown")


@check(10, "sleep_until")
def sleep_until(work: Work) -> None:
    """The timer wakes at its time, not before, and leaves no port behind."""
    lab = work.load("events")

    def use(scene: Scene) -> Run:
        scene.events.install(CALLBACK)
        for _ in range(3):
            span = work.rng.randrange(2_000_000, 90_000_000)
            deadline = scene.cpu.rdtsc() + span
            yield from scene.events.sleep_until(deadline)
            late = scene.cpu.rdtsc() - deadline
            expect(late >= 0, f"sleep_until() ends {-late} ns before its time")
            expect(late < 1_000_000, f"sleep_until() ends {late} ns after its time")
            still = [port for port in range(1, 40) if _is_timer(scene, port)]
            expect(not still, f"port {still} is still bound to VIRQ_TIMER after sleep_until()")

    kernels(lab, use)


def _is_timer(scene: Scene, port: int) -> bool:
    found = scene.status(port)
    return bool(found.status == ev.EVTCHNSTAT_virq and found.u.virq == xen.VIRQ_TIMER)
