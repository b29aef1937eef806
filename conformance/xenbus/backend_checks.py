"""The checks of suite `xenbus-backend`."""

from __future__ import annotations

from conformance.kit.check import Failure, Level, Skip, check, expect, expect_equal
from conformance.xenbus.books import NOTHING
from conformance.xenbus.classes import PORT, RING
from conformance.xenbus.ends import GONE, FrontEnd
from conformance.xenbus.eye import Sight
from conformance.xenbus.frontend_checks import GARBAGE, PAGE, RECONFIGURATION, STATES
from conformance.xenbus.world import Scene
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
)

NO_NUMBERS = ("", "x", "-1", "4294967296", "99999999999999999999", "0x8", " 8", "٤")
"""What a frontend may write where a reference or a port is to stand."""


async def offered(scene: Scene) -> FrontEnd:
    """Return the frontend, with the backend in InitWait."""
    await scene.plug()
    await scene.end.wait_for(XenbusStateInitWait)
    return scene.end  # type: ignore[no-any-return]


async def connected(scene: Scene) -> FrontEnd:
    """Return the frontend, connected."""
    await scene.plug()
    await scene.end.connect()
    return scene.end  # type: ignore[no-any-return]


async def connects_again(scene: Scene) -> None:
    """Raise Failure unless a good frontend, after all that, is served."""
    await scene.is_alive()
    await scene.end.settle()
    await scene.make()
    await scene.end.connect()


# ---- coming


@check("XENBUS-BACKEND-001", Level.must, f"{STATES}: XenbusStateInitWait")
async def init_wait(scene: Scene) -> None:
    """A backend comes to InitWait by itself, and waits there for its frontend.

    The guest may boot a minute later, or never have a driver; the toolstack waits for this very state.
    """
    end = await offered(scene)
    await end.stays(XenbusStateInitWait)
    expect_equal(str(scene.books), str(NOTHING), "what the backend holds of its frontend before that has published")


@check("XENBUS-BACKEND-002", Level.must, f"{STATES}: XenbusStateInitialised")
async def looks_at_nothing_too_early(scene: Scene) -> None:
    """A backend maps and binds nothing before the frontend's state says that it is there.

    What stands in the directory before is from a former life, or half of what is being written.
    """
    end = await offered(scene)
    await end.write_nodes(end.make())
    await end.stays(XenbusStateInitWait)
    expect_equal(str(scene.books), str(NOTHING), "what the backend holds of a frontend that is Initialising")
    await end.say(XenbusStateInitialised)
    await end.wait_for(XenbusStateConnected)


@check("XENBUS-BACKEND-003", Level.must, f"{STATES}: XenbusStateInitialised")
async def connects_at_initialised(scene: Scene) -> None:
    """A backend connects when its frontend is Initialised, and has mapped its rings and bound its ports by then.

    A frontend that sees Connected sends its first request.
    """
    end = await connected(scene)
    rings = sum(what is RING for what in end.kind.frontend.values())
    ports = sum(what is PORT for what in end.kind.frontend.values())
    held = scene.books
    expect(held.mappings >= rings, f"It is Connected and has mapped {held.mappings} of {rings} rings.")
    expect(held.ports >= ports, f"It is Connected and has bound {held.ports} of {ports} event channels.")


@check("XENBUS-BACKEND-004", Level.must, f"{STATES}: XenbusStateConnected")
async def connects_at_connected(scene: Scene) -> None:
    """A backend connects, too, if the frontend is Connected when it looks.

    Network frontends go there directly; others may be faster than a busy backend looks.
    """
    end = await offered(scene)
    await end.publish(XenbusStateConnected)
    await end.wait_for(XenbusStateConnected)
    expect(scene.books.mappings, "It is Connected and has nothing mapped.")


@check("XENBUS-BACKEND-005", Level.must, f"{PAGE}, Too early")
async def a_frontend_that_was_there_first(scene: Scene) -> None:
    """A frontend that has published before there was a backend is served.

    No event comes any more: after InitWait the backend has to look at what is there.
    """
    await scene.end.publish()
    await scene.end.settle()
    await scene.plug()
    await scene.end.wait_for(XenbusStateConnected)


