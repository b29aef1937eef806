"""The checks of lab 7: those of the conformance kit for rings, in groups, and a conversation between two domains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from conformance.kit.check import CHECKS as KIT
from conformance.kit.check import Failure
from conformance.ring import checks as _ring  # noqa: F401 - registers them
from conformance.ring.world import Rings
from guest_kernel.kernel import Kernel
from guest_kernel.threads import WaitQueue
from hypervisor.abi.grant_table import GNTST_okay
from labs.kit.bench import Bench, KernelDom
from labs.kit.check import Checks, Work, expect, expect_equal, miss

CHECKS = Checks()
check = CHECKS.check

MASK32 = 0xFFFFFFFF


class Subject:
    """A submission, as the conformance kit wants it."""

    def __init__(self, lab: Any) -> None:
        self._lab = lab

    def front(self, view: memoryview, entry_size: int) -> Any:
        """Make a ring in a page."""
        return self._lab.FrontRing(view, entry_size)

    def back(self, view: memoryview, entry_size: int) -> Any:
        """Attach to it."""
        return self._lab.BackRing(view, entry_size)


def judge(work: Work, numbers: Iterable[int]) -> None:
    """Run checks of the kit's ring suite. Raises Miss with the first failure."""
    lab = work.load("ring")
    for number in numbers:
        one = KIT[f"RING-{number:03}"]
        try:
            one.function(Rings(Subject(lab)))
        except Failure as failure:
            miss(f"{failure} ({one.id}; {one.source})")


@check(10, "ring_size")
def ring_size(work: Work) -> None:
    """The number of slots is the largest power of two that fits."""
    lab = work.load("ring")
    for _ in range(100):
        entry = work.rng.randrange(1, 2000)
        slots = 1 << ((4096 - 64) // entry).bit_length() - 1
        expect_equal(lab.ring_size(entry, 4096), slots, f"ring_size({entry}, 4096)")
    try:
        found = lab.ring_size(4033, 4096)
    except ValueError:
        return
    expect(False, f"ring_size(4033, 4096) is {found}; not even one slot fits, which is a ValueError")


@check(10, "layout")
def layout(work: Work) -> None:
    """A fresh ring, and where its slots are."""
    judge(work, (1, 2, 3, 4))


@check(10, "room")
def room(work: Work) -> None:
    """How many requests there is room for, also across the wrap."""
    judge(work, (5, 6))


@check(15, "pushing")
def pushing(work: Work) -> None:
    """What is pushed is shown, and notified exactly when it has been asked for."""
    judge(work, (7, 8, 9, 10, 12))


@check(10, "wrap")
def wrap(work: Work) -> None:
    """Thresholds are compared rightly where indices wrap at 2^32."""
    judge(work, (11, 13, 21))


@check(10, "taking")
def taking(work: Work) -> None:
    """What there is to take."""
    judge(work, (14,))


@check(10, "hostile")
def hostile(work: Work) -> None:
    """A peer that lies about its indices gets nowhere."""
    judge(work, (15, 16, 22))


@check(10, "final check")
def final_check(work: Work) -> None:
    """Before sleeping: ask to be told, and look once more."""
    judge(work, (17, 18, 19, 20))


@check(5, "ten thousand turns")
def ten_thousand_turns(work: Work) -> None:
    """Nobody sleeps over work in a long run across the wrap."""
    judge(work, (23,))


class Talk:
    """Two kernels that send messages through a submission's rings; the second sends them back, reversed."""

    def __init__(self, lab: Any, entry: int, messages: list[bytes]) -> None:
        self.lab, self.entry, self.messages = lab, entry, messages
        self.answers: list[bytes] = []
        self.said: dict[str, int] = {}

    async def hear(self, kernel: Kernel, what: str) -> int:
        """Wait until the other kernel has said something."""
        while what not in self.said:
            await kernel.sleep(1000)
        return self.said[what]

    async def front(self, kernel: Kernel) -> None:
        """Be the kernel that asks."""
        page, changed = kernel.mm.alloc_page(), WaitQueue()
        ring = self.lab.FrontRing(page.view, self.entry)
        self.said["port"] = port = kernel.events.alloc_unbound(2, lambda: self.wake(changed))
        self.said["ref"] = kernel.grants.grant_access(2, page)
        await self.hear(kernel, "bound")
        sent = 0
        while len(self.answers) < len(self.messages):
            while sent < len(self.messages) and ring.free_requests():
                self.put(page.view, ring.offset(ring.req_prod_pvt), self.messages[sent])
                ring.req_prod_pvt = (ring.req_prod_pvt + 1) & MASK32
                sent += 1
            if ring.push_requests_and_check_notify():
                kernel.events.notify(port)
            if not ring.final_check_for_responses():
                await changed.wait()
            while ring.final_check_for_responses():
                self.answers.append(self.get(page.view, ring.offset(ring.rsp_cons)))
                ring.rsp_cons = (ring.rsp_cons + 1) & MASK32

    async def back(self, kernel: Kernel) -> None:
        """Be the kernel that answers."""
        changed = WaitQueue()
        (grant,) = kernel.grants.map_refs(1, [await self.hear(kernel, "ref")])
        assert grant.status == GNTST_okay
        port = kernel.events.bind_interdomain(1, self.said["port"], lambda: self.wake(changed))
        ring = self.lab.BackRing(grant.view, self.entry)
        self.said["bound"] = 1
        while True:
            while ring.final_check_for_requests():
                text = self.get(grant.view, ring.offset(ring.req_cons))
                ring.req_cons = (ring.req_cons + 1) & MASK32
                self.put(grant.view, ring.offset(ring.rsp_prod_pvt), text[::-1])
                ring.rsp_prod_pvt = (ring.rsp_prod_pvt + 1) & MASK32
            if ring.push_responses_and_check_notify():
                kernel.events.notify(port)
            if not ring.unconsumed_requests():
                await changed.wait()

    @staticmethod
    def wake(queue: WaitQueue) -> None:
        """Wake who waits: an event handler."""
        queue.wake_all()

    @staticmethod
    def put(view: memoryview, at: int, text: bytes) -> None:
        """Write a message into a slot: its length, its bytes."""
        view[at : at + len(text) + 1] = bytes([len(text)]) + text

    @staticmethod
    def get(view: memoryview, at: int) -> bytes:
        """Read a message out of a slot."""
        return bytes(view[at + 1 : at + 1 + view[at]])


@check(10, "two domains")
def two_domains(work: Work) -> None:
    """Messages go from one domain to another and back, through your rings, all of them and in order."""
    lab = work.load("ring")
    entry = work.rng.randrange(20, 200)
    messages = [work.rng.randbytes(work.rng.randrange(1, entry)) for _ in range(400)]
    talk = Talk(lab, entry, messages)
    Bench().run_guests(KernelDom(main=talk.front, ends_host=True), KernelDom(main=talk.back))
    expect_equal(len(talk.answers), len(messages), "the number of answers")
    wrong = next((at for at, text in enumerate(messages) if talk.answers[at] != text[::-1]), None)
    expect(wrong is None, f"answer {wrong} is not the reversed message that was sent")
