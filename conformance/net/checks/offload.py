"""Checksums that are left out, packets that are to be cut, and extra info that says so."""

from __future__ import annotations

from conformance.kit.check import Failure, Level, check, expect, expect_equal
from conformance.net.checks.common import EXTRA, HEADER, SCATTER, both, lives_on, needs, refused
from conformance.net.frames import (
    HEADERS,
    HEADERS6,
    blank_field,
    frame,
    tcp,
    tcp6,
    transport_field,
    transport_sum,
    udp,
    udp6,
)
from conformance.net.front import Front
from conformance.net.rings import Received, gso
from conformance.net.world import Scene
from guest_kernel.net.checksum import verify
from hypervisor.abi.io import netif
from hypervisor.abi.io.netif import (
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_GSO_TYPE_TCPV6,
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETTXF_csum_blank,
    NETTXF_data_validated,
    NETTXF_extra_info,
)

CHECKSUMS = f"{HEADER}, feature-no-csum-offload"
SEGMENTS = f"{HEADER}, feature-gso-tcpv4"
GSO = f"{EXTRA}, XEN_NETIF_EXTRA_TYPE_GSO"
BLANK = NETTXF_csum_blank | NETTXF_data_validated
MSS = 1000
"""Data of a segment."""
MOST_HEADERS = 14 + 60 + 60
"""Of Ethernet, and of IPv4 and TCP with all options."""


@check("NETIF-BACKEND-090", Level.must, f"{CHECKSUMS}; NETTXF_csum_blank, NETRXF_csum_blank")
async def a_blank_checksum(scene: Scene) -> None:
    """A packet that is sent without its checksum arrives with it, or with a flag that says it is still missing.

    The flag is bit 0 in transmission and bit 1 in reception: who copies the flags turns one into the other.
    """
    front, peer = await both(scene)
    packet = udp(300, blank=True)
    for flags in (BLANK, NETTXF_csum_blank):
        await front.queue.send(packet, flags=flags)
        found = await peer.queue.receive_one()
        _has_checksum_or_says_so(found)
        expect(_without_checksum(found.data) == _without_checksum(packet), "The packet arrives changed.")


@check("NETIF-BACKEND-091", Level.must, CHECKSUMS)
async def checksums_for_those_who_want_them(scene: Scene) -> None:
    """A guest with feature-no-csum-offload gets packets whose checksums are right.

    It drops a packet whose checksum is wrong, and nobody ever knows why.
    """
    front, peer = await both(scene, peer={**SCATTER, "feature-no-csum-offload": 1})
    for size in (300, 301):
        await front.queue.send(udp(size, blank=True), flags=BLANK)
        found = await peer.queue.receive_one()
        expect(not found.flags & NETRXF_csum_blank, "A packet is marked csum_blank, which this guest does not take.")
        expect_equal(transport_sum(found.data), 0xFFFF, "the sum over a packet with its checksum")


@check("NETIF-BACKEND-092", Level.must, f"{HEADER}, feature-ipv6-csum-offload")
async def ipv6_checksums(scene: Scene) -> None:
    """A guest without feature-ipv6-csum-offload gets IPv6 packets whose checksums are right.

    For IPv6 it is the other way round: who says nothing does not take them blank.
    """
    await needs(scene.front, "feature-ipv6-csum-offload")
    front, peer = await both(scene)
    await front.queue.send(udp6(300), flags=BLANK)
    found = await peer.queue.receive_one()
    expect(not found.flags & NETRXF_csum_blank, "An IPv6 packet is marked csum_blank, which this guest does not take.")
    expect(verify(found.data), "The checksum of an IPv6 packet is wrong.")


@check("NETIF-BACKEND-093", Level.must, f"{HEADER}, NETRXF_data_validated")
async def nothing_validated_by_itself(scene: Scene) -> None:
    """A packet whose sender vouches for nothing is not marked as validated, nor as blank.

    The receiver would not look at its checksum, which is all that guards it.
    """
    front, peer = await both(scene)
    packet = udp(100, blank=False)
    wrong = packet[:-1] + bytes((packet[-1] ^ 0xFF,))
    for data in (packet, wrong):
        await front.queue.send(data)
        found = await peer.queue.receive_one()
        marks = found.flags & (NETRXF_csum_blank | NETRXF_data_validated)
        expect_equal((marks, found.data == data), (0, True), "the checksum flags, and that the packet is the same,")


