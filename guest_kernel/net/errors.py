"""What a guest's own networking reports to the guest."""


class NetError(OSError):
    """A network operation that cannot be done; the message is a sentence for a person."""


class PingTimeout(NetError):
    """No echo reply came in time."""
