"""Answers each line with the same in capitals, until the client leaves."""

from guest_kernel.guest import Guest
from guest_kernel.vchan import listen


class Server(Guest):
    async def main(self) -> None:
        channel = await listen(self.kernel, 2, "data/vchan/shout")
        while line := await channel.read():
            self.print("heard", line.decode())
            await channel.write(line.upper())
        await channel.close()
