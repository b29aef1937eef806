"""The checks of suite `ring`."""

from __future__ import annotations

from conformance.kit.check import Level, check, expect, expect_equal
from conformance.ring.world import ENTRY, SLOTS, U32, Rings
from hypervisor.abi.io.ring import HEADER_SIZE, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD

WRAP = U32 - 3


@check("RING-001", Level.must, "io/ring.h, SHARED_RING_INIT")
def a_fresh_page(rings: Rings) -> None:
    """A fresh ring has both producers at 0 and both event thresholds at 1.

    A threshold of 0 would say "tell me only after 2^32 more": the first request would never be notified, and the device
    would hang before its first I/O.
    """
    for index, wanted, name in ((REQ_PROD, 0, "req_prod"), (RSP_PROD, 0, "rsp_prod")):
        expect_equal(rings.shared[index], wanted, f"{name} of a fresh ring")
    expect_equal(rings.shared[REQ_EVENT], 1, "req_event of a fresh ring")
    expect_equal(rings.shared[RSP_EVENT], 1, "rsp_event of a fresh ring")


@check("RING-002", Level.must, "io/ring.h, __RING_SIZE")
def size_is_a_power_of_two(rings: Rings) -> None:
    """A page holds as many slots as fit behind 64 bytes, rounded down to a power of two.

    Both ends compute this by themselves. If they disagree, the same index means two slots, and data ends up with the
    wrong request.
    """
    expect_equal(rings.front.size, SLOTS, f"the front end's number of slots of {ENTRY} bytes")
    expect_equal(rings.back.size, SLOTS, f"the back end's number of slots of {ENTRY} bytes")


@check("RING-003", Level.must, "io/ring.h, RING_GET_REQUEST")
def slots_begin_behind_the_header(rings: Rings) -> None:
    """Slot n begins at byte 64 + n times its size.

    A slot somewhere else overwrites the indices, or the neighbour's request.
    """
    for index in (0, 1, SLOTS - 1):
        expect_equal(rings.front.offset(index), HEADER_SIZE + index * ENTRY, f"the front end's offset of slot {index}")
        expect_equal(rings.back.offset(index), HEADER_SIZE + index * ENTRY, f"the back end's offset of slot {index}")


@check("RING-004", Level.must, "io/ring.h, RING_GET_REQUEST")
def indices_are_masked(rings: Rings) -> None:
    """An index that has gone around names the same slot as one a ring's size before.

    Indices run freely and are reduced only when a slot is looked up. Who reduces the index itself makes a full ring
    look like an empty one.
    """
    for index in (SLOTS, 5 * SLOTS + 7, U32 - 1):
        wanted = HEADER_SIZE + index % SLOTS * ENTRY
        expect_equal(rings.front.offset(index), wanted, f"the front end's offset of index {index}")
        expect_equal(rings.back.offset(index), wanted, f"the back end's offset of index {index}")


@check("RING-005", Level.must, "io/ring.h, RING_FREE_REQUESTS")
def free_requests(rings: Rings) -> None:
    """The front end may have as many requests under way as there are slots.

    A slot is free again when its response has been consumed, not when it has come.
    """
    expect_equal(rings.front.free_requests(), SLOTS, "the room in a fresh ring")
    rings.request(SLOTS)
    expect_equal(rings.front.free_requests(), 0, "the room in a full ring")
    rings.take(4)
    rings.respond(4)
    expect_equal(rings.front.free_requests(), 0, "the room before a response has been consumed")
    rings.consume(3)
    expect_equal(rings.front.free_requests(), 3, "the room after three responses have been consumed")


@check("RING-006", Level.must, "io/ring.h, RING_FREE_REQUESTS")
def free_requests_across_the_wrap(rings: Rings) -> None:
    """The room in the ring is right when indices wrap at 2^32.

    After four thousand million requests a difference that is not taken modulo 2^32 is negative or huge: the device
    stops, months after it was installed.
    """
    rings.start_at(WRAP)
    rings.request(10)
    expect_equal(rings.front.free_requests(), SLOTS - 10, "the room with ten requests across the wrap")


@check("RING-007", Level.must, "io/ring.h, RING_PUSH_REQUESTS")
def requests_are_shown(rings: Rings) -> None:
    """Pushing moves req_prod to the private index.

    Until then the back end must see nothing of what was put into slots.
    """
    rings.front.req_prod_pvt = 3
    expect_equal(rings.shared[REQ_PROD], 0, "req_prod before the push")
    rings.front.push_requests_and_check_notify()
    expect_equal(rings.shared[REQ_PROD], 3, "req_prod after the push")


@check("RING-008", Level.must, "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")
def first_request_notifies(rings: Rings) -> None:
    """The first request of a fresh ring is notified.

    A lost first notification is the most common fault of a new driver: everything is connected and nothing moves.
    """
    expect(rings.request(), "The front end does not notify of the first request.")


