"""The checks of suite `xenbus-frontend`."""

from __future__ import annotations

from conformance.kit.check import Level, Skip, check, expect, expect_equal
from conformance.xenbus.books import NOTHING, mapped_frames
from conformance.xenbus.ends import GONE, BackEnd
from conformance.xenbus.world import Scene
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
    XenbusStateReconfigured,
    XenbusStateReconfiguring,
)

STATES = "io/xenbus.h, enum xenbus_state"
PAGE = "docs/xenbus.md"
PUBLISHED = (XenbusStateInitialised, XenbusStateConnected)
RECONFIGURATION = (XenbusStateReconfiguring, XenbusStateReconfigured)
GARBAGE = ("", "7", "8", "9", "-1", "4 ", "0x4", "99999999999999999999", "four", "٤", "4" * 2000)
"""What no other end should say, and somebody will: a number without a meaning here, or no number."""


async def connected(scene: Scene) -> BackEnd:
    """Return the backend, with the frontend connected to it."""
    await scene.plug()
    await scene.end.connect()
    return scene.end  # type: ignore[no-any-return]


# ---- coming


@check("XENBUS-FRONTEND-001", Level.must, f"{STATES}: XenbusStateInitWait")
async def waits_for_the_backend(scene: Scene) -> None:
    """A frontend whose backend has not said InitWait shares nothing and says nothing.

    What it would publish depends on what the backend offers, and a backend that is slow is no reason to go without it.
    """
    await scene.plug()
    await scene.end.stays(XenbusStateInitialising)
    expect_equal(str(scene.books), str(NOTHING), "what the frontend holds before the backend's InitWait")


@check("XENBUS-FRONTEND-002", Level.must, f"{STATES}: XenbusStateInitWait")
async def late_frontend(scene: Scene) -> None:
    """A frontend that comes when its backend has long been in InitWait connects.

    No event tells it: a driver that is loaded as a module, or a guest that boots slowly, has to look for itself.
    """
    await scene.end.offer()
    await scene.end.settle()
    await scene.plug()
    await scene.end.attach()
    await scene.end.answer()
    await scene.end.wait_for(XenbusStateConnected)


@check("XENBUS-FRONTEND-003", Level.must, f"{STATES}: XenbusStateInitialised")
async def late_backend(scene: Scene) -> None:
    """A frontend that was there first connects when its backend comes to InitWait.

    In the meantime it waits, for as long as that takes: driver domains are booted after guests.
    """
    await scene.plug()
    await scene.end.settle()
    await scene.end.connect()


@check("XENBUS-FRONTEND-004", Level.must, f"{STATES}: XenbusStateInitialised")
async def nodes_before_the_state(scene: Scene) -> None:
    """At no moment does the store say that a frontend has published, and not what.

    A backend that is quick reads the nodes as soon as it sees the state; one that finds no ring gives the device up.
    """
    await connected(scene)
    wanted = {key for key in await scene.end.keys() if key.endswith("ring-ref") or key.startswith("event-channel")}
    for sight in scene.eye.judged:
        if sight.state in ("3", "4"):
            missing = sorted(wanted - sight.keys)
            expect(not missing, f"The state is {sight.state} before {', '.join(missing)} can be read.")


@check("XENBUS-FRONTEND-005", Level.must, "grant_table.h; event_channel.h, EVTCHNOP_bind_interdomain")
async def what_it_names_is_there(scene: Scene) -> None:
    """When a frontend has published, its rings can be mapped and its event channels bound by the backend's domain.

    Rings that are granted later, or to domain 0 whoever the backend is, work on the machine of the driver's author.
    """
    await scene.plug()
    await scene.end.offer()
    await scene.end.attach()
    await scene.end.answer()
    await scene.end.wait_for(XenbusStateConnected)


