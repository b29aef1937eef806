"""Both halves of the network driver against each other."""

import dpkt
import pytest
from net_world import Host

from guest_kernel.net import checksum
from guest_kernel.net.offload import BLANK

SIZES = [14, 15, 60, 1500, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 40000, 65534, 65535]


@pytest.fixture(params=["copied", "mapped"])
def host(request: pytest.FixtureRequest) -> Host:
    host = Host().up(control=request.param == "mapped")
    if request.param == "mapped":
        host.guests[0].warm_up(host.guests[1])
    return host


def test_every_size_arrives(host: Host) -> None:
    a, b = host.guests
    b.device.transmit(b.frame(a.mac))
    host.run()
    sent = [a.frame(b.mac, size, fill=size) for size in SIZES]
    for frame in sent:
        assert a.device.transmit(frame)
        host.run()
    assert b.received == sent
    host.down()


def test_all_small_sizes_in_order(host: Host) -> None:
    a, b = host.guests
    sent = [a.frame(b.mac, size, fill=size) for size in range(14, 300)]
    rest = list(sent)
    while rest:
        count = a.device.transmit_many(rest)
        assert count
        del rest[:count]
        host.run()
    assert b.received == sent
    assert a.device.counters.tx_packets == b.device.counters.rx_packets == b.vif.counters.tx_packets
    assert b.device.counters.rx_bytes == b.vif.counters.tx_bytes
    host.down()


def test_random_mix_in_order(host: Host) -> None:
    a, b = host.guests
    rng = host.world.rng
    sent = []
    for number in range(400):
        frame = a.frame(rng.choice([b.mac, b.mac, b.mac, b"\xff" * 6]), rng.choice([14, 60, 1500, 9000]), fill=number)
        if not a.device.queues[0].tx.put(frame):
            a.device.queues[0].tx.push()
            host.run()
            assert a.device.queues[0].tx.put(frame)
        sent.append(frame)
        if rng.random() < 0.1:
            a.device.queues[0].tx.push()
            host.run()
    a.device.queues[0].tx.push()
    host.run()
    assert b.received == sent
    host.down()


def test_frames_go_from_page_to_page_once_all_is_mapped() -> None:
    host = Host().up()
    a, b = host.guests
    a.warm_up(b)
    before = host.world.copies
    sent = [a.frame(b.mac, 1500, fill=n) for n in range(60)]
    assert a.device.transmit_many(sent) == 60
    host.run()
    assert b.received == sent
    assert host.world.copies == before
    assert host.driver.pool.out == 0
    host.down()


def test_the_ring_grows_with_the_load() -> None:
    host = Host().up()
    a, b = host.guests
    a.warm_up(b)
    for _ in range(6):
        a.device.transmit_many([a.frame(b.mac, 60, fill=n) for n in range(256)])
        host.run()
    assert len(b.device.queues[0].rx._views) == 256
    assert len(b.vif.writable) == 256
    before = len(b.received)
    a.device.transmit_many([a.frame(b.mac, 60, fill=n) for n in range(256)])
    host.run()
    assert len(b.received) == before + 256
    host.down()


def test_checksum_flags_are_carried(host: Host) -> None:
    a, b = host.guests
    plain, blank = a.frame(b.mac, 60), a.frame(b.mac, 61)
    assert a.device.transmit(plain)
    assert a.device.transmit(blank, BLANK)
    host.run()
    assert b.received == [plain, blank]
    assert b.validated == [False, True]
    host.down()


def udp_frame(source: bytes, to: bytes, data: bytes) -> tuple[bytes, bytes]:
    """A UDP frame as a guest with checksum offload sends it, and as it must be on a wire."""
    ip = dpkt.ip.IP(
        src=b"\x0a\0\0\1", dst=b"\x0a\0\0\2", p=17, data=dpkt.udp.UDP(sport=1, dport=2, ulen=8 + len(data), data=data)
    )
    ip.len = len(ip)
    right = to + source + b"\x08\x00" + bytes(ip)
    blank = bytearray(right)
    partial = checksum.pseudo_header(blank[26:30], blank[30:34], 17, 8 + len(data))
    blank[40:42] = partial.to_bytes(2, "big")
    return bytes(blank), right


@pytest.mark.parametrize("size", [0, 1, 5, 1000, 4080, 20000])
def test_blank_checksums_are_filled_in_towards_a_wire(host: Host, size: int) -> None:
    host = Host(nics={"xenbr0": 3}).up()
    a, b = host.guests
    blank, right = udp_frame(a.mac, b.mac, (bytes(range(256)) * 80)[:size])
    a.device.transmit(blank, BLANK)  # flooded: nobody knows b yet
    host.run()
    assert b.received == [blank]
    assert host.kernel.nics[3].sent == [right]
    host.down()


def test_blank_checksums_are_filled_in_for_a_guest_that_wants_that() -> None:
    host = Host()
    a, b = host.guests
    b.store["frontend/feature-no-csum-offload"] = "1"
    host.up()
    blank, right = udp_frame(a.mac, b.mac, b"hello")
    for _ in range(3):
        a.device.transmit(blank, BLANK)
        host.run()
    a.warm_up(b)
    a.device.transmit(blank, BLANK)
    a.device.transmit(blank)
    host.run()
    assert b.received == [right, blank]
    assert b.validated == [True, False]
    host.down()


