"""The two kinds of failure inside the hypervisor: a guest's mistake and our own."""

from __future__ import annotations

from typing import Any


class HypercallError(Exception):
    """A guest's mistake: the hypercall returns `-errno` (Xen's public errno.h) and nothing else happens."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Refused(HypercallError):
    """An error that is returned after the structure has been copied back, as some control operations do."""

    def __init__(self, errno: int, value: Any) -> None:
        """`value` is the member of the structure's union with what there is to say."""
        super().__init__(errno)
        self.value = value


class InvariantError(BaseException):
    """The hypervisor's own state contradicts itself. Never a guest's fault; stops the host.

    Not an `Exception`: it is raised below the code of guests, which must not take it for a failure of theirs.
    """


class DeviceError(Exception):
    """Something outside the host that a device needs cannot be had; the message is a sentence for a person."""


class ReplayError(Exception):
    """A run cannot follow the schedule that it was told to repeat; the message is a sentence for a person."""