@check("XENBUS-FRONTEND-006", Level.must, f"{PAGE}, Believing that events are changes")
async def events_without_a_change(scene: Scene) -> None:
    """Events about nodes that have not changed change nothing.

    A watch fires at registration, for a write of the same value, and for everything at once when xenstored has been
    restarted. A frontend that connects again each time leaves its backend behind with the wrong ring.
    """
    end = await connected(scene)
    before = {key: await end.told(key) for key in await end.keys()}
    scene.eye.forget()
    for _ in range(50):
        await end.say(XenbusStateConnected, **{key.replace("-", "_"): value for key, value in end.kind.answers.items()})
    for key, value in before.items():
        await scene.rewrite(f"{scene.judged_path}/{key}", value)
    await end.stays(XenbusStateConnected)
    after = {key: await end.told(key) for key in await end.keys()}
    changed = sorted(key for key in before if before[key] != after.get(key))
    expect(not changed, f"Events without a change make it write {', '.join(changed)} anew.")
    expect_equal(scene.eye.states, [str(int(XenbusStateConnected))], "the states that it says meanwhile")


@check("XENBUS-FRONTEND-007", Level.must, f"{STATES}; XSA-349")
async def garbage_while_it_waits(scene: Scene) -> None:
    """Whatever else than a state the backend's `state` holds, a waiting frontend waits on, and connects in the end.

    All nodes of the other end are text that the other end wrote.
    """
    await scene.plug()
    for text in GARBAGE:
        await scene.end.write_nodes({"state": text})
        await scene.end.kernel.sleep(1_000_000)
    await scene.end.stays(XenbusStateInitialising)
    await scene.is_alive()
    await scene.end.connect()


@check("XENBUS-FRONTEND-008", Level.must, f"{STATES}; XSA-349")
async def garbage_while_it_is_connected(scene: Scene) -> None:
    """Whatever else than a state the backend's `state` holds, a connected frontend lives, and can be made anew.

    Whether it closes meanwhile is its own affair. A number that nobody has defined yet is a backend's of tomorrow.
    """
    end = await connected(scene)
    # A frontend that takes it for the end of its backend is to find that nothing is mapped any more.
    end.let_go()
    for text in GARBAGE:
        await end.write_nodes({"state": text})
        await end.kernel.sleep(1_000_000)
    await scene.is_alive()
    await end.stays(XenbusStateConnected, XenbusStateClosed, XenbusStateClosing)
    await scene.make()
    await end.connect()
    await end.close()
    await scene.gives_back()


@check("XENBUS-FRONTEND-009", Level.should, f"{PAGE}, Expecting to see every state")
async def a_backend_that_jumps(scene: Scene) -> None:
    """A frontend publishes, too, if the backend has gone on to Initialised before it looked.

    Between two looks the other end may have said anything: what counts is what is there.
    """
    await scene.plug()
    await scene.end.write_nodes({**scene.end.kind.offers})
    await scene.end.say(XenbusStateInitialised)
    await scene.end.attach()
    await scene.end.answer()
    await scene.end.wait_for(XenbusStateConnected)


@check("XENBUS-FRONTEND-010", Level.must, "docs/misc/xenstore.txt, TRANSACTION_END: EAGAIN")
async def transactions_that_fail(scene: Scene) -> None:
    """A transaction that somebody else has come in the way of is tried again.

    On a busy host that is a matter of luck; a driver that gives up then fails once in a thousand boots.
    """
    scene.eye.conflicts = 3
    await scene.plug()
    await scene.end.offer()
    await scene.end.published()
    if not scene.eye.conflicted:
        raise Skip("it writes what it publishes without a transaction")
    await scene.end.attach()
    await scene.end.answer()
    await scene.end.wait_for(XenbusStateConnected)