@check("XENBUS-BACKEND-006", Level.must, f"{PAGE}, Believing that events are changes")
async def events_without_a_change(scene: Scene) -> None:
    """Events about nodes that have not changed change nothing.

    After a restart of xenstored all watches fire; a backend that connects again maps every ring twice.
    """
    end = await connected(scene)
    held = scene.books
    nodes = {key: await scene.end.kernel.xenbus.read_or_none(f"{end.home}/{key}") for key in end.kind.frontend}
    scene.eye.forget()
    for _ in range(20):
        await end.write_nodes({**nodes, "state": XenbusStateConnected})
    await end.stays(XenbusStateConnected)
    expect_equal(str(scene.books), str(held), "what the backend holds after events without a change")
    expect_equal(scene.eye.states, ["4"], "the states that it says meanwhile")


@check("XENBUS-BACKEND-007", Level.must, f"{PAGE}, Rings that are made anew; XSA-155")
async def a_ring_that_changes(scene: Scene) -> None:
    """A connected backend does not look at references and ports again.

    A frontend that changes them has closed first; one that has not is up to something.
    """
    end = await connected(scene)
    held = scene.books
    await end.write_nodes({key: 99999 for key, what in end.kind.frontend.items() if what is RING or what is PORT})
    await end.say(XenbusStateConnected)
    await end.settle()
    await scene.is_alive()
    expect_equal(str(scene.books), str(held), "what the backend holds after the nodes have changed")


@check("XENBUS-BACKEND-008", Level.must, f"{STATES}; XSA-349")
async def garbage_while_it_waits(scene: Scene) -> None:
    """Whatever else than a state the frontend's `state` holds, a waiting backend lives, and serves a good one later.

    All nodes of the other end are text that the other end wrote.
    """
    end = await offered(scene)
    for text in GARBAGE:
        await end.write_nodes({"state": text})
        await end.kernel.sleep(1_000_000)
    await connects_again(scene)


@check("XENBUS-BACKEND-009", Level.must, f"{STATES}; XSA-349")
async def garbage_while_it_is_connected(scene: Scene) -> None:
    """Whatever else than a state the frontend's `state` holds, a connected backend lives, and serves a good one later.

    A backend that panics takes the devices of all other guests with it.
    """
    end = await connected(scene)
    for text in GARBAGE:
        await end.write_nodes({"state": text})
        await end.kernel.sleep(1_000_000)
    await connects_again(scene)


@check("XENBUS-BACKEND-010", Level.must, "docs/misc/xenstore.txt, TRANSACTION_END: EAGAIN")
async def transactions_that_fail(scene: Scene) -> None:
    """A transaction that somebody else has come in the way of is tried again.

    A host with many guests has xenstored busy; a backend that gives up then loses one guest in a thousand.
    """
    scene.eye.conflicts = 3
    end = await offered(scene)
    if not scene.eye.conflicted:
        raise Skip("it writes what it offers without a transaction")
    scene.eye.conflicts = 3
    await end.publish()
    await end.wait_for(XenbusStateConnected)


@check("XENBUS-BACKEND-011", Level.must, f"{PAGE}, Trusting numbers")
async def no_numbers(scene: Scene) -> None:
    """A frontend whose reference or port is no number of 32 bits is refused, and a good one served afterwards.

    A parser that stops at the first letter takes `8x` for 8; one that wraps takes 2^32 for 0.
    """
    for key in [key for key, what in scene.end.kind.frontend.items() if what is RING or what is PORT]:
        for text in NO_NUMBERS:
            await _is_refused(scene, {key: text}, f"{key} = {text!r}")


