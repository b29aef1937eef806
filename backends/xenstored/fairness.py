"""How fast a guest may write nodes while others have transactions open (XSA-206).

A transaction fails when somebody changes what it has looked at, so a guest that writes without pause could keep dom0
from ever committing.  Such writes cost credit.  A domain has a little of its own, which grows back; when that is gone
it draws on a reserve that all domains share; when that is gone too, it is not listened to until it has credit again.
The numbers are the C daemon's.
"""

from typing import Final, final

RATE: Final = 200
"""Writes a second that grow back."""
OWN: Final = 10
"""Largest credit of a domain, in writes."""
RESERVE: Final = 1000
"""Largest reserve."""

_SECOND: Final = 1_000_000_000


@final
class Bucket:
    """A domain's credit.  Times are nanoseconds."""

    __slots__ = ("at", "credit")

    def __init__(self, now: int) -> None:
        self.credit: float = OWN
        self.at = now


@final
class WriteLimit:
    """The shared reserve, and who pays: `charge` after a domain has written says how long to ignore it."""

    __slots__ = ("reserve",)

    def __init__(self) -> None:
        self.reserve: float = RESERVE

    def charge(self, bucket: Bucket, writes: int, now: int) -> int:
        """Take `writes` from a domain's credit and then from the reserve; return the nanoseconds it must wait."""
        credit = bucket.credit + (now - bucket.at) * RATE / _SECOND
        bucket.at = now
        if credit > OWN:
            # What a domain had no use for, others may need.
            self.reserve = min(RESERVE, self.reserve + credit - OWN)
            credit = OWN
        credit -= writes
        if credit < 0:
            help_ = min(-credit, self.reserve)
            credit += help_
            self.reserve -= help_
        bucket.credit = credit
        return 0 if credit >= 0 else int(-credit * _SECOND / RATE) + 1