@check("XENBUS-FRONTEND-011", Level.must, "docs/misc/xenstore-paths.pandoc, ~/device; io/xenbus.h")
async def nodes_that_lead_nowhere(scene: Scene) -> None:
    """A directory that names no backend, or nonsense, is no device, and no harm.

    A toolstack that writes node by node shows such directories for a moment; the real device comes afterwards.
    """
    await scene.plug()
    for text in ("", "nonsense", "/", "/local/domain/99999/backend/x/1/0", "../.."):
        await scene.rewrite(f"{scene.device.frontend}/backend", text)
        await scene.end.kernel.sleep(2_000_000)
    for text in ("", "x", "-1", "99999999999"):
        await scene.rewrite(f"{scene.device.frontend}/backend-id", text)
        await scene.end.kernel.sleep(2_000_000)
    await scene.is_alive()
    await scene.make()
    await scene.end.connect()


@check("XENBUS-FRONTEND-012", Level.must, f"{STATES}: XenbusStateReconfiguring, XenbusStateReconfigured")
async def the_backend_reconfigures(scene: Scene) -> None:
    """A frontend whose backend is Reconfiguring and then Reconfigured keeps its rings, and is Connected with it again.

    These two speak of what is behind the device, not of the connection (PCI's backends say them when a function comes
    or goes). A frontend may follow with the same words; one that closes or makes new rings loses what is under way.
    """
    end = await connected(scene)
    held, before = scene.books, await _named(end)
    for state in (*RECONFIGURATION, XenbusStateConnected, *RECONFIGURATION):
        await end.say(state)
        await end.stays(XenbusStateConnected, *RECONFIGURATION)
        expect_equal(str(scene.books), str(held), f"what the frontend holds when its backend says {state}")
        expect_equal(await _named(end), before, f"what the frontend names when its backend says {state}")
    await end.say(XenbusStateConnected)
    await end.wait_for(XenbusStateConnected)
    expect_equal(await _named(end), before, "what the frontend names when its backend is Connected again")


async def _named(end: BackEnd) -> dict[str, str | None]:
    """Return the rings and event channels that the frontend names."""
    keys = [key for key in await end.keys() if key.endswith("ring-ref") or key.startswith("event-channel")]
    return {key: await end.told(key) for key in keys}


@check("XENBUS-FRONTEND-013", Level.must, f"{STATES}: XenbusStateReconfiguring, XenbusStateClosing")
async def closes_while_it_reconfigures(scene: Scene) -> None:
    """A backend that closes out of Reconfiguring or Reconfigured is followed, and everything given back.

    An unplug does not wait until a change of the device is through.
    """
    await scene.plug()
    for state in RECONFIGURATION:
        end = scene.end
        await end.connect()
        await end.say(state)
        await end.settle()
        await end.say(XenbusStateClosing)
        await end.wait_for(XenbusStateClosed)
        end.let_go()
        await end.say(XenbusStateClosed)
        await scene.gives_back()
        await scene.make()


@check("XENBUS-FRONTEND-014", Level.must, f"{STATES}: XenbusStateReconfiguring, XenbusStateInitWait")
async def reconfigures_before_it_offers(scene: Scene) -> None:
    """A waiting frontend publishes nothing for Reconfiguring or Reconfigured, and connects at InitWait.

    A backend that is left in one of them by its last life has yet to say what it offers.
    """
    await scene.plug()
    for state in RECONFIGURATION:
        await scene.end.say(state)
        await scene.end.stays(XenbusStateInitialising)
        expect_equal(str(scene.books), str(NOTHING), f"what the frontend holds before InitWait, after state {state}")
    await scene.end.connect()


# ---- going


@check("XENBUS-FRONTEND-020", Level.must, f"{STATES}: XenbusStateClosing, XenbusStateClosed")
async def the_backend_closes(scene: Scene) -> None:
    """A frontend follows its backend's Closing to Closed, and holds nothing when both are Closed.

    This is how a device is unplugged: a frontend that does not answer leaves the toolstack waiting.
    """
    end = await connected(scene)
    await end.say(XenbusStateClosing)
    await end.wait_for(XenbusStateClosed)
    end.let_go()
    await end.say(XenbusStateClosed)
    await scene.gives_back()
    await end.stays(XenbusStateClosed)


