"""The tables: complete, and keeping the promises that rule 2 of `states` makes."""

import itertools

import pytest

from guest_kernel.xenbus import states
from guest_kernel.xenbus.states import (
    CLOSE,
    CLOSED,
    CLOSING,
    CONNECT,
    CONNECTED,
    DISCONNECT,
    IGNORE,
    INITIALISED,
    INITIALISING,
    INITWAIT,
    NAMES,
    PUBLISH,
    RECONFIGURE,
    RECONFIGURED,
    RECONFIGURING,
    RECONNECT,
    REMOVE,
    STATES,
    UNKNOWN,
    Machine,
)
from hypervisor.abi.io import xenbus

PAIRS = list(itertools.product(STATES, STATES))
VARIANTS = [
    ("frontend", False, True),
    ("frontend", False, False),
    ("frontend", True, True),
    ("frontend", True, False),
    ("backend", False, True),
    ("backend", False, False),
]
ACTIONS = {IGNORE, PUBLISH, CONNECT, RECONFIGURE, DISCONNECT, CLOSE, RECONNECT, REMOVE}


def test_names_are_the_headers() -> None:
    for number, name in enumerate(NAMES):
        assert getattr(xenbus, f"XenbusState{name}") == number


@pytest.mark.parametrize(("side", "eager", "online"), VARIANTS)
def test_every_pair_has_an_entry(side: states.Side, eager: bool, online: bool) -> None:
    table = states.table(side, eager=eager, online=online)
    assert sorted(table) == PAIRS
    for action, state in table.values():
        assert action in ACTIONS
        assert state in STATES


@pytest.mark.parametrize("table", [states.FRONTEND_CLOSE, states.BACKEND_CLOSE])
def test_every_state_has_a_way_to_close(table: dict[int, tuple[str, int]]) -> None:
    assert sorted(table) == list(STATES)
    for own, (action, state) in table.items():
        assert action in ACTIONS
        assert state in ((UNKNOWN,) if own == UNKNOWN else (CLOSING, CLOSED))


@pytest.mark.parametrize(("side", "eager", "online"), VARIANTS)
def test_same_pair_again_changes_nothing(side: states.Side, eager: bool, online: bool) -> None:
    """Once an entry's state is reached, the chain with the other end unmoved ends: no entry makes a cycle."""
    table = states.table(side, eager=eager, online=online)
    for own, other in PAIRS:
        seen = [own]
        while True:
            action, state = table[seen[-1], other]
            if state == seen[-1] or action == REMOVE:
                break
            assert state not in seen, [NAMES[s] for s in [*seen, state]]
            seen.append(state)


@pytest.mark.parametrize(("side", "eager", "online"), VARIANTS)
def test_missing_own_node_is_the_end(side: states.Side, eager: bool, online: bool) -> None:
    table = states.table(side, eager=eager, online=online)
    assert {table[UNKNOWN, other] for other in STATES} == {(REMOVE, UNKNOWN)}


@pytest.mark.parametrize(("side", "eager", "online"), VARIANTS)
def test_vanished_other_end_is_always_let_go(side: states.Side, eager: bool, online: bool) -> None:
    table = states.table(side, eager=eager, online=online)
    for own in (INITIALISED, CONNECTED, CLOSING, CLOSED, RECONFIGURING, RECONFIGURED):
        action, state = table[own, UNKNOWN]
        assert action in (CLOSE, REMOVE)
        assert state == CLOSED


def test_frontend_frees_only_what_the_backend_has_let_go_of() -> None:
    """Once rings are published, a frontend gives pages back only if the backend cannot have them mapped.

    That is: it is Closed, gone, or has begun anew and sees a frontend that is Closed.
    """
    for table in (states.FRONTEND, states.FRONTEND_EAGER, {**states.FRONTEND, **states.FRONTEND_OFFLINE}):
        for (own, other), (action, _) in table.items():
            if own in (UNKNOWN, INITIALISING, INITWAIT) or action not in (CLOSE, REMOVE):
                continue
            if own == CLOSED:
                assert other in (UNKNOWN, INITIALISING, INITWAIT, CLOSED), (own, other)
            else:
                assert other in (UNKNOWN, CLOSED), (own, other)