@check("NETIF-BACKEND-094", Level.should, f"{HEADER}, NETTXF_data_validated")
async def validated_stays_validated(scene: Scene) -> None:
    """A packet that its sender says is validated is marked so for the receiver.

    Between guests of one host nobody need sum it up again.
    """
    front, peer = await both(scene)
    await front.queue.send(udp(100, blank=False), flags=NETTXF_data_validated)
    found = await peer.queue.receive_one()
    marks = found.flags & (NETRXF_csum_blank | NETRXF_data_validated)
    expect_equal(marks, NETRXF_data_validated, "the checksum flags")


@check("NETIF-BACKEND-095", Level.must, f"{HEADER}, NETTXF_csum_blank")
async def blank_checksums_of_nothing(scene: Scene) -> None:
    """csum_blank on what has no checksum, or is cut off before it, is no reason to fall.

    The offset of the checksum is worked out of headers that the guest has written.
    """
    front, _ = await both(scene, peer={**SCATTER, "feature-no-csum-offload": 1})
    packet = udp(100, blank=True)
    for data in (frame(60), packet[:14], packet[:15], packet[:34], packet[:41], packet[:60]):
        ident = front.queue.put_frame(data, flags=BLANK)
        front.queue.show_tx()
        await front.queue.answers(1)
        del ident
    await lives_on(scene)


@check("NETIF-BACKEND-096", Level.must, SEGMENTS)
async def cut_for_those_who_cannot(scene: Scene) -> None:
    """A large TCP packet reaches a guest without feature-gso-tcpv4 in segments, each with headers of its own.

    Their data follows each other, by sequence numbers, too, and none has more than was said.
    """
    await needs(scene.front, "feature-gso-tcpv4")
    front, peer = await both(scene)
    await _send_large(front, 5500)
    await _is_whole(peer, 5500, may_be_one=False)


@check("NETIF-BACKEND-097", Level.must, f"{SEGMENTS}; {GSO}")
async def whole_for_those_who_can(scene: Scene) -> None:
    """For a guest with feature-gso-tcpv4 a large packet may stay whole; then extra info behind its first slot says so.

    There is the size of a segment, and that it is TCP over IPv4, as the sender has said it.
    """
    await needs(scene.front, "feature-gso-tcpv4")
    front, peer = await both(scene, peer={**SCATTER, "feature-gso-tcpv4": 1})
    await _send_large(front, 9000)
    await _is_whole(peer, 9000)


@check("NETIF-BACKEND-098", Level.must, f"{SEGMENTS}; {GSO}")
async def cut_though_it_is_small(scene: Scene) -> None:
    """A packet that is to be cut may lie in one page.

    It is the extra info that says what is to be done, and not the number of slots.
    """
    await needs(scene.front, "feature-gso-tcpv4")
    front, peer = await both(scene)
    await _send_large(front, 2500, first=4096)
    await _is_whole(peer, 2500, may_be_one=False)


@check("NETIF-BACKEND-099", Level.must, f"{EXTRA}; Linux, xen-netback")
async def extra_info_is_answered(scene: Scene) -> None:
    """The slot of extra info is answered, too: with NETIF_RSP_NULL, in its place behind the first.

    A frontend counts responses: one that is missing is a slot that never comes back.
    """
    await needs(scene.front, "feature-gso-tcpv4")
    front, _ = await both(scene)
    packet = tcp(2500)
    idents = front.queue.put_slots(packet, [1000, len(packet) - 1000], flags=BLANK, extra=_extra())
    front.queue.show_tx()
    found = await front.queue.answers(3)
    expect_equal([status for _, status in found], [NETIF_RSP_OKAY, NETIF_RSP_NULL, NETIF_RSP_OKAY], "the statuses")
    expect_equal([found[0][0], found[2][0]], idents, "the ids of the slots of data")


