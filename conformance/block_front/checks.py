"""The checks of suite `blkif-frontend`."""

from __future__ import annotations

from typing import Any

from conformance.block_front.back import SECTORS, Back, Request
from conformance.block_front.remote import RemoteDisk
from conformance.block_front.world import Scene
from conformance.kit.check import Level, check, expect, expect_equal
from hypervisor.abi.io.blkif import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
)
from hypervisor.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
)

HEADER = "io/blkif.h"
BUS = "io/xenbus.h, enum xenbus_state"


async def connected(scene: Scene, **nodes: object) -> Back:
    """Return the backend, connected."""
    await scene.back.connect(**nodes)
    return scene.back


def pattern(sector: int, count: int) -> bytes:
    """Return what the disk holds at first."""
    return b"".join(number.to_bytes(2, "little") * 256 for number in range(sector, sector + count))


def length(request: Request) -> int:
    """Return how many sectors a request is about."""
    return sum(last - first + 1 for _, first, last in request.segments)


# ---- the bus


@check("BLKIF-FRONTEND-001", Level.must, f"{HEADER}, state diagram")
async def publishes_before_it_says_so(scene: Scene) -> None:
    """When it says Initialised the frontend has written its ring, its event channel, and both can be used.

    The backend reads them in that moment; what comes later it does not see.
    """
    await scene.back.offer()
    await scene.back.attach()


@check("BLKIF-FRONTEND-002", Level.must, BUS)
async def waits_for_connected(scene: Scene) -> None:
    """The frontend is not Connected, and sends nothing, before the backend is.

    The disk has no size until then.
    """
    back = scene.back
    job = scene.use(lambda disk: disk.read(0, 8))
    await back.offer()
    await back.attach()
    await back.kernel.sleep(20_000_000)
    expect_equal(await back.state(), XenbusStateInitialised, "the frontend's state while the backend is in InitWait")
    expect_equal(back.ring.shared[REQ_PROD], 0, "req_prod while the backend is in InitWait")
    await back.say(sectors=SECTORS, info=0, sector_size=512)
    await back.say(state=XenbusStateConnected)
    await back.wait_for(XenbusStateConnected)
    back.keep_serving()
    await scene.finish(job)


@check("BLKIF-FRONTEND-003", Level.must, f"{HEADER}, sectors")
async def believes_the_size(scene: Scene) -> None:
    """The disk has the size that the backend says.

    Smaller loses data, larger gets errors.
    """
    back = await connected(scene)
    job = scene.use(lambda disk: _sectors(disk))
    expect_equal(await scene.finish(job), SECTORS, "the number of sectors that the guest sees")
    back.keep_serving()


async def _sectors(disk: Any) -> int:
    return await disk.size() if isinstance(disk, RemoteDisk) else int(disk.sectors)


@check("BLKIF-FRONTEND-004", Level.must, BUS)
async def follows_to_closed(scene: Scene) -> None:
    """When the backend closes, the frontend follows: Closing or Closed, and all its pages come back.

    The toolstack waits for it to unplug the disk.
    """
    back = await connected(scene)
    await back.say(state=XenbusStateClosing)
    await back.wait_for(XenbusStateClosed)
    expect_equal(await back.told("state"), str(XenbusStateClosed), "the frontend's state while the backend is Closing")
    back.detach()
    await back.say(state=XenbusStateClosed)


@check("BLKIF-FRONTEND-005", Level.must, BUS)
async def backend_that_never_connects(scene: Scene) -> None:
    """A backend that closes instead of connecting has the frontend close, and the guest live.

    It is what happens when the image cannot be opened.
    """
    back = scene.back
    await back.offer()
    await back.attach()
    await back.say(state=XenbusStateClosing)
    await back.wait_for(XenbusStateClosing, XenbusStateClosed)
    back.detach()
    await back.say(state=XenbusStateClosed)


