"""The xenbus state machine: what an end of a split device does when it looks at the other end.

There is no I/O here and nothing to await.  Four rules, and the rest is tables:

1. All transitions are in the tables below.  A key is (own state, other end's state), a value (action, next own state).
   The other end's state is whatever it is *now*: events are hints, values between two looks are never seen, and the
   same pair may come any number of times.  So an action must be right for the pair, not for the path that led to it.
2. What the two ends hold of each other decides the order of closing.  A backend holds mappings of the frontend's pages:
   it lets go as soon as the frontend is Closing (or gone, or has started anew).  A frontend owns those pages: it gives
   them back only when the backend has let go, which it says with Closed (or InitWait, or by vanishing).
3. State 0 (Unknown) is a node that does not exist.  For the other end this means that it was killed or unplugged, if it
   was ever there; before it was ever there it counts as Initialising, since a toolstack may write one end first.
   For the own end it means that the device is gone, whatever the other end thinks.
4. Frontends and backends of other makes skip states.  A backend connects at Initialised and at Connected; a frontend
   publishes at InitWait and at Initialised; Reconfiguring and Reconfigured of the other end change nothing, unless the
   driver of a backend says that it can (`reconfigures`).

`Machine` adds the memory that a pair of states cannot have: whether the hooks have anything to undo, whether the other
end was ever seen, and what was asked for locally (close, shut down, open again).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from guest_kernel.xenbus.driver import Side
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
    XenbusStateReconfigured,
    XenbusStateReconfiguring,
    XenbusStateUnknown,
)

UNKNOWN: Final = XenbusStateUnknown
INITIALISING: Final = XenbusStateInitialising
INITWAIT: Final = XenbusStateInitWait
INITIALISED: Final = XenbusStateInitialised
CONNECTED: Final = XenbusStateConnected
CLOSING: Final = XenbusStateClosing
CLOSED: Final = XenbusStateClosed
RECONFIGURING: Final = XenbusStateReconfiguring
RECONFIGURED: Final = XenbusStateReconfigured

STATES: Final = range(UNKNOWN, RECONFIGURED + 1)
NAMES: Final = (
    "Unknown",
    "Initialising",
    "InitWait",
    "Initialised",
    "Connected",
    "Closing",
    "Closed",
    "Reconfiguring",
    "Reconfigured",
)

# Actions.  Each names what is run, in terms of the driver's hooks; a hook that has nothing to do is skipped.
IGNORE: Final = "ignore"
"""Wait: it is the other end's turn, or the pair says nothing."""
PROBE: Final = "probe"
"""A new device: hook `probe`."""
PUBLISH: Final = "publish"
"""Hook `publish`."""
CONNECT: Final = "connect"
"""Hook `connect`, unless it has run since the last `publish`."""
DISCONNECT: Final = "disconnect"
"""Hook `disconnect`, if connected: no new requests, everything shared stays."""
CLOSE: Final = "close"
"""Hooks `disconnect` (if connected and the other end still exists) and `close`, if anything is held."""
RECONNECT: Final = "reconnect"
"""Backend: as close, then `publish` anew.  Frontend: as disconnect, and from Closed it starts anew."""
RECONFIGURE: Final = "reconfigure"
"""Hook `reconfigure`, if connected."""
REMOVE: Final = "remove"
"""As close, then `remove`; the device is forgotten and no state is written any more."""

Table = Mapping[tuple[int, int], tuple[str, int]]

