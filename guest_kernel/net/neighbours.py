"""Who has which address on a network: the ARP table of an interface, bounded at every side.

Anybody on the wire can make addresses up, so neither the table nor the number of questions under way may grow with
what comes in.
"""

from __future__ import annotations

from collections import deque

from guest_kernel.threads import Event

MAX_NEIGHBOURS = 1024
"""Known addresses; the one that was learned first makes room for a new one."""
MAX_QUESTIONS = 64
"""Addresses that are asked for at the same time."""
MAX_WAITING = 64
"""Datagrams that wait for one answer; the oldest makes room for a new one."""


class Question:
    """An address that is being asked for, and what waits for the answer."""

    def __init__(self) -> None:
        self.settled = Event()
        """Set when there is an answer, and when the question is given up."""
        self.waiting: deque[bytes] = deque(maxlen=MAX_WAITING)

    @property
    def is_full(self) -> bool:
        """Whether another datagram would push one out."""
        return len(self.waiting) == MAX_WAITING


class Neighbours:
    """IPv4 address → Ethernet address, and the open questions."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}
        self._questions: dict[bytes, Question] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, ip: bytes) -> bool:
        return ip in self._known

    def get(self, ip: bytes) -> bytes | None:
        """Return the Ethernet address of a neighbour, if it is known."""
        return self._known.get(ip)

    def learn(self, ip: bytes, mac: bytes) -> deque[bytes]:
        """Note where a neighbour is; returns the datagrams that waited for this."""
        known = self._known
        if ip not in known and len(known) >= MAX_NEIGHBOURS:
            del known[next(iter(known))]
        known[ip] = mac
        question = self._questions.pop(ip, None)
        if question is None:
            return deque()
        question.settled.set()
        return question.waiting

    def question(self, ip: bytes) -> tuple[Question | None, bool]:
        """Return the question for an address, and whether it is new and must be asked; None if too many are open."""
        question = self._questions.get(ip)
        if question is not None:
            return question, False
        if len(self._questions) >= MAX_QUESTIONS:
            return None, False
        question = self._questions[ip] = Question()
        return question, True

    def obstacle(self, ip: bytes) -> Question | None:
        """Return the question without whose end a datagram for this address is one too many; None if there is none."""
        if ip in self._known:
            return None
        question = self._questions.get(ip)
        if question is not None:
            return question if question.is_full else None
        return next(iter(self._questions.values())) if len(self._questions) >= MAX_QUESTIONS else None

    def give_up(self, ip: bytes) -> int:
        """Forget a question that nobody answers; returns how many datagrams are lost with it."""
        question = self._questions.pop(ip, None)
        if question is None:
            return 0
        question.settled.set()
        return len(question.waiting)
