"""The checks of lab 11: a host with a vault, victims, and an attacker."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from guest_kernel.kernel import Kernel
from hypervisor.abi.io.ring import MASK32, REQ_PROD, RSP_PROD
from labs.hostile.client import BAD, DATA, GET, NOTE, NOTES, PUT, SLOT, Client
from labs.kit.bench import Bench, KernelDom
from labs.kit.check import Checks, Miss, Work, expect, expect_equal

CHECKS = Checks()
check = CHECKS.check

GIVEN = Path(__file__).parent / "skeleton" / "vault.py"
Use = Callable[[Client], Awaitable[None]]
US = 1000
DOMAINS = (2, 3, 4)


class House:
    """A host: the vault is domain 1, domains 2 to 4 are guests with a client each. What they do comes in turns."""

    def __init__(self, vault: Any) -> None:
        self._vault = vault
        self._clients: dict[int, Client] = {}
        self.said: set[str] = set()
        self._uses: dict[int, list[Use]] = {domid: [] for domid in DOMAINS}
        self._turn: list[tuple[int, Use]] = []

    def then(self, domid: int, use: Use) -> None:
        """Have a domain do something, when all before has been done."""
        self._turn.append((domid, use))

    def run(self) -> None:
        """Run all turns. Raises what they raise, and Miss if the vault crashes, or serves nobody any more."""
        guests = [KernelDom(main=self._guest(domid), mib=4) for domid in DOMAINS]
        guests[0].ends_host = True
        Bench(memory_mib=96).run_guests(KernelDom(main=self._back, mib=4), *guests)

    async def _back(self, kernel: Kernel) -> None:
        vault = self._vault.Vault(kernel)
        while len(self._clients) < len(DOMAINS):
            await kernel.sleep(10 * US)
        for domid, client in sorted(self._clients.items()):
            vault.attach(domid, client.ref, client.port)
        self.said.add("attached")
        await kernel.never()

    def _guest(self, domid: int) -> Callable[[Kernel], Any]:
        async def main(kernel: Kernel) -> None:
            self._clients[domid] = client = Client(kernel)
            while "attached" not in self.said:
                await kernel.sleep(10 * US)
            while self._turn:
                if self._turn[0][0] != domid:
                    await kernel.sleep(10 * US)
                    continue
                await self._do(kernel, client)
                self._turn.pop(0)

        return main

    async def _do(self, kernel: Kernel, client: Client) -> None:
        """Do what comes next. Raises Miss if it takes too long."""
        try:
            await kernel.wait_for(self._turn[0][1](client), 500_000 * US)
        except TimeoutError:
            raise Miss("a request to the vault is never answered") from None


def given() -> Any:
    """Return the vault as students get it."""
    spec = importlib.util.spec_from_file_location("given_vault", GIVEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def secret_for(work: Work) -> tuple[int, bytes]:
    """Return the number of a note, and a secret to be in it."""
    note = b"SECRET:" + work.word().encode() + b":" + work.rng.randbytes(64)
    return work.rng.randrange(NOTES), note[:NOTE]


def keep(number: int, note: bytes) -> Use:
    """Return what puts a note."""

    async def use(client: Client) -> None:
        await client.put(number, note)

    return use


def finds(number: int, note: bytes, what: str) -> Use:
    """Return what reads a note, and complains if it is another."""

    async def use(client: Client) -> None:
        expect_equal(await client.get(number), note, what)

    return use


def attempt(work: Work, vault: Any) -> bytes | None:
    """Let the submission attack a vault; return what it brings."""
    attack = work.load("attack")
    number, note = secret_for(work)
    brought: list[bytes] = []

    async def steal(client: Client) -> None:
        brought.append(await attack.steal(client))

    house = House(vault)
    house.then(2, keep(number, note))
    house.then(3, steal)
    house.then(2, finds(number, note, "the victim's note after the attack"))
    house.run()
    return note if brought and bytes(brought[0]) == note else None


@check(20, "steal")
def steal(work: Work) -> None:
    """The attack brings the victim's secret out of the vault as it was given."""
    expect(attempt(work, given()) is not None, "what steal() returns is not the victim's note that begins with SECRET:")


@check(15, "honest")
def honest(work: Work) -> None:
    """Honest guests are served: notes are kept, apart for each domain, in whole and in part."""
    vault = work.load("vault")
    notes = {(domid, number): work.rng.randbytes(NOTE) for domid in DOMAINS for number in range(NOTES)}

    def all_notes(domid: int) -> Use:
        async def use(client: Client) -> None:
            for number in range(NOTES):
                await client.put(number, notes[domid, number])
            idents = [client.send(GET, number, NOTE) for number in range(NOTES)]
            client.push()
            for number, ident in enumerate(idents):
                status, data = await client.answer(ident)
                expect_equal((status, data), (0, notes[domid, number]), f"status and data of note {number}")

        return use

    async def in_part(client: Client) -> None:
        await client.put(3, b"short")
        expect_equal(await client.get(3), b"short" + notes[2, 3][5:], "a note of which the beginning was changed")
        expect_equal(await client.get(3, 2), b"sh", "the first two bytes of a note")
        for index, length in ((16, 64), (0, 65), (0, 255)):
            status, _ = await client.request(GET, index, length)
            if length > NOTE:
                expect_equal(status, BAD, f"the status for {length} bytes of note {index}")

    house = House(vault)
    for domid in DOMAINS:
        house.then(domid, all_notes(domid))
    for domid in DOMAINS:
        house.then(domid, finds(7, notes[domid, 7], f"note 7 of domain {domid}, once all have written theirs,"))
    house.then(2, in_part)
    house.run()


