"""Sets of numbers as lists of ranges: which I/O ports and which frames without memory a domain may use (rangeset.h)."""

from __future__ import annotations

Ranges = list[range]
"""In order, with a gap between any two."""


def permit(ranges: Ranges, wanted: range) -> Ranges:
    """Return the set with a range added."""
    apart = []
    start, stop = wanted.start, wanted.stop
    for piece in ranges:
        if piece.stop < start or piece.start > stop:
            apart.append(piece)
        else:
            start, stop = min(start, piece.start), max(stop, piece.stop)
    return sorted([*apart, range(start, stop)], key=lambda piece: piece.start)


def deny(ranges: Ranges, taken: range) -> Ranges:
    """Return the set with a range taken out."""
    pieces = (
        half
        for piece in ranges
        for half in (
            range(piece.start, min(piece.stop, taken.start)),
            range(max(piece.start, taken.stop), piece.stop),
        )
    )
    return [piece for piece in pieces if piece]


def covers(ranges: Ranges, wanted: range) -> bool:
    """Whether all of a range, which is not empty, is in the set."""
    return any(piece.start <= wanted.start and wanted.stop <= piece.stop for piece in ranges)
