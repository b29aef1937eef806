"""The checks of suite `blkif-backend`."""

from __future__ import annotations

import attrs

from conformance.block.front import IDENT, Front, Segment
from conformance.block.world import SECTORS, Scene, content
from conformance.kit.check import Level, Skip, check, expect, expect_equal
from hypervisor.abi.io import blkif, xenbus
from hypervisor.abi.io.blkif import BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_OKAY
from hypervisor.abi.io.ring import REQ_PROD, RSP_PROD

HEADER = "io/blkif.h"
REQUEST = f"{HEADER}, struct blkif_request"
RING = "io/ring.h"
PAGE = bytes(range(256)) * 16
UNDER_WAY_NS = 5_000
"""Virtual time after which a disk has not yet done what it was given."""


async def connected(scene: Scene, **nodes: object) -> Front:
    """Return the frontend, connected."""
    await scene.front.connect(**nodes)
    return scene.front


def refused(status: int, what: str) -> None:
    """Raise Failure unless a status says no."""
    expect(status < 0, f"{what} is answered with {status}; it should be an error.")


async def lives_on(front: Front) -> None:
    """Raise Failure unless a plain read still works."""
    expect_equal(await front.read(3, 1), content(3), "what is read afterwards")


# ---- the bus


@check("BLKIF-BACKEND-001", Level.must, f"{HEADER}, state diagram; io/xenbus.h")
async def init_wait(scene: Scene) -> None:
    """The backend comes to InitWait by itself, and waits there for the frontend.

    Most frontends write nothing before they see it; a backend that goes further has nobody to serve.
    """
    await scene.front.find()
    await scene.front.kernel.sleep(20_000_000)
    expect_equal(await scene.front.state(), xenbus.XenbusStateInitWait, "the backend's state before the frontend")


@check("BLKIF-BACKEND-002", Level.must, f"{HEADER}, sectors, sector-size, info")
async def nodes_at_connected(scene: Scene) -> None:
    """When it is Connected the backend has said how large the disk is, in sectors, and how large those are.

    The frontend makes its disk of these in that moment; what comes later comes too late.
    """
    front = await connected(scene)
    expect_equal(await front.told("sector-size"), "512", "sector-size")
    expect_equal(await front.told("sectors"), str(SECTORS), "sectors")
    info = await front.told("info")
    expect(info is not None and info.isdigit(), f"info is {info!r}; it should be a number of flags.")


@check("BLKIF-BACKEND-003", Level.must, "io/xenbus.h, XenbusStateClosing")
async def close_handshake(scene: Scene) -> None:
    """The backend follows the frontend to Closed, and maps nothing of it then.

    A page that is still mapped cannot be used again; Linux leaks it, and says so.
    """
    front = await connected(scene)
    await front.read(0)
    await front.close()


@check("BLKIF-BACKEND-004", Level.must, "io/xenbus.h, XenbusStateInitialising")
async def connect_again(scene: Scene) -> None:
    """After it has closed, a device can be connected again: the backend goes back to InitWait.

    kexec, a driver that is loaded anew, and every hibernation do so.
    """
    front = await connected(scene)
    await front.close()
    await front.begin_again()
    await front.connect()
    await lives_on(front)


@check("BLKIF-BACKEND-005", Level.must, "XSA-155; io/xenbus.h")
async def bad_ring_reference(scene: Scene) -> None:
    """A ring-ref that is no grant closes the device, and nothing else.

    It is the guest's text: an exception there must not reach the other guests' disks.
    """
    for bad in (999, "x", ""):
        state = await scene.front.try_to_connect(ring_ref=bad)
        expect(state != xenbus.XenbusStateConnected, f"The backend connects to ring-ref {bad!r}.")
        await scene.front.close()
        await scene.front.begin_again()
    await scene.front.connect()


@check("BLKIF-BACKEND-006", Level.must, f"{HEADER}, event-channel")
async def bad_event_channel(scene: Scene) -> None:
    """An event-channel that cannot be bound closes the device.

    As for the ring: what was mapped before must go back.
    """
    state = await scene.front.try_to_connect(event_channel=4000)
    expect(state != xenbus.XenbusStateConnected, "The backend connects to a port that does not exist.")