def test_backend_lets_go_whenever_the_frontend_closes() -> None:
    for table in (states.BACKEND, {**states.BACKEND, **states.BACKEND_OFFLINE}):
        for own in (INITWAIT, INITIALISED, CONNECTED, CLOSING, RECONFIGURING, RECONFIGURED):
            assert table[own, CLOSING] == (CLOSE, CLOSING)
            assert table[own, CLOSED] == (CLOSE, CLOSED)
            assert table[own, UNKNOWN] == (CLOSE, CLOSED)


def test_frontend_waits_until_the_backend_can_read_what_it_publishes() -> None:
    """A backend that is not there, not ready, or still busy with a former frontend is waited for."""
    for table, published in ((states.FRONTEND, INITIALISED), (states.FRONTEND_EAGER, CONNECTED)):
        for own in (INITIALISING, INITWAIT):
            for other in (UNKNOWN, INITIALISING, CONNECTED, CLOSED, RECONFIGURING, RECONFIGURED):
                assert table[own, other] == (IGNORE, own)
            for other in (INITWAIT, INITIALISED):
                assert table[own, other] == (PUBLISH, published)
            assert table[own, CLOSING] == (CLOSE, CLOSED)


def test_frontend_answers_a_backend_that_stops() -> None:
    for table in (states.FRONTEND, states.FRONTEND_EAGER):
        for own in (INITIALISED, CONNECTED, CLOSING, RECONFIGURING, RECONFIGURED):
            assert table[own, CLOSING] == (DISCONNECT, CLOSED)
            assert table[own, CLOSED] == (CLOSE, CLOSED)
        for own in (INITIALISED, CONNECTED, RECONFIGURING, RECONFIGURED):
            assert table[own, INITIALISING] == (RECONNECT, CLOSING)
            assert table[own, INITWAIT] == table[own, INITIALISED] == (IGNORE, own)
            assert table[own, CONNECTED] == (CONNECT, CONNECTED)
        for other in (INITIALISED, CONNECTED, CLOSING):
            assert table[CLOSED, other] == (IGNORE, CLOSED)
        for other in (UNKNOWN, INITIALISING, INITWAIT, CLOSED):
            assert table[CLOSED, other] == (CLOSE, CLOSED)


def test_backend_offers_its_features_to_nobody_in_particular() -> None:
    assert {states.BACKEND[INITIALISING, other] for other in STATES} == {(PUBLISH, INITWAIT)}


def test_backend_serves_whoever_has_published_and_nobody_else() -> None:
    for own in (INITWAIT, INITIALISED):
        for other in (INITIALISED, CONNECTED):
            assert states.BACKEND[own, other] == (CONNECT, CONNECTED)
        for other in (INITIALISING, INITWAIT, RECONFIGURING, RECONFIGURED):
            assert states.BACKEND[own, other] == (IGNORE, own)


def test_backend_starts_over_with_a_frontend_that_has() -> None:
    for own in (CONNECTED, CLOSED, RECONFIGURING, RECONFIGURED):
        for other in (INITIALISING, INITWAIT):
            assert states.BACKEND[own, other] == (RECONNECT, INITWAIT)
    for other in (INITIALISING, INITWAIT):
        assert states.BACKEND[CLOSING, other] == (CLOSE, CLOSED)


def test_backend_that_was_told_to_stop_waits_for_the_frontend() -> None:
    for other in (INITIALISED, CONNECTED, RECONFIGURING, RECONFIGURED):
        assert states.BACKEND[CLOSING, other] == (IGNORE, CLOSING)
        assert states.BACKEND[CLOSED, other] == (IGNORE, CLOSED)


