"""Says two things to the other guest, and prints what comes back."""

from guest_kernel.guest import Guest
from guest_kernel.vchan import connect


class Client(Guest):
    async def main(self) -> None:
        server = int(self.args[0])
        channel = await connect(self.kernel, server, f"/local/domain/{server}/data/vchan/shout")
        for line in (b"hello", b"good-bye"):
            await channel.write(line)
            answer = await channel.read_exactly(len(line))
            self.print("answer:", answer.decode())
        await channel.close()