@check("BLKIF-BACKEND-007", Level.must, f"{HEADER}, protocol")
async def unknown_protocol(scene: Scene) -> None:
    """A protocol that the backend does not know is not taken for another one.

    Slots of another layout are read as garbage, and written to.
    """
    state = await scene.front.try_to_connect(protocol="pdp11-abi")
    expect(state != xenbus.XenbusStateConnected, "The backend connects by a protocol that does not exist.")


@check("BLKIF-BACKEND-008", Level.must, "docs/misc/xenstore-paths; io/xenbus.h")
async def death_of_the_frontend(scene: Scene) -> None:
    """When the frontend's domain is gone the backend's domain lives on.

    A guest may be destroyed at any moment. (What a backend still maps then is seen if it is a process; of one in Python
    it is not: its domain ends as well.)
    """
    front = await connected(scene)
    await front.read(0)
    scene.leave()


# ---- requests


@check("BLKIF-BACKEND-010", Level.must, REQUEST)
async def a_read(scene: Scene) -> None:
    """A read brings the sectors that were asked for into the page.

    The least that a disk does.
    """
    front = await connected(scene)
    expect_equal(await front.read(40), b"".join(content(sector) for sector in range(40, 48)), "what is read")


@check("BLKIF-BACKEND-011", Level.must, REQUEST)
async def a_write(scene: Scene) -> None:
    """A write changes the sectors that it names, and no others.

    One sector too many is somebody's file.
    """
    front = await connected(scene)
    ref = front.grant(PAGE)
    expect_equal(await front.request(BLKIF_OP_WRITE, 16, [(ref, 0, 7)]), BLKIF_RSP_OKAY, "the status of a write")
    expect_equal(await front.read(16), PAGE, "what is read after the write")
    expect_equal(await front.read(15, 1), content(15), "the sector before")
    expect_equal(await front.read(24, 1), content(24), "the sector behind")


@check("BLKIF-BACKEND-012", Level.must, f"{HEADER}, struct blkif_request_segment")
async def parts_of_pages(scene: Scene) -> None:
    """first_sect and last_sect, both included, say which part of a page a segment is; the rest of the page stays.

    File systems read single sectors into pages that hold other things.
    """
    front = await connected(scene)
    ref = front.grant(b"\xaa" * 4096)
    expect_equal(await front.request(BLKIF_OP_READ, 100, [(ref, 2, 4)]), BLKIF_RSP_OKAY, "the status")
    wanted = b"\xaa" * 1024 + content(100) + content(101) + content(102) + b"\xaa" * 1536
    expect(front.data(ref) == wanted, "A read of sectors 2 to 4 of a page changes something else, or not these.")


@check("BLKIF-BACKEND-013", Level.must, f"{HEADER}, BLKIF_MAX_SEGMENTS_PER_REQUEST")
async def eleven_segments(scene: Scene) -> None:
    """A request may have eleven segments, which follow each other on the disk.

    44 KiB are what Linux sends by default.
    """
    front = await connected(scene)
    refs = [front.grant() for _ in range(11)]
    expect_equal(await front.request(BLKIF_OP_READ, 8, [(ref, 0, 7) for ref in refs]), BLKIF_RSP_OKAY, "the status")
    found = b"".join(front.data(ref) for ref in refs)
    expect(found == b"".join(content(8 + n) for n in range(88)), "Eleven segments are not in their order.")


