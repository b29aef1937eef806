"""An amount of memory as xl takes it on its command line."""

from __future__ import annotations

import re

from toolstack.errors import SpecError

_SHIFTS = {"b": -10, "k": 0, "m": 10, "g": 20, "t": 30}


def parse_memory(text: str) -> int:
    """Return an amount of memory in KiB: MiB without a unit, else with b, k, m, g or t. Raises SpecError."""
    match = re.fullmatch(r"([0-9]{1,15})([bkmgt]?)", text.strip().lower(), re.ASCII)
    if match is None:
        raise SpecError(f"{text!r} is no amount of memory (such as 256, 256m, 1g)")
    shift = _SHIFTS[match[2] or "m"]
    kib = int(match[1]) << shift if shift >= 0 else int(match[1]) >> -shift
    if not 0 < kib < 1 << 42:
        raise SpecError(f"{text!r} is no amount of memory that a domain could have")
    return kib
