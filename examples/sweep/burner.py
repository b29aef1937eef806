"""A guest that computes as long as it is told to, in pieces of random length."""

from guest_kernel.guest import Guest


class Burner(Guest):
    """The argument is how many virtual seconds to compute."""

    async def main(self) -> None:
        clock = self.kernel.monotonic_ns
        end = clock() + round(float(self.args[0]) * 1e9)
        longest = 0
        while clock() < end:
            began, ns = clock(), self.kernel.rng.randrange(100_000, 3_000_000)
            await self.cpu(ns=ns)
            longest = max(longest, clock() - began - ns)
        # A line that begins like this makes a column of the sweep's table: one.longest_wait_ns.
        self.print(f"result: longest_wait_ns={longest}")
