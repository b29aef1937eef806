"""The guests of `benchmarks/fleet.py`: a third computes, a third uses a disk, a third answers each other."""

import json
from pathlib import Path

from guest_kernel.guest import Guest

SECTORS = 2048
PORT = 5000


class Worker(Guest):
    """Arguments: the kind of work, a number, how many seconds, the directory for the results."""

    async def main(self) -> None:
        kind, number, seconds, place = self.args[0], int(self.args[1]), float(self.args[2]), Path(self.args[3])
        clock = self.kernel.monotonic_ns
        end = clock() + round(seconds * 1e9)
        latencies = await getattr(self, kind)(number, end)
        done = {"kind": kind, "number": number, "latencies": latencies}
        (place / f"{self.name}.json").write_text(json.dumps(done))

    async def cpu_work(self, number: int, end: int) -> list[int]:
        """Requests of 5 ms of computing, 20 to 80 ms apart: with equal pauses all would come to want to at once."""
        clock, found = self.kernel.monotonic_ns, []
        while clock() < end:
            began = clock()
            await self.cpu(ns=5_000_000)
            found.append(clock() - began)
            await self.sleep(self.kernel.rng.uniform(0.02, 0.08))
        return found

    async def block_work(self, number: int, end: int) -> list[int]:
        """Read 4 KiB, compute 100 us, write it elsewhere, wait for 25 ms."""
        disk = await self.disk("xvda")
        clock, found, at = self.kernel.monotonic_ns, [], number
        while clock() < end:
            began = clock()
            at = at * 7919 % (SECTORS // 8)
            data = await disk.read(at * 8, 8)
            await self.cpu(ns=100_000)
            await disk.write((at ^ 1) * 8, data)
            found.append(clock() - began)
            await self.sleep(0.025)
        return found

    async def net_work(self, number: int, end: int) -> list[int]:
        """Ask the partner a question of 64 bytes every 25 ms, or answer those of the partner."""
        interface = await self.net.interface("eth0")
        interface.configure(f"10.0.{number >> 8}.{(number & 255) + 1}/8")
        clock, found = self.kernel.monotonic_ns, []
        if number & 1:
            socket = self.net.udp_socket(PORT)
            while True:
                data, address = await socket.recvfrom()
                if data == b"end":
                    return found
                await self.cpu(ns=50_000)
                await socket.sendto(data, address)
        socket = self.net.udp_socket(PORT)
        partner = number + 1
        address = (f"10.0.{partner >> 8}.{(partner & 255) + 1}", PORT)
        await self.sleep(1)
        while clock() < end:
            began = clock()
            await socket.sendto(bytes(64), address)
            await socket.recvfrom()
            found.append(clock() - began)
            await self.sleep(0.025)
        await socket.sendto(b"end", address)
        return found