@check("XENBUS-FRONTEND-021", Level.must, f"{PAGE}, Freeing on Closing; XSA-396")
async def pages_are_kept_while_they_are_mapped(scene: Scene) -> None:
    """A page that the backend has mapped is used for nothing else, also when the frontend is Closed.

    The next user's data would be in the other domain's hands, and what that writes would be in the next user's.
    """
    end = await connected(scene)
    await end.say(XenbusStateClosing)
    await end.wait_for(XenbusStateClosed)
    await end.settle()
    mapped = set(mapped_frames(scene.host.hv, scene.peer_domid, scene.judged_domid))
    expect(mapped, "Nothing of the frontend is mapped any more, though the backend has unmapped nothing.")
    free = await scene.free_frames()
    expect(not mapped & free, f"{len(mapped & free)} pages are given to others while the backend still maps them.")
    end.let_go()
    await end.say(XenbusStateClosed)
    await scene.gives_back()


@check("XENBUS-FRONTEND-022", Level.must, f"{STATES}: XenbusStateClosed")
async def closed_without_closing(scene: Scene) -> None:
    """A backend that goes from Connected to Closed at once is followed, too.

    Some backends know no Closing, and a frontend may look late.
    """
    end = await connected(scene)
    end.let_go()
    await end.say(XenbusStateClosed)
    await end.wait_for(XenbusStateClosed)
    await scene.gives_back()


@check("XENBUS-FRONTEND-023", Level.must, f"{STATES}: XenbusStateClosing")
async def closes_before_it_was_connected(scene: Scene) -> None:
    """A backend that closes when the frontend has published, and not connected, is followed, and everything given back.

    An unplug does not wait for a convenient moment; nor does a backend that finds the rings no good.
    """
    await scene.plug()
    await scene.end.offer()
    await scene.end.attach()
    await scene.end.close()
    await scene.gives_back()
    await scene.end.stays(XenbusStateClosed)


@check("XENBUS-FRONTEND-024", Level.must, f"{STATES}: XenbusStateClosing")
async def closes_before_it_has_published(scene: Scene) -> None:
    """A frontend that is still waiting follows its backend's Closing, too.

    It has nothing to give back, and still the other end waits for its word.
    """
    await scene.plug()
    await scene.end.settle()
    await scene.end.say(XenbusStateClosing)
    await scene.end.wait_for(XenbusStateClosed)
    await scene.end.say(XenbusStateClosed)
    await scene.gives_back()


@check("XENBUS-FRONTEND-025", Level.must, f"{PAGE}, One end is killed")
async def the_backend_dies(scene: Scene) -> None:
    """A frontend whose backend's directory has vanished closes, and gives everything back.

    The directories of a dead domain are removed, and nobody will say Closed any more.
    """
    end = await connected(scene)
    end.let_go()
    await scene.remove(scene.device.backend)
    await end.wait_for(XenbusStateClosed)
    await scene.gives_back()


@check("XENBUS-FRONTEND-026", Level.must, f"{PAGE}, One end is killed")
async def the_backend_dies_early(scene: Scene) -> None:
    """A frontend that has published, and whose backend dies before it connects, closes and gives everything back.

    It waits for a Connected that will not come.
    """
    await scene.plug()
    await scene.end.offer()
    await scene.end.published()
    await scene.remove(scene.device.backend)
    await scene.end.wait_for(XenbusStateClosed)
    await scene.gives_back()


