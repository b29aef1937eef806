"""What the suites of backends share: the check is the program of a guest, and its devices are frontends by hand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from conformance.kit.bus_end import FrontEnd
from conformance.kit.recording import note_failure
from conformance.kit.split_host import Stage
from guest_kernel.kernel import Kernel


class BackStage(Stage):
    """A scene of such a suite."""

    def __init__(self, subject: Any) -> None:
        super().__init__()
        self.subject = subject
        self.left = False
        """The check has ended without closing its devices: they die with it."""

    def leave(self) -> None:
        """Do not close the devices: have the guest end as it is."""
        self.left = True

    @abstractmethod
    def make_fronts(self, kernel: Kernel) -> Sequence[FrontEnd]:
        """Make the guest's devices, for the check to use."""

    async def live(self, kernel: Kernel) -> None:
        """Be the guest's program."""
        fronts = self.make_fronts(kernel)
        try:
            await self.begin()
            for front in fronts:
                if not self.left and front.pages:
                    await front.close()
        except Exception as error:
            self.failure = error
            note_failure(kernel, error)
        self.over = True
