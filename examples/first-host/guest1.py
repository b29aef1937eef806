"""The first guest: checks its disk, then talks to the second one over the network."""

from guest_kernel.guest import Guest

PEER = "10.0.0.2"
PORT = 7
SECTORS = 128
MESSAGES = 5


class Guest1(Guest):
    async def main(self) -> None:
        await self.check_disk()
        await self.talk()

    async def check_disk(self) -> None:
        """Write a pattern, bring it to the image file, read it back."""
        disk = await self.disk("xvda")
        self.print(f"{disk.name}: {disk.size >> 20} MiB")
        pattern = self.kernel.rng.randbytes(SECTORS * disk.sector_size)
        await disk.write(0, pattern)
        await disk.flush()
        if await disk.read(0, SECTORS) != pattern:
            raise RuntimeError("the disk does not hold what was written to it")
        self.print(f"{disk.name}: {len(pattern)} bytes written, read back and verified")

    async def talk(self) -> None:
        """Ping the other guest and exchange datagrams with its echo server."""
        eth0 = await self.net.interface("eth0")
        eth0.configure("10.0.0.1/24")
        self.print(f"ping {PEER}: {await self.net.ping(PEER) / 1000:.1f} us")
        socket = self.net.udp_socket()
        for number in range(MESSAGES):
            await socket.sendto(f"message {number}".encode(), (PEER, PORT))
            data, (sender, _) = await socket.recvfrom()
            self.print(f"{sender} answers: {data.decode()}")
        await socket.sendto(b"bye", (PEER, PORT))
        await socket.recvfrom()  # the other one has something left to do with us