@check("BLKIF-FRONTEND-006", Level.must, f"{HEADER}, sectors")
async def nonsense_for_a_size(scene: Scene) -> None:
    """A size that is no number does not bring the guest down.

    The backend's nodes are as little to be trusted as a guest's.
    """
    back = scene.back
    await back.offer()
    await back.attach()
    await back.say(sectors="many", info="x", sector_size="large")
    await back.say(state=XenbusStateConnected)
    await back.kernel.sleep(20_000_000)
    expect(
        await back.state() in (XenbusStateClosing, XenbusStateClosed, XenbusStateInitialised),
        "It connects to nonsense.",
    )


# ---- requests


@check("BLKIF-FRONTEND-010", Level.must, f"{HEADER}, struct blkif_request")
async def a_read(scene: Scene) -> None:
    """A read is one or more requests for just these sectors, and brings what the backend gives.

    The least that a disk does.
    """
    back = await connected(scene)
    job = scene.use(lambda disk: disk.read(40, 8))
    (request,) = await back.requests()
    expect_equal((request.op, request.sector, length(request)), (BLKIF_OP_READ, 40, 8), "operation, sector, length")
    back.serve(request)
    expect_equal(await scene.finish(job), pattern(40, 8), "what the guest reads")


@check("BLKIF-FRONTEND-011", Level.must, f"{HEADER}, struct blkif_request")
async def a_write(scene: Scene) -> None:
    """A write brings the guest's data to these sectors.

    When it has been answered the guest may forget its own copy.
    """
    back = await connected(scene)
    job = scene.use(lambda disk: disk.write(16, b"\x5a" * 4096))
    (request,) = await back.requests()
    expect_equal((request.op, request.sector, length(request)), (BLKIF_OP_WRITE, 16, 8), "operation, sector, length")
    back.serve(request)
    await scene.finish(job)
    expect(back.content[16 * 512 : 24 * 512] == b"\x5a" * 4096, "Other data than the guest's is written.")


@check("BLKIF-FRONTEND-012", Level.must, f"{HEADER}, BLKIF_MAX_SEGMENTS_PER_REQUEST")
async def no_more_than_eleven_segments(scene: Scene) -> None:
    """A request has at most eleven segments, each within its page, and none that is empty.

    A backend refuses all else, and the guest's write is lost.
    """
    back = await connected(scene)
    data = bytes(range(256)) * 512
    job = scene.use(lambda disk: disk.write(0, data))
    moved = 0
    while moved < len(data) // 512:
        for request in await back.requests():
            expect(request.op != BLKIF_OP_INDIRECT, "It sends an indirect request, which nobody has offered.")
            expect(0 < request.count <= BLKIF_MAX_SEGMENTS_PER_REQUEST, f"A request has {request.count} segments.")
            for _, first, last in request.segments:
                expect(first <= last < 8, f"A segment has sectors {first} to {last}.")
            moved += length(request)
            back.serve(request)
    await scene.finish(job)
    expect(back.content[: len(data)] == data, "A large write arrives changed.")


@check("BLKIF-FRONTEND-013", Level.must, f"{HEADER}, id")
async def ids_are_its_own(scene: Scene) -> None:
    """Requests under way have ids that differ, and responses may come in any order.

    A backend with several disks behind it answers as they come.
    """
    back = await connected(scene)
    jobs = [scene.use(lambda disk, n=n: disk.read(n * 100, 1)) for n in range(6)]  # type: ignore[misc]
    requests = await back.requests(6)
    expect_equal(len({request.id for request in requests}), 6, "the number of ids of six requests under way")
    for request in reversed(requests):
        back.serve(request)
    for number, job in enumerate(jobs):
        expect_equal(await scene.finish(job), pattern(number * 100, 1), f"what read {number} brings")


@check("BLKIF-FRONTEND-014", Level.must, f"{HEADER}, feature-flush-cache")
async def flush_only_if_offered(scene: Scene) -> None:
    """Without feature-flush-cache no flush is sent.

    A backend that does not know it refuses it, and the file system goes read-only.
    """
    back = await connected(scene, feature_flush_cache=0)
    job = scene.use(lambda disk: disk.flush())
    for _ in range(20):
        for request in back.take():
            expect(request.op != BLKIF_OP_FLUSH_DISKCACHE, "It sends a flush, which nobody has offered.")
            back.serve(request)
        await back.kernel.sleep(1_000_000)
    await scene.end(job)