FRONTEND: Final[Table] = {
    # The own node is gone: unplugged by force, or the whole domain is being taken down.
    (UNKNOWN, UNKNOWN): (REMOVE, UNKNOWN),
    (UNKNOWN, INITIALISING): (REMOVE, UNKNOWN),
    (UNKNOWN, INITWAIT): (REMOVE, UNKNOWN),
    (UNKNOWN, INITIALISED): (REMOVE, UNKNOWN),
    (UNKNOWN, CONNECTED): (REMOVE, UNKNOWN),
    (UNKNOWN, CLOSING): (REMOVE, UNKNOWN),
    (UNKNOWN, CLOSED): (REMOVE, UNKNOWN),
    (UNKNOWN, RECONFIGURING): (REMOVE, UNKNOWN),
    (UNKNOWN, RECONFIGURED): (REMOVE, UNKNOWN),
    # Nothing of ours is shared yet: wait for the backend's features.
    (INITIALISING, UNKNOWN): (IGNORE, INITIALISING),
    (INITIALISING, INITIALISING): (IGNORE, INITIALISING),
    (INITIALISING, INITWAIT): (PUBLISH, INITIALISED),
    (INITIALISING, INITIALISED): (PUBLISH, INITIALISED),
    # Connected to our former self (a crash kernel, a reopened device): it will notice and start anew.
    (INITIALISING, CONNECTED): (IGNORE, INITIALISING),
    (INITIALISING, CLOSING): (CLOSE, CLOSED),
    # Closed is where a backend waits for a frontend to come (back).
    (INITIALISING, CLOSED): (IGNORE, INITIALISING),
    (INITIALISING, RECONFIGURING): (IGNORE, INITIALISING),
    (INITIALISING, RECONFIGURED): (IGNORE, INITIALISING),
    # Our frontends do not use InitWait; found there, they are as far as in Initialising.
    (INITWAIT, UNKNOWN): (IGNORE, INITWAIT),
    (INITWAIT, INITIALISING): (IGNORE, INITWAIT),
    (INITWAIT, INITWAIT): (PUBLISH, INITIALISED),
    (INITWAIT, INITIALISED): (PUBLISH, INITIALISED),
    (INITWAIT, CONNECTED): (IGNORE, INITWAIT),
    (INITWAIT, CLOSING): (CLOSE, CLOSED),
    (INITWAIT, CLOSED): (IGNORE, INITWAIT),
    (INITWAIT, RECONFIGURING): (IGNORE, INITWAIT),
    (INITWAIT, RECONFIGURED): (IGNORE, INITWAIT),
    # Rings are published; from here on the backend may have them mapped.
    (INITIALISED, UNKNOWN): (CLOSE, CLOSED),
    # The backend's directory was made anew: what was said to the former one is lost.
    (INITIALISED, INITIALISING): (RECONNECT, CLOSING),
    (INITIALISED, INITWAIT): (IGNORE, INITIALISED),
    (INITIALISED, INITIALISED): (IGNORE, INITIALISED),
    (INITIALISED, CONNECTED): (CONNECT, CONNECTED),
    (INITIALISED, CLOSING): (DISCONNECT, CLOSED),
    (INITIALISED, CLOSED): (CLOSE, CLOSED),
    (INITIALISED, RECONFIGURING): (IGNORE, INITIALISED),
    (INITIALISED, RECONFIGURED): (IGNORE, INITIALISED),
    (CONNECTED, UNKNOWN): (CLOSE, CLOSED),
    (CONNECTED, INITIALISING): (RECONNECT, CLOSING),
    # A backend back in InitWait finds our rings still published and connects to them again.
    (CONNECTED, INITWAIT): (IGNORE, CONNECTED),
    (CONNECTED, INITIALISED): (IGNORE, CONNECTED),
    # The usual pair of a running device; an eager frontend runs `connect` here, once.
    (CONNECTED, CONNECTED): (CONNECT, CONNECTED),
    # The backend wants to stop (unplug, error): quiesce and say so; it unmaps when it sees Closed.
    (CONNECTED, CLOSING): (DISCONNECT, CLOSED),
    (CONNECTED, CLOSED): (CLOSE, CLOSED),
    (CONNECTED, RECONFIGURING): (IGNORE, CONNECTED),
    (CONNECTED, RECONFIGURED): (IGNORE, CONNECTED),
    # We want to stop: wait until the backend has seen it.
    (CLOSING, UNKNOWN): (CLOSE, CLOSED),
    (CLOSING, INITIALISING): (IGNORE, CLOSING),
    (CLOSING, INITWAIT): (IGNORE, CLOSING),
    (CLOSING, INITIALISED): (IGNORE, CLOSING),
    (CLOSING, CONNECTED): (IGNORE, CLOSING),
    (CLOSING, CLOSING): (DISCONNECT, CLOSED),
    (CLOSING, CLOSED): (CLOSE, CLOSED),
    (CLOSING, RECONFIGURING): (IGNORE, CLOSING),
    (CLOSING, RECONFIGURED): (IGNORE, CLOSING),
    # Said everything; the pages come back when the backend has let go of them.
    (CLOSED, UNKNOWN): (CLOSE, CLOSED),
    (CLOSED, INITIALISING): (CLOSE, CLOSED),
    (CLOSED, INITWAIT): (CLOSE, CLOSED),
    (CLOSED, INITIALISED): (IGNORE, CLOSED),
    (CLOSED, CONNECTED): (IGNORE, CLOSED),
    (CLOSED, CLOSING): (IGNORE, CLOSED),
    (CLOSED, CLOSED): (CLOSE, CLOSED),
    (CLOSED, RECONFIGURING): (IGNORE, CLOSED),
    (CLOSED, RECONFIGURED): (IGNORE, CLOSED),
    # Our frontends do not reconfigure; found there, they are connected.
    (RECONFIGURING, UNKNOWN): (CLOSE, CLOSED),
    (RECONFIGURING, INITIALISING): (RECONNECT, CLOSING),
    (RECONFIGURING, INITWAIT): (IGNORE, RECONFIGURING),
    (RECONFIGURING, INITIALISED): (IGNORE, RECONFIGURING),
    (RECONFIGURING, CONNECTED): (CONNECT, CONNECTED),
    (RECONFIGURING, CLOSING): (DISCONNECT, CLOSED),
    (RECONFIGURING, CLOSED): (CLOSE, CLOSED),
    (RECONFIGURING, RECONFIGURING): (IGNORE, RECONFIGURING),
    (RECONFIGURING, RECONFIGURED): (IGNORE, RECONFIGURING),
    (RECONFIGURED, UNKNOWN): (CLOSE, CLOSED),
    (RECONFIGURED, INITIALISING): (RECONNECT, CLOSING),
    (RECONFIGURED, INITWAIT): (IGNORE, RECONFIGURED),
    (RECONFIGURED, INITIALISED): (IGNORE, RECONFIGURED),
    (RECONFIGURED, CONNECTED): (CONNECT, CONNECTED),
    (RECONFIGURED, CLOSING): (DISCONNECT, CLOSED),
    (RECONFIGURED, CLOSED): (CLOSE, CLOSED),
    (RECONFIGURED, RECONFIGURING): (IGNORE, RECONFIGURED),
    (RECONFIGURED, RECONFIGURED): (IGNORE, RECONFIGURED),
}
"""What a frontend does."""

