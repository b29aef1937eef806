"""The checks of suite `console`."""

from __future__ import annotations

from conformance.console.daemon import FILLER, IN_SIZE, OUT_SIZE, U32, Daemon
from conformance.console.world import Scene
from conformance.kit.check import Level, check, expect, expect_equal
from hypervisor.abi.io.console import xencons_interface

HEADER = "io/console.h, struct xencons_interface"
PAGE = "docs/console.md"
TEXT = b"".join(b"%05d\n" % number for number in range(2000))
"""12000 bytes of which any two stretches differ."""
NEAR_THE_END = 0xFFFF_FFF8
"""An index that wraps at 2^32 within the next line."""


def stays_within(daemon: Daemon, *, input_too: bool = True) -> None:
    """Raise Failure if the guest has written where nothing of its own is."""
    inside = bytes(daemon.page.view[: xencons_interface.offset("out")])
    if input_too:
        expect(inside == bytes([FILLER]) * IN_SIZE, "It writes into the ring of its input.")
    behind = bytes(daemon.page.view[xencons_interface.offset("out_prod") + 4 :])
    expect(behind == bytes([FILLER]) * len(behind), "It writes behind the indices.")


# ---- output


@check("CONSOLE-001", Level.must, HEADER)
async def output_is_there(scene: Scene) -> None:
    """What is printed stands in the output ring, and `out_prod` has gone on by as many bytes.

    This is all that the daemon looks at.
    """
    daemon = scene.open()
    scene.write(b"hello\n")
    await daemon.settle()
    expect_equal(daemon.peek(), b"hello\n", "what is in the ring")
    expect_equal(daemon.index("out_prod"), 6, "out_prod after six bytes")
    stays_within(daemon)


@check("CONSOLE-002", Level.must, f"{PAGE}: whoever has put or taken bytes signals")
async def output_is_told(scene: Scene) -> None:
    """The daemon is notified of output.

    It sleeps until then: there is no other way for it to learn that something has been printed.
    """
    daemon = scene.open()
    await daemon.settle()
    for turn in range(3):
        daemon.events = 0
        scene.write(b"line\n")
        await daemon.settle()
        expect(daemon.events, f"It prints, the {('first', 'second', 'third')[turn]} time, and notifies nobody.")
        daemon.take()
        await daemon.settle()


@check("CONSOLE-003", Level.must, f"{HEADER}: out_cons, in_prod")
async def others_indices_are_left_alone(scene: Scene) -> None:
    """A guest does not write the daemon's indices, `out_cons` and `in_prod`.

    Both ends write at the same time: an index that two write loses one of the two.
    """
    daemon = scene.open(out=1000, into=500)
    scene.listen()
    scene.write(TEXT[:3000])
    await daemon.settle()
    expect_equal(daemon.index("out_cons"), 1000, "out_cons, which is the daemon's")
    await daemon.type(b"typed\n")
    await scene.has_read(1)
    expect_equal(daemon.index("in_prod"), 506, "in_prod, which is the daemon's")


@check("CONSOLE-004", Level.must, HEADER)
async def a_full_ring(scene: Scene) -> None:
    """A guest never puts more into the ring than there is room for.

    What the daemon has not read would be overwritten, and the indices would say that the ring is empty.
    """
    daemon = scene.open()
    for start in range(0, 6000, 500):
        scene.write(TEXT[start : start + 500])
        await daemon.kernel.sleep(500_000)
        expect_equal(
            daemon.peek(), TEXT[: min(start + 500, OUT_SIZE)], f"what is in the ring after {start + 500} bytes"
        )
    stays_within(daemon)


@check("CONSOLE-005", Level.must, f"{PAGE}: that is all the flow control there is")
async def what_waits_goes_on(scene: Scene) -> None:
    """What found no room follows as soon as the daemon has made some and says so.

    Whoever waits for the next print keeps the end of the last one: the line that says why the guest hangs.
    """
    daemon = scene.open()
    scene.write(TEXT[:5000])
    await daemon.settle()
    expect_equal(await daemon.read(5000), TEXT[:5000], "what comes out of the ring")
    await daemon.settle()
    expect_equal(daemon.said, 0, "how many bytes come behind the last")


@check("CONSOLE-006", Level.must, HEADER)
async def order_under_pressure(scene: Scene) -> None:
    """Whatever is printed while something waits comes behind it, and nothing is lost or said twice.

    A short line that overtakes a long one makes a log that nobody can read.
    """
    daemon = scene.open()
    sizes = (1, 700, 3, 2048, 64, 2049, 5, 1000, 17)
    start = 0
    for size in sizes:
        scene.write(TEXT[start : start + size])
        start += size
        daemon.take(97)
    taken = daemon.index("out_cons")
    found = await daemon.read(start - taken, step=131)
    expect_equal(found, TEXT[taken:start], "what comes out of the ring")


