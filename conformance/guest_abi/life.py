"""A life of a guest: booted, left in peace until it rests, treated as a scenario says, asked to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, final

import attrs
import trio

from backends.xenstored.daemon import XenStored
from conformance.guest_abi.lines import GuestLines
from conformance.guest_abi.recorder import Recorder
from conformance.guest_abi.subject import Subject
from guest_kernel.kernel import Kernel
from hypervisor.abi.io.console import xencons_interface
from hypervisor.domain import Domain
from hypervisor.event_channel.channel import FREE, RESERVED
from toolstack.domains import LiveDomain
from toolstack.host import Host
from toolstack.lifecycle import Lifecycle

HANG_LIMIT: Final = 60.0
LOOK_NS: Final = 100_000_000
BOOT_NS: Final = 60_000_000_000
"""Virtual time in which a kernel has to come to rest."""
END_NS: Final = 30_000_000_000
"""Virtual time in which it has to end when it is asked to."""
BUSY_NS: Final = 3_000_000_000
"""Time of processors after which a kernel that has never rested is taken for one that never will."""
BUSY: Final = 0.5
"""The share of a processor up to which a guest counts as at rest."""
LOOKS_AT_REST: Final = 5


@attrs.frozen
class Rest:
    """What a guest looked like at rest."""

    lost: tuple[int, ...]
    """Ports that were pending and not masked all the while, though it slept."""
    granted_to: tuple[int, ...]
    """The domains that it lets at its pages."""


def ports_are(ports: Sequence[int]) -> str:
    """Return the beginning of a sentence about ports."""
    return f"port{'s' * (len(ports) > 1)} {', '.join(map(str, ports))} {'is' if len(ports) == 1 else 'are'}"


@final
class Life:
    """What is known of one life when it is over. If it is to be told, what has happened is there in lines, too."""

    def __init__(self, is_told: bool = False) -> None:
        self.recorder = Recorder()
        self.teller = GuestLines(self.recorder) if is_told else None
        self.rested = False
        """It came to rest before it ended."""
        self.rest: Rest | None = None
        self.asked = ""
        """What it was asked to do in the end; empty if it ended by itself."""
        self.answered = False
        """It has emptied the node in which it was asked."""
        self.survived = False
        """It still ran when it was asked to end."""
        self.reason = ""
        self.message = ""
        self.store_error = 0
        """Why xenstored has given its ring up; 0 if it has not."""
        self.watches = 0
        """How many it had in xenstore before it was asked to end."""
        self.can_suspend = False

    def hear(self, *record: Any) -> None:
        """Take a record of the host's."""
        self.recorder.observe(*record)
        if self.teller is not None:
            self.teller.hear(*record)

    def tell(self, who: str, text: str) -> None:
        """Have something told that nobody could hear."""
        if self.teller is not None:
            self.teller.say(who, text)

    def remark(self, text: str) -> None:
        """Have something told that the check has seen."""
        if self.teller is not None:
            self.teller.remark(text)

    def tell_no_more(self) -> None:
        """Have what follows not told."""
        if self.teller is not None:
            self.teller.stop()


Act = Callable[["Stage"], Awaitable[None]]
"""What is done to a guest at rest."""


