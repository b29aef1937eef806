"""The driver domain whose backend is judged."""

from guest_kernel.guest import Guest


class Back(Guest):
    """Has nothing to do but to be there: its driver does the work."""

    async def main(self) -> None:
        """Run."""
        await self.kernel.never()
