"""What the frontend receives: buffers, slots, and what the guest gets of them."""

from __future__ import annotations

from conformance.kit.check import Level, Skip, check, expect, expect_equal
from conformance.net.frames import HEADERS, expect_frames, frame, tcp, transport_sum, udp
from conformance.net.rings import gso
from conformance.net_front.checks.common import EXTRA, HEADER, RX, connected, listening
from conformance.net_front.world import Scene
from hypervisor.abi.io.netif import (
    NETIF_RSP_DROPPED,
    NETIF_RSP_ERROR,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_GSO_TYPE_TCPV4,
    NETRXF_csum_blank,
    NETRXF_data_validated,
)

MSS = 1000


@check("NETIF-FRONTEND-040", Level.must, RX)
async def posts_buffers(scene: Scene) -> None:
    """Once it is connected the frontend has posted buffers: pages that may be written to, each with an id of its own.

    Without one no frame can reach it.
    """
    back = await connected(scene)
    await back.buffer()
    count = back.take_buffers()
    expect(count >= 7, f"There are {count + 1} buffers.")
    expect_equal(len({buffer.id for buffer in back.buffers}), count, "the number of ids of the buffers")
    expect_equal(len({buffer.gref for buffer in back.buffers}), count, "the number of their pages")
    back.write(back.buffers[0].gref, 0, b"x")


@check("NETIF-FRONTEND-041", Level.must, RX)
async def a_frame(scene: Scene) -> None:
    """A frame that the backend puts into a buffer reaches the guest as it is, whatever its length.

    The least that a network does.
    """
    back = await listening(scene)
    frames = [frame(size, size) for size in (14, 60, 61, 1514)]
    await back.give(*frames)
    expect_frames(await scene.hears(4), frames, "What reaches the guest")


@check("NETIF-FRONTEND-042", Level.must, f"{RX}, offset")
async def at_an_offset(scene: Scene) -> None:
    """A frame may lie anywhere in its page, to the page's last byte.

    Backends keep a frame's place in its page, so that headers are aligned.
    """
    back = await listening(scene)
    for offset in (2, 255, 4096 - 100):
        await back.put(frame(100, offset), offset=offset)
        back.show_frames()
        expect_frames(await scene.hears(1), [frame(100, offset)], f"What reaches the guest of a frame at {offset}")


@check("NETIF-FRONTEND-043", Level.must, f"{RX}, more_data")
async def scattered_frames(scene: Scene) -> None:
    """A frontend that has written feature-sg takes frames of several slots, each with its own size.

    It has said that it does.
    """
    back = await listening(scene)
    if await back.told("feature-sg") != "1":
        raise Skip("It does not take frames of several slots.")
    data = frame(1500)
    for cuts in ([700], [14, 15], [100, 200, 300, 400], list(range(80, 80 * 18, 80))):
        ends = [*cuts, len(data)]
        pieces = [data[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
        await back.put(*pieces)
        back.show_frames()
        expect_frames(await scene.hears(1), [data], f"What reaches the guest of a frame that is cut at {cuts}")


@check("NETIF-FRONTEND-044", Level.must, f"{HEADER}, struct netif_rx_response")
async def errors_are_losses(scene: Scene) -> None:
    """A buffer that is answered with an error has no frame; the next one reaches the guest.

    What is in its page is a frame of before.
    """
    back = await listening(scene)
    await back.give(frame(60))
    await scene.hears(1)
    for status in (NETIF_RSP_ERROR, NETIF_RSP_DROPPED, -32768):
        back.put_response((await back.buffer()).id, status)
        back.show_frames()
    data = frame(60, 9)
    await back.give(data)
    expect_frames(await scene.hears(1), [data], "What reaches the guest after three errors")


@check("NETIF-FRONTEND-045", Level.must, f"{RX}, more_data")
async def an_error_within_a_frame(scene: Scene) -> None:
    """A frame one of whose slots has an error does not reach the guest; the next one does.

    The middle of it would be a frame of before.
    """
    back = await listening(scene)
    for bad in range(3):
        for number in range(3):
            buffer = await back.buffer()
            back.write(buffer.gref, 0, frame(60, number))
            back.put_response(buffer.id, NETIF_RSP_ERROR if number == bad else 60, flags=4 if number < 2 else 0)
        back.show_frames()
        data = frame(60, 10 + bad)
        await back.give(data)
        expect_frames(await scene.hears(1), [data], f"What reaches the guest after a frame with slot {bad} bad")


@check("NETIF-FRONTEND-046", Level.must, f"{HEADER}, NETRXF_csum_blank")
async def blank_checksums(scene: Scene) -> None:
    """A packet that is marked csum_blank reaches a program that wants whole frames with its checksum filled in.

    It may send it on to a wire.
    """
    back = await listening(scene)
    await back.give(udp(300, blank=True), flags=NETRXF_csum_blank | NETRXF_data_validated)
    (found,) = await scene.hears(1)
    expect_equal(transport_sum(found), 0xFFFF, "the sum over the packet that reaches the guest")


@check("NETIF-FRONTEND-047", Level.must, f"{EXTRA}, XEN_NETIF_EXTRA_TYPE_GSO")
async def large_packets(scene: Scene) -> None:
    """A frontend that has written feature-gso-tcpv4 takes a large packet: nothing of its data is lost.

    A program that wants frames as of a wire gets its segments. The extra info uses up the buffer that stood in its
    slot, which must be posted again.
    """
    back = await listening(scene, feature_gso_tcpv4=1, feature_sg=1)
    if await back.told("feature-gso-tcpv4") != "1":
        raise Skip("It does not take large packets.")
    packet = tcp(5500)
    for _ in range(60):
        extra = (XEN_NETIF_EXTRA_TYPE_GSO, gso(MSS, XEN_NETIF_GSO_TYPE_TCPV4))
        await back.put(packet[:4096], packet[4096:], flags=NETRXF_csum_blank | NETRXF_data_validated, extra=extra)
        back.show_frames()
        heard = await scene.hears(1)
        if scene.remote is None:
            # (A program of another kernel is told of whole packets.)
            expect(max(map(len, heard)) <= HEADERS + MSS, f"A frame of {max(map(len, heard))} bytes is none of a wire.")
        data = b"".join(segment[54:] for segment in heard)
        expect(data == packet[54:], f"Of {len(packet) - 54} bytes of data {len(data)} reach the guest, or others.")


@check("NETIF-FRONTEND-048", Level.must, RX)
async def in_order(scene: Scene) -> None:
    """Hundreds of frames reach the guest in their order, and the buffers are posted again and again.

    A buffer that is lost each turn is a network that stops after a day.
    """
    back = await listening(scene)
    for turn in range(60):
        frames = [frame(60 + turn, turn * 10 + number) for number in range(10)]
        await back.give(*frames)
        expect_frames(await scene.hears(10), frames, f"What reaches the guest in turn {turn}")


@check("NETIF-FRONTEND-049", Level.must, f"{RX}, NOTE")
async def buffers_out_of_their_order(scene: Scene) -> None:
    """Each frame is read out of the page that was posted, also when the ring has been around many times.

    Frontends may go by the id or by the slot: the backend keeps both in step.
    """
    back = await listening(scene)
    for turn in range(20):
        batch = turn * 3 % 8 + 1
        frames = [frame(70, turn * 10 + number) for number in range(batch)]
        await back.give(*frames)
        expect_frames(await scene.hears(batch), frames, f"What reaches the guest in turn {turn}")