@check("BLKIF-BACKEND-014", Level.must, f"{HEADER}, struct blkif_response")
async def ids_come_back(scene: Scene) -> None:
    """Each request has one response, with its id and operation; their order is free.

    The id is all by which the frontend knows whose data has come.
    """
    front = await connected(scene)
    refs = [front.grant() for _ in range(32)]
    bad = {1000 + number * 3 for number in range(0, 32, 5)}
    for number, ref in enumerate(refs):
        ident = 1000 + number * 3
        front.put(BLKIF_OP_READ, SECTORS if ident in bad else number, [(ref, 0, 0)], ident=ident)
    front.show()
    answers = await front.responses(32)
    wanted = sorted((1000 + number * 3, BLKIF_OP_READ) for number in range(32))
    expect_equal(sorted((ident, op) for ident, op, _ in answers), wanted, "the ids and operations of the responses")
    expect_equal({ident for ident, _, status in answers if status < 0}, bad, "the ids of the responses that say no")
    for number, ref in enumerate(refs):
        if 1000 + number * 3 not in bad:
            expect_equal(front.data(ref)[:512], content(number), f"the data of request {number}")


@check("BLKIF-BACKEND-015", Level.must, "XSA-155; grant_table.h, GTF_readonly")
async def writes_need_only_read_access(scene: Scene) -> None:
    """For a write the backend only reads the page: a read-only grant is enough.

    Frontends grant their data so; a backend that maps it writable gets nothing.
    """
    front = await connected(scene)
    ref = front.grant(PAGE, readonly=True)
    expect_equal(await front.request(BLKIF_OP_WRITE, 0, [(ref, 0, 7)]), BLKIF_RSP_OKAY, "the status of the write")


@check("BLKIF-BACKEND-016", Level.must, "grant_table.h, GTF_readonly")
async def a_read_into_what_may_not_be_written(scene: Scene) -> None:
    """A read into a page that is granted read-only fails, and the page stays as it was.

    The grant says no, whatever the request says.
    """
    front = await connected(scene)
    ref = front.grant(PAGE, readonly=True)
    refused(await front.request(BLKIF_OP_READ, 0, [(ref, 0, 7)]), "A read into a read-only page")
    expect(front.data(ref) == PAGE, "A page that was granted read-only has been written.")
    await lives_on(front)


@check("BLKIF-BACKEND-017", Level.must, f"{HEADER}, BLKIF_OP_FLUSH_DISKCACHE")
async def a_flush(scene: Scene) -> None:
    """A flush, where it is offered, has no segments and succeeds.

    A journal is worth what its flushes are.
    """
    front = await connected(scene)
    if await front.told("feature-flush-cache") != "1":
        raise Skip("It does not offer feature-flush-cache.")
    expect_equal(await front.request(BLKIF_OP_FLUSH_DISKCACHE, 0), BLKIF_RSP_OKAY, "the status of a flush")


@check("BLKIF-BACKEND-018", Level.must, f"{HEADER}, struct blkif_request_indirect")
async def an_indirect_read(scene: Scene) -> None:
    """An indirect request finds its segments in pages that it names.

    Requests of more than 44 KiB have no other way.
    """
    front = await connected(scene)
    offered = int(await front.told("feature-max-indirect-segments") or 0)
    if offered < 20:
        raise Skip("It does not offer 20 indirect segments.")
    refs = [front.grant() for _ in range(20)]
    table = front.grant(b"".join(blkif.blkif_request_segment.pack(gref=ref, first_sect=0, last_sect=7) for ref in refs))
    expect_equal(await indirect(front, 20, table), BLKIF_RSP_OKAY, "the status of an indirect read")
    found = b"".join(front.data(ref) for ref in refs)
    expect(found == b"".join(content(n) for n in range(160)), "An indirect read brings something else.")


async def indirect(front: Front, segments: int, table: int) -> int:
    """Make an indirect read of sector 0 and return its status."""
    front.put_raw(
        blkif.blkif_request_indirect.pack(
            operation=blkif.BLKIF_OP_INDIRECT,
            indirect_op=BLKIF_OP_READ,
            nr_segments=segments,
            id=IDENT,
            indirect_grefs=[table, 0, 0, 0, 0, 0, 0, 0],
        )
    )
    front.show()
    answers = await front.responses(1)
    return answers[0][2]


# ---- what is wrong with a request


