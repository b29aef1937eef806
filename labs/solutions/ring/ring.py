"""Lab 7, solved."""

from __future__ import annotations

REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = 0, 1, 2, 3
HEADER = 64
MASK32 = 0xFFFFFFFF


def ring_size(entry_size: int, nr_bytes: int) -> int:
    """Return how many slots a page of `nr_bytes` has."""
    fitting = (nr_bytes - HEADER) // entry_size
    if fitting < 1:
        raise ValueError(f"no slot of {entry_size} bytes fits")
    size = 1
    while 2 * size <= fitting:
        size *= 2
    return size


class Ring:
    """What both ends have."""

    def __init__(self, view: memoryview, entry_size: int) -> None:
        self.view = view
        self.shared = view.cast("I")
        self.entry_size = entry_size
        self.size = ring_size(entry_size, len(view))

    def offset(self, index: int) -> int:
        """Return at which byte the slot of a free-running index begins."""
        return HEADER + index % self.size * self.entry_size

    def push(self, producer: int, event: int, new: int) -> bool:
        """Move a shared producer to `new`; return whether its threshold was reached."""
        old = self.shared[producer]
        self.shared[producer] = new
        return (new - self.shared[event]) & MASK32 < (new - old) & MASK32


class FrontRing(Ring):
    """The end that puts requests and takes responses."""

    def __init__(self, view: memoryview, entry_size: int) -> None:
        super().__init__(view, entry_size)
        self.req_prod_pvt = 0
        self.rsp_cons = 0
        self.shared[REQ_PROD] = self.shared[RSP_PROD] = 0
        self.shared[REQ_EVENT] = self.shared[RSP_EVENT] = 1

    def free_requests(self) -> int:
        """Return how many requests may still be put."""
        return self.size - ((self.req_prod_pvt - self.rsp_cons) & MASK32)

    def unconsumed_responses(self) -> int:
        """Return how many responses are there to be taken."""
        return (self.shared[RSP_PROD] - self.rsp_cons) & MASK32

    def push_requests_and_check_notify(self) -> bool:
        """Show the requests up to req_prod_pvt; return whether the backend wants to be notified."""
        return self.push(REQ_PROD, REQ_EVENT, self.req_prod_pvt)

    def final_check_for_responses(self) -> int:
        """Return how many responses are there; if none, ask to be notified of the next one, and look once more."""
        ready = self.unconsumed_responses()
        if ready:
            return ready
        self.shared[RSP_EVENT] = (self.rsp_cons + 1) & MASK32
        return self.unconsumed_responses()


class BackRing(Ring):
    """The end that takes requests and puts responses."""

    def __init__(self, view: memoryview, entry_size: int) -> None:
        super().__init__(view, entry_size)
        self.rsp_prod_pvt = 0
        self.req_cons = 0

    def unconsumed_requests(self) -> int:
        """Return how many requests may be taken."""
        shown = (self.shared[REQ_PROD] - self.req_cons) & MASK32
        possible = self.size - ((self.req_cons - self.rsp_prod_pvt) & MASK32)
        return min(shown, possible)

    def request_overflow(self, req_prod: int) -> bool:
        """Return whether a frontend that shows this `req_prod` lies."""
        return (req_prod - self.rsp_prod_pvt) & MASK32 > self.size

    def push_responses_and_check_notify(self) -> bool:
        """Show the responses up to rsp_prod_pvt; return whether the frontend wants to be notified."""
        return self.push(RSP_PROD, RSP_EVENT, self.rsp_prod_pvt)

    def final_check_for_requests(self) -> int:
        """Return how many requests may be taken; if none, ask to be notified of the next one, and look once more."""
        ready = self.unconsumed_requests()
        if ready:
            return ready
        self.shared[REQ_EVENT] = (self.req_cons + 1) & MASK32
        return self.unconsumed_requests()