@check("BLKIF-FRONTEND-015", Level.must, f"{HEADER}, feature-flush-cache")
async def flush_if_offered(scene: Scene) -> None:
    """With feature-flush-cache a flush of the guest's is a request, and done when that is answered.

    A flush that stays in the frontend is a promise that nobody keeps.
    """
    back = await connected(scene, feature_flush_cache=1)
    job = scene.use(lambda disk: disk.flush())
    (request,) = await back.requests()
    expect_equal(request.op, BLKIF_OP_FLUSH_DISKCACHE, "the operation of a flush")
    await back.kernel.sleep(5_000_000)
    expect(not job.done, "The guest's flush ends before it has been answered.")
    back.answer(request)
    await scene.finish(job)


@check("BLKIF-FRONTEND-016", Level.must, f"{HEADER}, BLKIF_RSP_ERROR")
async def errors_reach_the_guest(scene: Scene) -> None:
    """A request that is answered with an error fails for the guest, and only that one.

    Who takes an error for success hands out what happened to be in the page.
    """
    back = await connected(scene)
    for status in (BLKIF_RSP_ERROR, BLKIF_RSP_EOPNOTSUPP):
        job = scene.use(lambda disk: disk.read(0, 8))
        (request,) = await back.requests()
        back.answer(request, status)
        expect(
            isinstance(await scene.end(job), OSError),
            f"A read that is answered with {status} is no error to the guest.",
        )
    job = scene.use(lambda disk: disk.read(8, 8))
    (request,) = await back.requests()
    back.serve(request)
    await scene.finish(job)


@check("BLKIF-FRONTEND-017", Level.must, "grant_table.h, GTF_readonly")
async def writes_are_granted_read_only_at_least(scene: Scene) -> None:
    """The pages of a request can be mapped as the request needs them: writable for reads.

    A grant that does not allow it is an error of every single read.
    """
    back = await connected(scene)
    job = scene.use(lambda disk: disk.read(0, 64))
    moved = 0
    while moved < 64:
        for request in await back.requests():
            moved += length(request)
            back.serve(request)
    expect_equal(await scene.finish(job), pattern(0, 64), "what the guest reads")


# ---- the ring


@check("BLKIF-FRONTEND-020", Level.must, "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")
async def notifies_when_asked(scene: Scene) -> None:
    """The frontend notifies when its requests reach req_event, and not before.

    A backend sleeps until then.
    """
    back = await connected(scene)
    begin = back.ring.req_cons
    back.ring.shared[REQ_EVENT] = begin + 3
    back.events = 0
    jobs = []
    for number in range(2):
        jobs.append(scene.use(lambda disk, n=number: disk.read(n * 50, 1)))  # type: ignore[misc]
        await back.kernel.sleep(5_000_000)
    expect_equal(back.ring.shared[REQ_PROD] - begin, 2, "the number of requests of two reads")
    expect_equal(back.events, 0, "the number of notifications before the third request, which was asked for")
    jobs.append(scene.use(lambda disk: disk.read(500, 1)))
    await back.kernel.sleep(5_000_000)
    expect(back.events, "The third request was asked for, and nobody is notified of it.")
    back.keep_serving()
    for job in jobs:
        await scene.finish(job)


@check("BLKIF-FRONTEND-021", Level.must, "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES")
async def asks_to_be_told(scene: Scene) -> None:
    """While it waits the frontend has asked to be told of the next response.

    Else the backend does not notify, and the guest waits for ever.
    """
    back = await connected(scene)
    for _ in range(3):
        job = scene.use(lambda disk: disk.read(0, 1))
        (request,) = await back.requests()
        asked = back.ring.shared[RSP_EVENT] - back.ring.rsp_prod_pvt
        expect_equal(asked, 1, "rsp_event, counted from the last response, while one is waited for")
        back.serve(request)
        await scene.finish(job)


