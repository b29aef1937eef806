"""The guest of `benchmarks/idle_domains.py`: comes up with its network interface, and does nothing."""

from guest_kernel.guest import Guest
from guest_kernel.threads import WaitQueue


class Idle(Guest):
    async def main(self) -> None:
        eth0 = await self.net.interface("eth0")
        eth0.configure("10.0.0.1/8")
        await WaitQueue().wait()
