"""A life of a guest: booted, left in peace until it rests, treated as a scenario says, asked to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, final

import attrs
import trio

from backends.xenstored.daemon import XenStored
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


@final
class Life:
    """What is known of one life when it is over."""

    def __init__(self) -> None:
        self.recorder = Recorder()
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
        node = f"{self.live.home}/control/shutdown"
        await self.kernel.xenbus.write(node, request)
        for _ in range(END_NS // LOOK_NS):
            if self.domain is None:
                return
            await self.kernel.sleep(LOOK_NS)

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
        self.observer = life.recorder.observe

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
        recorder.at_first_call = partial(self._note_console, f"/local/domain/{domid}/console".encode())
        recorder.at_end = partial(self._note_answer, f"/local/domain/{domid}/control/shutdown".encode())
        recorder.unmapped_count = self.hv.frames.count[self.hv.domains[domid].shared_info_mfn]

    def _note_console(self, home: bytes) -> None:
        """Find the page and the port of the guest's console, as the toolstack has named them."""
        tree = self.xenstored.server.store.tree
        frame, port = tree.get(home + b"/ring-ref"), tree.get(home + b"/port")
        recorder = self._life.recorder
        recorder.console_mfn = 0 if frame is None else int(frame.value)
        recorder.console_port = 0 if port is None else int(port.value)

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
        if life.rested:
            life.can_suspend = await kernel.xenbus.read_or_none(f"{live.home}/control/feature-suspend") == "1"
            await self._act(stage)
        self._note_store(live.domid)
        await stage.end(self._request)
        if stage.domain is not None:
            await lifecycle.condemn(live)

    def _note_store(self, domid: int) -> None:
        for connection in self.xenstored.server.connections:
            if connection.id == domid:
                self._life.store_error = connection.error
                self._life.watches = len(connection.watches)


async def _nothing(_stage: Stage) -> None:
    return None


async def _events(stage: Stage) -> None:
    """Raise two hundred events without a cause, close together and apart."""
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
    lifecycle.xc.pause(stage.live.domid)
    await stage.kernel.sleep(5_000_000_000)
    lifecycle.xc.unpause(stage.live.domid)
    await stage.kernel.sleep(1_000_000_000)


async def _nonsense(stage: Stage) -> None:
    """Ask for what nobody knows."""
    for word in ("dance", "poweroffx", "POWEROFF", "x" * 1000):
        await stage.kernel.xenbus.write(f"{stage.live.home}/control/shutdown", word)
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


def live(subject: Subject, scenario: str) -> Life:
    """Have a guest live once."""
    life = Life()
    host = _Host(life, *SCENARIOS[scenario])
    trio.run(host.run, [subject.config])
    result = host.results[subject.config.name]
    life.reason, life.message = result.reason, result.message
    return life