@check("XENBUS-BACKEND-012", Level.must, f"{PAGE}, Trusting numbers; grant_table.h, GNTST_bad_gntref")
async def references_that_are_none(scene: Scene) -> None:
    """A frontend whose reference grants nothing, or whose port nobody has opened, is refused, and a good one served.

    A mapping that fails half way is to be taken back as far as it got.
    """
    for key, what in scene.end.kind.frontend.items():
        if what is RING:
            for ref in (0, 500, 0xFFFF_FFFF):
                await _is_refused(scene, {key: ref}, f"{key} = {ref}")
        elif what is PORT:
            for port in (0, 1000, 0xFFFF_FFFF):
                await _is_refused(scene, {key: port}, f"{key} = {port}")


@check("XENBUS-BACKEND-013", Level.must, f"{STATES}: XenbusStateInitialised")
async def nodes_that_are_missing(scene: Scene) -> None:
    """A frontend that has published without saying where its rings are is refused, and a good one served afterwards.

    The state is there and the rest is not: that is what a hostile frontend, and a careless one, looks like.
    """
    for key in [key for key, what in scene.end.kind.frontend.items() if what is RING or what is PORT]:
        await _is_refused(scene, {key: None}, f"no {key}")


async def _is_refused(scene: Scene, instead: dict[str, object], what: str) -> None:
    """Raise Failure unless the backend closes a device with these nodes, and serves it when it has been made anew."""
    end: FrontEnd = scene.end
    await scene.make()
    if not scene.plugged:
        await scene.plug()
    await end.wait_for(XenbusStateInitWait)
    nodes = {key: value for key, value in {**end.make(), **instead}.items() if value is not None}
    await end.write_nodes(nodes)
    await end.say(XenbusStateInitialised)
    await end.settle()
    state = await end.state()
    expect(state != XenbusStateConnected, f"It is Connected to a frontend with {what}.")
    await scene.is_alive()
    await end.say(XenbusStateClosed)
    await end.settle()
    await scene.gives_back()
    end.let_go()


@check("XENBUS-BACKEND-014", Level.should, "docs/misc/xenstore-paths.pandoc, ~/error; Linux, xenbus_dev_fatal")
async def it_says_why(scene: Scene) -> None:
    """A backend that refuses a frontend says why in its `error` node, and goes to Closing or Closed.

    That sentence is what a person gets to see; without it the guest waits for a disk, and nobody knows for what.
    """
    end = await offered(scene)
    await end.say(XenbusStateInitialised)
    await end.wait_for(XenbusStateClosing, XenbusStateClosed)
    await end.settle()
    expect(await scene.complaint(), "It has given the device up, and its error node is empty.")
    await end.say(XenbusStateClosed)


@check("XENBUS-BACKEND-015", Level.must, f"{STATES}: XenbusStateReconfiguring, XenbusStateReconfigured")
async def the_frontend_reconfigures(scene: Scene) -> None:
    """A frontend that says Reconfiguring or Reconfigured keeps its connection as it is, or loses it in order.

    PCI's frontends say so when a function comes or goes. A backend of another class may go on, or take it for an error
    and close (as Linux's do); it does not map the rings twice, nor drop them and wait for the next life.
    """
    await scene.plug()
    for state in RECONFIGURATION:
        end = scene.end
        await end.connect()
        held = scene.books
        await end.say(state)
        await end.settle()
        if await end.state() in (XenbusStateClosing, XenbusStateClosed):
            await end.say(XenbusStateClosed)
            await end.wait_for(XenbusStateClosed)
        else:
            await end.stays(XenbusStateConnected, *RECONFIGURATION)
            expect_equal(str(scene.books), str(held), f"what the backend holds when its frontend says {state}")
            await end.say(XenbusStateConnected)
            await end.wait_for(XenbusStateConnected)
            expect_equal(str(scene.books), str(held), "what the backend holds when its frontend is Connected again")
            await end.close()
        await scene.gives_back()
        end.let_go()
        await scene.make()