def test_reconfiguring_of_the_other_end_changes_nothing() -> None:
    for side in ("frontend", "backend"):
        table = states.table(side)
        for own in (CONNECTED, CLOSING, CLOSED):
            for other in (RECONFIGURING, RECONFIGURED):
                assert table[own, other] == (IGNORE, own)


@pytest.mark.parametrize("online", [True, False])
def test_a_backend_that_reconfigures_differs_in_nothing_else(online: bool) -> None:
    table = states.table("backend", reconfigures=True, online=online)
    plain = states.table("backend", online=online)
    assert {pair: entry for pair, entry in table.items() if entry != plain[pair]} == {
        (CONNECTED, RECONFIGURING): (RECONFIGURE, RECONFIGURED),
        (RECONFIGURED, CONNECTED): (IGNORE, CONNECTED),
    }
    assert states.table("frontend", reconfigures=True, online=online) == states.table("frontend", online=online)


@pytest.mark.parametrize("text", [None, "", "9", "-1", "+4", " 4", "4 ", "44", "four", "4\0", "٤", "²", "04"])
def test_nonsense_in_a_state_node_is_unknown(text: str | None) -> None:
    assert states.parse_state(text) == UNKNOWN


def test_states_as_they_are_written() -> None:
    assert [states.parse_state(str(number)) for number in STATES] == list(STATES)


# ---- the machine: two of them face to face, with nothing in between


class Pair:
    """A frontend and a backend that see each other's state at once."""

    def __init__(self, *, eager: bool = False) -> None:
        self.front = Machine("frontend", eager=eager)
        self.back = Machine("backend")
        self.log: list[str] = []

    def run(self, order: str = "fb") -> "Pair":
        machines = {"f": self.front, "b": self.back}
        progress = True
        while progress:
            progress = False
            for letter in order:
                machine = machines[letter]
                other = self.back if machine is self.front else self.front
                if not machine.removed:
                    machine.see_other(UNKNOWN if other.removed else other.own)
                while (step := machine.step()) is not None:
                    progress = True
                    for hook in step.hooks:
                        machine.start_hook(hook)
                        self.log.append(f"{letter}.{hook}")
                    old = machine.own
                    machine.done(step)
                    if machine.own != old:
                        self.log.append(f"{letter}={NAMES[machine.own]}")
        return self


@pytest.mark.parametrize("order", ["fb", "bf"])
def test_handshake(order: str) -> None:
    pair = Pair().run(order)
    after_probes = [line for line in pair.log if "probe" not in line]
    assert after_probes == [
        "b.publish",
        "b=InitWait",
        "f.publish",
        "f=Initialised",
        "b.connect",
        "b=Connected",
        "f.connect",
        "f=Connected",
    ]


@pytest.mark.parametrize("order", ["fb", "bf"])
def test_eager_handshake(order: str) -> None:
    pair = Pair(eager=True).run(order)
    after_probes = [line for line in pair.log if "probe" not in line]
    assert after_probes == [
        "b.publish",
        "b=InitWait",
        "f.publish",
        "f=Connected",
        "b.connect",
        "b=Connected",
        "f.connect",
    ]


@pytest.mark.parametrize("order", ["fb", "bf"])
@pytest.mark.parametrize("eager", [False, True])
def test_frontend_closes(order: str, eager: bool) -> None:
    pair = Pair(eager=eager).run(order)
    pair.log.clear()
    pair.front.ask_close()
    pair.run(order)
    assert pair.log == [
        "f.disconnect",
        "f=Closing",
        "b.disconnect",
        "b.close",
        "b=Closing",
        "f=Closed",
        "b=Closed",
        "f.close",
    ]


@pytest.mark.parametrize("order", ["fb", "bf"])
def test_unplug(order: str) -> None:
    pair = Pair().run(order)
    pair.log.clear()
    pair.back.online = False
    pair.back.see_own(CLOSING)
    pair.run(order)
    assert pair.log[:6] == [
        "b.disconnect",
        "b=Closing",
        "f.disconnect",
        "f=Closed",
        "b.close",
        "b=Closed",
    ]
    assert sorted(pair.log[6:]) == ["b.remove", "f.close"]