@check("BLKIF-BACKEND-019", Level.must, f"{HEADER}, BLKIF_OP_DISCARD, struct blkif_request_discard")
async def a_discard(scene: Scene) -> None:
    """A discard of sectors, where it is offered, succeeds, and leaves their neighbours as they were.

    It has no segments: its flags and the number of sectors stand where others have these.
    """
    front = await connected(scene)
    if await front.told("feature-discard") != "1":
        raise Skip("It does not offer discards.")
    for sector, sectors in ((16, 8), (100, 3), (SECTORS - 1, 1), (512, 1024)):
        expect_equal(await front.discard(sector, sectors), BLKIF_RSP_OKAY, f"the status of a discard at {sector}")
        for neighbour in (sector - 1, sector + sectors):
            if neighbour < SECTORS:
                expect_equal(await front.read(neighbour, 1), content(neighbour), f"sector {neighbour} beside it")


@check("BLKIF-BACKEND-020", Level.must, f"{REQUEST}, sector_number")
async def beyond_the_end(scene: Scene) -> None:
    """A request that goes beyond the end of the disk fails as a whole.

    Behind the end there is another disk of the same host.
    """
    front = await connected(scene)
    ref = front.grant(PAGE)
    for op in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        for sector in (SECTORS, SECTORS - 7, 1 << 40, (1 << 64) - 1, (1 << 64) - 4):
            refused(await front.request(op, sector, [(ref, 0, 7)]), f"Operation {op} on 8 sectors from {sector}")
    expect_equal(await front.read(SECTORS - 1, 1), content(SECTORS - 1), "the last sector afterwards")


@check("BLKIF-BACKEND-021", Level.must, f"{HEADER}, BLKIF_MAX_SEGMENTS_PER_REQUEST")
async def too_many_segments(scene: Scene) -> None:
    """More than eleven segments are refused: the slot has no room for them.

    Who believes the number reads the next requests as segments.
    """
    front = await connected(scene)
    ref = front.grant()
    for count in (12, 255):
        refused(
            await front.request(BLKIF_OP_READ, 0, [(ref, 0, 7)] * 11, count=count), f"A request of {count} segments"
        )
    await lives_on(front)


@check("BLKIF-BACKEND-022", Level.should, "Linux, xen-blkback")
async def no_segments(scene: Scene) -> None:
    """A read or write without segments is refused.

    Nothing is to be done, and nothing says how much; Linux's backend refuses it.
    """
    front = await connected(scene)
    refused(await front.request(BLKIF_OP_READ, 0), "A read without segments")
    refused(await front.request(BLKIF_OP_WRITE, 0), "A write without segments")
    await lives_on(front)


@check("BLKIF-BACKEND-023", Level.must, f"{HEADER}, struct blkif_request_segment")
async def segments_that_cannot_be(scene: Scene) -> None:
    """A segment whose last sector is before its first, or beyond its page, is refused.

    A length of -1, or a neighbour's page.
    """
    front = await connected(scene)
    ref = front.grant()
    for first, last in ((1, 0), (0, 8), (0, 255), (200, 201)):
        refused(await front.request(BLKIF_OP_READ, 0, [(ref, first, last)]), f"A segment of sectors {first} to {last}")
    await lives_on(front)


@check("BLKIF-BACKEND-024", Level.must, "grant_table.h; XSA-155")
async def bad_grants(scene: Scene) -> None:
    """A reference that is no grant fails its own request; those beside it are served.

    At each place of a batch: what was mapped before it must go back.
    """
    front = await connected(scene)
    good = [front.grant() for _ in range(3)]
    for bad in range(3):
        for number in range(3):
            ref = 5000 if number == bad else good[number]
            front.put(BLKIF_OP_READ, number, [(ref, 0, 0)], ident=number)
        front.show()
        for ident, _, status in await front.responses(3):
            expect_equal(status < 0, ident == bad, f"that request {ident} fails while {bad} has a bad grant")
    mixed = [(good[0], 0, 0), (5000, 0, 0), (good[1], 0, 0)]
    refused(await front.request(BLKIF_OP_READ, 0, mixed), "A request with a bad grant among good ones")


