"""What a split driver sees of xenbus: the class it writes and the device it is handed.

A driver is one class with a few async hooks.  The bus finds the devices, watches the other end's state, looks the pair
(own state, other end's state) up in the tables of `guest_kernel.xenbus.states` and runs the hook that the table names;
when the hook returns, the bus writes the new own state.  A driver therefore never writes a `state` node and never
decides what a state of the other end means.

The life of a device, with the hooks in capitals (frontend on the left):

    PROBE                                  PROBE
                                           PUBLISH  -> InitWait       features, nothing of the frontend's is touched
    PUBLISH    -> Initialised                                         rings granted, ring-ref/event-channel written
                                           CONNECT  -> Connected      rings mapped, sectors/... written
    CONNECT    -> Connected                                           backend's answers read, device offered to users
    ...
    DISCONNECT -> Closing (or Closed)                                 no new requests
                                           DISCONNECT, CLOSE          rings unmapped
    CLOSE (the backend is Closed or gone)                             grants and ports given back
    REMOVE                                 REMOVE                     the device is forgotten

`close` always follows `publish` or `connect`, however far they came: also when they raised, when the other end was
killed, when the node vanished.  After `close` the device may start again at `publish` (reconnect), without a second
`probe`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

Side = Literal["frontend", "backend"]


class DeviceClosing(Exception):
    """Raised in a hook that waits (`XenbusDevice.wait_for`) when the device has to close meanwhile.

    Let it pass: the bus takes it as the hook's orderly end and goes on with `close`.
    """


def frontend_number(nodes: Mapping[str, str | None], key: str) -> int:
    """Return a 32-bit number (a grant reference, a port) that the frontend wrote. Raises ValueError."""
    text = nodes[key]
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > 0xFFFF_FFFF:
        raise ValueError(f"the frontend's {key} is {text!r}, which is not a number of 32 bits")
    return int(text)


def says_yes(text: str | None) -> bool:
    """Whether the other end's node of a feature or a request says yes: with any number but 0, as in Linux's drivers."""
    return text is not None and text.isascii() and text.isdigit() and text.strip("0") != ""


class XenbusDriver:
    """One class of split devices, one side.  Subclass it and fill in the hooks.

    All hooks of one device are serialized (they run in the device's own thread) and may await anything of the guest
    kernel; hooks of different devices interleave at awaits.  A driver object serves all devices of its type, so what
    belongs to one device goes into `device.data`.

    An exception out of `probe`, `publish` or `connect` is fatal for that device only: the bus writes it to the
    device's `error` node, runs `close` and takes the device to Closing (see `XenbusDevice.fatal`).
    An exception out of `reconfigure`, `disconnect`, `close` or `remove` is reported in the same node and the machine
    goes on.
    """

    #: Device class as it stands in xenstore paths: "vbd", "vif", ...
    type: ClassVar[str]
    #: Which end this driver plays.
    side: ClassVar[Side]
    #: Frontends only.  False: publish -> Initialised, wait for the backend's Connected, connect -> Connected (as
    #: block devices do).  True: publish -> Connected at once, `connect` runs when the backend is Connected too (as
    #: network devices do: there the backend waits for the frontend's Connected).
    eager: ClassVar[bool] = False
    #: Backends only.  True: a connected frontend may go to Reconfiguring; `reconfigure` runs, and the backend is
    #: Reconfigured until the frontend is Connected again.  False: Reconfiguring changes nothing.
    reconfigures: ClassVar[bool] = False

    def __init__(self, kernel: Kernel, **options: Any) -> None:
        self.kernel = kernel
        self.options = options

    async def probe(self, device: XenbusDevice) -> None:
        """A new device: set `device.data`, read what the toolstack wrote.  Runs once.

        Take nothing here that `close` does not give back, unless `remove` does.
        """

    async def publish(self, device: XenbusDevice) -> None:
        """Say what this end offers; runs after `probe` and again at each reconnect.

        Frontend: allocate and grant the rings, allocate the event channel, `device.write` ring-ref, event-channel and
        protocol.  The backend is in InitWait, so its feature nodes can be read with `device.read_otherend`.
        Backend: `device.write` the feature nodes; do not look at the frontend's rings yet.
        """

    async def connect(self, device: XenbusDevice) -> None:
        """Both ends have published: make the connection.

        Backend (frontend Initialised or Connected): read ring-ref and event-channel with `device.read_otherend`, map,
        bind, start serving, `device.write` what the frontend reads next (sectors, sector-size, info).
        Frontend (backend Connected): read those nodes, start using the rings, offer the device to users.
        """

    async def refresh(self, device: XenbusDevice) -> None:
        """The other end has said Connected again (`XenbusDevice.announce`): read again what may have changed.

        Optional.  What it raises is reported in the `error` node; the device goes on.
        """

    async def reconfigure(self, device: XenbusDevice) -> None:
        """Backend that `reconfigures`: the frontend wants something changed that it says in its own nodes.

        What it raises is reported in the `error` node; the device goes on.
        """

    async def disconnect(self, device: XenbusDevice) -> None:
        """Stop handing out new work; requests in flight may still be answered.  Free nothing that is shared.

        Optional.  Runs on a connected device before Closing (or Closed) is written; not run when the other end has
        vanished.
        """

    async def close(self, device: XenbusDevice) -> None:
        """Give everything back: fail what is in flight, unmap, end grants, unbind ports, free pages.

        Runs once after each `publish`, at any point of its life.  For a frontend the backend is Closed, Closing at its
        own initiative or gone by then; for a backend the frontend is closing, Closed or gone (its domain may be dead:
        unmapping still works, notifying may not).  Must cope with a half-done `publish` or `connect`.
        """

    async def remove(self, device: XenbusDevice) -> None:
        """Forget the device: its node vanished, or the toolstack unplugged it.  Runs once, always after `close`."""


class XenbusDevice(ABC):
    """One end of one split device, as a driver's hooks get it.  The bus makes these."""

    #: This domain's kernel.
    kernel: Kernel
    #: The driver that serves the device.
    driver: XenbusDriver
    #: Device class: "vbd", "vif", ...
    type: str
    #: "frontend" or "backend".
    side: Side
    #: Last component of the path as text: "51712" of a vbd, "0" of the first vif.
    id: str
    #: Own directory.  Frontend: relative, `device/vbd/51712`.  Backend: `/local/domain/0/backend/vbd/1/51712`.
    path: str
    #: Other end's directory, absolute.
    otherend: str
    #: Other end's domain.
    otherend_id: int
    #: Own XenbusState, the last one written (numbers of io/xenbus.h).
    state: int
    #: Other end's XenbusState as last looked at; 0 (Unknown) if its node is missing.
    otherend_state: int
    #: Backend: the toolstack wants the device to stay (`online` node is not "0").  Frontend: always True.
    online: bool
    #: The driver's own object for this device.
    data: Any

    @abstractmethod
    async def read(self, key: str) -> str | None:
        """Own node `<path>/<key>`, or None if it does not exist.  `key` may have slashes (`queue-0/ring-ref`)."""

    @abstractmethod
    async def read_many(self, *keys: str) -> dict[str, str | None]:
        """Several own nodes at the price of one round trip; a missing one is None."""

    @abstractmethod
    async def read_otherend(self, key: str) -> str | None:
        """Other end's node `<otherend>/<key>`, or None if it does not exist.  Its text is the peer's: check it."""

    @abstractmethod
    async def read_otherend_many(self, *keys: str) -> dict[str, str | None]:
        """Several of the other end's nodes at the price of one round trip; a missing one is None."""

    @abstractmethod
    async def write(self, values: Mapping[str, object] | None = None, /, **keys: object) -> None:
        """Write own nodes atomically: `await device.write({"ring-ref": ref, "event-channel": port})`.

        Values are written as `str(value)` (True and False as "1" and "0"), bytes as they are.
        In `publish` and `connect` the nodes become visible in one transaction together with the state that follows,
        so the other end never sees one without the other; the write itself then costs no round trip.
        Elsewhere it is a transaction of its own.
        """

    @abstractmethod
    async def write_many(self, values: Mapping[str, object]) -> None:
        """Write own nodes now, in order and pipelined (one round trip), without a transaction."""

    @abstractmethod
    def announce(self, values: Mapping[str, object]) -> None:
        """Have own nodes written and the own Connected after them once more, so that the other end looks (`refresh`).

        That is how a block backend tells of another capacity.  Callable anywhere; happens as soon as the device is
        connected, in its own thread.
        """

    @abstractmethod
    async def wait_for(self, key: str) -> str:
        """Wait until own node `key` exists and return its text (a hotplug script's `physical-device`).

        Raises DeviceClosing when the device must close meanwhile.
        """

    @abstractmethod
    async def wait_while(self, condition: Callable[[], bool]) -> bool:
        """In `disconnect`: wait as long as `condition()` holds; return False when waiting has become pointless.

        That is so when the own or the other end's node has vanished (a removal by force), when the other end is Closed,
        and when this end closes at its own initiative. Call `notice` when the condition has changed.
        """

    @abstractmethod
    def notice(self) -> None:
        """Have `wait_while` look again. Callable anywhere."""

    @abstractmethod
    async def watch(self, key: str, callback: Callable[[], None]) -> None:
        """Call `callback()` when own node `key` (or below) changes, and once now; ends with the device's `remove`.

        The callback runs in a thread of the bus and must not block: set an Event, wake a queue.
        """

    @abstractmethod
    async def watch_otherend(self, key: str, callback: Callable[[], None]) -> None:
        """As `watch`, for a node of the other end."""

    @abstractmethod
    async def fatal(self, message: str, errno: int = 5) -> None:
        """Give the device up: write `error/<path>/error` = "<errno> <message>" and go to Closing.

        Callable from any thread of the driver (a ring server that met garbage): it returns after the note is written;
        `disconnect` and `close` follow in the device's own thread.  Default errno 5 is EIO.
        """

    @abstractmethod
    async def error(self, message: str, errno: int = 5) -> None:
        """Write the `error` node and go on."""

    @abstractmethod
    async def reopen(self) -> None:
        """Frontend: from Closed start again at Initialising (the backend must be online)."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Close at this end's initiative, and wait until both ends are done (or the other end does not answer)."""
