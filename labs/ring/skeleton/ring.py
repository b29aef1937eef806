"""Lab 7: the ring. Replace each `raise NotImplementedError`."""

from __future__ import annotations

REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = 0, 1, 2, 3
"""Positions of the shared indices, in 32-bit words."""
HEADER = 64
"""Bytes before the first slot."""
MASK32 = 0xFFFFFFFF


def ring_size(entry_size: int, nr_bytes: int) -> int:
    """Return how many slots a page of `nr_bytes` has. Raises ValueError if not even one fits."""
    raise NotImplementedError("what fits behind the header, rounded down to a power of two")


class Ring:
    """What both ends have."""

    def __init__(self, view: memoryview, entry_size: int) -> None:
        self.view = view
        self.shared = view.cast("I")
        self.entry_size = entry_size
        self.size = ring_size(entry_size, len(view))

    def offset(self, index: int) -> int:
        """Return at which byte the slot of a free-running index begins."""
        raise NotImplementedError("the index is reduced here, and nowhere else")


class FrontRing(Ring):
    """The end that puts requests and takes responses. It initialises the page."""

    def __init__(self, view: memoryview, entry_size: int) -> None:
        super().__init__(view, entry_size)
        self.req_prod_pvt = 0
        self.rsp_cons = 0
        raise NotImplementedError("a fresh ring: producers at 0, thresholds so that the first push notifies")

    def free_requests(self) -> int:
        """Return how many requests may still be put."""
        raise NotImplementedError("a slot is taken until its response has been consumed")

    def unconsumed_responses(self) -> int:
        """Return how many responses are there to be taken."""
        raise NotImplementedError("what the backend has shown, less what has been consumed")

    def push_requests_and_check_notify(self) -> bool:
        """Show the requests up to req_prod_pvt; return whether the backend wants to be notified."""
        raise NotImplementedError("read the old index, store the new one, then look at req_event")

    def final_check_for_responses(self) -> int:
        """Return how many responses are there; if none, ask to be notified of the next one, and look once more."""
        raise NotImplementedError("look, set rsp_event, look")


class BackRing(Ring):
    """The end that takes requests and puts responses. The page has been initialised by the other."""

    def __init__(self, view: memoryview, entry_size: int) -> None:
        super().__init__(view, entry_size)
        self.rsp_prod_pvt = 0
        self.req_cons = 0

    def unconsumed_requests(self) -> int:
        """Return how many requests may be taken: never more than there are slots without an unanswered request."""
        raise NotImplementedError("what the frontend has shown, and what can be true")

    def request_overflow(self, req_prod: int) -> bool:
        """Return whether a frontend that shows this `req_prod` lies: it is more than a ring ahead of the responses."""
        raise NotImplementedError("compare with rsp_prod_pvt")

    def push_responses_and_check_notify(self) -> bool:
        """Show the responses up to rsp_prod_pvt; return whether the frontend wants to be notified."""
        raise NotImplementedError("as for requests")

    def final_check_for_requests(self) -> int:
        """Return how many requests may be taken; if none, ask to be notified of the next one, and look once more."""
        raise NotImplementedError("as for responses")