FRONTEND_EAGER: Final[Table] = {
    **FRONTEND,
    # Network backends wait for the frontend's Connected, so it comes first.
    (INITIALISING, INITWAIT): (PUBLISH, CONNECTED),
    (INITIALISING, INITIALISED): (PUBLISH, CONNECTED),
    (INITWAIT, INITWAIT): (PUBLISH, CONNECTED),
    (INITWAIT, INITIALISED): (PUBLISH, CONNECTED),
}
"""What a frontend does whose driver is `eager`."""

BACKEND: Final[Table] = {
    (UNKNOWN, UNKNOWN): (REMOVE, UNKNOWN),
    (UNKNOWN, INITIALISING): (REMOVE, UNKNOWN),
    (UNKNOWN, INITWAIT): (REMOVE, UNKNOWN),
    (UNKNOWN, INITIALISED): (REMOVE, UNKNOWN),
    (UNKNOWN, CONNECTED): (REMOVE, UNKNOWN),
    (UNKNOWN, CLOSING): (REMOVE, UNKNOWN),
    (UNKNOWN, CLOSED): (REMOVE, UNKNOWN),
    (UNKNOWN, RECONFIGURING): (REMOVE, UNKNOWN),
    (UNKNOWN, RECONFIGURED): (REMOVE, UNKNOWN),
    # Features depend on nobody: the frontend may be slow, or not there at all.
    (INITIALISING, UNKNOWN): (PUBLISH, INITWAIT),
    (INITIALISING, INITIALISING): (PUBLISH, INITWAIT),
    (INITIALISING, INITWAIT): (PUBLISH, INITWAIT),
    (INITIALISING, INITIALISED): (PUBLISH, INITWAIT),
    (INITIALISING, CONNECTED): (PUBLISH, INITWAIT),
    (INITIALISING, CLOSING): (PUBLISH, INITWAIT),
    (INITIALISING, CLOSED): (PUBLISH, INITWAIT),
    (INITIALISING, RECONFIGURING): (PUBLISH, INITWAIT),
    (INITIALISING, RECONFIGURED): (PUBLISH, INITWAIT),
    (INITWAIT, UNKNOWN): (CLOSE, CLOSED),
    (INITWAIT, INITIALISING): (IGNORE, INITWAIT),
    (INITWAIT, INITWAIT): (IGNORE, INITWAIT),
    (INITWAIT, INITIALISED): (CONNECT, CONNECTED),
    # A frontend that jumped over Initialised, or went on before we looked.
    (INITWAIT, CONNECTED): (CONNECT, CONNECTED),
    (INITWAIT, CLOSING): (CLOSE, CLOSING),
    (INITWAIT, CLOSED): (CLOSE, CLOSED),
    (INITWAIT, RECONFIGURING): (IGNORE, INITWAIT),
    (INITWAIT, RECONFIGURED): (IGNORE, INITWAIT),
    # Our backends do not use Initialised; found there, they are as far as in InitWait.
    (INITIALISED, UNKNOWN): (CLOSE, CLOSED),
    (INITIALISED, INITIALISING): (IGNORE, INITIALISED),
    (INITIALISED, INITWAIT): (IGNORE, INITIALISED),
    (INITIALISED, INITIALISED): (CONNECT, CONNECTED),
    (INITIALISED, CONNECTED): (CONNECT, CONNECTED),
    (INITIALISED, CLOSING): (CLOSE, CLOSING),
    (INITIALISED, CLOSED): (CLOSE, CLOSED),
    (INITIALISED, RECONFIGURING): (IGNORE, INITIALISED),
    (INITIALISED, RECONFIGURED): (IGNORE, INITIALISED),
    # The frontend was killed: its pages are still ours to unmap.
    (CONNECTED, UNKNOWN): (CLOSE, CLOSED),
    # The frontend has started anew without closing: drop what belonged to its former self.
    (CONNECTED, INITIALISING): (RECONNECT, INITWAIT),
    (CONNECTED, INITWAIT): (RECONNECT, INITWAIT),
    (CONNECTED, INITIALISED): (IGNORE, CONNECTED),
    (CONNECTED, CONNECTED): (IGNORE, CONNECTED),
    (CONNECTED, CLOSING): (CLOSE, CLOSING),
    (CONNECTED, CLOSED): (CLOSE, CLOSED),
    (CONNECTED, RECONFIGURING): (IGNORE, CONNECTED),
    (CONNECTED, RECONFIGURED): (IGNORE, CONNECTED),
    (CLOSING, UNKNOWN): (CLOSE, CLOSED),
    # It never connected (or is not connected any more): there is nothing to wait for.
    (CLOSING, INITIALISING): (CLOSE, CLOSED),
    (CLOSING, INITWAIT): (CLOSE, CLOSED),
    # We want to stop and the frontend has not seen it yet; its requests may be in flight.
    (CLOSING, INITIALISED): (IGNORE, CLOSING),
    (CLOSING, CONNECTED): (IGNORE, CLOSING),
    # Both want to stop, or we have answered the frontend's Closing: its Closed is next.
    (CLOSING, CLOSING): (CLOSE, CLOSING),
    (CLOSING, CLOSED): (CLOSE, CLOSED),
    (CLOSING, RECONFIGURING): (IGNORE, CLOSING),
    (CLOSING, RECONFIGURED): (IGNORE, CLOSING),
    (CLOSED, UNKNOWN): (CLOSE, CLOSED),
    # The frontend comes back.
    (CLOSED, INITIALISING): (RECONNECT, INITWAIT),
    (CLOSED, INITWAIT): (RECONNECT, INITWAIT),
    # It has not seen our Closed yet.
    (CLOSED, INITIALISED): (IGNORE, CLOSED),
    (CLOSED, CONNECTED): (IGNORE, CLOSED),
    (CLOSED, CLOSING): (CLOSE, CLOSED),
    (CLOSED, CLOSED): (CLOSE, CLOSED),
    (CLOSED, RECONFIGURING): (IGNORE, CLOSED),
    (CLOSED, RECONFIGURED): (IGNORE, CLOSED),
    # Our backends do not reconfigure; found there, they are connected.
    (RECONFIGURING, UNKNOWN): (CLOSE, CLOSED),
    (RECONFIGURING, INITIALISING): (RECONNECT, INITWAIT),
    (RECONFIGURING, INITWAIT): (RECONNECT, INITWAIT),
    (RECONFIGURING, INITIALISED): (IGNORE, RECONFIGURING),
    (RECONFIGURING, CONNECTED): (IGNORE, RECONFIGURING),
    (RECONFIGURING, CLOSING): (CLOSE, CLOSING),
    (RECONFIGURING, CLOSED): (CLOSE, CLOSED),
    (RECONFIGURING, RECONFIGURING): (IGNORE, RECONFIGURING),
    (RECONFIGURING, RECONFIGURED): (IGNORE, RECONFIGURING),
    (RECONFIGURED, UNKNOWN): (CLOSE, CLOSED),
    (RECONFIGURED, INITIALISING): (RECONNECT, INITWAIT),
    (RECONFIGURED, INITWAIT): (RECONNECT, INITWAIT),
    (RECONFIGURED, INITIALISED): (IGNORE, RECONFIGURED),
    (RECONFIGURED, CONNECTED): (IGNORE, RECONFIGURED),
    (RECONFIGURED, CLOSING): (CLOSE, CLOSING),
    (RECONFIGURED, CLOSED): (CLOSE, CLOSED),
    (RECONFIGURED, RECONFIGURING): (IGNORE, RECONFIGURED),
    (RECONFIGURED, RECONFIGURED): (IGNORE, RECONFIGURED),
}
"""What a backend does while the toolstack wants the device (`online` is not "0")."""

