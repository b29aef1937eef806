"""What a guest sends: slots, sizes, offsets, and their answers."""

from __future__ import annotations

from conformance.kit.check import Level, check, expect, expect_equal
from conformance.net.checks.common import HEADER, SCATTER, TX, both, lives_on, refused
from conformance.net.frames import MACS, expect_frames, frame
from conformance.net.world import Scene
from hypervisor.abi.io.netif import (
    NETIF_RSP_OKAY,
    XEN_NETIF_NR_SLOTS_MIN,
    NETTXF_more_data,
)
from hypervisor.abi.io.xenbus import XenbusStateConnected

SIZES = "XSA-155; Linux, xen-netback"


@check("NETIF-BACKEND-030", Level.must, TX)
async def a_frame(scene: Scene) -> None:
    """A frame arrives at the other interface as it was sent, whatever its length.

    The least that a network does.
    """
    front, peer = await both(scene)
    for size in (14, 15, 60, 61, 590, 1514):
        data = frame(size, size)
        await front.queue.send(data)
        expect_frames(await peer.queue.receive_data(), [data], f"What arrives of a frame of {size} bytes")


@check("NETIF-BACKEND-031", Level.must, f"{TX}, offset")
async def at_an_offset(scene: Scene) -> None:
    """A frame may lie anywhere in its page, to the page's last byte.

    Network stacks leave room for headers before it.
    """
    front, peer = await both(scene)
    data = frame(100)
    for offset in (1, 255, 2048, 4096 - 100):
        ref = front.grant(bytes(offset) + data, readonly=True)
        ident = front.queue.put(ref, 100, offset=offset)
        front.queue.show_tx()
        await front.queue.taken(ident)
        expect_frames(await peer.queue.receive_data(), [data], f"What arrives of a frame at {offset}")


@check("NETIF-BACKEND-032", Level.must, f"{HEADER}, struct netif_tx_response")
async def each_request_is_answered(scene: Scene) -> None:
    """Each request has one response with its id, good and bad ones alike.

    The id is all by which the guest knows which page is its own again.
    """
    front, _ = await both(scene)
    wanted = []
    for number in range(30):
        is_bad = number % 7 == 3
        ref = 5000 if is_bad else front.grant(frame(60, number), readonly=True)
        wanted.append((front.queue.put(ref, 60), is_bad))
    front.queue.show_tx()
    found = [(ident, status < 0) for ident, status in await front.queue.answers(30)]
    expect_equal(sorted(found), sorted(wanted), "the responses (id, whether it is an error)")


@check("NETIF-BACKEND-033", Level.must, TX)
async def in_order(scene: Scene) -> None:
    """Frames arrive in the order in which they were sent.

    TCP takes what is out of order for a loss, and goes slower.
    """
    front, peer = await both(scene)
    frames = [frame(60 + number, number) for number in range(25)]
    await front.queue.send(*frames)
    expect_frames(await peer.queue.receive_data(25), frames, "What arrives")


@check("NETIF-BACKEND-034", Level.must, f"{TX}, NOTE")
async def several_slots(scene: Scene) -> None:
    """Of a frame of several slots the first tells the size of the whole, the others their own.

    Who takes the first one's for its own sends the rest of the page, too: what the guest did not want to send.
    """
    front, peer = await both(scene)
    for sizes in ([700, 700], [14, 1, 85], [100, 400, 300, 200], [1, 13, 46]):
        data = frame(sum(sizes), len(sizes))
        idents = front.queue.put_slots(data, sizes)
        front.queue.show_tx()
        await front.queue.taken(*idents)
        expect_frames(await peer.queue.receive_data(), [data], f"What arrives of slots of {sizes} bytes")


@check("NETIF-BACKEND-035", Level.must, f"{HEADER}, XEN_NETIF_NR_SLOTS_MIN; XSA-432")
async def eighteen_slots(scene: Scene) -> None:
    """A frame may have eighteen slots, however little is in them.

    XSA-432: a frame that used up all its slots with less data than the backend pulls into one piece overran it.
    """
    front, peer = await both(scene)
    for size in (1, 80):
        data = frame(18 * size, size)
        idents = front.queue.put_slots(data, [size] * XEN_NETIF_NR_SLOTS_MIN)
        front.queue.show_tx()
        await front.queue.taken(*idents)
        expect_frames(await peer.queue.receive_data(), [data], f"What arrives of 18 slots of {size} bytes")


@check("NETIF-BACKEND-036", Level.must, "XSA-423")
async def headers_in_pieces(scene: Scene) -> None:
    """Wherever a frame is cut into slots, it arrives whole: at each byte of its headers, too.

    XSA-423: headers that lay in two pieces reached a card's driver, which read beyond the first.
    """
    front, peer = await both(scene)
    for at in range(1, 60):
        data = frame(60, at)
        idents = front.queue.put_slots(data, [at, 60 - at])
        front.queue.show_tx()
        await front.queue.taken(*idents)
        expect_frames(await peer.queue.receive_data(), [data], f"What arrives of a frame that is cut at {at}")
        peer.queue.restock()