@check("BLKIF-BACKEND-025", Level.must, f"{HEADER}, Request operation codes")
async def unknown_operations(scene: Scene) -> None:
    """An operation that the backend does not know is answered with an error.

    No answer is an I/O that hangs; frontends try operations that a backend may not have.
    """
    front = await connected(scene)
    ref = front.grant()
    for op in (7, 99, 255):
        refused(await front.request(op, 0, [(ref, 0, 7)]), f"Operation {op}")
    await lives_on(front)


@check("BLKIF-BACKEND-026", Level.must, f"{HEADER}, struct blkif_request_indirect")
async def bad_indirect_requests(scene: Scene) -> None:
    """Indirect requests with more segments than offered, none, or a bad page of them are refused.

    Their number is 16 bits of the guest's.
    """
    front = await connected(scene)
    offered = int(await front.told("feature-max-indirect-segments") or 0)
    if not offered:
        raise Skip("It does not offer indirect segments.")
    table = front.grant()
    for segments, page in ((offered + 1, table), (65535, table), (0, table), (4, 5000)):
        refused(await indirect(front, segments, page), f"An indirect read of {segments} segments in page {page}")
    await lives_on(front)


@check("BLKIF-BACKEND-027", Level.must, "XSA-216; io/blkif.h, struct blkif_response")
async def nothing_leaks_with_a_response(scene: Scene) -> None:
    """The bytes of a response that mean nothing are zero, or what the frontend had put there.

    XSA-216: a structure on the backend's stack was copied whole, with whatever lay in its gaps.
    """
    front = await connected(scene)
    ref = front.grant()
    at = front.ring.offset(front.ring.req_prod_pvt)
    front.put(BLKIF_OP_READ, 0, [(ref, 0, 7)])
    before = bytes(front.ring.view[at : at + 112])
    front.show()
    await front.responses(1)
    after = bytes(front.ring.view[at : at + 112])
    gaps = [9, 12, 13, 14, 15, *range(16, 112)]
    strange = [place for place in gaps if after[place] not in (0, before[place])]
    expect(not strange, f"Bytes {strange} of the slot hold something that the frontend did not write.")


@check("BLKIF-BACKEND-028", Level.must, f"{HEADER}, BLKIF_OP_DISCARD")
async def discards_that_cannot_be(scene: Scene) -> None:
    """A discard of what is beyond the end of the disk is refused; so is any, where none is offered.

    Its number of sectors has 64 bits, so that a sum with its first sector may wrap.
    """
    front = await connected(scene)
    wrong = [(SECTORS, 1), (SECTORS - 1, 2), (1, (1 << 64) - 1), ((1 << 64) - 1, 2), (0, SECTORS + 1)]
    if await front.told("feature-discard") != "1":
        wrong = [(8, 8)]
    for sector, sectors in wrong:
        refused(await front.discard(sector, sectors), f"A discard of {sectors} sectors at {sector}")
    for sector in (0, 8, SECTORS - 1):
        expect_equal(await front.read(sector, 1), content(sector), f"sector {sector} afterwards")


@check("BLKIF-BACKEND-029", Level.must, f"{HEADER}, discard-secure, BLKIF_DISCARD_SECURE")
async def a_secure_discard(scene: Scene) -> None:
    """A secure discard is refused where discard-secure is not 1, and does nothing; where it is, it succeeds.

    Who asks for one has something to hide: a plain discard in its place would be a promise that nobody keeps.
    """
    front = await connected(scene)
    is_offered = await front.told("feature-discard") == "1" and await front.told("discard-secure") == "1"
    status = await front.discard(8, 8, flag=blkif.BLKIF_DISCARD_SECURE)
    if is_offered:
        expect_equal(status, BLKIF_RSP_OKAY, "the status of a secure discard")
    else:
        refused(status, "A secure discard, which was not offered,")
        expect_equal(await front.read(8, 8), b"".join(map(content, range(8, 16))), "what was to be discarded")
    expect_equal(await front.read(16, 1), content(16), "the sector behind it")