@check("XENBUS-FRONTEND-027", Level.must, f"{PAGE}, Writing into a directory that is gone")
async def its_own_directory_goes(scene: Scene) -> None:
    """A frontend whose own directory is removed gives everything back, and writes nothing there any more.

    A node that is written afterwards makes the directory anew, with one node in it, for ever: the next device of this
    number is mistaken for the old one.
    """
    end = await connected(scene)
    end.let_go()
    await scene.own_above()
    await scene.remove(scene.device.frontend, scene.device.backend)
    await scene.gives_back()
    await end.settle()
    scene.stays_away()
    expect_equal(scene.watches, 0, "the number of watches on a device that is gone")


@check("XENBUS-FRONTEND-028", Level.must, f"{PAGE}, Writing into a directory that is gone")
async def its_own_directory_goes_while_it_closes(scene: Scene) -> None:
    """A directory that is removed while the frontend closes does not come back either.

    The toolstack's patience ends at some time, and often just when the driver gets to its last word.
    """
    for turn in range(6):
        if turn:
            await scene.make()
            await scene.end.connect()
        else:
            await connected(scene)
        await scene.own_above()
        scene.end.let_go()
        scene.eye.before_turn(turn, lambda: scene.eye.remove(scene.device.frontend))
        await scene.end.say(XenbusStateClosing)
        await scene.end.settle()
        if not scene.eye.turn_is_due:
            scene.stays_away()
        await scene.remove(scene.device.backend, scene.device.frontend)
        await scene.end.settle()
        await scene.gives_back()


@check("XENBUS-FRONTEND-029", Level.must, f"{STATES}: XenbusStateClosing; docs/misc/xenstore-paths.pandoc, ~/control")
async def the_guest_shuts_down(scene: Scene) -> None:
    """A frontend whose guest shuts down says Closing or Closed, and frees only when the backend has let go.

    Otherwise the backend writes into pages that are somebody else's, or the domain stays behind as a zombie.
    """
    end = await connected(scene)
    scene.eye.forget()
    await scene.shut_down()
    for _ in range(2000):
        if await end.state() in (XenbusStateClosing, XenbusStateClosed):
            break
        await end.kernel.sleep(500_000)
    expect(await end.state() != XenbusStateConnected, "The guest has ended, and its frontend is still Connected.")
    end.let_go()
    await end.say(XenbusStateClosing)
    await end.wait_for(XenbusStateClosed, GONE)
    said = [state for state in scene.eye.states if state is not None]
    allowed = [["4", "5", "6"], ["4", "6"]]
    expect(said in allowed, f"It says {' '.join(said)} in turn; that should be 4 5 6, or 4 6.")
    scene.leave()
    await end.say(XenbusStateClosed)


@check("XENBUS-FRONTEND-030", Level.must, f"{STATES}: XenbusStateClosed")
async def says_closed_once(scene: Scene) -> None:
    """A frontend that is Closed stays so, whatever its backend repeats.

    Two ends that answer each other's words without end keep xenstored busy and nobody else.
    """
    end = await connected(scene)
    scene.eye.forget()
    await end.close()
    for state in (XenbusStateClosing, XenbusStateClosed, XenbusStateClosing, XenbusStateClosed):
        await end.say(state)
        await end.kernel.sleep(3_000_000)
    await end.stays(XenbusStateClosed)
    said = scene.eye.states
    expect(len(said) <= 3 and said[-1] == "6", f"It says {' '.join(map(str, said))} in turn; that should end with 6.")


# ---- coming back


@check("XENBUS-FRONTEND-040", Level.must, "docs/misc/xenstore-paths.pandoc, ~/device")
async def plugged_in_again(scene: Scene) -> None:
    """A device that is unplugged and made anew, with the same number, connects again.

    `xl block-detach` and `block-attach`: what is left of the first life must not be taken for the second's.
    """
    end = await connected(scene)
    await end.close()
    await scene.gives_back()
    await scene.remove(scene.device.backend, scene.device.frontend)
    await end.settle()
    await scene.make()
    await end.connect()
    expect(end.grants, "Nothing is mapped in the second life.")