@check("XENBUS-BACKEND-016", Level.must, f"{STATES}: XenbusStateReconfiguring, XenbusStateClosing")
async def closes_while_it_reconfigures(scene: Scene) -> None:
    """A frontend that closes out of Reconfiguring or Reconfigured gets its pages back, and is served anew afterwards.

    A guest that shuts down does not wait until a change of its devices is through.
    """
    await scene.plug()
    for state in RECONFIGURATION:
        end = scene.end
        await end.connect()
        await end.say(state)
        await end.settle()
        await end.say(XenbusStateClosing)
        await end.settle()
        await end.say(XenbusStateClosed)
        await end.wait_for(XenbusStateClosed)
        expect(not end.held, f"It is Closed and still maps {end.held} pages.")
        await scene.gives_back()
        end.let_go()
        await end.say(XenbusStateInitialising)
    await end.connect()


@check("XENBUS-BACKEND-017", Level.must, f"{STATES}: XenbusStateReconfiguring, XenbusStateInitialised")
async def reconfigures_before_it_has_published(scene: Scene) -> None:
    """A waiting backend maps and binds nothing for Reconfiguring or Reconfigured, and connects at Initialised.

    Neither says that there are rings. (Linux's backends take them for an error here, too, and close.)
    """
    await scene.plug()
    for state in RECONFIGURATION:
        end = scene.end
        await end.wait_for(XenbusStateInitWait)
        await end.write_nodes(end.make())
        await end.say(state)
        await end.settle()
        expect_equal(str(scene.books), str(NOTHING), f"what the backend holds of a frontend in state {state}")
        if await end.state() == XenbusStateInitWait:
            await end.say(XenbusStateInitialised)
            await end.wait_for(XenbusStateConnected)
            await end.close()
        else:
            await end.stays(XenbusStateClosing, XenbusStateClosed)
            await end.say(XenbusStateClosed)
        await scene.gives_back()
        end.let_go()
        await scene.make()


# ---- going


@check("XENBUS-BACKEND-020", Level.must, f"{STATES}: XenbusStateClosing, XenbusStateClosed")
async def the_frontend_closes(scene: Scene) -> None:
    """A backend follows the frontend through Closing to Closed, and has let go of everything when it is Closed.

    The frontend takes its pages back then: one that is still mapped is lost to the guest.
    """
    end = await connected(scene)
    await end.say(XenbusStateClosing)
    await end.wait_for(XenbusStateClosing, XenbusStateClosed)
    await end.say(XenbusStateClosed)
    await end.wait_for(XenbusStateClosed)
    expect(not end.held, f"It is Closed and still maps {end.held} pages.")
    await scene.gives_back()


@check("XENBUS-BACKEND-021", Level.must, f"{STATES}: XenbusStateClosed")
async def closed_without_closing(scene: Scene) -> None:
    """A backend lets go, too, if its frontend goes from Connected to Closed at once.

    Boot loaders' frontends know only these two.
    """
    end = await connected(scene)
    await end.say(XenbusStateClosed)
    await end.released()
    await scene.gives_back()
    await end.wait_for(XenbusStateClosed, XenbusStateInitWait)


@check("XENBUS-BACKEND-022", Level.must, f"{PAGE}, One end is killed")
async def the_frontend_vanishes(scene: Scene) -> None:
    """A backend whose frontend's directory has vanished lets go and is Closed.

    The directories of a dead domain are removed. Its memory can be used again only when nobody maps it.
    """
    end = await connected(scene)
    await scene.remove(scene.device.frontend)
    await end.released()
    await scene.gives_back()
    await end.wait_for(XenbusStateClosed)


@check("XENBUS-BACKEND-023", Level.must, f"{PAGE}, One end is killed")
async def the_frontend_dies(scene: Scene) -> None:
    """A backend lets go of a domain that ends while it is connected.

    Until then the domain cannot be destroyed: it is a zombie, and its memory with it.
    """
    await connected(scene)

    def look(sight: Sight) -> None:
        if sight.state in ("6", None) and scene.mapped_frames:
            scene.failure = Failure("It is Closed, and still maps pages of a domain that is dead.")

    scene.eye.on_change = look
    scene.leave()


