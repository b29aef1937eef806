"""A pair of ring ends over one page, made by the subject.

The subject is a class, module or object with `front(view, entry_size)`, which initialises the page and returns the
front end, and `back(view, entry_size)`, which attaches to it. What the ends must have is what `ring.h` has, by these
names:

    front   req_prod_pvt, rsp_cons, size; free_requests(), unconsumed_responses(), push_requests_and_check_notify(),
            final_check_for_responses()
    back    rsp_prod_pvt, req_cons, size; unconsumed_requests(), push_responses_and_check_notify(),
            final_check_for_requests(), request_overflow(req_prod)
    both    offset(index): where the slot of a free-running index is

`OurRings` is that of this project.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from conformance.kit.runner import World
from conformance.kit.telling import told
from conformance.subjects import load_class
from hypervisor.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, BackRing, FrontRing

ENTRY = 112
"""As blkif.h: 32 slots in a page."""
SLOTS = 32
U32 = 1 << 32


class OurRings:
    """This project's own ends."""

    @staticmethod
    def front(view: memoryview, entry_size: int) -> FrontRing:
        """Make a ring in a page."""
        return FrontRing.initialise(view, entry_size)

    @staticmethod
    def back(view: memoryview, entry_size: int) -> BackRing:
        """Attach to it."""
        return BackRing(view, entry_size)


@final
class Rings:
    """What a check gets: the page, and the two ends of the subject."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject
        self.page = memoryview(bytearray(4096))
        self.shared = self.page.cast("I")
        self.front: Any = told("front", subject.front(self.page, ENTRY))
        self.back: Any = told("back", subject.back(self.page, ENTRY))

    def start_at(self, index: int) -> None:
        """Have both ends, and the page, as they are after so many requests and responses."""
        self.front.req_prod_pvt = self.front.rsp_cons = index
        self.back.rsp_prod_pvt = self.back.req_cons = index
        self.shared[REQ_PROD] = self.shared[RSP_PROD] = index
        self.shared[REQ_EVENT] = self.shared[RSP_EVENT] = (index + 1) % U32

    def request(self, count: int = 1) -> bool:
        """Have the front end push requests; tells whether it wants to notify."""
        self.front.req_prod_pvt = (self.front.req_prod_pvt + count) % U32
        return bool(self.front.push_requests_and_check_notify())

    def take(self, count: int = 1) -> None:
        """Have the back end consume requests."""
        self.back.req_cons = (self.back.req_cons + count) % U32

    def respond(self, count: int = 1) -> bool:
        """Have the back end push responses; tells whether it wants to notify."""
        self.back.rsp_prod_pvt = (self.back.rsp_prod_pvt + count) % U32
        return bool(self.back.push_responses_and_check_notify())

    def consume(self, count: int = 1) -> None:
        """Have the front end consume responses."""
        self.front.rsp_cons = (self.front.rsp_cons + count) % U32


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    subject = load_class(text)
    return lambda: rings(subject)


@contextmanager
def rings(subject: Any) -> Iterator[Rings]:
    """Make a fresh page with both ends."""
    yield Rings(subject)
