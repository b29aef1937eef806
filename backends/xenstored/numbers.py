"""Numbers in requests, read as C's `atoi` does."""

import re
from typing import Final

_LEADING: Final = re.compile(rb"[ \t-\r]*([+-]?\d+)")


def leading_number(text: bytes) -> int:
    """Return the decimal number that `text` begins with, in 32 bits with sign as `atoi` would; 0 if there is none."""
    match = _LEADING.match(text)
    if match is None:
        return 0
    # glibc's atoi is strtol cut to int.
    value = max(-(2**63), min(int(match[1]), 2**63 - 1)) & 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value
