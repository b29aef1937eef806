"""The rate limit of a vif: so many bytes in each interval (xl-network-configuration, `rate`)."""

from __future__ import annotations

import re

_RATE = re.compile("([1-9][0-9]{0,17}),([1-9][0-9]{0,17})")
LARGEST_BURST = 131072
"""Credit that may add up, so that a frame larger than one interval's bytes passes after several."""


class Credit:
    """`nbytes` for each `interval` (ns). `next` is when there will be more, once `take` has refused a frame."""

    def __init__(self, nbytes: int, interval: int, now: int) -> None:
        self.nbytes = nbytes
        self.interval = interval
        self.left = nbytes
        self.next = now + interval

    def take(self, size: int, now: int) -> bool:
        """Pay for a frame of `size` bytes at `now`; False if it has to wait."""
        if size > self.left and now >= self.next:
            # What was not used does not add up beyond what was left: a silent guest saves nothing for a flood.
            self.left = min(self.left + self.nbytes, max(LARGEST_BURST, self.nbytes))
            self.next = now + self.interval
        if size > self.left:
            return False
        self.left -= size
        return True


def parse_rate(text: str | None, now: int) -> Credit | None:
    """Return the limit of a `rate` node, `bytes,microseconds`; None without one. Raises ValueError."""
    if text is None:
        return None
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"the rate {text!r} is not of the form BYTES,MICROSECONDS")
    return Credit(int(match[1]), int(match[2]) * 1000, now)
