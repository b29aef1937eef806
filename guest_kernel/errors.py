"""What can go wrong in a guest, as exceptions."""

from hypervisor.abi import errno as xen_errno


class XenError(OSError):
    """A hypercall answered with a negative value: `errno` is Xen's number, positive; `operation` names the call."""

    def __init__(self, errno: int, operation: str = "hypercall") -> None:
        super().__init__(errno, f"{operation}: -{xen_errno.name(errno)}")
        self.operation = operation

    def __str__(self) -> str:
        return str(self.args[1])


class GrantError(Exception):
    """A grant operation was refused: `status` is the negative GNTST_ value."""

    def __init__(self, status: int, operation: str) -> None:
        super().__init__(f"{operation}: grant status {status}")
        self.status = status


class GuestError(Exception):
    """The guest's own code does what no guest can do, such as awaiting something that is not of its kernel."""


class OutOfMemory(MemoryError):
    """The domain has no free page, or no free virtual addresses, for what was asked."""


class ThreadCancelled(Exception):
    """Raised by `Thread.join` when the joined thread was cancelled."""


class Cancelled(BaseException):
    """Raised inside a thread that is being cancelled, at the point where it waits. Let it pass."""