# ---- the ring


@check("BLKIF-BACKEND-030", Level.must, f"{RING}, RING_FINAL_CHECK_FOR_REQUESTS")
async def asks_to_be_told(scene: Scene) -> None:
    """When it has nothing to do the backend has asked to be told of the next request.

    Else the frontend does not notify, and its next request hangs until the one after it.
    """
    front = await connected(scene)
    for _ in range(3):
        await front.read(0)
        await front.kernel.sleep(5_000_000)
        expect_equal(front.thresholds[0], front.ring.req_prod_pvt + 1, "req_event of an idle backend")


@check("BLKIF-BACKEND-031", Level.must, f"{RING}, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")
async def notifies_when_asked(scene: Scene) -> None:
    """The backend notifies when its responses reach rsp_event, and not before.

    The frontend sleeps until then.
    """
    front = await connected(scene)
    refs = [front.grant() for _ in range(4)]
    front.ring.shared[3] = front.ring.rsp_cons + 4
    front.events = 0
    for ref in refs[:3]:
        front.put(BLKIF_OP_READ, 0, [(ref, 0, 0)])
        front.show()
        await front.kernel.sleep(5_000_000)
    expect_equal(front.ring.shared[RSP_PROD], front.ring.rsp_cons + 3, "rsp_prod after three requests")
    expect_equal(front.events, 0, "the number of notifications before the fourth response, which was asked for")
    front.put(BLKIF_OP_READ, 0, [(refs[3], 0, 0)])
    front.show()
    await front.kernel.sleep(5_000_000)
    expect(front.events, "The fourth response was asked for, and nobody is notified of it.")
    await front.responses(4)


@check("BLKIF-BACKEND-032", Level.must, "XSA-39; io/ring.h, RING_REQUEST_PROD_OVERFLOW")
async def a_ring_that_overflows(scene: Scene) -> None:
    """Indices that cannot be do not keep the backend busy: it serves at most a ring full, and the host goes on.

    XSA-39: the backend ran for ever, and its domain with it. An index that goes back while requests are under way is
    no more than a ring ahead of the responses, and still there is nothing between it and the last request taken.
    """
    front = await connected(scene)
    for sector in range(8):
        front.put(BLKIF_OP_READ, sector, [(front.grant(), 0, 0)], ident=sector)
    front.show()
    await front.kernel.sleep(UNDER_WAY_NS)
    for back in (3, 0):
        front.ring.shared[REQ_PROD] = front.ring.req_prod_pvt - back
        front.kernel.events.notify(front.port)
        await front.kernel.sleep(UNDER_WAY_NS)
    await front.close()
    await front.begin_again()
    await front.connect()
    await lives_on(front)
    front.ring.shared[REQ_PROD] = front.ring.req_prod_pvt + 1000
    front.kernel.events.notify(front.port)
    await front.kernel.sleep(50_000_000)
    answered = front.ring.shared[RSP_PROD] - front.ring.rsp_cons
    expect(answered <= front.ring.size, f"The backend gives {answered} responses to a ring of {front.ring.size}.")


@check("BLKIF-BACKEND-033", Level.must, f"{RING}")
async def many_turns(scene: Scene) -> None:
    """Hundreds of requests, in batches of all sizes, go around the ring and are all answered.

    Slots are used again and again, by requests and by responses.
    """
    front = await connected(scene)
    refs = [front.grant() for _ in range(32)]
    for turn in range(60):
        batch = turn * 7 % 32 + 1
        for number in range(batch):
            front.put(BLKIF_OP_READ, (turn + number) % SECTORS, [(refs[number], 0, 0)], ident=turn << 8 | number)
        front.show()
        answers = await front.responses(batch)
        wanted = {turn << 8 | number for number in range(batch)}
        expect_equal({ident for ident, _, _ in answers}, wanted, f"the ids of batch {turn}")
        expect(
            all(front.data(refs[n])[:512] == content((turn + n) % SECTORS) for n in range(batch)), "Data is mixed up."
        )