BACKEND_RECONFIGURES: Final[Table] = {
    # A change that the frontend asks for, between two Connected: its rings stay as they are.
    (CONNECTED, RECONFIGURING): (RECONFIGURE, RECONFIGURED),
    (RECONFIGURED, CONNECTED): (IGNORE, CONNECTED),
}
"""Entries that differ for a backend whose driver `reconfigures`."""

FRONTEND_OFFLINE: Final[Table] = {
    # This domain is shutting its devices down.
    (CLOSED, UNKNOWN): (REMOVE, CLOSED),
    (CLOSED, INITIALISING): (REMOVE, CLOSED),
    (CLOSED, INITWAIT): (REMOVE, CLOSED),
    (CLOSED, CLOSED): (REMOVE, CLOSED),
}
"""Entries that differ for a frontend that will not come back."""

BACKEND_OFFLINE: Final[Table] = {
    (CONNECTED, INITIALISING): (CLOSE, CLOSED),
    (CONNECTED, INITWAIT): (CLOSE, CLOSED),
    (RECONFIGURING, INITIALISING): (CLOSE, CLOSED),
    (RECONFIGURING, INITWAIT): (CLOSE, CLOSED),
    (RECONFIGURED, INITIALISING): (CLOSE, CLOSED),
    (RECONFIGURED, INITWAIT): (CLOSE, CLOSED),
    # Unplugged: whatever the frontend says now, it will not be served again.
    (CLOSED, UNKNOWN): (REMOVE, CLOSED),
    (CLOSED, INITIALISING): (REMOVE, CLOSED),
    (CLOSED, INITWAIT): (REMOVE, CLOSED),
    (CLOSED, INITIALISED): (REMOVE, CLOSED),
    (CLOSED, CONNECTED): (REMOVE, CLOSED),
    (CLOSED, CLOSING): (REMOVE, CLOSED),
    (CLOSED, CLOSED): (REMOVE, CLOSED),
    (CLOSED, RECONFIGURING): (REMOVE, CLOSED),
    (CLOSED, RECONFIGURED): (REMOVE, CLOSED),
}
"""Entries that differ for a backend once the toolstack has written `online` = "0"."""