@check("NETIF-BACKEND-100", Level.must, f"{GSO}; Linux, xen-netback")
async def segments_of_nothing(scene: Scene) -> None:
    """A segment size of 0, or a type of packet that there is not, is refused, or the device closed.

    A division by zero is the least of it: a packet that is cut into pieces of nothing never ends.
    """
    for size, kind in ((0, XEN_NETIF_GSO_TYPE_TCPV4), (MSS, 0), (MSS, 3), (MSS, 255)):
        front, peer = await both(scene)
        packet = tcp(2500)
        front.queue.put_slots(packet, [len(packet)], flags=BLANK, extra=(XEN_NETIF_EXTRA_TYPE_GSO, gso(size, kind)))
        front.queue.show_tx()
        await refused(front, 2, f"A packet to be cut into {size} bytes as of type {kind}")
        await peer.queue.silent(5_000_000)
        await lives_on(scene)
        for one in (front, peer):
            await one.close()
            await one.begin_again()


@check("NETIF-BACKEND-101", Level.must, GSO)
async def segments_of_what_is_no_tcp(scene: Scene) -> None:
    """Extra info that wants something cut that is no TCP packet brings nothing down, and nothing that is longer.

    Where the headers end is written in the headers.
    """
    front, peer = await both(scene)
    good = tcp(2500)
    cases = [frame(2500), good[:40], good[:23] + b"\x01" + good[24:], good[:14] + b"\x4f" + good[15:]]
    for packet in cases:
        front.queue.put_slots(packet, [len(packet)], flags=BLANK, extra=_extra())
        front.queue.show_tx()
        await front.queue.answers(2)
        if await front.state() != 4:
            break
    await front.kernel.sleep(5_000_000)
    while (slot := peer.queue.take_slot()) is not None:
        size = netif.netif_rx_response.unpack(slot[2]).status
        expect(size <= MOST_HEADERS + MSS, f"A frame of {size} bytes arrives.")
    await lives_on(scene)


@check("NETIF-BACKEND-102", Level.must, f"{EXTRA}, type; Linux, xen-netback")
async def extra_info_of_no_type(scene: Scene) -> None:
    """Extra info of a type that there is not is refused, or the device closed.

    The type is the index of an array in which the backend notes down what it has found.
    """
    for kind in (0, 5, 100, 255):
        front, peer = await both(scene)
        front.queue.put(front.grant(frame(60), readonly=True), 60, flags=NETTXF_extra_info)
        front.queue.put_extra(kind)
        front.queue.show_tx()
        await refused(front, 2, f"A frame with extra info of type {kind}")
        await peer.queue.silent(5_000_000)
        await lives_on(scene)
        for one in (front, peer):
            await one.close()
            await one.begin_again()


@check("NETIF-BACKEND-103", Level.must, f"{EXTRA}, XEN_NETIF_EXTRA_FLAG_MORE")
async def extra_info_without_end(scene: Scene) -> None:
    """Extra info that always announces more is no frame, and keeps nobody busy.

    It ends where the guest has shown no more slots, or where there are more than there are types.
    """
    front, peer = await both(scene)
    front.queue.put(front.grant(frame(60), readonly=True), 60, flags=NETTXF_extra_info)
    for _ in range(100):
        front.queue.put_extra(XEN_NETIF_EXTRA_TYPE_GSO, gso(MSS, XEN_NETIF_GSO_TYPE_TCPV4), more=True)
    front.queue.show_tx()
    await peer.queue.silent()
    await peer.queue.send(frame(60))


@check("NETIF-BACKEND-104", Level.must, f"{HEADER}, feature-gso-tcpv6")
async def ipv6_cut_for_those_who_cannot(scene: Scene) -> None:
    """A large TCP packet of IPv6 reaches a guest without feature-gso-tcpv6 in segments that are right, checksums too.

    The length in an IPv6 header is without the header, and nothing but the checksum tells of a mistake.
    """
    await needs(scene.front, "feature-gso-tcpv6")
    front, peer = await both(scene)
    size = 5500
    whole = tcp6(size)
    sizes = [1500, 4096, len(whole) - 5596] if len(whole) > 5596 else [1500, len(whole) - 1500]
    info = XEN_NETIF_EXTRA_TYPE_GSO, gso(MSS, XEN_NETIF_GSO_TYPE_TCPV6)
    front.queue.put_slots(whole, sizes, flags=BLANK, extra=info)
    front.queue.show_tx()
    await front.queue.answers(len(sizes) + 1)
    data = b""
    while len(data) < size:
        found = await peer.queue.receive_one()
        packet = found.data
        expect_equal(int.from_bytes(packet[18:20], "big"), len(packet) - 54, "the IPv6 length of a segment")
        expect_equal(int.from_bytes(packet[58:62], "big") - 1_000_000, len(data), "the sequence number of a segment")
        expect(not found.flags & NETRXF_csum_blank, "A segment is marked csum_blank, which this guest does not take.")
        expect(verify(packet), "The checksum of a segment is wrong.")
        expect(len(packet) <= HEADERS6 + MSS, f"A segment has {len(packet) - HEADERS6} bytes; {MSS} were asked for.")
        data += packet[HEADERS6:]
    expect(data == whole[HEADERS6:], "The segments together are another packet.")


