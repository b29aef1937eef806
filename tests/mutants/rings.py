# ruff: noqa: E501 - a table: one row a line
"""Faulty rings: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypervisor.abi.io.ring import (
    HEADER_SIZE,
    MASK32,
    REQ_EVENT,
    REQ_PROD,
    RSP_EVENT,
    RSP_PROD,
    BackRing,
    FrontRing,
    shared_ring_init,
)


def _as_class(base: Any) -> Any:
    """Return a class that can be derived from: the real ones are final to a type checker only."""
    return base


class Rings:
    """A subject of suite `ring`; mutants override what they get wrong."""

    front_class: Any = FrontRing
    back_class: Any = BackRing

    @classmethod
    def front(cls, view: memoryview, entry_size: int) -> Any:
        shared_ring_init(view)
        return cls.front_class(view, entry_size)

    @classmethod
    def back(cls, view: memoryview, entry_size: int) -> Any:
        return cls.back_class(view, entry_size)


def ends(front: dict[str, Any] | None = None, back: dict[str, Any] | None = None) -> type[Rings]:
    """Return rings whose ends have these methods instead of their own."""
    made = type("Front", (_as_class(FrontRing),), front or {})
    other = type("Back", (_as_class(BackRing),), back or {})
    return type("Mutant", (Rings,), {"front_class": made, "back_class": other})


def _thresholds_of_zero(view: memoryview, entry_size: int) -> Any:
    view[:HEADER_SIZE] = bytes(HEADER_SIZE)
    return FrontRing(view, entry_size)


def _smaller(view: memoryview, entry_size: int, index: int = 0) -> Any:
    return FrontRing(view[:2048], entry_size, index)


def _push(compare: Callable[[int, int, int], bool]) -> Callable[[Any], bool]:
    def push(self: Any) -> bool:
        new, old = self.req_prod_pvt, self.shared[REQ_PROD]
        self.shared[REQ_PROD] = new
        return compare(new, self.shared[REQ_EVENT], old)

    return push


def _respond(compare: Callable[[int, int, int], bool]) -> Callable[[Any], bool]:
    def respond(self: Any) -> bool:
        new, old = self.rsp_prod_pvt, self.shared[RSP_PROD]
        self.shared[RSP_PROD] = new
        return compare(new, self.shared[RSP_EVENT], old)

    return respond


def _unconsumed(self: Any) -> int:
    return (self.shared[REQ_PROD] - self.req_cons) & MASK32


def _no_threshold(self: Any) -> int:
    return int(self.unconsumed_requests())


def _threshold_without_looking(self: Any) -> int:
    self.shared[REQ_EVENT] = (self.req_cons + 1) & MASK32
    return 0


def _threshold_behind(self: Any) -> int:
    ready = self.unconsumed_requests()
    if not ready:
        self.shared[REQ_EVENT] = self.req_cons
    return int(ready)


def _threshold_that_stops(self: Any) -> int:
    ready = self.unconsumed_requests()
    if not ready:
        self.shared[REQ_EVENT] = min(self.req_cons + 1, MASK32)
    return int(ready)


def _push_by_slots(self: Any) -> bool:
    new, old = self.req_prod_pvt, self.shared[REQ_PROD]
    self.shared[REQ_PROD] = new
    return bool((new - self.shared[REQ_EVENT]) & self.mask < (new - old) & self.mask)


def _respond_by_slots(self: Any) -> bool:
    new, old = self.rsp_prod_pvt, self.shared[RSP_PROD]
    self.shared[RSP_PROD] = new
    return bool((new - self.shared[RSP_EVENT]) & self.mask < (new - old) & self.mask)


def _front_without_threshold(self: Any) -> int:
    return int(self.unconsumed_responses())


class _Trusting(_as_class(FrontRing)):  # type: ignore[misc]
    """Takes its next slot from the shared page."""

    @property
    def req_prod_pvt(self) -> int:
        return int(self.shared[REQ_PROD])

    @req_prod_pvt.setter
    def req_prod_pvt(self, value: int) -> None:
        if hasattr(self, "shared"):
            self.shared[REQ_PROD] = value


MUTANTS: dict[str, tuple[str, str, Any]] = {
    "thresholds-of-zero": ("a fresh ring has thresholds of 0", "RING-001", type("M", (Rings,), {"front": staticmethod(_thresholds_of_zero)})),
    "half-a-page": ("the front end uses half of the page", "RING-002", type("M", (Rings,), {"front": staticmethod(_smaller)})),
    "slots-from-zero": ("slots begin at the indices", "RING-003", ends({"offset": lambda self, index: (index & self.mask) * self.entry_size})),
    "unmasked": ("an index is not masked", "RING-004", ends({"offset": lambda self, index: HEADER_SIZE + index * self.entry_size})),
    "one-slot-short": ("one slot is always kept free", "RING-005", ends({"free_requests": lambda self: self.size - 1 - ((self.req_prod_pvt - self.rsp_cons) & MASK32)})),
    "signed-difference": ("a difference is not taken modulo 2^32", "RING-006", ends({"free_requests": lambda self: self.size - (self.req_prod_pvt - self.rsp_cons)})),
    "index-not-shown": ("req_prod is not moved", "RING-007", ends({"push_requests_and_check_notify": lambda self: True})),
    "lost-first-notify": ("the first request is not notified", "RING-008", ends({"push_requests_and_check_notify": _push(lambda new, event, old: old != 0 and (new - event) & MASK32 < (new - old) & MASK32)})),
    "always-notifies": ("each push notifies", "RING-009", ends({"push_requests_and_check_notify": _push(lambda new, event, old: True)})),
    "notifies-when-equal": ("the threshold must be hit exactly", "RING-010", ends({"push_requests_and_check_notify": _push(lambda new, event, old: new == event)})),
    "notifies-again": ("a threshold that was passed notifies again", "RING-010", ends({"push_requests_and_check_notify": _push(lambda new, event, old: (new - event) & MASK32 < 1 << 31)})),
    "plain-comparison": ("thresholds are compared without the wrap", "RING-011", ends({"push_requests_and_check_notify": _push(lambda new, event, old: old < event <= new)})),
    "silent-back": ("responses are never notified", "RING-012", ends(back={"push_responses_and_check_notify": _respond(lambda new, event, old: False)})),
    "noisy-back": ("responses are always notified", "RING-012", ends(back={"push_responses_and_check_notify": _respond(lambda new, event, old: True)})),
    "plain-comparison-back": ("rsp_event is compared without the wrap", "RING-013", ends(back={"push_responses_and_check_notify": _respond(lambda new, event, old: old < event <= new)})),
    "never-empty": ("one request too many is taken", "RING-014", ends(back={"unconsumed_requests": lambda self: _unconsumed(self) + 1})),
    "unbounded": ("req_prod is believed", "RING-015", ends(back={"unconsumed_requests": _unconsumed})),
    "no-overflow": ("an overflow is not seen", "RING-016", ends(back={"request_overflow": lambda self, prod: False})),
    "overflow-too-early": ("a full ring counts as an overflow", "RING-016", ends(back={"request_overflow": lambda self, prod: (prod - self.rsp_prod_pvt) & MASK32 >= self.size})),
    "no-final-threshold": ("the back end sleeps without asking to be told", "RING-017", ends(back={"final_check_for_requests": _no_threshold})),
    "threshold-behind": ("the back end asks for what it has had", "RING-017", ends(back={"final_check_for_requests": _threshold_behind})),
    "final-check-blind": ("the back end sleeps over a request", "RING-018", ends(back={"final_check_for_requests": _threshold_without_looking})),
    "front-no-threshold": ("the front end sleeps without asking to be told", "RING-019", ends({"final_check_for_responses": _front_without_threshold})),
    "threshold-that-stops": ("req_event does not wrap", "RING-020", ends(back={"final_check_for_requests": _threshold_that_stops})),
    "silent-for-several": ("a push of several requests is not notified", "RING-023", ends({"push_requests_and_check_notify": _push(lambda new, event, old: (new - old) & MASK32 == 1 and new == event)})),
    "responses-modulo-nothing": ("responses are counted without the wrap", "RING-021", ends({"unconsumed_responses": lambda self: self.shared[RSP_PROD] - self.rsp_cons})),
    "trusting-front": ("the front end takes its index from the page", "RING-022", type("M", (Rings,), {"front_class": _Trusting})),
    "compares-slots": ("thresholds are compared as slots: a push of the whole ring looks like none", "RING-023", ends({"push_requests_and_check_notify": _push_by_slots})),
    "compares-slots-back": ("rsp_event is compared as a slot: responses to the whole ring look like none", "RING-023", ends(back={"push_responses_and_check_notify": _respond_by_slots})),
}  # fmt: skip
"""Name → the fault, the check meant for it, the subject."""
