"""The Internet checksum, against dpkt."""

import dpkt
from hypothesis import given
from hypothesis import strategies as st

from guest_kernel.net import checksum

ADDRESSES = st.binary(min_size=4, max_size=4)


@given(st.binary(max_size=3000))
def test_the_sum(data: bytes) -> None:
    assert checksum.checksum(data) == dpkt.in_cksum(data)
    assert checksum.checksum(bytearray(data)) == checksum.checksum(memoryview(data)) == checksum.checksum(data)


@given(st.binary(max_size=64).map(lambda data: data * 2), st.binary(max_size=99))
def test_sums_add_up(head: bytes, tail: bytes) -> None:
    assert checksum.fold(checksum.partial(head) + checksum.partial(tail)) == checksum.partial(head + tail)


def frame(kind: str, source: bytes, destination: bytes, data: bytes, options: bytes) -> bytes:
    layer = (
        dpkt.udp.UDP(sport=1, dport=2, ulen=8 + len(data), data=data)
        if kind == "udp"
        else dpkt.tcp.TCP(sport=1, dport=2, data=data)
    )
    ip = dpkt.ip.IP(src=source, dst=destination, p=17 if kind == "udp" else 6, data=layer, opts=options)
    ip.hl = 5 + len(options) // 4
    ip.len = len(ip)
    return bytes(12) + b"\x08\x00" + bytes(ip)


FRAMES = st.builds(
    frame,
    st.sampled_from(["udp", "tcp"]),
    ADDRESSES,
    ADDRESSES,
    st.binary(max_size=200),
    st.sampled_from([b"", b"\1" * 4, b"\1" * 40]),
)


@given(FRAMES)
def test_what_dpkt_builds_is_right_and_stays_so(packet: bytes) -> None:
    assert checksum.verify(packet)
    place = checksum.transport_place(packet)
    assert place is not None
    start, offset = place[0].transport, place[1]
    blank = bytearray(packet)
    total = checksum.pseudo_header(packet[26:30], packet[30:34], packet[23], len(packet) - start)
    blank[offset : offset + 2] = total.to_bytes(2, "big")
    checksum.complete(blank)
    assert bytes(blank) == packet


@given(FRAMES, st.data())
def test_a_changed_bit_is_noticed(packet: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(34 * 8, len(packet) * 8 - 1))
    place = checksum.transport_place(packet)
    assert place is not None
    start, offset = place[0].transport, place[1]
    changed = bytearray(packet)
    changed[bit >> 3] ^= 1 << (bit & 7)
    if bit >> 3 < start or (packet[23] == 17 and not any(changed[offset : offset + 2])):
        return
    assert not checksum.verify(changed)


@given(st.binary(max_size=80), st.booleans())
def test_anything_at_all(data: bytes, ip: bool) -> None:
    """Bytes that are no packet are left as long as they are, and raise nothing."""
    packet = bytearray(bytes(12) + b"\x08\x00\x45" + data if ip else data)
    size = len(packet)
    assert checksum.verify(packet) in (True, False)
    checksum.complete(packet)
    assert len(packet) == size


@given(FRAMES, st.binary(min_size=32, max_size=32), st.none() | st.integers(0, 4095), st.booleans())
def test_ipv6_and_tags(packet: bytes, pair: bytes, tag: int | None, options: bool) -> None:
    """The same payload over IPv6, behind a tag or an extension header: blanked and completed as before."""
    start = 14 + (packet[14] & 15) * 4
    kind, layer = packet[23], bytearray(packet[start:])
    offset = checksum.CHECKSUM_OFFSET[kind]
    total = checksum.pseudo_header(pair[:16], pair[16:], kind, len(layer))
    layer[offset : offset + 2] = total.to_bytes(2, "big")
    extension = bytes([kind, 0]) + bytes(6) if options else b""
    header = (
        b"\x60\0\0\0" + (len(extension) + len(layer)).to_bytes(2, "big") + bytes([0 if options else kind, 64]) + pair
    )
    mark = b"" if tag is None else b"\x81\0" + tag.to_bytes(2, "big")
    blank = bytearray(bytes(12) + mark + b"\x86\xdd" + header + extension + layer)
    size = len(blank)
    checksum.complete(blank)
    assert len(blank) == size
    assert checksum.verify(blank)
    segment = bytes(blank[size - len(layer) :])
    assert dpkt.in_cksum(pair + bytes(3) + bytes([kind]) + len(layer).to_bytes(4, "big") + segment) == 0
    if kind == 17:
        assert segment[6:8] != b"\0\0"