@check("NETIF-BACKEND-105", Level.must, f"{HEADER}, NETRXF_gso_prefix; xen-netback of older Linux")
async def whole_in_the_old_form(scene: Scene) -> None:
    """For a guest with feature-gso-tcpv4-prefix a large packet may stay whole; then a slot before it says so.

    The length of a segment stands where others have an offset. Extra info is not what such a guest looks for.
    """
    await needs(scene.front, "feature-gso-tcpv4")
    front, peer = await both(scene, peer={**SCATTER, "feature-gso-tcpv4-prefix": 1})
    await _send_large(front, 9000)
    await _is_whole(peer, 9000, prefixed=True)


def _extra() -> tuple[int, bytes]:
    return XEN_NETIF_EXTRA_TYPE_GSO, gso(MSS, XEN_NETIF_GSO_TYPE_TCPV4)


async def _send_large(front: Front, size: int, *, first: int = 1500) -> None:
    packet = tcp(size)
    sizes = [min(first, len(packet))]
    while sum(sizes) < len(packet):
        sizes.append(min(4096, len(packet) - sum(sizes)))
    front.queue.put_slots(packet, sizes, flags=BLANK, extra=_extra())
    front.queue.show_tx()
    found = await front.queue.answers(len(sizes) + 1)
    bad = [status for _, status in found if status not in (NETIF_RSP_OKAY, NETIF_RSP_NULL)]
    expect(not bad, f"A large packet is answered with {bad}.")


async def _is_whole(peer: Front, size: int, *, may_be_one: bool = True, prefixed: bool = False) -> None:
    """Raise Failure unless a large packet arrives, in segments, or in one piece (if it may) that is announced.

    `prefixed`: by a slot before it, and not by extra info.
    """
    whole, data = tcp(size), b""
    while len(data) < size:
        found = await peer.queue.receive_one()
        packet = found.data
        expect_equal(packet[:16] + packet[20:24], whole[:16] + whole[20:24], "the headers of a segment")
        expect_equal(int.from_bytes(packet[16:18], "big"), len(packet) - 14, "the IP length of a segment")
        sequence = int.from_bytes(packet[38:42], "big") - 1_000_000
        expect_equal(sequence, len(data), "the sequence number of a segment, from the first on,")
        _has_checksum_or_says_so(found)
        if found.prefix or (prefixed and found.extras):
            expect(prefixed, "A large packet is announced by a slot before it, and this guest knows of none.")
            expect_equal((found.prefix, found.extras), (MSS, []), "what the slot before a packet says, and extra info,")
        elif found.extras and may_be_one:
            wanted = bytes((XEN_NETIF_EXTRA_TYPE_GSO, 0)) + gso(MSS, XEN_NETIF_GSO_TYPE_TCPV4)
            expect_equal([extra[:5] for extra in found.extras], [wanted[:5]], "the extra info")
        else:
            expect(len(packet) <= HEADERS + MSS, f"A segment has {len(packet) - HEADERS} bytes; {MSS} were asked for.")
        data += packet[HEADERS:]
    expect(data == whole[HEADERS:], "The segments together are another packet.")


def _has_checksum_or_says_so(found: Received) -> None:
    if found.flags & NETRXF_csum_blank:
        expect_equal(transport_field(found.data), blank_field(found.data), "the checksum field of a blank packet")
    elif transport_sum(found.data) != 0xFFFF:
        raise Failure("A packet arrives with a wrong checksum, and no flag says that it is missing.")


def _without_checksum(packet: bytes) -> bytes:
    return packet[:40] + packet[42:]
