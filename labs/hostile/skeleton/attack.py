"""Lab 11: the attack. Replace `raise NotImplementedError`."""

from __future__ import annotations

from labs.hostile.client import Client

ME, VICTIM = 3, 2
"""The numbers of the domains."""


async def steal(client: Client) -> bytes:
    """Return the note of the victim's that begins with SECRET:, all 64 bytes of it.

    `client` is this domain's connection to the vault; see `Client.request` and `Client.send` for requests of any kind.
    """
    raise NotImplementedError("which numbers in a request does the vault not look at?")