FRONTEND_CLOSE: Final[Mapping[int, tuple[str, int]]] = {
    UNKNOWN: (REMOVE, UNKNOWN),
    # Nothing was shared: no dance.
    INITIALISING: (CLOSE, CLOSED),
    INITWAIT: (CLOSE, CLOSED),
    INITIALISED: (DISCONNECT, CLOSING),
    CONNECTED: (DISCONNECT, CLOSING),
    CLOSING: (IGNORE, CLOSING),
    CLOSED: (IGNORE, CLOSED),
    RECONFIGURING: (DISCONNECT, CLOSING),
    RECONFIGURED: (DISCONNECT, CLOSING),
}
"""What a frontend does, by own state, when it is to close at its own initiative (shutdown, fatal error)."""

BACKEND_CLOSE: Final[Mapping[int, tuple[str, int]]] = {
    UNKNOWN: (REMOVE, UNKNOWN),
    INITIALISING: (CLOSE, CLOSING),
    INITWAIT: (CLOSE, CLOSING),
    INITIALISED: (CLOSE, CLOSING),
    CONNECTED: (DISCONNECT, CLOSING),
    CLOSING: (IGNORE, CLOSING),
    CLOSED: (IGNORE, CLOSED),
    RECONFIGURING: (DISCONNECT, CLOSING),
    RECONFIGURED: (DISCONNECT, CLOSING),
}
"""What a backend does, by own state, when it is to close: unplug (the toolstack wrote Closing), fatal error."""


