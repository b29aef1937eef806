"""What the simulator does for the toolstack outside of the simulated host.

There are things that no hypercall can do. Python code cannot lie in guest memory, so somebody outside has to tell the
processor which program an image page stands for; somebody keeps the accounts; and somebody plugs hardware in.
"""

from __future__ import annotations

from typing import Protocol

from guest_kernel.image import PythonKernelImage
from hypervisor.machine.nbd_connector import Connector, NbdConnection
from toolstack.disk_spec import DiskSpec
from toolstack.domains import DomainPlan, LiveDomain
from toolstack.vif_spec import VifSpec


class Hardware(Protocol):
    """The hands that plug hardware into the machine, and take it out."""

    def search(self, disk: DiskSpec) -> Connector | None:
        """Begin to connect to a disk's server; None if it has none. In virtual time the search is over on return.

        Raises ToolstackError if a person wants no more of it.
        """
        ...

    def plug_disk(self, owner: str, disk: DiskSpec, connection: NbdConnection | None) -> int:
        """Put a disk controller with this image into the machine, for a domain of this name; return its unit.

        A disk that has a server comes with the connection to it, which is the machine's from now on. Raises
        ToolstackError.
        """
        ...

    def is_late(self, unit: int) -> bool:
        """Whether the disk of this unit is not there yet, because its server has not answered."""
        ...

    def plug_late_disk(self, unit: int, owner: str, disk: DiskSpec) -> bool:
        """Put such a disk into the machine if its server has answered by now; return whether it has.

        Raises ToolstackError if the server does not answer, or it cannot be that disk.
        """
        ...

    def unplug_disk(self, unit: int, *, keep: bool) -> None:
        """Take a disk controller out of the machine; nobody drives it any more.

        `keep`: leave it to the driver domain that has it; it is used again for the same image there.
        """
        ...

    def resize_disk(self, unit: int, size: int) -> None:
        """Make a disk larger, to so many bytes. Raises ToolstackError."""
        ...

    def check_medium(self, unit: int, target: str, connection: NbdConnection | None) -> None:
        """See whether an image can be put into a CD drive. Raises ToolstackError."""
        ...

    def change_medium(self, unit: int, target: str, connection: NbdConnection | None) -> None:
        """Put an image into a CD drive, or nothing (""), in the place of what is there. Raises ToolstackError."""
        ...

    def plug_vif(self, owner: str, devid: int, vif: VifSpec) -> str:
        """Return the address of a new interface of a domain. Raises ToolstackError if there is no such bridge."""
        ...

    def unplug_vif(self, mac: str) -> None:
        """An address is free again."""
        ...

    def unplug_socket_card(self, unit: int) -> None:
        """Take a socket card out of the machine; nobody drives it any more."""
        ...


class Platform(Protocol):
    """The simulator, as the toolstack sees it."""

    @property
    def hardware(self) -> Hardware:
        """What can be plugged in and out."""
        ...

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Make a new domain's processors execute this image."""
        ...

    def load_machine_code(self, domid: int, name: str) -> None:
        """Take note of a new domain whose processors execute what is in its memory."""
        ...

    def account(self, live: LiveDomain, reason: str) -> None:
        """Note down what a domain has used; it ended for `reason` and is about to go."""
        ...

    def failed(self, plan: DomainPlan, message: str) -> None:
        """A domain could not be started; the message is one sentence."""
        ...

    def lacks(self, plan: DomainPlan, message: str) -> None:
        """A domain goes on without something that it was to have; the message is one sentence."""
        ...