@check("RING-009", Level.must, "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")
def no_notification_before_the_threshold(rings: Rings) -> None:
    """Nobody is notified who has not asked: while req_event lies ahead of req_prod the front end is silent.

    Notifying always works too, and costs a hypercall and an upcall for each request.
    """
    rings.shared[REQ_EVENT] = 5
    expect(not rings.request(4), "The front end notifies at request 4, and the back end asked for the fifth.")


@check("RING-010", Level.must, "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")
def notification_at_the_threshold(rings: Rings) -> None:
    """The push that reaches req_event notifies, also when it goes beyond.

    Comparing for equality loses the notification whenever several requests are pushed at once.
    """
    rings.shared[REQ_EVENT] = 5
    rings.request(4)
    expect(
        rings.request(3), "The front end pushes requests 5 to 7 and does not notify, though the fifth was asked for."
    )
    expect(not rings.request(1), "The front end notifies once more, of a threshold that it has passed before.")


@check("RING-011", Level.must, "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")
def request_threshold_across_the_wrap(rings: Rings) -> None:
    """The comparison with req_event is right across the wrap at 2^32.

    `new >= event` is wrong there, in both directions.
    """
    rings.start_at(WRAP)
    rings.shared[REQ_EVENT] = 2
    expect(not rings.request(4), "The front end notifies at index 1 of a threshold at 2, just after the wrap.")
    expect(rings.request(1), "The front end does not notify when it reaches the threshold after the wrap.")
    for threshold in (U32 - 1, 0, 1):
        rings.start_at(WRAP)
        rings.shared[REQ_EVENT] = threshold
        expect(rings.request(4), f"A push across the wrap, over the threshold {threshold}, is not notified.")


@check("RING-012", Level.must, "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")
def responses_notify_as_requests_do(rings: Rings) -> None:
    """Responses follow the same rule, with rsp_event.

    The front end sleeps until it is told; a response that nobody tells of is an I/O that hangs.
    """
    rings.request(8)
    rings.take(8)
    rings.shared[RSP_EVENT] = 3
    expect(not rings.respond(2), "The back end notifies before the threshold.")
    expect(rings.respond(2), "The back end passes the threshold and does not notify.")
    expect(not rings.respond(1), "The back end notifies of a threshold that it has passed before.")


@check("RING-013", Level.must, "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")
def response_threshold_across_the_wrap(rings: Rings) -> None:
    """The comparison with rsp_event is right across the wrap at 2^32.

    A back end that compares wrongly there goes silent after four thousand million responses, and the I/O of that
    moment never ends.
    """
    rings.start_at(WRAP)
    rings.request(6)
    rings.take(6)
    rings.shared[RSP_EVENT] = 1
    expect(not rings.respond(3), "The back end notifies at index 0 of a threshold at 1.")
    expect(rings.respond(1), "The back end does not notify when it reaches the threshold after the wrap.")
    for threshold in (U32 - 1, 0, 1):
        rings.start_at(WRAP)
        rings.shared[RSP_EVENT] = threshold
        expect(rings.respond(4), f"A push across the wrap, over the threshold {threshold}, is not notified.")


@check("RING-014", Level.must, "io/ring.h, XEN_RING_NR_UNCONSUMED_REQUESTS")
def unconsumed_requests(rings: Rings) -> None:
    """The back end may take what has been pushed and not been taken.

    Taking more means reading slots that nobody has written.
    """
    rings.request(5)
    expect_equal(rings.back.unconsumed_requests(), 5, "the number of requests to take")
    rings.take(2)
    expect_equal(rings.back.unconsumed_requests(), 3, "the number of requests to take after two")


@check("RING-015", Level.must, "io/ring.h, XEN_RING_NR_UNCONSUMED_REQUESTS")
def unconsumed_requests_are_bounded(rings: Rings) -> None:
    """However far ahead req_prod is, the back end never takes more than there are slots without an unanswered request.

    req_prod is the guest's: without the bound a hostile one makes the back end go around the ring for ever.
    """
    rings.shared[REQ_PROD] = 1000
    expect(rings.back.unconsumed_requests() <= SLOTS, "The back end believes in more requests than the ring has slots.")
    rings.shared[REQ_PROD] = SLOTS
    rings.take(SLOTS)
    rings.shared[REQ_PROD] = SLOTS + 1
    expect_equal(rings.back.unconsumed_requests(), 0, "the number of requests to take while none has been answered")


@check("RING-016", Level.must, "XSA-39; io/ring.h, RING_REQUEST_PROD_OVERFLOW")
def overflow_is_seen(rings: Rings) -> None:
    """The back end sees that req_prod is more than a ring ahead of the responses.

    XSA-39: back ends in Linux took such a frontend seriously, and ran for ever in the host.
    """
    expect(not rings.back.request_overflow(SLOTS), "A full ring counts as an overflow.")
    expect(rings.back.request_overflow(SLOTS + 1), "One request more than the ring holds is no overflow.")
    rings.start_at(WRAP)
    expect(not rings.back.request_overflow((WRAP + SLOTS) % U32), "A full ring counts as an overflow across the wrap.")
    expect(rings.back.request_overflow(WRAP - 1), "An index that went back is no overflow.")