@check("XENBUS-FRONTEND-041", Level.should, f"{PAGE}, Coming back")
async def made_anew_at_once(scene: Scene) -> None:
    """A device whose directories are removed and made anew in one breath connects again.

    The frontend may see nothing but a state that is Initialising where it had said Connected.
    """
    end = await connected(scene)
    end.let_go()
    await scene.make()
    await end.connect()


@check("XENBUS-FRONTEND-042", Level.should, f"{PAGE}, Every pair")
async def the_backend_begins_anew(scene: Scene) -> None:
    """A connected frontend whose backend is back in Initialising does not stay Connected to nobody.

    A driver domain has been rebooted, or its driver loaded anew: it knows nothing of the rings that it had mapped.
    """
    end = await connected(scene)
    end.let_go()
    await end.say(XenbusStateInitialising)
    await end.wait_for(XenbusStateInitialising, XenbusStateClosing, XenbusStateClosed)
    await end.say(XenbusStateClosed)
    await end.settle()
    await scene.gives_back()


@check("XENBUS-FRONTEND-043", Level.must, f"{PAGE}, Forgetting")
async def four_lives(scene: Scene) -> None:
    """After four lives of a device the kernel has as many pages and watches as after two.

    What leaks once at each plug is not seen in a test, and ends a server after a month.
    """
    found: list[tuple[int, int]] = []
    await scene.plug()
    for _ in range(4):
        await scene.end.connect()
        await scene.end.close()
        await scene.gives_back()
        await scene.remove(scene.device.backend, scene.device.frontend)
        await scene.end.settle()
        found.append((len(await scene.free_frames()), scene.watches))
        await scene.make()
    expect_equal(found[3], found[1], "pages that are free, and watches, after the last life and after the second")


@check("XENBUS-FRONTEND-044", Level.must, f"{PAGE}, Believing that events are changes; XSA-349")
async def a_storm_of_writes(scene: Scene) -> None:
    """A backend that writes its nodes all the time costs the frontend's guest little, and connects when it stops.

    Each write is an event; a guest that puts each of them into a list of its own runs out of memory.
    """
    await scene.plug()
    before = len(await scene.free_frames())
    for number in range(300):
        await scene.end.write_nodes({"state": XenbusStateInitialising if number % 2 else "7"})
    await scene.is_alive()
    after = len(await scene.free_frames())
    expect(before - after < 64, f"A storm of events costs the guest {before - after} pages.")
    await scene.end.connect()


@check("XENBUS-FRONTEND-045", Level.must, f"{STATES}: XenbusStateInitWait")
async def initwait_again(scene: Scene) -> None:
    """A frontend that has published and whose backend says InitWait again changes no ring behind its back.

    The backend maps what stands there when it gets to it: what is replaced meanwhile has been freed.
    """
    await scene.plug()
    end = scene.end
    await end.offer()
    nodes = await end.published()
    await end.attach()
    await end.say(XenbusStateInitWait)
    await end.stays(*PUBLISHED)
    again = {key: await end.told(key) or "" for key in await end.keys()}
    changed = sorted(key for key in nodes if key.endswith("ring-ref") and nodes[key] != again.get(key))
    expect(not changed, f"It publishes {', '.join(changed)} anew while the backend has the old one mapped.")
    await end.answer()
    await end.wait_for(XenbusStateConnected)


@check("XENBUS-FRONTEND-050", Level.must, f"{PAGE}, Believing that events are changes", schedules=12)
async def no_word_is_lost(scene: Scene) -> None:
    """However the domains take turns, a frontend hears every word of its backend, and connects and closes.

    An event that comes while the driver looks, or between its look and its sleep, is an event: whoever drops it, since
    somebody is looking already, has a device that hangs once in a thousand boots.
    """
    await scene.plug()
    for _ in range(3):
        end = scene.end
        await end.connect()
        await end.close()
        await end.wait_for(XenbusStateClosed)
        await scene.gives_back()
        await scene.make()
