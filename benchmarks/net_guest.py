"""The guests of `benchmarks/net.py`: one sends frames of 1500 bytes as fast as it can, the other counts them."""

import json
import time
from pathlib import Path

import dpkt

from guest_kernel.guest import Guest
from guest_kernel.net.addresses import mac_from_text
from guest_kernel.net.offload import Offload, gso
from guest_kernel.threads import Event

SIZE = 1500
BURST = 256
LARGE, LARGE_SLOTS, LARGE_BURST = 65535, 17, 15
"""Bytes of a large packet, its slots on the ring, packets that fill a ring."""
EXPERIMENT, STOP = b"\x88\xb5", b"\x88\xb6"


class Sender(Guest):
    """Arguments: the receiver's address, seconds of one measurement, measurements."""

    async def main(self) -> None:
        to, seconds, repeats = mac_from_text(self.args[0]), float(self.args[1]), int(self.args[2])
        device = (await self.net.interface("eth0")).device
        heard = Event()
        device.received = lambda frame, validated: heard.set()
        addresses = to + device.mac
        frames = [(addresses + EXPERIMENT + bytes([n])).ljust(SIZE, b"\x5a") for n in range(BURST)]
        for number in range(repeats + 1):
            # The first round is not measured: the buffers of both guests become known to the backend.
            end = time.process_time() + (seconds if number else min(seconds, 0.2))
            while time.process_time() < end:
                sent = 0
                while sent < BURST:
                    await device.wait_for_room()
                    sent += device.transmit_many(frames[sent:])
            heard.clear()
            while not heard.is_set():
                await device.wait_for_room()
                device.transmit((addresses + STOP).ljust(60, b"\0"))
                await self.sleep(0.001)


def large_packet(addresses: bytes) -> bytes:
    """Return a TCP packet of the greatest length, as a stack gives it to a device that cuts it into segments."""
    ip = dpkt.ip.IP(src=bytes([10, 0, 0, 1]), dst=bytes([10, 0, 0, 2]), p=dpkt.ip.IP_PROTO_TCP)
    ip.data = dpkt.tcp.TCP(sport=1, dport=2, flags=dpkt.tcp.TH_ACK, sum=1, data=b"\x5a" * (LARGE - 54))
    ip.len = len(ip)
    return addresses + b"\x08\0" + bytes(ip)


class LargeSender(Guest):
    """The same, with packets of 64 KiB that nobody cuts."""

    async def main(self) -> None:
        to, seconds, repeats = mac_from_text(self.args[0]), float(self.args[1]), int(self.args[2])
        device = (await self.net.interface("eth0")).device
        heard = Event()
        device.received = lambda frame, validated: heard.set()
        addresses = to + device.mac
        packets, offload = [large_packet(addresses)] * LARGE_BURST, gso(1448)
        for number in range(repeats + 1):
            end = time.process_time() + (seconds if number else min(seconds, 0.2))
            while time.process_time() < end:
                sent = 0
                while sent < LARGE_BURST:
                    await device.wait_for_room(LARGE_SLOTS)
                    sent += device.transmit_many(packets[sent:], offload)
            heard.clear()
            while not heard.is_set():
                await device.wait_for_room()
                device.transmit((addresses + STOP).ljust(60, b"\0"))
                await self.sleep(0.001)


class LargeReceiver(Guest):
    """The same for these; arguments as of `Receiver`."""

    async def main(self) -> None:
        results, repeats = Path(self.args[0]), int(self.args[1])
        device = (await self.net.interface("eth0")).device
        rounds = []
        for _ in range(repeats + 1):
            rounds.append(await self.count(device))
        results.write_text(json.dumps(rounds[1:]))  # noqa: ASYNC240

    async def count(self, device) -> tuple[int, float]:
        """Count the packets of one round; returns that, and the time from its first to its last one."""
        stopped = Event()
        packets = 0
        start = 0.0
        last = b""

        def received(frame: bytes, offload: Offload) -> None:
            nonlocal packets, start, last
            if offload.gso_size:
                if not packets:
                    start = time.process_time()
                packets += 1
                assert len(frame) == LARGE
            else:
                last = frame
                stopped.set()

        device.received_raw = received
        await stopped.wait()
        spent = time.process_time() - start
        device.received_raw = None
        device.transmit(last[6:12] + last[:6] + STOP + bytes(46))
        return packets, spent


class Receiver(Guest):
    """Arguments: the file for the results (frames, seconds of processor time), measurements."""

    async def main(self) -> None:
        results, repeats = Path(self.args[0]), int(self.args[1])
        device = (await self.net.interface("eth0")).device
        rounds = []
        for _ in range(repeats + 1):
            rounds.append(await self.count(device))
        results.write_text(json.dumps(rounds[1:]))  # noqa: ASYNC240

    async def count(self, device) -> tuple[int, float]:
        """Count the frames of one round; returns that, and the time from its first to its last frame."""
        stopped = Event()
        frames = 0
        first = last = b""
        now = time.process_time
        start = 0.0

        def received(batch: list[bytes], validated: list[bool]) -> None:
            nonlocal frames, start, first, last
            # (Their type is read of each, as the program in C does.)
            count = [frame[13] for frame in batch].count(EXPERIMENT[1])
            if count and not frames:
                start, first = now(), batch[0]
            frames += count
            if count < len(batch):
                last = batch[-1]
                stopped.set()

        device.received_many = received
        await stopped.wait()
        spent = now() - start
        device.received_many = None
        device.transmit(last[6:12] + last[:6] + STOP + bytes(46))
        assert len(first) == SIZE
        return frames, spent