def table(
    side: Side, *, eager: bool = False, reconfigures: bool = False, online: bool = True
) -> dict[tuple[int, int], tuple[str, int]]:
    """Return the complete table of one end, overrides merged.

    `eager` counts for frontends, `reconfigures` for backends.
    """
    if side == "frontend":
        base = FRONTEND_EAGER if eager else FRONTEND
        return dict(base) if online else {**base, **FRONTEND_OFFLINE}
    base = {**BACKEND, **BACKEND_RECONFIGURES} if reconfigures else BACKEND
    return dict(base) if online else {**base, **BACKEND_OFFLINE}


_TABLES: Final = {
    (side, eager, reconfigures, online): table(side, eager=eager, reconfigures=reconfigures, online=online)
    for side in ("frontend", "backend")
    for eager in (False, True)
    for reconfigures in (False, True)
    for online in (False, True)
}


def parse_state(text: str | None) -> int:
    """Return the state that a `state` node holds; a missing, empty or nonsensical one is Unknown (0).

    Nodes are decimal digits, as all drivers write them; what a hostile end writes instead (signs, spaces, words, 9)
    means nothing.
    """
    if text is not None and len(text) == 1 and "0" <= text <= "8":
        return int(text)
    return UNKNOWN


class Step(NamedTuple):
    """What to do next: run `hooks` of the driver in order, then write `state` (if it differs from the own state)."""

    action: str
    hooks: tuple[str, ...]
    state: int