def test_only_data_validated_stays_so(host: Host) -> None:
    """The two flags of transmission have changed places in reception; a mistake there blanks good checksums."""
    a, b = host.guests
    device = a.device
    frame = a.frame(b.mac, 64)
    flags: list[int] = []
    take = b.device.queues[0].rx._collect

    def collect(idents: list[int], answers: list[int], marks: int) -> object:
        flags.extend(answer >> 32 & 0xFFFF for answer in answers)
        return take(idents, answers, marks)

    b.device.queues[0].rx._collect = collect  # type: ignore[method-assign, assignment]
    for bits, expected in ((0, 0), (1, 3), (2, 1), (3, 3)):
        device.queues[0].tx._take_buffers(1)
        device.queues[0].tx._put_batch([frame], [64], bits)
        device.queues[0].tx.push()
        host.run()
        assert flags.pop() == expected
    host.down()


def test_a_guest_without_scatter_gather_gets_no_long_frames() -> None:
    host = Host()
    a, b = host.guests
    a.connect()
    b.back.hook("publish")
    b.front.hook("publish")
    b.store["frontend/feature-sg"] = "0"
    b.back.hook("connect")
    b.front.hook("connect")
    b.device.received_raw = b.record
    a.device.transmit(a.frame(b.mac, 4096))
    a.device.transmit(a.frame(b.mac, 4097))
    host.run()
    assert [len(frame) for frame in b.received] == [4096]
    assert b.vif.counters.tx_dropped == 1
    host.down()


def test_a_backend_without_scatter_gather_gets_no_long_frames() -> None:
    host = Host().up()
    a, _ = host.guests
    a.device.scatter = False
    assert a.device.transmit(bytes(4096))
    assert not a.device.transmit(bytes(4097))
    assert a.device.transmit_many([bytes(60), bytes(4097), bytes(60)]) == 1
    host.run()
    host.down()


def test_what_has_no_room_is_not_sent() -> None:
    host = Host().up()
    a, b = host.guests
    frames = [a.frame(b.mac, 60)] * 300
    assert a.device.transmit_many(frames) == 256
    assert a.device.transmit_many(frames) == 0
    assert not a.device.transmit(frames[0])
    assert a.device.counters.tx_dropped == 1
    host.run()
    assert a.device.tx_room() == 256
    assert not a.device.transmit(bytes(65536))
    assert not a.device.transmit(b"")
    host.down()


def test_waiting_for_room() -> None:
    host = Host().up()
    a, b = host.guests

    async def send() -> int:
        for number in range(2000):
            await a.device.wait_for_room()
            assert a.device.transmit(a.frame(b.mac, 60, fill=number))
        return 2000

    assert host.world.do(a.kernel, send()) == 2000
    assert a.device.counters.tx_dropped == 0
    host.down()


def test_waiting_for_room_ends_with_the_connection() -> None:
    host = Host().up()
    a, b = host.guests
    a.device.transmit_many([a.frame(b.mac)] * 256)
    thread = a.kernel.spawn(a.device.wait_for_room())
    a.kernel.run_ready()
    assert not thread.done
    a.device.disconnect()
    a.kernel.run_ready()
    assert thread.done
    host.down()


def test_memory_that_runs_out_costs_frames_only() -> None:
    host = Host(guests=2, pages=300)
    a, b = host.guests
    a.kernel.mm.limit = 4 + 64 + 10
    host.up()
    assert a.device.transmit_many([a.frame(b.mac, 60)] * 50) == 10
    assert not a.device.transmit(a.frame(b.mac, 60))
    host.run()
    assert len(b.received) == 10
    assert a.device.transmit_many([a.frame(b.mac, 60)] * 50) == 10
    host.run()
    # Its 64 rx buffers are all used, and there is no memory for more.
    b.device.transmit_many([b.frame(a.mac, 60)] * 64)
    host.run()
    assert len(a.received) == 64
    assert len(a.device.queues[0].rx._views) == 64
    host.down()


def test_a_backend_without_memory_answers_errors() -> None:
    host = Host().up()
    a, b = host.guests
    host.kernel.mm.limit = host.kernel.mm.used
    assert a.device.transmit_many([a.frame(b.mac, 60)] * 3) == 3
    host.run()
    assert a.device.counters.tx_dropped == 3
    assert not b.received
    host.kernel.mm.limit = 4000
    a.device.transmit(a.frame(b.mac, 60))
    host.run()
    assert len(b.received) == 1
    host.down()


def test_three_guests_and_one_that_is_slow() -> None:
    host = Host(guests=3).up()
    a, b, c = host.guests
    a.warm_up(b)
    a.warm_up(c)
    for number in range(10):
        frames = [a.frame((b.mac, c.mac)[n % 2], 100, fill=number * 50 + n) for n in range(50)]
        assert a.device.transmit_many(frames) == 50
        host.run()
        assert b.received[-25:] == frames[0::2]
        assert c.received[-25:] == frames[1::2]
    host.down()