@check("NETIF-BACKEND-037", Level.should, "Linux, xen-netback (fatal_skb_slots)")
async def too_many_slots(scene: Scene) -> None:
    """A frame of more slots than eighteen is refused, or the device closed; nothing of it arrives.

    The number is the guest's, and the backend has an array of so many places.
    """
    front, peer = await both(scene)
    front.queue.put_slots(frame(190), [10] * 19)
    front.queue.show_tx()
    await refused(front, 19, "A frame of 19 slots")
    await peer.queue.silent()
    await lives_on(scene)


@check("NETIF-BACKEND-038", Level.must, SIZES)
async def slots_without_end(scene: Scene) -> None:
    """A ring full of slots that all say more_data is no frame, and keeps nobody busy.

    The backend collects a frame's slots before it looks at them; what it collects into must have an end.
    """
    front, peer = await both(scene)
    ref = front.grant(frame(60), readonly=True)
    for number in range(200):
        front.queue.put(ref, 10, flags=NETTXF_more_data, ident=number)
    front.queue.show_tx()
    await peer.queue.silent()
    await peer.queue.send(frame(60, source=MACS[1]))


@check("NETIF-BACKEND-039", Level.must, f"{TX}; XSA-155")
async def more_data_beyond_the_producer(scene: Scene) -> None:
    """When a slot says more_data, and the next has not been shown, the backend does not look at it.

    It is a request of the last turn, or what the guest is just writing. The rest may come later, or the device closes.
    """
    front, peer = await both(scene)
    data = frame(100)
    pages = [front.grant(data[:50], readonly=True), front.grant(data[50:], readonly=True)]
    first = front.queue.put(pages[0], 100, flags=NETTXF_more_data)
    front.queue.show_tx()
    second = front.queue.put(pages[1], 50)
    await peer.queue.silent()
    if await front.state() != XenbusStateConnected:
        return
    front.queue.show_tx()
    await front.queue.taken(first, second)
    expect_frames(await peer.queue.receive_data(), [data], "What arrives once all slots are shown")


@check("NETIF-BACKEND-040", Level.must, SIZES)
async def too_short(scene: Scene) -> None:
    """What is shorter than an Ethernet header is refused: 13 bytes, one, none.

    Whoever looks at its addresses reads what lies behind it.
    """
    front, peer = await both(scene)
    for size in (13, 1, 0):
        front.queue.put(front.grant(frame(60), readonly=True), size)
        front.queue.show_tx()
        if not await refused(front, 1, f"A frame of {size} bytes"):
            break
    await peer.queue.silent()
    await lives_on(scene)


@check("NETIF-BACKEND-041", Level.must, f"{TX}, offset; {SIZES}")
async def across_the_page(scene: Scene) -> None:
    """Data that goes beyond the end of its page is refused, or the device closed.

    The next page is another guest's, or the backend's own.
    """
    for offset, size in ((4083, 14), (4096, 60), (0xFFFF, 60), (0xFFFF, 0xFFFF), (1, 4096), (0, 4097)):
        front, peer = await both(scene)
        front.queue.put(front.grant(frame(60), readonly=True), size, offset=offset)
        front.queue.show_tx()
        await refused(front, 1, f"A slot of {size} bytes at {offset}")
        await peer.queue.silent(5_000_000)
        await lives_on(scene)
        for one in (front, peer):
            await one.close()
            await one.begin_again()


@check("NETIF-BACKEND-042", Level.must, f"{TX}, NOTE; {SIZES}")
async def sizes_that_do_not_add_up(scene: Scene) -> None:
    """Slots that are together longer than the first says are refused: its own length would be less than nothing.

    A length below zero is a very large one.
    """
    for sizes in ((60, 61), (60, 30, 31), (100, 0xFFFF), (0, 1)):
        front, peer = await both(scene)
        ref = front.grant(frame(60), readonly=True)
        for number, size in enumerate(sizes):
            front.queue.put(ref, size, flags=NETTXF_more_data if number < len(sizes) - 1 else 0)
        front.queue.show_tx()
        await refused(front, len(sizes), f"A frame with slots of {sizes} bytes")
        await peer.queue.silent(5_000_000)
        await lives_on(scene)
        for one in (front, peer):
            await one.close()
            await one.begin_again()