@pytest.mark.parametrize("order", ["fb", "bf"])
def test_reopen(order: str) -> None:
    pair = Pair().run(order)
    pair.front.ask_close()
    pair.run(order)
    pair.log.clear()
    pair.front.ask_reopen()
    pair.run(order)
    assert pair.log == [
        "f=Initialising",
        "b.publish",
        "b=InitWait",
        "f.publish",
        "f=Initialised",
        "b.connect",
        "b=Connected",
        "f.connect",
        "f=Connected",
    ]


def test_a_frontend_that_wants_something_changed() -> None:
    """Twice, and then it closes in the middle of a third time."""
    back = Machine("backend", reconfigures=True)
    log = []
    walk = (INITIALISING, CONNECTED, RECONFIGURING, CONNECTED, RECONFIGURING, CONNECTED, RECONFIGURING, CLOSING, CLOSED)
    for state in walk:
        back.see_other(state)
        while (step := back.step()) is not None:
            for hook in step.hooks:
                back.start_hook(hook)
                log.append(hook)
            if step.state != back.own:
                log.append(NAMES[step.state])
            back.done(step)
    change = ["reconfigure", "Reconfigured", "Connected"]
    begin, end = ["probe", "publish", "InitWait", "connect", "Connected"], ["disconnect", "close", "Closing", "Closed"]
    assert log == [*begin, *change, *change, *change[:2], *end]


def test_frontend_starts_anew_without_closing() -> None:
    pair = Pair().run()
    pair.front = Machine("frontend")
    pair.log.clear()
    pair.run()
    assert pair.log[0] == "f.probe"
    assert pair.log[1:4] == ["b.disconnect", "b.close", "b.publish"]
    assert pair.log[-2:] == ["f.connect", "f=Connected"]
    assert pair.back.own == CONNECTED


def test_backend_made_anew_reconnects() -> None:
    pair = Pair().run()
    pair.back = Machine("backend")
    pair.log.clear()
    pair.front.see_other(INITIALISING)
    step = pair.front.step()
    assert step is not None
    assert step.action == RECONNECT
    pair.run()
    assert pair.front.own == pair.back.own == CONNECTED
    assert pair.log.count("f.close") == pair.log.count("f.publish") == 1


@pytest.mark.parametrize("own", [s for s in STATES if s != UNKNOWN])
def test_before_the_other_end_was_ever_there_it_is_about_to_come(own: int) -> None:
    machine = Machine("backend", own=own)
    machine.probed = True
    unseen = machine.step()
    machine.see_other(INITIALISING)
    assert machine.step() == unseen


def test_failed_probe_closes_and_is_never_tried_again() -> None:
    for side in ("frontend", "backend"):
        machine = Machine(side)
        step = machine.step()
        assert step is not None
        machine.failed(step)
        machine.see_other(INITIALISING)
        hooks: list[str] = []
        while (step := machine.step()) is not None:
            hooks += step.hooks
            machine.done(step)
        assert hooks == []
        assert machine.removed
        assert machine.own == CLOSED


@pytest.mark.parametrize("side", ["frontend", "backend"])
@pytest.mark.parametrize("hook", ["publish", "connect"])
def test_failed_hook_is_undone(side: states.Side, hook: str) -> None:
    machine = Machine(side)
    ran: list[str] = []
    for other in (INITWAIT, CONNECTED) if side == "frontend" else (INITIALISING, INITIALISED):
        machine.see_other(other)
        while (step := machine.step()) is not None:
            for name in step.hooks:
                machine.start_hook(name)
                ran.append(name)
            if hook in step.hooks and "close" not in ran:
                machine.failed(step)
                other = CLOSED
                machine.see_other(CLOSED)
            else:
                machine.done(step)
        if "close" in ran:
            break
    assert ran[-1] == "close"
    assert not machine.holding
    assert machine.own == CLOSED