@check("CONSOLE-007", Level.must, f"{HEADER}: MASK_XENCONS_IDX")
async def output_wraps(scene: Scene) -> None:
    """Output that reaches the end of the ring goes on at its beginning.

    The index is masked for each byte; a copy that is not cut there writes over the indices behind the ring.
    """
    daemon = scene.open(out=OUT_SIZE - 10)
    scene.write(TEXT[:40])
    await daemon.settle()
    expect_equal(daemon.peek(), TEXT[:40], "what is in the ring")
    expect_equal(daemon.index("out_prod"), OUT_SIZE + 30, "out_prod, which does not wrap with the ring")
    stays_within(daemon)


@check("CONSOLE-008", Level.must, f"{HEADER}: XENCONS_RING_IDX is 32 bits")
async def output_index_wraps(scene: Scene) -> None:
    """`out_prod` goes on through 2^32, and a ring is as full there as elsewhere.

    A guest that compares the indices instead of subtracting them prints nothing any more, after four gigabytes.
    """
    daemon = scene.open(out=NEAR_THE_END)
    scene.write(TEXT[:20])
    await daemon.settle()
    scene.write(TEXT[20:3000])
    await daemon.settle()
    expect_equal(daemon.said, OUT_SIZE, "how many bytes are in the ring")
    expect_equal(daemon.index("out_prod"), (NEAR_THE_END + OUT_SIZE) & U32, "out_prod")
    expect_equal(await daemon.read(3000), TEXT[:3000], "what comes out of the ring")


@check("CONSOLE-009", Level.must, f"{PAGE}; Linux, hvc_xen (sanity check of the indices)")
async def a_daemon_that_is_ahead(scene: Scene) -> None:
    """A daemon that claims to have read what was never written does not have the guest fall, or write elsewhere.

    The difference of the indices is the number of bytes for a copy, and what the other end says of itself is no length.
    """
    for ahead in (1, OUT_SIZE, 5000, 0x8000_0000):
        daemon = scene.open()
        scene.write(b"before\n")
        await daemon.settle()
        daemon.set(out_cons=daemon.index("out_prod") + ahead)
        daemon.notify()
        scene.write(TEXT[:4000])
        await daemon.settle()
        stays_within(daemon)
        daemon.set(out_cons=daemon.index("out_prod"))
        daemon.notify()
        await daemon.settle()


@check("CONSOLE-010", Level.must, f"{PAGE}; Xen: the daemon is started after the first guests")
async def output_before_there_is_a_daemon(scene: Scene) -> None:
    """What is printed before the daemon is connected waits in the ring, and is not lost.

    A guest prints its first line before xenconsoled has heard of it.
    """
    daemon = scene.open_alone()
    scene.write(b"early\n")
    await daemon.settle()
    expect_equal(daemon.peek(), b"early\n", "what is in the ring")
    scene.connect()
    expect_equal(await daemon.read(6), b"early\n", "what the daemon finds")
    scene.write(b"later\n")
    expect_equal(await daemon.read(6), b"later\n", "what comes afterwards")


@check("CONSOLE-011", Level.should, f"{PAGE}: must work where nobody can wait")
async def printing_does_not_wait(scene: Scene) -> None:
    """To print into a full ring returns at once, and lives as long as nobody reads.

    A kernel prints in interrupts, and while it dies; one that waits there for a terminal has stopped.
    """
    daemon = scene.open()
    for start in range(0, 12000, 1000):
        scene.write(TEXT[start : start + 1000])
    await daemon.settle()
    expect_equal(daemon.peek(), TEXT[:OUT_SIZE], "what is in the ring")


@check("CONSOLE-012", Level.should, f"{PAGE}: whoever has put or taken bytes signals")
async def no_event_without_a_cause(scene: Scene) -> None:
    """An event without any change is not answered with another one.

    Two ends that answer every event keep two processors busy for ever.
    """
    daemon = scene.open()
    scene.write(b"line\n")
    await daemon.settle()
    daemon.take()
    await daemon.settle()
    daemon.events = 0
    for _ in range(10):
        daemon.notify()
        await daemon.kernel.sleep(1_000_000)
    expect_equal(daemon.events, 0, "the number of events that the guest sends for ten without a cause")


# ---- input