class Machine:
    """One end of one device: the tables, and the memory that they lack.

    The owner sets what it sees (`see_other`, `see_own`, `online`), asks `step`, runs the hooks of the step, writes the
    state and reports with `start_hook`, `done` or `failed`; again, until `step` returns None.
    """

    __slots__ = (
        "_close_asked",
        "_reopen_asked",
        "_retired",
        "_seen",
        "connected",
        "eager",
        "holding",
        "online",
        "other",
        "own",
        "probed",
        "reconfigures",
        "removed",
        "side",
    )

    def __init__(self, side: Side, *, eager: bool = False, reconfigures: bool = False, own: int = INITIALISING) -> None:
        self.side: Side = side
        self.eager = eager
        self.reconfigures = reconfigures
        #: Own state as last written.
        self.own = own
        #: Other end's state as last seen.
        self.other = UNKNOWN
        #: Backend: the toolstack wants the device.  Frontend: always True.
        self.online = True
        #: `probe` has run.
        self.probed = False
        #: `publish` has begun and `close` has not run since.
        self.holding = False
        #: `connect` has run since the last `publish`, `disconnect` has not.
        self.connected = False
        #: The end: no step will follow.
        self.removed = False
        self._seen = False
        self._close_asked = False
        self._reopen_asked = False
        self._retired = False

    def see_other(self, state: int) -> None:
        """Take the other end's state, just read."""
        self.other = state
        if state != UNKNOWN:
            self._seen = True

    def see_own(self, state: int) -> bool:
        """Take the content of the own node when it is not what was last written: the toolstack speaks through it.

        Closing asks to close (libxl's unplug).  Initialising over Closed starts the device again; over anything else
        the directory was made anew, and this device is gone as if its node were missing.
        Anything else is not for others to write and is ignored.  Returns whether it meant something.
        """
        if state == INITIALISING and self.own != CLOSED:
            state = UNKNOWN
        if state == UNKNOWN:
            self.own = UNKNOWN
        elif state == CLOSING:
            if self.own == CLOSED:
                self.own = CLOSING
            else:
                self.ask_close()
        elif state == INITIALISING:
            self.own = UNKNOWN if self.holding else INITIALISING
            self._close_asked = False
        else:
            return False
        return True

    @property
    def close_asked(self) -> bool:
        """Whether this end is to close and has not begun to."""
        return self._close_asked or self._retired

    @property
    def must_close(self) -> bool:
        """Whether a hook that still builds up works for nothing: the next step undoes it."""
        if self.close_asked:
            return True
        step = self.step()
        return step is not None and step.action in (CLOSE, DISCONNECT, RECONNECT, REMOVE)

    def ask_close(self) -> None:
        """Close at the own initiative: a fatal error, an unplug."""
        self._close_asked = True
        self._reopen_asked = False

    def ask_reopen(self) -> None:
        """From Closed (now, or when it comes to that) start again at Initialising."""
        self._reopen_asked = True

    def retire(self) -> None:
        """Close for good: from Closed the next step is remove, whatever the other end and the toolstack wish."""
        self._retired = True
        self.ask_close()

    def step(self) -> Step | None:
        """Return what to do now, or None: nothing until something changes."""
        if self.removed:
            return None
        if self.own != UNKNOWN:
            if not self.probed and not self._retired:
                return Step(PROBE, ("probe",), self.own)
            if self._close_asked:
                self._close_asked = self.own not in (CLOSING, CLOSED)
            if self._close_asked:
                closing = FRONTEND_CLOSE if self.side == "frontend" else BACKEND_CLOSE
                return self._step(*closing[self.own])
            if self._may_reopen():
                return Step(RECONNECT, (), INITIALISING)
        online = self.online and not self._retired
        table = _TABLES[self.side, self.eager, self.reconfigures, online]
        return self._step(*table[self.own, self._effective_other()])

    def start_hook(self, hook: str) -> None:
        """A hook is about to run: from now on it has to be undone even if it fails."""
        if hook == "publish":
            self.holding = True
        elif hook == "close":
            self.holding = self.connected = False
        elif hook == "disconnect":
            self.connected = False

    def done(self, step: Step) -> None:
        """All hooks of the step have run and its state is written."""
        if step.action == RECONNECT and self.side == "frontend":
            # Closing now, Initialising as soon as the backend has let go; the second step is the answer to the first.
            self._reopen_asked = step.state != INITIALISING
        if "probe" in step.hooks:
            self.probed = True
        if "connect" in step.hooks:
            self.connected = True
        if step.action == REMOVE:
            self.removed = True
        self.own = step.state

    def failed(self, step: Step) -> None:
        """A hook that builds up raised: give the device up.  Without a probe there is nothing to come back to."""
        if step.action == PROBE:
            self.retire()
        else:
            self.ask_close()

    def _effective_other(self) -> int:
        """Return the other end's state; before it was ever there it is about to come."""
        return INITIALISING if self.other == UNKNOWN and not self._seen else self.other

    def _may_reopen(self) -> bool:
        """Return whether a reopen was asked for and nothing of the former life is left."""
        return (
            self._reopen_asked
            and self.side == "frontend"
            and not self._retired
            and self.own == CLOSED
            and not self.holding
            and self.other != CLOSING
        )

    def _step(self, action: str, state: int) -> Step | None:
        """Return the step for a table's entry with the hooks that have something to do; None if there is nothing."""
        hooks = self._hooks(action)
        if action == REMOVE:
            return Step(action, hooks, self.own)
        if not hooks and state == self.own:
            return None
        return Step(action, hooks, state)

    def _hooks(self, action: str) -> tuple[str, ...]:
        """Return the driver's hooks that an action stands for at this moment."""
        if action == IGNORE:
            return ()
        if action == PUBLISH:
            return ("close", "publish") if self.holding else ("publish",)
        if action == CONNECT:
            return () if self.connected or not self.holding else ("connect",)
        if action == RECONFIGURE:
            return ("reconfigure",) if self.connected else ()
        hooks: tuple[str, ...] = ()
        if self.connected and self._effective_other() != UNKNOWN and self.own != UNKNOWN:
            hooks = ("disconnect",)
        if action == DISCONNECT or (action == RECONNECT and self.side == "frontend"):
            return hooks
        if self.holding:
            hooks += ("close",)
        if action == RECONNECT:
            return (*hooks, "publish")
        if action == REMOVE:
            return (*hooks, "remove") if self.probed else hooks
        return hooks

    def __repr__(self) -> str:
        flags = [name for name in ("holding", "connected", "removed") if getattr(self, name)]
        return " ".join([self.side, NAMES[self.own], "other", NAMES[self.other], *flags])
