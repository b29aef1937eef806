"""The two kinds of failure inside the hypervisor: a guest's mistake and our own."""


class HypercallError(Exception):
    """A guest's mistake: the hypercall returns `-errno` (Xen's public errno.h) and nothing else happens."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class InvariantError(BaseException):
    """The hypervisor's own state contradicts itself. Never a guest's fault; stops the host.

    Not an `Exception`: it is raised below the code of guests, which must not take it for a failure of theirs.
    """


class DeviceError(Exception):
    """Something outside the host that a device needs cannot be had; the message is a sentence for a person."""


class ReplayError(Exception):
    """A run cannot follow the schedule that it was told to repeat; the message is a sentence for a person."""
