"""The questions of lab 7."""

from __future__ import annotations

import random

from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, BackRing, FrontRing, ring_size
from labs.kit.questions import Question


def _notifies(old: int, new: int, event: int) -> str:
    ring = FrontRing.initialise(memoryview(bytearray(4096)), 112)
    ring.req_prod_pvt = new
    ring.shared[REQ_PROD], ring.shared[REQ_EVENT] = old, event
    return "yes" if ring.push_requests_and_check_notify() else "no"


def _free(prod: int, cons: int) -> int:
    ring = FrontRing.initialise(memoryview(bytearray(4096)), 112)
    ring.req_prod_pvt, ring.rsp_cons = prod, cons
    return ring.free_requests()


def _may_take(prod: int, cons: int, answered: int) -> int:
    ring = BackRing(memoryview(bytearray(4096)), 112)
    ring.shared[REQ_PROD], ring.req_cons, ring.rsp_prod_pvt = prod, cons, answered
    return ring.unconsumed_requests()


def _events(pushes: int, batch: int) -> int:
    """Return how many notifications so many pushes make while the backend takes all and asks again after each batch."""
    page = memoryview(bytearray(4096))
    front, back = FrontRing.initialise(page, 112), BackRing(page, 112)
    told = 0
    for number in range(1, pushes + 1):
        front.req_prod_pvt = (front.req_prod_pvt + 1) & MASK32
        told += front.push_requests_and_check_notify()
        if number % batch == 0:
            while ready := back.final_check_for_requests():
                back.req_cons = (back.req_cons + ready) & MASK32
                back.rsp_prod_pvt = back.req_cons
                back.push_responses()
                front.rsp_cons = back.rsp_prod_pvt
    return told


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    entry = rng.randrange(10, 300)
    cons = (1 << 32) - rng.randrange(1, 20)
    prod = (cons + rng.randrange(20, 32)) & MASK32
    old = rng.randrange(1 << 20)
    event, new = old + rng.randrange(1, 8), old + rng.randrange(1, 8)
    batch = rng.randrange(2, 9)
    pushes = batch * rng.randrange(5, 20)
    answered = rng.randrange(1000)
    taken = answered + rng.randrange(1, 10)
    return [
        Question(
            f"How many slots of {entry} bytes does a ring of one page have?",
            lambda: ring_size(entry, 4096),
            "As many as fit behind 64 bytes, rounded down to a power of two.",
        ),
        Question(
            f"A ring of 32 slots has req_prod_pvt {prod} and rsp_cons {cons}. How many requests may still be put?",
            lambda: _free(prod, cons),
            "The difference is taken modulo 2^32. It does not matter that one of the indices has wrapped.",
        ),
        Question(
            f"req_prod is {old}, req_event is {event}, the frontend pushes up to {new}. Does it notify? (yes or no)",
            lambda: _notifies(old, new, event),
            "It does if the threshold is one of the indices that the push has passed or reached.",
        ),
        Question(
            f"A backend takes what there is, and asks for the next event, each time after {batch} pushes of one "
            f"request. How many notifications does it get for {pushes} requests?",
            lambda: _events(pushes, batch),
            "One a batch: the first push after the backend has asked. That is what the thresholds are for.",
        ),
        Question(
            f"A frontend of a ring of 32 slots writes {(taken + 5000) & MASK32} into req_prod; the backend took up to "
            f"{taken} and answered up to {answered}. How many requests may it take?",
            lambda: _may_take((taken + 5000) & MASK32, taken, answered),
            "No more than there are slots, less those that it still works on: anything else would overwrite requests.",
        ),
    ]