@check("RING-017", Level.must, "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS")
def final_check_moves_the_threshold(rings: Rings) -> None:
    """Before it sleeps the back end asks to be told of the next request: req_event becomes req_cons + 1.

    Without that the next request is notified only if the old threshold happens to fit.
    """
    rings.request(3)
    rings.take(3)
    expect_equal(rings.back.final_check_for_requests(), 0, "what the final check finds in an empty ring")
    expect_equal(rings.shared[REQ_EVENT], 4, "req_event before the back end sleeps")


@check("RING-018", Level.must, "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS")
def final_check_finds_what_is_there(rings: Rings) -> None:
    """The final check tells of requests that have come meanwhile.

    They were pushed before the threshold was moved, so nobody will notify of them: who sleeps now sleeps for ever.
    """
    rings.request(3)
    rings.take(2)
    expect(rings.back.final_check_for_requests(), "The final check of the back end overlooks a request.")


@check("RING-019", Level.must, "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES")
def final_check_for_responses(rings: Rings) -> None:
    """The front end does the same with rsp_event = rsp_cons + 1.

    A front end that sleeps with an old threshold waits for a response that has come already, or is told of each.
    """
    rings.request(3)
    rings.take(3)
    rings.respond(2)
    expect(rings.front.final_check_for_responses(), "The final check of the front end overlooks a response.")
    rings.consume(2)
    expect_equal(rings.front.final_check_for_responses(), 0, "what the final check finds when all was consumed")
    expect_equal(rings.shared[RSP_EVENT], 3, "rsp_event before the front end sleeps")


@check("RING-020", Level.must, "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS")
def final_check_across_the_wrap(rings: Rings) -> None:
    """The thresholds wrap as the indices do.

    A threshold of 2^32 does not fit into 32 bits; what is stored instead decides whether the device goes on.
    """
    rings.start_at(U32 - 1)
    rings.back.final_check_for_requests()
    expect_equal(rings.shared[REQ_EVENT], 0, "req_event at the wrap")
    rings.front.final_check_for_responses()
    expect_equal(rings.shared[RSP_EVENT], 0, "rsp_event at the wrap")


@check("RING-021", Level.must, "io/ring.h, XEN_RING_NR_UNCONSUMED_RESPONSES")
def unconsumed_responses_across_the_wrap(rings: Rings) -> None:
    """The number of responses to consume is right across the wrap.

    A count that is negative, or of thousands of millions, has the front end take responses that nobody gave.
    """
    rings.start_at(WRAP)
    rings.request(8)
    rings.take(8)
    rings.respond(7)
    expect_equal(rings.front.unconsumed_responses(), 7, "the number of responses across the wrap")


@check("RING-022", Level.must, "io/ring.h, struct NAME_front_ring")
def private_indices_are_private(rings: Rings) -> None:
    """What the peer writes into the page does not move an end's own indices.

    An end that computes its next slot from the shared page lets the peer choose what it overwrites.
    """
    rings.request(2)
    rings.shared[REQ_PROD] = 77
    rings.shared[RSP_PROD] = 99
    expect_equal(rings.front.req_prod_pvt, 2, "req_prod_pvt after the peer has written to the page")
    expect_equal(rings.back.rsp_prod_pvt, 0, "rsp_prod_pvt after the peer has written to the page")
    expect_equal(rings.back.req_cons, 0, "req_cons after the peer has written to the page")


@check("RING-023", Level.must, "io/ring.h")
def ten_thousand_turns(rings: Rings) -> None:
    """Both ends agree, and nobody sleeps over work, through thousands of pushes of all sizes across the wrap.

    Each fault of arithmetic that the checks above look for one by one shows here as a stall.
    """
    rings.start_at(U32 - 5000)
    state, moved = 12345, 0
    for _ in range(10_000):
        state = (state * 1103515245 + 12345) % (1 << 31)
        count = min((state >> 16) % (SLOTS + 1), rings.front.free_requests())
        told = rings.request(count)
        asleep = rings.shared[REQ_EVENT] == (rings.back.req_cons + 1) % U32
        if count and asleep:
            expect(told, "Requests were pushed to a back end that sleeps, and it is not notified.")
        ready = rings.back.unconsumed_requests()
        rings.take(ready)
        rings.back.final_check_for_requests()
        told = rings.respond(ready)
        asleep = rings.shared[RSP_EVENT] == (rings.front.rsp_cons + 1) % U32
        if ready and asleep:
            expect(told, "Responses were pushed to a front end that sleeps, and it is not notified.")
        come = rings.front.unconsumed_responses()
        expect_equal(come, ready, "the number of responses that arrive")
        rings.consume(come)
        rings.front.final_check_for_responses()
        moved += come
    expect(moved > 20_000, f"Only {moved} requests went through.")
