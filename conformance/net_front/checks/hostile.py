"""A backend that does not behave."""

from __future__ import annotations

from typing import Final

from conformance.kit.check import Level, check, expect, expect_equal
from conformance.net.frames import expect_frames, frame, tcp
from conformance.net.rings import gso
from conformance.net_front.checks.common import EXTRA, HARDENED, HEADER, connected, listening
from conformance.net_front.world import Scene
from guest_kernel.errors import OutOfMemory
from guest_kernel.guest import Guest
from guest_kernel.mm import Page
from hypervisor.abi.io.netif import XEN_NETIF_EXTRA_TYPE_GSO, NETRXF_csum_blank, NETRXF_extra_info, NETRXF_more_data
from hypervisor.abi.io.ring import RSP_PROD
from hypervisor.abi.io.xenbus import XenbusStateClosed, XenbusStateClosing, XenbusStateConnected

STORM_NS: Final = 2_000
"""Nanoseconds between two events of a storm."""
BEYOND = ((4090, 60), (4096, 1), (0xFFFF, 0x7FFF), (0, 4097), (0, 0x7FFF))
"""Offsets and lengths that are not within a page."""


@check("NETIF-FRONTEND-070", Level.must, HARDENED)
async def tx_answers_that_nobody_asked_for(scene: Scene) -> None:
    """A response index of the tx ring that is ahead of the requests does not bring the guest down.

    The backend is another domain, and may be anybody's.
    """
    back = await connected(scene)
    for ahead in (1, 257, 0x8000_0000):
        back.tx.shared[RSP_PROD] = ahead
        back.kernel.events.notify(back.ports[0])
        await back.kernel.sleep(5_000_000)
        await scene.is_alive()


@check("NETIF-FRONTEND-071", Level.must, HARDENED)
async def more_frames_than_buffers(scene: Scene) -> None:
    """A response index of the rx ring that is ahead of the buffers does not bring the guest down.

    The pages behind those that were posted are the guest's own.
    """
    back = await listening(scene)
    for ahead in (1000, 0x8000_0000, 0xFFFF_FFFF):
        back.rx.shared[RSP_PROD] = ahead
        back.kernel.events.notify(back.ports[-1])
        await back.kernel.sleep(5_000_000)
        await scene.is_alive()
    expect(len(scene.heard) <= 256, f"The guest has received {len(scene.heard)} frames that nobody has sent.")


@check("NETIF-FRONTEND-072", Level.must, HARDENED)
async def an_answer_to_another_request(scene: Scene) -> None:
    """An answer with an id that no request under way has does not bring the guest down.

    An index out of a table of packets is memory of the guest's kernel.
    """
    back = await connected(scene)
    await scene.transmit(frame(60))
    sent = await back.frame()
    back.put_answer(sent.slots[0].id ^ 0xFFFF)
    back.show_answers()
    await back.kernel.sleep(10_000_000)
    await scene.is_alive()


@check("NETIF-FRONTEND-073", Level.must, HARDENED)
async def the_same_answer_twice(scene: Scene) -> None:
    """A second answer to one request, while others are under way, does not bring the guest down, nor mix up the others.

    The first has given its page to another frame.
    """
    back = await connected(scene)
    job = scene.send_many([frame(60, number) for number in range(3)])
    sent = await back.frames(3)
    await scene.finish(job)
    back.put_answer(sent[0].slots[0].id)
    back.put_answer(sent[0].slots[0].id)
    back.show_answers()
    await back.kernel.sleep(10_000_000)
    await scene.is_alive()
    for number in (1, 2):
        slot = sent[number].slots[0]
        expect_equal(back.read(slot.gref, slot.offset, 60), frame(60, number), "what is in a page still under way")


@check("NETIF-FRONTEND-074", Level.must, HARDENED)
async def a_frame_in_another_buffer(scene: Scene) -> None:
    """A response on the rx ring with an id that no buffer has does not bring the guest down.

    It is an index as well, of a table of pages.
    """
    back = await listening(scene)
    buffer = await back.buffer()
    back.put_response(buffer.id ^ 0xFFFF, 60)
    back.show_frames()
    await back.kernel.sleep(10_000_000)
    await scene.is_alive()


@check("NETIF-FRONTEND-075", Level.must, f"{HARDENED}; {HEADER}, struct netif_rx_response")
async def frames_beyond_their_pages(scene: Scene) -> None:
    """A response whose offset and length are not within a page gives the guest nothing of what lies behind it.

    The next page is whatever the guest's kernel has put there.
    """
    back = await listening(scene)
    for offset, size in BEYOND:
        if await back.state() != XenbusStateConnected:
            break
        back.put_response((await back.buffer()).id, size, offset=offset)
        back.show_frames()
        await back.kernel.sleep(5_000_000)
        await scene.is_alive()
    expect_equal([len(data) for data in scene.heard], [], "the lengths of frames that reach the guest")