@final
class Stage:
    """The host, from dom0, while a guest lives."""

    def __init__(self, kernel: Kernel, host: _Host, live: LiveDomain, life: Life) -> None:
        self.kernel = kernel
        self.host = host
        self.live = live
        self.life = life

    @property
    def domain(self) -> Domain | None:
        """The guest's domain, as long as it runs."""
        domain = self.host.hv.domains.get(self.live.domid)
        return None if domain is None or domain.shutting_down or domain.is_dying else domain

    async def rest(self) -> bool:
        """Wait until the guest rests; return whether it has come to that."""
        quiet = 0
        for _ in range(BOOT_NS // LOOK_NS):
            before = self._used()
            await self.kernel.sleep(LOOK_NS)
            if self.domain is None:
                return False
            quiet = quiet + 1 if self._used() - before < BUSY * LOOK_NS else 0
            if quiet >= LOOKS_AT_REST:
                return True
            if self._used() > BUSY_NS and not quiet:
                return False
        return False

    def _used(self) -> int:
        domain = self.domain
        return 0 if domain is None else sum(vcpu.time_running for vcpu in domain.online_vcpus())

    async def look(self) -> Rest | None:
        """Take down what the guest looks like."""
        lost = self._waiting()
        for _ in range(LOOKS_AT_REST):
            await self.kernel.sleep(LOOK_NS)
            lost &= self._waiting()
        domain = self.domain
        if domain is None:
            return None
        table = domain.grant_table
        words = [table.memory.q[slot] for slot in table.slot]
        granted = {word >> 16 & 0xFFFF for word in words if word & 3 == 1}
        return Rest(tuple(sorted(lost)), tuple(sorted(granted)))

    def _waiting(self) -> set[int]:
        """Return the ports that are pending and not masked."""
        domain = self.domain
        if domain is None:
            return set()
        bound = [channel for channel in domain.ports if channel.state not in (FREE, RESERVED)]
        ops = domain.port_ops
        return {channel.port for channel in bound if ops.is_pending(channel) and not ops.is_masked(channel)}

    async def end(self, request: str) -> None:
        """Ask the guest to end, and see to it that it does."""
        life = self.life
        if self.domain is None:
            return
        life.survived = True
        life.asked = request
        await self.ask(request)
        for _ in range(END_NS // LOOK_NS):
            if self.domain is None:
                return
            await self.kernel.sleep(LOOK_NS)
        life.remark("Half a minute has passed, and it has not ended.")

    async def ask(self, request: str) -> None:
        """Have the toolstack ask the guest for something."""
        self.life.tell("dom0", f"writes control/shutdown: {request!r}" if len(request) < 100 else "writes a long word")
        await self.kernel.xenbus.write(f"{self.live.home}/control/shutdown", request)

    def raise_all(self) -> None:
        """Raise an event at each of the guest's ports, without a cause."""
        domain = self.domain
        if domain is not None:
            for channel in domain.ports:
                if channel.state not in (FREE, RESERVED):
                    domain.set_pending(channel)


@final
class _Host(Host):
    """A host with one guest, somebody in dom0 who does what the scenario says, and somebody outside who looks on."""

    def __init__(self, life: Life, act: Act, request: str) -> None:
        super().__init__(hang_limit=HANG_LIMIT)
        self._life = life
        self._act = act
        self._request = request
        self.observer = life.hear

    def started(self, lifecycle: Lifecycle, xenstored: XenStored) -> None:
        """Begin the scenario, too."""
        super().started(lifecycle, xenstored)
        kernel = self.kernels[0]
        kernel.spawn(self._steer(kernel, lifecycle), "the check")

    def load_machine_code(self, domid: int, name: str) -> None:
        """Take note of the guest."""
        super().load_machine_code(domid, name)
        self._note(domid)

    def load(self, domid: int, image: object) -> None:
        """Take note of the guest."""
        super().load(domid, image)  # type: ignore[arg-type]
        self._note(domid)

    def _note(self, domid: int) -> None:
        recorder = self._life.recorder
        recorder.hv, recorder.domid = self.hv, domid
        recorder.at_first_call = partial(self._note_homes, f"/local/domain/{domid}".encode())
        recorder.at_end = partial(self._note_answer, f"/local/domain/{domid}/control/shutdown".encode())
        recorder.unmapped_count = self.hv.frames.count[self.hv.domains[domid].shared_info_mfn]

    def _note_homes(self, home: bytes) -> None:
        """Find the pages and the ports of the guest's console and store, as the toolstack has named them."""
        recorder = self._life.recorder
        console = self._page(home + b"/console")
        recorder.console_mfn, recorder.console_port = console
        if self._life.teller is not None:
            self._life.teller.at_home(console, self._page(home + b"/store"))

    def _page(self, home: bytes) -> tuple[int, int]:
        """Return frame and port of a ring; 0 for what is not there."""
        tree = self.xenstored.server.store.tree
        frame, port = tree.get(home + b"/ring-ref"), tree.get(home + b"/port")
        return (0 if frame is None else int(frame.value), 0 if port is None else int(port.value))

    def _note_answer(self, path: bytes) -> None:
        """See, in the moment of its end, whether the guest has acknowledged what it was asked."""
        node = self.xenstored.server.store.tree.get(path)
        self._life.answered = node is not None and not node.value

    async def _steer(self, kernel: Kernel, lifecycle: Lifecycle) -> None:
        life = self._life
        while not lifecycle.live:
            await kernel.sleep(LOOK_NS)
        (live,) = lifecycle.live.values()
        stage = Stage(kernel, self, live, life)
        life.rested = await stage.rest()
        life.rest = await stage.look()
        self._remark(life)
        if life.rested:
            life.can_suspend = await kernel.xenbus.read_or_none(f"{live.home}/control/feature-suspend") == "1"
            await self._act(stage)
        self._note_store(live.domid)
        await stage.end(self._request)
        if stage.domain is not None:
            life.tell_no_more()
            await lifecycle.condemn(live)

    @staticmethod
    def _remark(life: Life) -> None:
        """Say what the guest looks like."""
        if not life.rested:
            life.remark("It has never come to rest." if life.recorder.shutdown is None else "It has ended by itself.")
        elif life.rest is not None:
            events = f"{ports_are(life.rest.lost)} pending and not masked" if life.rest.lost else "no event waits"
            granted = " and ".join(f"domain {domid}" for domid in life.rest.granted_to) or "nobody else"
            life.remark(f"It rests: {events}, {granted} may use its pages.")

    def _note_store(self, domid: int) -> None:
        for connection in self.xenstored.server.connections:
            if connection.id == domid:
                self._life.store_error = connection.error
                self._life.watches = len(connection.watches)


async def _nothing(_stage: Stage) -> None:
    return None


async def _events(stage: Stage) -> None:
    """Raise two hundred events without a cause, close together and apart."""
    stage.life.tell("dom0", "raises events at each of its ports without a cause, two hundred times")
    for number in range(200):
        stage.raise_all()
        await stage.kernel.sleep(50_000 if number % 2 else 1_000_000)


async def _liar(stage: Stage) -> None:
    """Be a daemon of the console that lies about what it has read and put."""
    life = stage.life
    memory = stage.host.hv.memory.i
    names = ("out_cons", "in_prod")
    at = [(life.recorder.console_mfn << 10) + (xencons_interface.offset(name) >> 2) for name in names]
    before = [memory[index] for index in at]
    for ahead in (1, 5000, 0x8000_0000, 0xFFFF_FFFF):
        stage.life.tell("dom0", f"adds {ahead} to {' and '.join(names)} of its console, and raises events")
        for index, value in zip(at, before, strict=True):
            memory[index] = (value + ahead) & 0xFFFF_FFFF
        stage.raise_all()
        await stage.kernel.sleep(50_000_000)
    for index, value in zip(at, before, strict=True):
        memory[index] = value
    # What the guest has made of the lie is not held against it.
    life.recorder.console_mfn = 0


async def _paused(stage: Stage) -> None:
    """Give it no processor for a while, as when a host is suspended with its guests."""
    lifecycle = stage.host.lifecycle
    assert lifecycle is not None
    stage.life.tell("dom0", "pauses it for five seconds")
    lifecycle.xc.pause(stage.live.domid)
    await stage.kernel.sleep(5_000_000_000)
    lifecycle.xc.unpause(stage.live.domid)
    await stage.kernel.sleep(1_000_000_000)


async def _nonsense(stage: Stage) -> None:
    """Ask for what nobody knows."""
    for word in ("dance", "poweroffx", "POWEROFF", "x" * 1000):
        await stage.ask(word)
        await stage.kernel.sleep(200_000_000)


SCENARIOS: Final[dict[str, tuple[Act, str]]] = {
    "peace": (_nothing, "poweroff"),
    "reboot": (_nothing, "reboot"),
    "suspend": (_nothing, "suspend"),
    "events": (_events, "poweroff"),
    "liar": (_liar, "poweroff"),
    "paused": (_paused, "poweroff"),
    "nonsense": (_nonsense, "poweroff"),
}
"""What is done to a guest at rest, and what it is asked for then."""

ABOUT: Final[dict[str, str]] = {
    "peace": "left alone, then asked to power off",
    "reboot": "left alone, then asked to reboot",
    "suspend": "left alone, then asked to suspend",
    "events": "at rest it gets events without a cause",
    "liar": "at rest the daemon of its console lies",
    "paused": "at rest it gets no processor for a while",
    "nonsense": "at rest it is asked for what nobody knows",
}
"""The scenarios in words."""


def live(subject: Subject, scenario: str, is_told: bool = False) -> Life:
    """Have a guest live once."""
    life = Life(is_told)
    host = _Host(life, *SCENARIOS[scenario])
    trio.run(host.run, [subject.config])
    result = host.results[subject.config.name]
    life.reason, life.message = result.reason, result.message
    return life
