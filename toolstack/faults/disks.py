"""Faults of disks, put before the image: `hypervisor.machine.failing_disk` does the work."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, final

from hypervisor.machine.failing_disk import FailingDisk, Faults
from toolstack.faults.fault import Fault

if TYPE_CHECKING:
    from hypervisor.machine.backing import Backing


class _DiskFault(Fault):
    """A fault of the victim's disks, or of one of them."""

    def concerns(self, owner: str, vdev: str) -> bool:
        """Whether this disk is meant."""
        return owner == self.spec.domain and self.spec.device in ("", vdev)


@final
class DiskFail(_DiskFault):
    """Commands fail with EIO; a write that fails may have stored nothing or everything, never something else."""

    def disk(self, owner: str, vdev: str, backing: Backing) -> Backing:
        """Put a disk with dice before this one."""
        return _Dicing(backing, self, vdev) if self.concerns(owner, vdev) else backing


@final
class _Dicing(FailingDisk):
    def __init__(self, inner: Backing, fault: DiskFail, vdev: str) -> None:
        super().__init__(inner, Faults())
        self._fault = fault
        self._vdev = vdev

    def _is_bad(self, offset: int, size: int) -> bool:
        return self._fails(f"A command of {size} bytes at {offset}")

    def flush(self) -> int:
        """Flush, or say that it failed."""
        return errno.EIO if self._fails("A flush") else super().flush()

    def _fails(self, what: str) -> bool:
        if not self._fault.strikes():
            return False
        self._fault.note(f"{what} of {self._vdev} fails with EIO.")
        return True


@final
class DiskSlow(_DiskFault):
    """Each group of commands takes longer, from the first on."""

    def disk(self, owner: str, vdev: str, backing: Backing) -> Backing:
        """Put a slow disk before this one."""
        if not self.concerns(owner, vdev):
            return backing
        self.note(f"{vdev} takes {self.spec.by} ns longer for each group of commands.")
        return FailingDisk(backing, Faults(delay_ns=self.spec.by))


@final
class DiskFull(_DiskFault):
    """There is room for so many sectors; then writes fail with ENOSPC."""

    def disk(self, owner: str, vdev: str, backing: Backing) -> Backing:
        """Put a disk that promises more than it has before this one."""
        if not self.concerns(owner, vdev):
            return backing
        self.note(f"{vdev} has room for {self.spec.sectors} sectors of what is written.")
        return FailingDisk(backing, Faults(room=self.spec.sectors))


@final
class DiskTorn(_DiskFault):
    """Of each so many writes, one stores its first half and fails with EIO."""

    def disk(self, owner: str, vdev: str, backing: Backing) -> Backing:
        """Put a disk that tears before this one."""
        if not self.concerns(owner, vdev):
            return backing
        self.note(f"{vdev} tears each {self.spec.sectors}th write.")
        return FailingDisk(backing, Faults(tear_every=self.spec.sectors))