@check("CONSOLE-020", Level.must, HEADER)
async def input_is_read(scene: Scene) -> None:
    """What is typed arrives, and `in_cons` has gone on by as many bytes.

    A guest that does not say what it has read leaves the terminal stuck after a kilobyte.
    """
    daemon = scene.open()
    scene.listen()
    await daemon.type(b"help\n")
    expect_equal(await scene.has_read(1), ["help"], "what the guest reads")
    expect_equal(daemon.index("in_cons"), 5, "in_cons after five bytes")


@check("CONSOLE-021", Level.must, f"{PAGE}: whoever has put or taken bytes signals")
async def room_for_input_is_told(scene: Scene) -> None:
    """The daemon is notified when a guest has read what was typed.

    It may have more, and waits for room.
    """
    daemon = scene.open()
    scene.listen()
    await daemon.settle()
    daemon.events = 0
    await daemon.type(b"x" * (IN_SIZE - 1) + b"\n")
    await scene.has_read(1)
    await daemon.settle()
    expect(daemon.events, "It has read a full ring, and notifies nobody.")


@check("CONSOLE-022", Level.must, f"{HEADER}: MASK_XENCONS_IDX")
async def input_wraps(scene: Scene) -> None:
    """Input that reaches the end of its ring, and of 32 bits, is read as it was typed.

    The ring of the input has another size than that of the output: a shared mask is wrong for one of them.
    """
    for start in (IN_SIZE - 3, NEAR_THE_END):
        scene.lines.clear()
        daemon = scene.open(into=start)
        scene.listen()
        await daemon.type(b"a line that is longer than that\n")
        expect_equal(await scene.has_read(1), ["a line that is longer than that"], f"what is read at index {start:#x}")
        expect_equal(daemon.index("in_cons"), (start + 32) & U32, "in_cons")


@check("CONSOLE-023", Level.must, f"{PAGE}; Linux, hvc_xen (sanity check of the indices)")
async def more_input_than_there_is_room_for(scene: Scene) -> None:
    """A daemon that claims to have put more than a ring holds does not have the guest fall, or read elsewhere.

    What lies behind the ring is the output of everybody who prints, and the indices.
    """
    for claim in (IN_SIZE + 1, 5000, 0x8000_0000, U32):
        scene.lines.clear()
        daemon = scene.open()
        scene.listen()
        scene.write(b"SECRET\nSECRET\n")
        daemon.page.view[:IN_SIZE] = b"i" * (IN_SIZE - 1) + b"\n"
        daemon.set(in_prod=claim)
        daemon.notify()
        await daemon.settle()
        expect(not any("SECRET" in line for line in scene.lines), "What was printed is read as if it had been typed.")
        read = sum(len(line) + 1 for line in scene.lines)
        expect(read <= IN_SIZE, f"It reads {read} bytes of a ring of {IN_SIZE}.")


@check("CONSOLE-024", Level.must, f"{PAGE}: A guest that does not read")
async def more_than_a_ring_is_typed(scene: Scene) -> None:
    """Input that is longer than the ring arrives whole, in order, as fast as it is read.

    Somebody pastes a file.
    """
    daemon = scene.open()
    scene.listen()
    lines = [f"{number:04} some line of a file" for number in range(100)]
    await daemon.type("".join(f"{line}\n" for line in lines).encode())
    expect_equal(await scene.has_read(100), lines, "what the guest reads")


@check("CONSOLE-025", Level.must, HEADER)
async def input_that_was_there_first(scene: Scene) -> None:
    """What was typed before the guest looked is read with what comes next.

    An event from the time before a handler was there is gone, the bytes are not.
    """
    daemon = scene.open_alone()
    daemon.put(b"first\n")
    scene.connect()
    scene.listen()
    await daemon.settle()
    await daemon.type(b"second\n")
    expect_equal(await scene.has_read(2), ["first", "second"], "what the guest reads")


@check("CONSOLE-026", Level.must, HEADER)
async def both_at_once(scene: Scene) -> None:
    """Output and input at the same time do not disturb each other.

    They have rings of their own and one event for both: a guest looks at both whatever it is for.
    """
    daemon = scene.open()
    scene.listen()
    scene.write(TEXT[:4000])
    found = b""
    for number in range(20):
        daemon.put(b"line %d\n" % number)
        found += daemon.take(300)
        daemon.notify()
        await daemon.kernel.sleep(500_000)
    if len(found) < 4000:
        found += await daemon.read(4000 - len(found))
    expect_equal(found, TEXT[:4000], "what comes out of the ring")
    expect_equal(await scene.has_read(20), [f"line {number}" for number in range(20)], "what the guest reads")
