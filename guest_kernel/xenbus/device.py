"""A device of the bus: runs the state machine of `states` against xenstore, with one driver's hooks.

Events only mark what has to be looked at again, and start the device's thread if it is not running.  The thread looks,
takes the step that the tables name, and looks again until nothing is left to do; then it ends.  So hooks of a device
are serialized, a thousand idle devices cost no thread, and ten thousand writes to a `state` node while a hook runs cost
one more look (XSA-349).

Own nodes are written in a transaction that first reads the own `state`:

- if it is gone, the toolstack has removed the directory, and a plain write would bring a part of it back to life;
- if it is not what was last written, somebody else spoke there (Closing: unplug), which must not be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.client import TRANSACT_ATTEMPTS, Transaction, XenstoreError, gather
from guest_kernel.xenbus.driver import DeviceClosing, XenbusDevice, XenbusDriver
from guest_kernel.xenbus.states import CLOSED, CLOSING, CONNECTED, REMOVE, UNKNOWN, Machine, Step, parse_state
from guest_kernel.xenbus.watch import Watch
from hypervisor.abi.io import xs_wire as xs
from hypervisor.abi.tracepoints import XENBUS_STATE

if TYPE_CHECKING:
    from guest_kernel.xenbus.bus import Bus

ANSWER_TIMEOUT_NS = 5_000_000_000
"""How long a device that shuts down waits for the other end before it gives its resources back all the same."""

_BUILDING = ("probe", "publish", "connect")
"""Hooks whose failure is fatal for the device."""


class _Foreign(Exception):
    """The own `state` node holds `text`, which this device did not write."""

    def __init__(self, text: str | None) -> None:
        super().__init__(text)
        self.text = text


@final
class Device(XenbusDevice):
    """The bus's implementation of `XenbusDevice`; drivers know only that class."""

    def __init__(self, bus: Bus, driver: XenbusDriver, place: tuple[str, str, str], otherend: tuple[str, int]) -> None:
        self.bus = bus
        self.kernel = bus.kernel
        self.driver = driver
        self.type = driver.type
        self.side = driver.side
        #: As events spell it: `backend/vbd/1/51712`, also where `path` is absolute.
        self.node, self.path, self.id = place
        self.otherend, self.otherend_id = otherend
        self._link = "/backend" if driver.side == "frontend" else "/frontend"
        self.data: Any = None
        self.machine = Machine(driver.side, eager=driver.eager, reconfigures=driver.reconfigures)
        self.removed = False
        self._client = bus.client
        self._state_watch: Watch | None = None
        self._watches: list[Watch] = []
        #: What the own `state` node held when last read or written.
        self._node_text: str | None = str(self.machine.own)
        self._first_event = True
        self._look_other = False
        self._look_own = False
        self._look_online = False
        self._look_link = False
        self._running = False
        self._staged: dict[str, bytes] | None = None
        self._announced: dict[str, bytes] = {}
        self._changed = WaitQueue()
        self._has_changed = False
        self._ended = WaitQueue()
        self._troubled = False

    @property
    def state(self) -> int:  # type: ignore[override]
        """Own XenbusState, the last one written."""
        return self.machine.own

    @property
    def otherend_state(self) -> int:  # type: ignore[override]
        """Other end's XenbusState as last looked at."""
        return self.machine.other

    @property
    def online(self) -> bool:  # type: ignore[override]
        """Whether the toolstack wants the device."""
        return self.machine.online

    def begin(self, state: int, *, online: bool) -> None:
        """Start the device's life in the state that its node was found in; found in Closing, it is not served."""
        self.machine.own = state
        self.machine.online = online
        self._node_text = str(state)
        if state == CLOSING:
            self.machine.retire()
        self.poke()

    def resume(self, state: int) -> None:
        """Start the life of a frontend that a kernel before this one has left in some state: close it, and begin anew.

        What that kernel shared with the backend is nobody's any more; the backend has to let go of it first.
        """
        self.machine.own = state
        self._node_text = str(state)
        self.machine.ask_close()
        self.machine.ask_reopen()
        self.poke()

    # ---- events, in upcall context

    def poke(self, *, own: bool = False, online: bool = False, link: bool = False) -> None:
        """Have the thread look for something to do; `own`, `online`, `link`: at those own nodes too.

        Most events of the own `state` are echoes of own writes.  Counting them off would be wrong: the server drops an
        event that is queued already, so one event may stand for an own write and the toolstack's after it.
        """
        if own:
            self._look_own = True
        if online:
            self._look_online = True
        if link:
            self._look_link = True
        self._has_changed = True
        self._changed.wake_all()
        if not self._running and not self.removed:
            self._running = True
            self._client.spawn(self._run(), f"xenbus {self.path}")

    def _otherend_event(self, path: str, token: str) -> None:
        if self._first_event:
            # It comes with the registration; the look that belongs to it is under way.
            self._first_event = False
            return
        self._look_other = True
        self.poke()

    # ---- the thread

    async def _run(self) -> None:
        try:
            if self._state_watch is None and self._client.broken is None:
                await self._attach()
            while await self._turn():
                pass
        except XenstoreError as error:
            self.bus.log(f"{self.path}: {error}")
        finally:
            self._running = False

    async def _attach(self) -> None:
        """Watch the other end's state and look at it: one round trip."""
        state = self.otherend + "/state"
        client = self._client
        watch, registered = client.submit_watch(state, self._otherend_event, direct=True)
        value = client.submit(xs.XS_READ, wire.join(state), state)
        self._state_watch = watch
        self._watches.append(watch)
        try:
            await registered
        except XenstoreError as error:
            self._watches.remove(watch)
            client.forget_watch(watch)
            await self.error(f"cannot watch the other end: {error}")
            self.machine.retire()
        try:
            self.machine.see_other(parse_state(wire.to_text(await value)))
        except XenstoreError:
            self.machine.see_other(UNKNOWN)

    async def _turn(self) -> bool:
        """Look at what has changed and take one step; return False when there is nothing left to do."""
        await self._look()
        if self._must_announce:
            await self._write_announced()
        step = self.machine.step()
        if step is not None:
            await self._take(step)
            return not self.removed
        return self._must_look or self._must_announce

    async def _look(self) -> None:
        """Read again what events have pointed at."""
        if not self._must_look:
            return
        path, machine = self.path, self.machine
        wanted = {
            self.otherend + "/state": self._look_other,
            path + "/state": self._look_own,
            path + "/online": self._look_online,
            path + self._link: self._look_link,
            path + self._link + "-id": self._look_link,
        }
        self._look_other = self._look_own = self._look_online = self._look_link = False
        paths = [name for name, look in wanted.items() if look]
        found = dict(zip(paths, await self._client.read_many(paths), strict=True))
        if wanted[path + "/online"]:
            machine.online = found[path + "/online"] != "0"
        if wanted[path + "/state"]:
            self._see_own(found[path + "/state"])
        if wanted[path + self._link]:
            link = (found[path + self._link], found[path + self._link + "-id"])
            if link != (self.otherend, str(self.otherend_id)):
                # Made anew for another peer before anybody looked.
                machine.see_own(UNKNOWN)
        if wanted[self.otherend + "/state"]:
            state = parse_state(found[self.otherend + "/state"])
            again = machine.connected and state == machine.other == CONNECTED
            machine.see_other(state)
            if again:
                await self._call("refresh")

    @property
    def _must_look(self) -> bool:
        look = self._look_other or self._look_own or self._look_online or self._look_link
        return look and self._client.broken is None

    @property
    def _must_announce(self) -> bool:
        machine = self.machine
        ready = machine.own == CONNECTED and machine.connected and not machine.close_asked
        return bool(self._announced) and ready and self._client.broken is None

    async def _write_announced(self) -> None:
        """Write what was announced, and Connected again."""
        values, self._announced = self._announced, {}
        try:
            await self._commit({**values, "state": b"%d" % CONNECTED})
        except _Foreign as foreign:
            self._see_own(foreign.text)
        except XenstoreError as error:
            await self.error(f"cannot write {', '.join(values)}: {error}")

    def _see_own(self, text: str | None) -> bool:
        """Take the own node's content; return whether it is somebody else's and meant something."""
        if text == self._node_text:
            return False
        self._node_text = text
        state = parse_state(text)
        return (state != UNKNOWN or text is None) and self.machine.see_own(state)

    async def _take(self, step: Step) -> None:
        """Run the hooks of a step and write the state it leads to."""
        machine = self.machine
        for hook in step.hooks:
            machine.start_hook(hook)
            if not await self._call(hook):
                machine.failed(step)
                return
            if machine.own == UNKNOWN and step.action != REMOVE:
                # The node has gone while the hook waited: there is nothing to be written to any more.
                return
        old = machine.own
        machine.done(step)
        if step.action == REMOVE:
            await self._end()
            return
        staged, self._staged = self._staged, None
        if step.state != old or staged:
            await self._switch(old, step.state, staged or {})

    async def _call(self, hook: str) -> bool:
        """Run one hook; return False if it was to build up and has not."""
        building = hook in _BUILDING
        self._staged = {} if hook in ("publish", "connect") else None
        try:
            await getattr(self.driver, hook)(self)
        except DeviceClosing:
            self._staged = None
            return not building
        except Exception as failure:
            self._staged = None
            self.bus.log_failure(f"{self.path}: {hook} failed", failure)
            await self.error(f"{hook}: {failure or type(failure).__name__}")
            return not building
        if hook in ("publish", "connect") and self.machine.close_asked:
            # Given up while it ran (`fatal`, an unplug): what it built must not be announced.
            self._staged = None
            return False
        return True

    async def _switch(self, old: int, state: int, values: Mapping[str, bytes]) -> None:
        """Write `values` and the own state; instead obey the own node if somebody else has written there."""
        trace = self.kernel.cpu.trace
        announce: Callable[[], None] | None = None
        if state != old:
            values = {**values, "state": b"%d" % state}
            if trace is not None:
                announce = partial(trace, XENBUS_STATE, self.path, old, state)
        while True:
            try:
                await self._commit(values, announce)
            except _Foreign as foreign:
                if self._see_own(foreign.text):
                    return
                # Nonsense, to be overwritten.
                continue
            except XenstoreError as error:
                await self._fail_to_switch(old, state, error)
                return
            return

    async def _fail_to_switch(self, old: int, state: int, error: XenstoreError) -> None:
        """Go on without having been able to say `state` (a full quota, a right taken away)."""
        await self.error(f"cannot write state {state}: {error}")
        if state in (CLOSING, CLOSED):
            # Not even this: give everything back, as if the node were gone.
            self.machine.see_own(UNKNOWN)
        else:
            self.machine.own = old
            self.machine.ask_close()

    async def _commit(self, values: Mapping[str, bytes], announce: Callable[[], None] | None = None) -> None:
        """Write own nodes in one transaction.  Raises _Foreign if the own `state` is not as this device left it.

        `announce` is called once, right before the end of the first attempt: later the other end may be faster.
        """
        for _ in range(TRANSACT_ATTEMPTS):
            try:
                async with self._client.transaction() as transaction:
                    await self._stage(transaction, values)
                    if announce is not None:
                        announce()
                        announce = None
            except XenstoreError as error:
                if error.name != "EAGAIN":
                    raise
            else:
                if "state" in values:
                    self._node_text = wire.to_text(values["state"])
                return
        raise XenstoreError("EAGAIN", f"transaction, {TRANSACT_ATTEMPTS} times", self.path)

    async def _stage(self, transaction: Transaction, values: Mapping[str, bytes]) -> None:
        """Read the own state and write `values` in one round trip.  Raises _Foreign."""
        path = self.path
        state = path + "/state"
        found = transaction.submit(xs.XS_READ, wire.join(state), state)
        writes = [
            transaction.submit(xs.XS_WRITE, wire.join(f"{path}/{key}") + value, f"{path}/{key}")
            for key, value in values.items()
        ]
        try:
            text = wire.to_text(await found)
        except XenstoreError as error:
            if error.name not in ("ENOENT", "EACCES"):
                raise
            raise _Foreign(None) from None
        if text != self._node_text:
            raise _Foreign(text)
        await gather(writes)

    async def _end(self) -> None:
        """Leave nothing behind: watches, the note of an error, the bus's entry."""
        self.removed = True
        for watch in self._watches:
            await watch.cancel()
        self._watches.clear()
        if self._troubled:
            await self._remove_error()
        self.bus.forget(self)
        self._changed.wake_all()
        self._ended.wake_all()

    # ---- what drivers call

    async def read(self, key: str) -> str | None:
        """See `XenbusDevice.read`."""
        return await self._client.read_or_none(f"{self.path}/{key}")

    async def read_many(self, *keys: str) -> dict[str, str | None]:
        """See `XenbusDevice.read_many`."""
        return dict(zip(keys, await self._client.read_many([f"{self.path}/{key}" for key in keys]), strict=True))

    async def read_otherend(self, key: str) -> str | None:
        """See `XenbusDevice.read_otherend`."""
        return await self._client.read_or_none(f"{self.otherend}/{key}")

    async def read_otherend_many(self, *keys: str) -> dict[str, str | None]:
        """See `XenbusDevice.read_otherend_many`."""
        return dict(zip(keys, await self._client.read_many([f"{self.otherend}/{key}" for key in keys]), strict=True))

    async def write(self, values: Mapping[str, object] | None = None, /, **keys: object) -> None:
        """See `XenbusDevice.write`."""
        encoded = {key: wire.to_bytes(value) for key, value in {**(values or {}), **keys}.items()}
        if "state" in encoded:
            raise ValueError("the state node belongs to the state machine")
        if self._staged is not None:
            self._staged.update(encoded)
        elif encoded and not self.removed:
            try:
                await self._commit(encoded)
            except _Foreign:
                # The device is being unplugged or is gone; its thread will see for itself.
                self.poke(own=True)

    async def write_many(self, values: Mapping[str, object]) -> None:
        """See `XenbusDevice.write_many`."""
        await self._client.write_many({f"{self.path}/{key}": value for key, value in values.items()})

    def announce(self, values: Mapping[str, object]) -> None:
        """See `XenbusDevice.announce`."""
        self._announced.update({key: wire.to_bytes(value) for key, value in values.items()})
        self.poke()

    async def wait_for(self, key: str) -> str:
        """See `XenbusDevice.wait_for`."""
        path = f"{self.path}/{key}"
        watch = await self._client.watch(path, self._wait_event, direct=True)
        try:
            while True:
                self._has_changed = False
                value = await self._client.read_or_none(path)
                if value is not None:
                    return value
                await self._look()
                if self.removed or self.machine.must_close:
                    raise DeviceClosing(f"{self.path} closes before {key} is there")
                while not self._has_changed:
                    await self._changed.wait()
        finally:
            await watch.cancel()

    async def wait_while(self, condition: Callable[[], bool]) -> bool:
        """See `XenbusDevice.wait_while`."""
        machine = self.machine
        while condition():
            self._has_changed = False
            await self._look()
            if UNKNOWN in (machine.own, machine.other) or machine.other == CLOSED or machine.close_asked:
                return False
            while not self._has_changed:
                await self._changed.wait()
        return True

    def notice(self) -> None:
        """See `XenbusDevice.notice`."""
        self._has_changed = True
        self._changed.wake_all()

    def _wait_event(self, path: str, token: str) -> None:
        self._has_changed = True
        self._changed.wake_all()

    async def watch(self, key: str, callback: Callable[[], None]) -> None:
        """See `XenbusDevice.watch`."""
        await self._add_watch(f"{self.path}/{key}", callback)

    async def watch_otherend(self, key: str, callback: Callable[[], None]) -> None:
        """See `XenbusDevice.watch_otherend`."""
        await self._add_watch(f"{self.otherend}/{key}", callback)

    async def _add_watch(self, path: str, callback: Callable[[], None]) -> None:
        watch = await self._client.watch(path, lambda path, token: callback())
        if self.removed:
            await watch.cancel()
        else:
            self._watches.append(watch)

    async def fatal(self, message: str, errno: int = 5) -> None:
        """See `XenbusDevice.fatal`."""
        self.bus.log(f"{self.path}: {message}")
        self.machine.ask_close()
        await self.error(message, errno)
        self.poke()

    async def error(self, message: str, errno: int = 5) -> None:
        """See `XenbusDevice.error`."""
        self._troubled = True
        text = f"{errno} {message}".replace("\n", " ")[:1024]
        try:
            await self._client.write(f"error/{self.node}/error", text)
        except XenstoreError as failure:
            # A guest may have no right to its `error` directory; the message is in the log then.
            self.bus.log(f"{self.path}: {text} ({failure})")

    async def _remove_error(self) -> None:
        try:
            await self._client.rm(f"error/{self.node}")
        except XenstoreError as failure:
            if failure.name not in ("ENOENT", "EACCES"):
                raise

    async def reopen(self) -> None:
        """See `XenbusDevice.reopen`."""
        if self.side != "frontend":
            raise ValueError(f"{self.path}: a backend waits for its frontend; it cannot reopen")
        self.machine.ask_reopen()
        self.poke()

    async def shutdown(self) -> None:
        """See `XenbusDevice.shutdown`."""
        self.retire()
        try:
            await self.kernel.wait_for(self.ended(), ANSWER_TIMEOUT_NS)
        except TimeoutError:
            await self.abandon()

    def retire(self) -> None:
        """Begin to close for good."""
        self.machine.retire()
        self.poke()

    async def abandon(self) -> None:
        """Give up on the other end: run `close` and `remove` now, without its answer."""
        if not self.removed:
            self.bus.log(f"{self.path}: the other end ({self.otherend}) does not answer, closing without it")
            self.machine.see_own(UNKNOWN)
            self.poke()
            await self.ended()

    async def ended(self) -> None:
        """Wait until the device is removed."""
        while not self.removed:
            await self._ended.wait()

    def __repr__(self) -> str:
        return f"<Device {self.path}, {self.machine}>"
