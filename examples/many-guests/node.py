"""One of many nodes that find the average of their numbers by gossip, with nobody in charge (push-sum).

Every node starts with a number of its own and a weight of 1. In each round it keeps half of both, sends the other half
to a node picked at random, and adds what it has received. Sum divided by weight approaches the average everywhere. At
the end the others report to node 0, which prints the summary.

The command line says which node this is: `node=3 of=20`.
"""

import struct

from guest_kernel.guest import Guest
from guest_kernel.net import UdpSocket

GOSSIP_PORT, REPORT_PORT = 4000, 4001
ROUNDS = 50
ROUND_SECONDS = 0.010
HALF = struct.Struct("<dd")


def address(node: int) -> str:
    return f"10.0.0.{node + 1}"


class Node(Guest):
    async def main(self) -> None:
        words = dict(word.split("=") for word in self.args)
        self.node, self.nodes = int(words["node"]), int(words["of"])
        eth0 = await self.net.interface("eth0")
        eth0.configure(f"{address(self.node)}/24")
        self.number = self.kernel.rng.randint(0, 1000)
        self.sum, self.weight = float(self.number), 1.0
        gossip = self.net.udp_socket(GOSSIP_PORT)
        reports = self.net.udp_socket(REPORT_PORT)
        # Wait until the slowest of us has booted.
        await self.sleep(1)
        listener = self.kernel.spawn(self.listen(gossip), "listen")
        for _ in range(ROUNDS):
            await self.tell_somebody(gossip)
            await self.sleep(ROUND_SECONDS)
        listener.cancel()
        if self.node == 0:
            await self.summarize(reports)
        else:
            await reports.sendto(HALF.pack(self.number, self.sum / self.weight), (address(0), REPORT_PORT))

    async def tell_somebody(self, socket: UdpSocket) -> None:
        peer = self.kernel.rng.choice([node for node in range(self.nodes) if node != self.node])
        self.sum /= 2
        self.weight /= 2
        await socket.sendto(HALF.pack(self.sum, self.weight), (address(peer), GOSSIP_PORT))

    async def listen(self, socket: UdpSocket) -> None:
        while True:
            data, _ = await socket.recvfrom()
            received, weight = HALF.unpack(data)
            self.sum += received
            self.weight += weight

    async def summarize(self, socket: UdpSocket) -> None:
        reports = [HALF.unpack((await socket.recvfrom())[0]) for _ in range(self.nodes - 1)]
        reports.append((self.number, self.sum / self.weight))
        numbers = [number for number, _ in reports]
        estimates = [estimate for _, estimate in reports]
        average = sum(numbers) / len(numbers)
        self.print(f"{self.nodes} nodes, numbers from {min(numbers):.0f} to {max(numbers):.0f}, average {average:.3f}")
        self.print(f"after {ROUNDS} rounds they say from {min(estimates):.3f} to {max(estimates):.3f}")
        if max(estimates) - min(estimates) > 0.1 or abs(estimates[0] - average) > 0.1:
            raise RuntimeError("they do not agree on the average")
