"""What the frontend sends: slots, offloads, and what it makes of the answers."""

from __future__ import annotations

from conformance.kit.check import Failure, Level, Skip, check, expect, expect_equal
from conformance.net.frames import HEADERS, blank_field, frame, tcp, transport_field, transport_sum, udp, udp6
from conformance.net_front.back import Sent
from conformance.net_front.checks.common import EXTRA, HEADER, TX, connected
from conformance.net_front.world import Scene
from guest_kernel.net.checksum import verify
from guest_kernel.net.offload import BLANK, gso
from hypervisor.abi.io import netif
from hypervisor.abi.io.netif import (
    NETIF_RSP_DROPPED,
    NETIF_RSP_ERROR,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_NR_SLOTS_MIN,
    NETTXF_csum_blank,
)

MSS = 1000
LONG = 5000
"""More than a page."""


@check("NETIF-FRONTEND-020", Level.must, TX)
async def a_frame(scene: Scene) -> None:
    """A frame that the guest sends is in the slots that say so, whatever its length.

    The least that a network does.
    """
    back = await connected(scene)
    for size in (14, 60, 61, 1514):
        data = frame(size, size)
        await scene.transmit(data)
        sent = await back.frame()
        expect_equal((sent.data == data, sent.flags, sent.extras), (True, 0, []), "that it is the frame; flags; extras")
        back.answer(sent)


@check("NETIF-FRONTEND-021", Level.must, f"{HEADER}, feature-sg")
async def no_scattered_frames_unasked(scene: Scene) -> None:
    """A backend without feature-sg gets no frame of several slots.

    It takes each slot for a frame. What is longer than a page is not sent, or cut.
    """
    back = await connected(scene)
    await scene.transmit(frame(LONG))
    await back.kernel.sleep(5_000_000)
    for raw in back.take_slots():
        flags = netif.netif_tx_request.unpack(raw).flags
        expect(not flags & netif.NETTXF_more_data, "A slot says more_data to a backend without feature-sg.")


@check("NETIF-FRONTEND-022", Level.must, f"{TX}, NOTE; XEN_NETIF_NR_SLOTS_MIN")
async def scattered_frames(scene: Scene) -> None:
    """With feature-sg a long frame has up to eighteen slots; the first tells the size of the whole, the others theirs.

    That is all a backend must take; it refuses more, or closes.
    """
    back = await connected(scene, feature_sg=1)
    for size in (LONG, 20000, 0xFFFF):
        data = frame(size)
        if not await scene.transmit(data):
            raise Skip(f"Its interface sends no frames of {size} bytes.")
        sent = await back.frame()
        expect(len(sent.slots) <= XEN_NETIF_NR_SLOTS_MIN, f"A frame has {len(sent.slots)} slots.")
        expect(
            sent.data == data, f"A frame of {size} bytes in slots of {[slot.size for slot in sent.slots]} is another."
        )
        back.answer(sent)


@check("NETIF-FRONTEND-023", Level.must, f"{HEADER}, NETTXF_csum_blank")
async def blank_checksums_say_so(scene: Scene) -> None:
    """A packet without its checksum is marked csum_blank; one that is not marked has it.

    Whoever brings it to a wire fills it in if he is told.
    """
    back = await connected(scene)
    await scene.transmit(udp(300, blank=True), BLANK)
    sent = await back.frame()
    if sent.flags & NETTXF_csum_blank:
        expect_equal(transport_field(sent.data), blank_field(sent.data), "the checksum field of a blank packet")
    else:
        expect_equal(transport_sum(sent.data), 0xFFFF, "the sum over a packet that is not marked csum_blank")
    back.answer(sent)


@check("NETIF-FRONTEND-024", Level.must, f"{HEADER}, feature-ipv6-csum-offload")
async def ipv6_checksums(scene: Scene) -> None:
    """A backend that does not offer feature-ipv6-csum-offload gets IPv6 packets whose checksums are right.

    It does not look for them there, and sends them on as they are.
    """
    back = await connected(scene)
    await scene.transmit(udp6(300), BLANK)
    sent = await back.frame()
    expect(not sent.flags & NETTXF_csum_blank, "An IPv6 packet is marked csum_blank, which nobody has offered to take.")
    expect(verify(sent.data), "The checksum of an IPv6 packet is wrong.")
    back.answer(sent)


@check("NETIF-FRONTEND-025", Level.must, f"{HEADER}, feature-gso-tcpv4")
async def cuts_for_those_who_cannot(scene: Scene) -> None:
    """A large TCP packet for a backend without feature-gso-tcpv4 is sent in segments, and no extra info with it.

    A backend that does not know extra info takes it for a frame.
    """
    back = await connected(scene, feature_sg=1)
    if not await scene.transmit(tcp(5500), gso(MSS)):
        raise Skip("Its interface takes no large packets.")
    data = b""
    while len(data) < 5500:
        for sent in await back.frames():
            expect(not sent.extras, "It sends extra info, which nobody has offered to take.")
            expect(len(sent.data) <= HEADERS + MSS, f"A segment has {len(sent.data) - HEADERS} bytes.")
            _has_checksum_or_says_so(sent)
            data += sent.data[HEADERS:]
            back.answer(sent)
    expect(data == tcp(5500)[HEADERS:], "The segments together are another packet.")