@check("XENBUS-BACKEND-024", Level.must, "docs/misc/xenstore-paths.pandoc, ~/backend; libxl: online")
async def unplugged(scene: Scene) -> None:
    """A backend that is unplugged says Closing, waits for its frontend, and then is Closed, with nothing held.

    The frontend may have requests under way: it is asked, and not robbed.
    """
    end = await connected(scene)
    await scene.unplug()
    await end.wait_for(XenbusStateClosing)
    await end.stays(XenbusStateClosing)
    await end.say(XenbusStateClosed)
    await end.wait_for(XenbusStateClosed, GONE)
    await end.released()
    await scene.gives_back()


@check("XENBUS-BACKEND-025", Level.must, "docs/misc/xenstore-paths.pandoc, ~/backend; libxl: online")
async def unplugged_without_a_frontend(scene: Scene) -> None:
    """A backend that is unplugged, and whose frontend never came, is Closed by itself.

    There is nobody to wait for, and the toolstack waits for this.
    """
    end = await offered(scene)
    await scene.unplug()
    await end.wait_for(XenbusStateClosed, GONE)


@check("XENBUS-BACKEND-026", Level.must, f"{PAGE}, Overwriting the toolstack's Closing")
async def unplugged_while_it_connects(scene: Scene) -> None:
    """An unplug in the moment in which the backend connects is not lost.

    It is a write to the backend's own state: one that writes Connected over it will never hear of it again.
    """

    def unplug() -> None:
        scene.eye.write(f"{scene.device.backend}/online", 0)
        scene.eye.write(f"{scene.device.backend}/state", 5)

    for turn in range(8):
        await scene.make()
        if not scene.plugged:
            await scene.plug()
        end = scene.end
        await end.wait_for(XenbusStateInitWait)
        await end.settle()
        scene.eye.before_turn(turn, unplug)
        await end.publish()
        await end.settle()
        if scene.eye.turn_is_due:
            # It has needed fewer turns.
            unplug()
        await end.wait_for(XenbusStateClosing, XenbusStateClosed, GONE)
        await end.say(XenbusStateClosed)
        await end.wait_for(XenbusStateClosed, GONE)
        await end.released()
        end.let_go()


@check("XENBUS-BACKEND-027", Level.must, "libxl: online")
async def unplugged_for_good(scene: Scene) -> None:
    """A backend that has been unplugged does not serve a frontend that begins anew.

    `online` = 0 says that the device is not to come back; the toolstack is about to remove it.
    """
    end = await connected(scene)
    await scene.unplug()
    await end.wait_for(XenbusStateClosing)
    await end.say(XenbusStateClosed)
    await end.wait_for(XenbusStateClosed, GONE)
    await end.say(XenbusStateInitialising)
    await end.stays(XenbusStateClosed, GONE)


@check("XENBUS-BACKEND-028", Level.must, f"{PAGE}, Writing into a directory that is gone")
async def its_own_directory_goes(scene: Scene) -> None:
    """A backend whose own directory is removed lets go of everything, and writes nothing there any more.

    One node that is written afterwards makes the directory anew, for ever.
    """
    end = await connected(scene)
    await scene.remove(scene.device.backend, scene.device.frontend)
    await end.released()
    await scene.gives_back()
    await end.settle()
    scene.stays_away()
    expect_equal(scene.watches, 0, "the number of watches on a device that is gone")


# ---- coming back


@check("XENBUS-BACKEND-040", Level.must, f"{STATES}: XenbusStateInitialising; {PAGE}, Coming back")
async def connect_again(scene: Scene) -> None:
    """After both are Closed a frontend that goes back to Initialising finds its backend in InitWait again.

    kexec, a driver that is loaded anew, and every restore from hibernation do so.
    """
    end = await connected(scene)
    await end.close()
    await end.released()
    end.let_go()
    await end.say(XenbusStateInitialising)
    await end.connect()
    expect(end.held, "Nothing is mapped in the second life.")


@check("XENBUS-BACKEND-041", Level.must, f"{PAGE}, Coming back")
async def begins_anew_without_a_word(scene: Scene) -> None:
    """A frontend that goes from Connected to Initialising gets its pages back, and can connect again.

    The kernel that was connected has crashed, and the one after it knows nothing of the rings.
    """
    end = await connected(scene)
    await end.say(XenbusStateInitialising)
    await end.released()
    end.let_go()
    await end.connect()