@check(15, "index")
def index(work: Work) -> None:
    """No number reads or writes another domain's notes."""
    vault = work.load("vault")
    notes = {domid: secret_for(work) for domid in (2, 4)}

    async def attack(client: Client) -> None:
        for number in [-1, *range(-16, 32), 1 << 30, -(1 << 31), (1 << 31) - 1]:
            if 0 <= number < NOTES:
                continue
            status, data = await client.request(GET, number, NOTE)
            expect(all(note not in data for _, note in notes.values()), f"reading note {number} brings a secret")
            expect_equal(status, BAD, f"the status of reading note {number}")
            status, _ = await client.request(PUT, number, NOTE, b"!" * NOTE)
            expect_equal(status, BAD, f"the status of writing note {number}")

    house = House(vault)
    for domid, (number, note) in notes.items():
        house.then(domid, keep(number, note))
    house.then(3, attack)
    for domid, (number, note) in notes.items():
        house.then(domid, finds(number, note, f"the note of domain {domid} after the attack"))
    house.run()


@check(15, "double fetch")
def double_fetch(work: Work) -> None:
    """A request that changes while the vault works on it changes nothing for others."""
    vault = work.load("vault")
    note = b"SECRET:" + work.rng.randbytes(57)
    changes = [(3, 255), (4, 16), (2, 77)]
    """Where in a slot, and what: the length, the index (of the first note of the next domain), the operation."""
    moments = [work.rng.randrange(start, start + 8) * US for start in (1, 6, 12, 20, 30, 42)]
    work.rng.shuffle(changes)

    async def attack(client: Client) -> None:
        for offset, value in changes:
            for moment in moments:
                at = client.ring.offset(client.ring.req_prod_pvt)
                ident = client.send(PUT, NOTES - 1, 10, b"0123456789")
                client.push()
                await client.kernel.sleep(moment)
                if ident not in client.answers:
                    client.page.view[at + offset] = value
                await client.answer(ident)

    house = House(vault)
    house.then(4, keep(0, note))
    house.then(3, attack)
    house.then(4, finds(0, note, "a note of domain 4 after domain 3 has changed a request under way"))
    house.run()


@check(10, "left over")
def left_over(work: Work) -> None:
    """No response holds bytes of somebody else's."""
    vault = work.load("vault")
    number, note = secret_for(work)

    async def attack(client: Client) -> None:
        for op, index, length in ((GET, 0, 0), (GET, 1, 3), (GET, 99, NOTE), (PUT, 2, 1), (GET, 0, 200)):
            at = client.ring.offset(client.ring.rsp_cons)
            await client.request(op, index, length)
            rest = bytes(client.page.view[at + DATA : at + SLOT])
            pieces = [note[start : start + 8] for start in range(7, NOTE - 8)]
            leaks = any(piece in rest for piece in pieces)
            told = f"the response to op {op}, note {index}, length {length}"
            expect(not leaks, f"{told} holds bytes of another domain's note")

    house = House(vault)
    house.then(2, keep(number, note))
    house.then(2, finds(number, note, "the victim's note"))
    house.then(3, attack)
    house.run()


@check(10, "overflow")
def overflow(work: Work) -> None:
    """A guest that claims more requests than its ring has slots is not believed."""
    vault = work.load("vault")
    ahead = work.rng.randrange(100, 1 << 31)

    async def attack(client: Client) -> None:
        await client.put(0, b"honest at first")
        before = client.ring.shared[RSP_PROD]
        client.ring.shared[REQ_PROD] = (client.ring.req_prod_pvt + ahead) & MASK32
        client.kernel.events.notify(client.port)
        await client.kernel.sleep(20_000 * US)
        made = (client.ring.shared[RSP_PROD] - before) & MASK32
        size = client.ring.size
        expect(made <= size, f"req_prod is {ahead} ahead, and the vault answers {made} requests, of a ring of {size}")

    house = House(vault)
    house.then(3, attack)
    house.then(2, keep(0, b"x" * NOTE))
    house.then(2, finds(0, b"x" * NOTE, "the note of another guest afterwards"))
    house.run()


@check(10, "nonsense")
def nonsense(work: Work) -> None:
    """Requests that make no sense are answered so, and the other guests are served."""
    vault = work.load("vault")

    async def attack(client: Client) -> None:
        for op in (2, 77, 255, work.rng.randrange(2, 256)):
            status, _ = await client.request(op, 0, 8)
            expect_equal(status, BAD, f"the status of op {op}")

    house = House(vault)
    house.then(3, attack)
    house.then(2, keep(5, b"y" * NOTE))
    house.then(2, finds(5, b"y" * NOTE, "the note of another guest afterwards"))
    house.run()


@check(5, "your own attack")
def your_own_attack(work: Work) -> None:
    """The attack gets nothing from the mended vault."""
    vault = work.load("vault")
    expect(attempt(work, given()) is not None, "the attack does not even work on the vault as it was given")
    try:
        brought = attempt(work, vault)
    except Exception:
        return
    expect(brought is None, "the attack still brings the victim's secret")
