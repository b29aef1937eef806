"""Questions of a lab: each student has numbers of his own, and what is right is found out by running a host."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import attrs


@attrs.frozen
class Question:
    """A question, and how its answer is found."""

    text: str
    answer: Callable[[], object]
    """Runs what it takes; returns the answer, to be shown as text."""
    why: str = ""
    """What to understand, shown with the answer."""


MakeQuestions = Callable[[random.Random], Sequence[Question]]
"""Makes the questions of a lab for one student."""