@check("XENBUS-BACKEND-042", Level.must, f"{PAGE}, It says three things in one breath")
async def three_words_in_one_breath(scene: Scene) -> None:
    """A frontend that says Closing, Closed and Initialising without waiting gets its pages back, and can connect again.

    A boot loader does so; a backend may see only the last of the three.
    """
    end = await connected(scene)
    await end.say_all(XenbusStateClosing, XenbusStateClosed, XenbusStateInitialising)
    await end.released()
    end.let_go()
    await end.connect()


@check("XENBUS-BACKEND-043", Level.must, f"{PAGE}, Rings that are made anew")
async def new_rings_are_read_anew(scene: Scene) -> None:
    """In a second life a backend maps the rings that are named then.

    The page that it had in its first life belongs to somebody else by now.
    """
    end = await connected(scene)
    first = set(end.pages)
    await end.close()
    await end.released()
    # Not given back, so that the second life's references are others.
    await end.say(XenbusStateInitialising)
    await end.connect()
    used = {ref for ref in end.pages if end.kernel.grants.is_in_use(ref)}
    expect(not used & first, "It maps a ring of the frontend's first life.")
    expect(used, "It maps nothing in the second life.")


@check("XENBUS-BACKEND-044", Level.must, "docs/misc/xenstore-paths.pandoc, ~/backend")
async def plugged_in_again(scene: Scene) -> None:
    """A device that is unplugged and made anew, with the same number, is served again.

    `xl block-detach` and `block-attach`.
    """
    end = await connected(scene)
    await scene.unplug()
    await end.wait_for(XenbusStateClosing)
    await end.say(XenbusStateClosed)
    await end.wait_for(XenbusStateClosed, GONE)
    await end.released()
    end.let_go()
    await scene.remove(scene.device.frontend, scene.device.backend)
    await end.settle()
    await scene.make()
    await end.connect()


@check("XENBUS-BACKEND-045", Level.must, "XSA-349")
async def a_storm_of_states(scene: Scene) -> None:
    """A frontend that writes its state all the time costs the backend's domain little, and is served when it stops.

    Each write is an event, and the backend's domain serves others: Linux had one queue without an end for all of them.
    """
    end = await connected(scene)
    before = len(await scene.free_frames())
    for _ in range(300):
        await end.write_nodes({"state": XenbusStateConnected})
    await scene.is_alive()
    after = len(await scene.free_frames())
    expect(before - after < 64, f"A storm of events costs the backend's domain {before - after} pages.")
    await end.stays(XenbusStateConnected)
    await end.close()


@check("XENBUS-BACKEND-046", Level.must, f"{PAGE}, Coming back")
async def four_lives(scene: Scene) -> None:
    """After four lives of a device the backend's domain has as many pages and watches as after two.

    What leaks once at each connection is not seen in a test, and ends a driver domain after a month.
    """
    found: list[tuple[int, int]] = []
    await scene.plug()
    for _ in range(4):
        end = scene.end
        await end.connect()
        await end.close()
        await end.released()
        await scene.gives_back()
        end.let_go()
        await scene.remove(scene.device.frontend, scene.device.backend)
        await end.settle()
        found.append((len(await scene.free_frames()), scene.watches))
        await scene.make()
    expect_equal(found[3], found[1], "pages that are free, and watches, after the last life and after the second")


@check("XENBUS-BACKEND-050", Level.must, f"{PAGE}, Believing that events are changes", schedules=12)
async def no_word_is_lost(scene: Scene) -> None:
    """However the domains take turns, a backend hears every word of its frontend, and connects and closes.

    An event that comes while the driver looks, or between its look and its sleep, is an event: whoever drops it, since
    somebody is looking already, has a device that hangs once in a thousand boots.
    """
    await scene.plug()
    for _ in range(3):
        end = scene.end
        await end.connect()
        await end.close()
        await end.released()
        end.let_go()
        await end.say(XenbusStateInitialising)