@check("NETIF-FRONTEND-026", Level.must, f"{EXTRA}, XEN_NETIF_EXTRA_TYPE_GSO")
async def large_packets(scene: Scene) -> None:
    """Where feature-gso-tcpv4 is offered a large packet may go whole; extra info then has segment size and type.

    Its checksum is blank: that of the whole has no meaning.
    """
    back = await connected(scene, feature_sg=1, feature_gso_tcpv4=1)
    if not await scene.transmit(tcp(9000), gso(MSS)):
        raise Skip("Its interface takes no large packets.")
    sent = (await back.frames())[0]
    if not sent.extras:
        raise Skip("It cuts large packets itself.")
    raw = netif.netif_extra_info.unpack(sent.extras[0])
    found = (raw.type, raw.u.gso.size, raw.u.gso.type)
    expect_equal(found, (XEN_NETIF_EXTRA_TYPE_GSO, MSS, XEN_NETIF_GSO_TYPE_TCPV4), "type, segment size, kind")
    expect(sent.flags & NETTXF_csum_blank, "A packet that is to be cut is not marked csum_blank.")
    expect(sent.data == tcp(9000), "The packet is another.")
    back.answer(sent)
    await scene.transmit(frame(60))
    back.answer(await back.frame())


@check("NETIF-FRONTEND-027", Level.must, f"{HEADER}, id")
async def ids_are_its_own(scene: Scene) -> None:
    """Requests under way have ids that differ, and answers may come in any order.

    A backend answers when a frame's last receiver has done with it.
    """
    back = await connected(scene)
    job = scene.send_many([frame(60, number) for number in range(10)])
    sent = await back.frames(10)
    await scene.finish(job)
    expect_equal(len({one.slots[0].id for one in sent}), 10, "the number of ids of ten requests under way")
    back.answer(*sent[::-1])
    await _sends_more(scene, 300)


@check("NETIF-FRONTEND-028", Level.must, f"{HEADER}, NETIF_RSP_ERROR")
async def errors_are_losses(scene: Scene) -> None:
    """A frame that is answered with an error, or dropped, is lost; the frontend sends on.

    On an Ethernet that is nothing new.
    """
    back = await connected(scene)
    for status in (NETIF_RSP_ERROR, NETIF_RSP_DROPPED):
        await scene.transmit(frame(60))
        back.answer(await back.frame(), status=status)
    await _sends_more(scene, 300)


@check("NETIF-FRONTEND-029", Level.should, "XSA-403")
async def nothing_else_in_the_page(scene: Scene) -> None:
    """What is in a page beside the frame is nothing of the guest's: zeros, or what was sent before.

    XSA-403: the page that a small packet lies in is granted whole, with what the guest had there.
    """
    back = await connected(scene)
    data = frame(60)
    await scene.transmit(data)
    sent = await back.frame()
    slot = sent.slots[0]
    page = back.read(slot.gref, 0, 4096)
    expect(not any(page[: slot.offset] + page[slot.offset + 60 :]), "The page has something beside the first frame.")
    back.answer(sent)


@check("NETIF-FRONTEND-030", Level.must, f"{HEADER}, struct netif_tx_request")
async def the_page_stays_until_answered(scene: Scene) -> None:
    """What is in a page does not change before the request has been answered.

    The backend may read it late; another frame there would be sent twice.
    """
    back = await connected(scene)
    datas = [frame(60, number) for number in range(20)]
    job = scene.send_many(datas)
    sent = await back.frames(20)
    await scene.finish(job)
    await back.kernel.sleep(5_000_000)
    found = [back.read(one.slots[0].gref, one.slots[0].offset, 60) for one in sent]
    expect(found == datas, "What is in a page changes before its request has been answered.")
    back.answer(*sent)


@check("NETIF-FRONTEND-031", Level.must, TX)
async def hundreds_of_frames(scene: Scene) -> None:
    """Hundreds of frames go around the ring, in their order.

    Slots and ids are used again and again.
    """
    await connected(scene)
    await _sends_more(scene, 700)


async def _sends_more(scene: Scene, count: int) -> None:
    """Raise Failure unless the guest can send more frames than the ring has slots."""
    taken = scene.back.keep_serving()
    frames = [frame(60 + number % 50, number) for number in range(count)]
    await scene.finish(scene.send_many(frames))
    await scene.back.kernel.sleep(5_000_000)
    expect(taken == frames, f"Of {count} frames {len(taken)} come, or others, or in another order.")


def _has_checksum_or_says_so(sent: Sent) -> None:
    if sent.flags & NETTXF_csum_blank:
        expect_equal(transport_field(sent.data), blank_field(sent.data), "the checksum field of a blank packet")
    elif transport_sum(sent.data) != 0xFFFF:
        raise Failure("A packet is sent with a wrong checksum, and no flag says that it is missing.")
