"""The questions of lab 11."""

from __future__ import annotations

import random
from typing import Any

from labs.hostile.checks import House, given
from labs.hostile.client import GET, NOTE, NOTES, Client
from labs.kit.questions import Question


def _try(op: int, index: int, owner: int) -> str:
    """Return what the given vault answers domain 3, where domain `owner` has written its number into its notes."""
    found: list[Any] = []

    async def write(client: Client) -> None:
        for number in range(NOTES):
            await client.put(number, f"{owner}/{number}".encode().ljust(NOTE))

    async def read(client: Client) -> None:
        _, data = await client.request(op, index, NOTE)
        found.append(data[:8].decode("latin-1").strip())

    house = House(given())
    house.then(owner, write)
    house.then(3, read)
    house.run()
    return str(found[0])


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    owner = rng.choice([2, 4])
    number = rng.randrange(NOTES)
    ahead = rng.randrange(33, 10**6)
    size = rng.randrange(3, 20)
    index = (owner - 3) * NOTES + number
    return [
        Question(
            f"Domain 3 wants to read note {number} of domain {owner} from the vault as it was given. Which index?",
            lambda: index,
            "The notes of domain n begin at n * 1024; the vault only multiplies and adds.",
        ),
        Question(
            f"Each domain has written its number and the note's into its notes (2/0, 2/1, ...). What does the "
            f"vault give domain 3 for index {index}?",
            lambda: _try(GET, index, owner),
            "There was never a check: the note's number is the guest's word.",
        ),
        Question(
            f"A put of {size} bytes to note 15 of domain 3 is checked; while the disk seeks, the guest makes the "
            "length 255. How many bytes of domain 4's notes does the given vault overwrite?",
            lambda: 255 - NOTE,
            "What was checked is not what is used. A copy cannot change.",
        ),
        Question(
            f"A guest writes a req_prod that is {ahead} ahead. How many requests that nobody has made does "
            "the given vault answer?",
            lambda: ahead,
            "All of them, one seek each. With 2^32 of them it would be busy for days.",
        ),
    ]
