"""Endings: what the toolstack asks for through xenstore, and what a guest does by itself."""

from typing import Any

import pytest
from fake_cpu import STORE_PORT, Booted, FakeMachine, run

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from guest_kernel.kernel import Kernel
from guest_kernel.threads import Event
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.ring import ServerRing
from hypervisor.abi.io import xs_wire as xs
from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot

HOME = "/local/domain/1"


class Transport:
    """The server's view of a host with domain 1 on it."""

    def __init__(self) -> None:
        self.connection: Connection | None = None

    def exists(self, domid: int) -> bool:
        return domid == 1

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        self.connection = connection
        return None

    def rebind(self, connection: Connection, port: int) -> None:
        raise AssertionError("the domain is introduced once")

    def detach(self, connection: Connection) -> None:
        self.connection = None


class Store:
    """A xenstored at the other end of the fake machine's ring, and the toolstack's connection to it."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.transport = Transport()
        self.server = Server(self.transport)
        self.tool = self.server.connect("toolstack")
        page = machine.frame(machine.mfn(machine.layout.start_info + 1))
        self.ring = ServerRing(page)
        self.write(HOME, "", f"n{1}")
        self.write(f"{HOME}/control/shutdown", "", "n1")
        for key in ("feature-poweroff", "feature-reboot", "feature-suspend", "sysrq"):
            self.write(f"{HOME}/control/{key}", "", "n1")
        self.server.introduce(1, 1, 1)
        machine.store = lambda _: self.serve()

    def request(self, kind: int, *strings: str, value: bytes = b"") -> bytes:
        self.server.receive(self.tool, wire.encode(kind, 1, 0, wire.join(*strings) + value))
        replies = [reply for reply in wire.parse_all(self.tool.take(1 << 20)) if reply.type != xs.XS_WATCH_EVENT]
        assert replies[0].type != xs.XS_ERROR, replies[0].payload
        return replies[0].payload

    def write(self, path: str, value: str, *perms: str) -> None:
        self.request(xs.XS_WRITE, path, value=value.encode())
        if perms:
            self.request(xs.XS_SET_PERMS, path, *perms)
        self.push()

    def read(self, path: str) -> str:
        return self.request(xs.XS_READ, path).decode()

    def serve(self) -> None:
        connection = self.transport.connection
        assert connection is not None
        while data := self.ring.read():
            self.server.receive(connection, data)
        self.push()

    def push(self) -> None:
        connection = self.transport.connection
        if connection is not None and (data := connection.take(self.ring.room)):
            assert self.ring.write(data) == len(data)
            self.machine.raise_event(STORE_PORT)


def boot(main: Any) -> tuple[Booted, Store]:
    machine = FakeMachine(store=True)
    store = Store(machine)
    return Booted(main, machine), store


async def for_ever(kernel: Kernel) -> None:
    await kernel.never()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [("poweroff", SHUTDOWN_poweroff), ("halt", SHUTDOWN_poweroff), ("reboot", SHUTDOWN_reboot)],
)
def test_requests_are_acknowledged_and_obeyed(request_: str, reason: int) -> None:
    hooks: list[str] = []

    async def main(kernel: Kernel) -> None:
        async def hook() -> None:
            await kernel.sleep(5)
            hooks.append("async")

        kernel.power.on_shutdown(hook)
        kernel.power.on_shutdown(lambda: hooks.append("plain"))
        kernel.power.on_shutdown(lambda: hooks.append("late"), late=True)
        await kernel.never()

    booted, store = boot(main)
    machine = booted.run(until=10**6)
    assert machine.shutdown is None
    assert store.read(f"{HOME}/control/feature-poweroff") == "1"
    store.write(f"{HOME}/control/shutdown", request_)
    booted.run()
    assert machine.shutdown == reason
    assert store.read(f"{HOME}/control/shutdown") == ""
    assert hooks == ["plain", "async", "late"]
    assert f"control/shutdown: {request_}" in machine.read_console().decode()


def test_a_request_that_was_there_before_boot_is_seen() -> None:
    booted, store = boot(for_ever)
    store.write(f"{HOME}/control/shutdown", "poweroff")
    assert booted.run().shutdown == SHUTDOWN_poweroff


def test_what_the_guest_will_not_do_is_refused_and_not_acknowledged() -> None:
    """As in Linux (drivers/xen/manage.c): who waits for the acknowledgement sees that there is none."""
    booted, store = boot(for_ever)
    booted.run(until=10**6)
    assert store.read(f"{HOME}/control/feature-suspend") == "0"
    for request_, why in (("suspend", "cannot suspend"), ("s3", "no ACPI S3"), ("explode", "knows no such request")):
        store.write(f"{HOME}/control/shutdown", request_)
        booted.run(until=10**6)
        assert store.read(f"{HOME}/control/shutdown") == request_
        console = booted.machine.read_console().decode()
        assert f"control/shutdown: '{request_}' is refused: " in console
        assert why in console
    assert booted.machine.shutdown is None
    # A refusal is not the end of the conversation.
    store.write(f"{HOME}/control/shutdown", "poweroff")
    assert booted.run().shutdown == SHUTDOWN_poweroff


def test_a_crash_can_be_asked_for() -> None:
    booted, store = boot(for_ever)
    booted.run(until=10**6)
    store.write(f"{HOME}/control/shutdown", "crash")
    assert booted.run().shutdown == SHUTDOWN_crash
    assert store.read(f"{HOME}/control/shutdown") == ""
    assert b"crash requested: by control/shutdown" in booted.machine.read_console()


@pytest.mark.parametrize(
    ("letter", "said", "reason"),
    [
        ("h", "sysrq: HELP : reboot(b) crash(c)", None),
        ("s", "sysrq: emergency sync complete", None),
        ("t", "sysrq: thread main", None),
        ("m", "pages are free", None),
        ("b", "sysrq: reboot", SHUTDOWN_reboot),
        ("o", "sysrq: poweroff", SHUTDOWN_poweroff),
        ("c", "crash requested: by sysrq", SHUTDOWN_crash),
    ],
)
def test_sysrq(letter: str, said: str, reason: int | None) -> None:
    booted, store = boot(for_ever)
    booted.run(until=10**6)
    store.write(f"{HOME}/control/sysrq", letter)
    booted.run(until=10**6)
    assert store.read(f"{HOME}/control/sysrq") == ""
    assert said in booted.machine.read_console().decode()
    assert booted.machine.shutdown == reason
    booted.code.close()


def test_a_failing_or_stuck_hook_does_not_keep_the_domain_alive() -> None:
    async def main(kernel: Kernel) -> None:
        def failing() -> None:
            raise ValueError("hook")

        kernel.power.on_shutdown(kernel.never)
        kernel.power.on_shutdown(failing)

    machine = run(main)
    assert machine.shutdown == SHUTDOWN_poweroff
    assert 30 * 10**9 <= machine.now < 40 * 10**9
    assert "ValueError: hook" in machine.read_console().decode()


def test_two_ends_at_once_are_one() -> None:
    async def main(kernel: Kernel) -> None:
        started = Event()

        async def hook() -> None:
            started.set()
            await kernel.sleep(1000)

        kernel.power.on_shutdown(hook)
        kernel.spawn(kernel.power.poweroff())
        await started.wait()
        await kernel.power.reboot()

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_crash_says_why() -> None:
    async def main(kernel: Kernel) -> None:
        await kernel.power.crash("the disk is on fire")

    machine = run(main)
    assert machine.shutdown == SHUTDOWN_crash
    assert b"the disk is on fire" in machine.read_console()
