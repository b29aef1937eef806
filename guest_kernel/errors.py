"""What can go wrong in a guest, as exceptions."""

from hypervisor.abi import errno as xen_errno

_NAMES: dict[int, str] = {
    value: name for name, value in vars(xen_errno).items() if name.startswith("E") and isinstance(value, int)
}


class XenError(OSError):
    """A hypercall answered with a negative value: `errno` is Xen's number, positive; `operation` names the call."""

    def __init__(self, errno: int, operation: str = "hypercall") -> None:
        super().__init__(errno, f"{operation}: -{_NAMES.get(errno, errno)}")
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


class ThreadCancelled(Exception):  # noqa: N818 (a fact about the thread)
    """Raised by `Thread.join` when the joined thread was cancelled."""


class Cancelled(BaseException):
    """Raised inside a thread that is being cancelled, at the point where it waits. Let it pass."""