@check("NETIF-FRONTEND-076", Level.must, f"{HARDENED}; {HEADER}, more_data")
async def a_frame_without_end(scene: Scene) -> None:
    """A frame that goes on for hundreds of slots does not bring the guest down, and does not reach it.

    The slots are gathered somewhere; a packet of Linux's has place for seventeen.
    """
    back = await listening(scene)
    for number in range(400):
        if await back.state() != XenbusStateConnected:
            break
        await back.put(frame(60, number), flags=NETRXF_more_data)
        back.show_frames()
    await back.kernel.sleep(10_000_000)
    await scene.is_alive()
    expect_equal(len(scene.heard), 0, "the number of frames that reach the guest")


@check("NETIF-FRONTEND-077", Level.must, f"{HARDENED}; {EXTRA}")
async def extra_info_of_no_type(scene: Scene) -> None:
    """Extra info of a type that there is not, or that never ends, does not bring the guest down.

    Nobody has asked for it. (The frontend may pass over it, or close.)
    """
    back = await listening(scene)
    for kind, more in ((0, False), (5, False), (255, False), (XEN_NETIF_EXTRA_TYPE_GSO, True)):
        if await back.state() != XenbusStateConnected:
            break
        buffer = await back.buffer()
        back.put_response(buffer.id, 60, flags=NETRXF_extra_info)
        for _ in range(5 if more else 1):
            await back.buffer()
            back.put_extra(kind, more=more)
        back.show_frames()
        await back.kernel.sleep(5_000_000)
        await scene.is_alive()


@check("NETIF-FRONTEND-078", Level.must, f"{HARDENED}; {EXTRA}, XEN_NETIF_EXTRA_TYPE_GSO")
async def segments_of_nothing(scene: Scene) -> None:
    """A large packet in segments of 0 bytes, or of a kind that there is not, does not bring the guest down.

    A division by zero, or a packet that never ends.
    """
    back = await listening(scene, feature_gso_tcpv4=1, feature_sg=1)
    packet = tcp(2500)
    for size, kind in ((0, 1), (1000, 0), (1000, 77)):
        if await back.state() != XenbusStateConnected:
            break
        await back.put(packet, flags=NETRXF_csum_blank, extra=(XEN_NETIF_EXTRA_TYPE_GSO, gso(size, kind)))
        back.show_frames()
        await back.kernel.sleep(5_000_000)
        await scene.is_alive()


@check("NETIF-FRONTEND-079", Level.must, "XSA-391")
async def a_storm_of_events(scene: Scene) -> None:
    """Events without work cost the guest little: its program goes on, and so do its frames.

    XSA-391: a backend could keep the guest in its interrupt handler.
    """
    back = await listening(scene)
    for _ in range(500):
        back.kernel.events.notify(back.ports[0])
        # Events that nobody has had time to take are one.
        await back.kernel.sleep(STORM_NS)
    await scene.is_alive()
    await back.give(frame(60))
    expect_frames(await scene.hears(1), [frame(60)], "What reaches the guest")


@check("NETIF-FRONTEND-080", Level.must, "XSA-396")
async def pages_that_stay_mapped(scene: Scene) -> None:
    """A page that the backend keeps mapped after all has closed is not used for anything else.

    XSA-396: it was given to the guest's next process, and the backend wrote there.
    """
    back = await connected(scene)
    buffer = await back.buffer()
    (kept,) = back.kernel.grants.map_refs(back.domid, [buffer.gref])
    await back.say(state=XenbusStateClosing)
    await back.wait_for(XenbusStateClosing, XenbusStateClosed)
    back.detach()
    await back.say(state=XenbusStateClosed)
    await back.kernel.sleep(10_000_000)
    pages: list[Page] = await scene.finish(scene.do(_all_pages))
    kept.view[:16] = b"KEPT BY THE BACK"
    is_used = any(bytes(page.view[:16]) == b"KEPT BY THE BACK" for page in pages)
    back.kernel.grants.unmap([kept])
    await scene.finish(scene.do(lambda guest: _give_back(guest, pages)))
    expect(not is_used, "A page that the backend has mapped is free, for anybody in the guest.")


async def _all_pages(guest: Guest) -> list[Page]:
    """Take all pages that the guest's kernel has to give away."""
    pages: list[Page] = []
    try:
        while True:
            pages.append(guest.kernel.mm.alloc_page())
    except OutOfMemory:
        return pages


async def _give_back(guest: Guest, pages: list[Page]) -> None:
    guest.kernel.mm.free_pages_of(pages)


@check("NETIF-FRONTEND-081", Level.must, HARDENED)
async def any_answers_at_all(scene: Scene) -> None:
    """Rings full of any bytes do not bring the guest down.

    Each combination of flags, lengths and ids is one that somebody may try.
    """
    back = await listening(scene)
    state = 12345
    for turn in range(6):
        if await back.state() != XenbusStateConnected:
            break
        noise = bytearray()
        while len(noise) < 4096 - 64:
            state = state * 1103515245 + 12345 & 0x7FFF_FFFF
            noise += (state >> 8 & 0xFFFF).to_bytes(2, "little")
        back.rx.view[64:4096] = noise
        back.tx.view[64:4096] = noise
        back.rx.shared[RSP_PROD] = turn + 1
        back.kernel.events.notify(back.ports[-1])
        await back.kernel.sleep(5_000_000)
        await scene.is_alive()
