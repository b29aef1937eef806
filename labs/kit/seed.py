"""Numbers of a student's own: what is asked of one is not what is asked of another."""

from __future__ import annotations

import hashlib
import random


def seed_of(student: str) -> int:
    """Return the seed of a student's name: blanks around it, and capitals, do not matter."""
    digest = hashlib.sha256(" ".join(student.split()).casefold().encode()).digest()
    return int.from_bytes(digest[:4], "big")


def rng_for(seed: int, lab: str, what: str) -> random.Random:
    """Return the random numbers for one check, or for the questions, of a lab."""
    return random.Random(f"{seed}/{lab}/{what}")
