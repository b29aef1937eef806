"""The second guest: a server that echoes datagrams until somebody says bye."""

from guest_kernel.guest import Guest

PEER = "10.0.0.1"
PORT = 7


class Guest2(Guest):
    async def main(self) -> None:
        eth0 = await self.net.interface("eth0")
        eth0.configure("10.0.0.2/24")
        socket = self.net.udp_socket(PORT)
        self.print(f"echo server on port {PORT}")
        while True:
            data, sender = await socket.recvfrom()
            if data == b"bye":
                break
            await socket.sendto(data.upper(), sender)
        self.print(f"ping {PEER}: {await self.net.ping(PEER) / 1000:.1f} us")
        await socket.sendto(b"bye", sender)