@check("BLKIF-BACKEND-034", Level.must, "XSA-155")
async def pages_are_given_back(scene: Scene) -> None:
    """Without feature-persistent a page is no longer in use once its response has come.

    The frontend gives it to a process, which writes there.
    """
    front = await connected(scene, feature_persistent=0)
    refs = [front.grant() for _ in range(4)]
    for ref in refs:
        expect_equal(await front.request(BLKIF_OP_READ, 0, [(ref, 0, 7)]), BLKIF_RSP_OKAY, "the status")
        expect(not front.kernel.grants.is_in_use(ref), "A page is still mapped when its response has come.")


@check("BLKIF-BACKEND-035", Level.must, "XSA-155; io/ring.h, RING_COPY_REQUEST")
async def a_request_that_changes(scene: Scene) -> None:
    """A request that changes while it is served is served as it was at one moment, or refused.

    The slot is the frontend's to write at any time. Who checks the number of segments there and then reads it again
    has checked nothing (XSA-155: the compiler alone could do that to a backend).
    """
    front = await connected(scene)
    good, other = front.grant(), front.grant()
    first = Variant(1, 100, (good, 0, 7), content_of(100, 8), b"")
    for second in (
        Variant(200, 100, (good, 0, 7), b"", b""),
        Variant(1, 100, (good, 0, 255), b"", b""),
        Variant(1, SECTORS, (good, 0, 7), b"", b""),
        Variant(1, 200, (other, 0, 7), b"", content_of(200, 8)),
    ):
        for delay in range(0, 12_000, 500):
            for ref in (good, other):
                front.pages[ref].view[:] = PAGE
            status = await change_under_way(front, first, second, delay)
            found = status == BLKIF_RSP_OKAY, front.data(good), front.data(other)
            expect(
                found
                in [(bool(one.good or one.other), one.good or PAGE, one.other or PAGE) for one in (first, second)],
                f"A request of {first} that becomes {second} is answered with {status}, and is neither of them.",
            )
    await lives_on(front)


@attrs.frozen
class Variant:
    """What a request says at a time, and what the two pages hold when it has been served (empty: what they held)."""

    count: int
    sector: int
    segment: Segment
    good: bytes = attrs.field(repr=False)
    other: bytes = attrs.field(repr=False)

    def put(self, front: Front) -> None:
        """Write it into the next slot."""
        front.put(BLKIF_OP_READ, self.sector, [self.segment] * min(self.count, 11), count=self.count)

    def __str__(self) -> str:
        return (
            f"{self.count} segments at sector {self.sector}, sectors {self.segment[1]} to {self.segment[2]} of a page"
        )


def content_of(sector: int, count: int) -> bytes:
    """Return what the disk holds at first."""
    return b"".join(content(number) for number in range(sector, sector + count))


async def change_under_way(front: Front, first: Variant, second: Variant, delay: int) -> int:
    """Make a request that becomes another one after so many nanoseconds; return its status."""
    answered = front.ring.shared[RSP_PROD]
    first.put(front)
    front.show()
    await front.kernel.sleep(delay)
    if front.ring.shared[RSP_PROD] == answered:
        # (Later there is the response.)
        front.ring.req_prod_pvt -= 1
        second.put(front)
    return front.one_status(await front.responses(1), BLKIF_OP_READ)


@check("BLKIF-BACKEND-060", Level.must, f"{RING}, RING_FINAL_CHECK_FOR_REQUESTS", schedules=12)
async def no_request_is_lost(scene: Scene) -> None:
    """However the domains take turns, every request is answered, though each is told of only when that is asked for.

    Between the backend's last look and its sleep a request may come. Its event is the only one; a backend that drops
    it, or asks for it too late, leaves a guest waiting that may never write again.
    """
    front = await connected(scene)
    ref = front.grant()
    for number in range(12):
        for _ in range(1 + number % 3):
            front.put(BLKIF_OP_READ, number, [(ref, 0, 0)])
            front.show()
            await front.kernel.yield_()
        await front.responses(1 + number % 3)