@check("BLKIF-FRONTEND-022", Level.must, "io/ring.h, RING_FULL")
async def never_more_than_the_ring(scene: Scene) -> None:
    """However much the guest wants, no more requests are under way than the ring has slots.

    The next one would overwrite a request that nobody has read.
    """
    back = await connected(scene)
    jobs = [scene.use(lambda disk, n=n: disk.read(n * 20, 1)) for n in range(60)]  # type: ignore[misc]
    await back.kernel.sleep(60_000_000)
    under_way = back.ring.shared[REQ_PROD] - back.ring.rsp_prod_pvt
    expect(under_way <= back.ring.size, f"{under_way} requests are under way.")
    back.keep_serving()
    for number, job in enumerate(jobs):
        expect_equal(await scene.finish(job), pattern(number * 20, 1), f"what read {number} brings")


# ---- a backend that does not behave


@check("BLKIF-FRONTEND-030", Level.must, "docs/hostile-peers.md; Linux, xen-blkfront (hardening of 5.16)")
async def responses_that_nobody_asked_for(scene: Scene) -> None:
    """A response index that is ahead of the requests does not bring the guest down.

    The backend is another domain, and may be anybody's.
    """
    back = await connected(scene)
    back.ring.shared[RSP_PROD] = back.ring.rsp_prod_pvt + 1000
    back.kernel.events.notify(back.port)
    await back.kernel.sleep(20_000_000)
    await _is_alive(scene)


@check("BLKIF-FRONTEND-031", Level.must, "docs/hostile-peers.md; Linux, xen-blkfront (hardening of 5.16)")
async def a_response_with_a_strange_id(scene: Scene) -> None:
    """A response to a request that is not under way does not bring the guest down, and gives it no data.

    An index out of a table of requests is memory of the guest's kernel.
    """
    back = await connected(scene)
    job = scene.use(lambda disk: disk.read(0, 8))
    (request,) = await back.requests()
    back.put(request.id ^ 0xFFFF_0000_0001, request.op, 0)
    back.show()
    await back.kernel.sleep(20_000_000)
    expect(not job.done or job.error is not None, "The guest's read succeeds by somebody else's response.")
    await _is_alive(scene)


@check("BLKIF-FRONTEND-032", Level.must, "docs/hostile-peers.md; Linux, xen-blkfront (hardening of 5.16)")
async def the_same_response_twice(scene: Scene) -> None:
    """A second response to a request does not bring the guest down.

    The first has given the request's memory to somebody else.
    """
    back = await connected(scene)
    job = scene.use(lambda disk: disk.read(0, 8))
    (request,) = await back.requests()
    back.serve(request)
    await scene.finish(job)
    back.put(request.id, request.op, 0)
    back.show()
    await back.kernel.sleep(20_000_000)
    await _is_alive(scene)


@check("BLKIF-FRONTEND-060", Level.must, "io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES", schedules=12)
async def no_response_is_lost(scene: Scene) -> None:
    """However the domains take turns, every response reaches the guest, though each is told of only once.

    Between the frontend's last look and its sleep a response may come. Its event is the only one; a frontend that drops
    it, since it is at work already, has a guest that waits for a disk which has long answered.
    """
    back = await connected(scene)
    for number in range(6):
        jobs = [scene.use(lambda disk, n=n: disk.read(n * 50, 1)) for n in range(3)]  # type: ignore[misc]
        for request in await back.requests(3):
            back.serve(request)
            await back.kernel.yield_()
        for n, job in enumerate(jobs):
            expect_equal(await scene.finish(job), pattern(n * 50, 1), f"what read {n} of turn {number} brings")


async def _is_alive(scene: Scene) -> None:
    """Raise Failure unless the guest's kernel still runs."""
    if scene.remote is not None:
        await scene.end(scene.use(lambda disk: disk.nothing()))
        return
    assert scene.user is not None
    before = scene.user.monotonic_ns()
    job = scene.use(_nothing)
    for _ in range(40):
        await scene.back.kernel.sleep(1_000_000)
    expect(not scene.jobs or job.done, "The guest does not run any more.")
    expect(scene.user.monotonic_ns() > before, "The guest's time stands still.")


async def _nothing(_disk: object) -> None:
    return None