@check("NETIF-BACKEND-043", Level.must, "XSA-361, XSA-367; grant_table.h")
async def a_bad_grant_among_good_ones(scene: Scene) -> None:
    """A reference that is no grant costs its own frame only, at each place of a batch.

    XSA-361: the error of one operation of a batch was taken for that of another, or of none.
    """
    front, peer = await both(scene)
    for bad in range(4):
        frames = [frame(60, 10 * bad + number) for number in range(4)]
        refs = [front.grant(data, readonly=True) for data in frames]
        refs[bad] = (0, 5000, 0x7FFF_FFFF, 0xFFFF_FFFF)[bad]
        wanted = [(front.queue.put(ref, 60), number == bad) for number, ref in enumerate(refs)]
        front.queue.show_tx()
        found = [(ident, status < 0) for ident, status in await front.queue.answers(4)]
        expect_equal(sorted(found), sorted(wanted), f"the responses (id, whether it is an error) with {bad} bad")
        expect_frames(await peer.queue.receive_data(3), frames[:bad] + frames[bad + 1 :], "What arrives")
    await peer.queue.silent()


@check("NETIF-BACKEND-044", Level.must, "XSA-362; grant_table.h")
async def a_bad_grant_within_a_frame(scene: Scene) -> None:
    """A frame with one slot whose reference is no grant does not arrive, and all its slots are answered with an error.

    Half a frame is worse than none: the missing half is what was in the backend's page before.
    """
    front, peer = await both(scene)
    for bad in range(3):
        data = frame(90, bad)
        for number in range(3):
            ref = 5000 if number == bad else front.grant(data[30 * number : 30 * number + 30], readonly=True)
            front.queue.put(ref, 30 if number else 90, flags=NETTXF_more_data if number < 2 else 0)
        front.queue.show_tx()
        await refused(front, 3, f"A frame whose slot {bad} has a bad grant")
    await peer.queue.silent()
    await lives_on(scene)


@check("NETIF-BACKEND-045", Level.must, "grant_table.h, GTF_readonly")
async def read_only_pages(scene: Scene) -> None:
    """What is sent is only read: a grant that allows no more is enough, and the page stays as it was.

    Frontends grant it so; what the page holds may be a file's only copy.
    """
    front, peer = await both(scene)
    data = frame(300)
    page = data + b"\xee" * (4096 - 300)
    for readonly in (True, False):
        ref = front.grant(page, readonly=readonly)
        ident = front.queue.put(ref, 300)
        front.queue.show_tx()
        await front.queue.taken(ident)
        how = "for reading only" if readonly else "for writing, too"
        expect_frames(await peer.queue.receive_data(), [data], f"What arrives from a page that is granted {how}")
        expect(front.data(ref) == page, f"A page that was sent, and is granted {how}, has been written to.")


@check("NETIF-BACKEND-046", Level.must, f"{TX}, struct netif_tx_response")
async def answered_when_taken(scene: Scene) -> None:
    """Once a request has been answered the page is the guest's: what it writes there is not sent any more.

    It is another socket's data by then.
    """
    front, peer = scene.front, scene.peer
    await front.connect()
    await peer.connect(SCATTER, buffers=0)
    datas = [frame(200, number) for number in range(8)]
    refs = [front.grant(data, readonly=True) for data in datas]
    idents = [front.queue.put(ref, 200) for ref in refs]
    front.queue.show_tx()
    await front.queue.taken(*idents)
    for ref in refs:
        expect(not front.kernel.grants.is_in_use(ref), "A page is still in use when its response has come.")
        front.pages[ref].view[:200] = b"\xdd" * 200
    peer.queue.post(8)
    peer.queue.show_rx()
    expect_frames(await peer.queue.receive_data(8), datas, "What arrives of pages that are overwritten once answered")


@check("NETIF-BACKEND-047", Level.must, "XSA-448")
async def slots_of_nothing(scene: Scene) -> None:
    """A slot of no bytes between others is no reason to fall, whatever its reference is.

    XSA-448: the backend freed what it had never taken. The frame arrives, or is refused.
    """
    front, peer = await both(scene)
    data = frame(100)
    half = [front.grant(data[:50], readonly=True), front.grant(data[50:], readonly=True)]
    for ref, size in ((half[0], 100), (0xDEAD, 0), (half[1], 50), (0xBEEF, 0)):
        front.queue.put(ref, size, flags=NETTXF_more_data if ref != 0xBEEF else 0)
    front.queue.show_tx()
    answers = await front.queue.answers(4)
    if all(status == NETIF_RSP_OKAY for _, status in answers):
        expect_frames(await peer.queue.receive_data(), [data], "What arrives")
    else:
        await peer.queue.silent()
    await lives_on(scene)


@check("NETIF-BACKEND-048", Level.must, TX)
async def no_way_back(scene: Scene) -> None:
    """A frame does not come back to who has sent it, not even one for everybody.

    A station that hears its own address from elsewhere takes it for a duplicate.
    """
    front, peer = await both(scene)
    await front.queue.send(frame(60), frame(60, 1, to=MACS[0]))
    await peer.queue.receive()
    await front.queue.silent()
