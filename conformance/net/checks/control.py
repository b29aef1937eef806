"""The control ring: hashing, and pages that stay mapped."""

from __future__ import annotations

from typing import Final

from conformance.kit.check import Level, Skip, check, expect, expect_equal
from conformance.net.checks.common import HEADER, SCATTER, both, carries, lives_on, needs
from conformance.net.control import Control
from conformance.net.frames import ADDRESS, ADDRESS2, MACS, expect_frames, frame, udp
from conformance.net.world import Scene
from hypervisor.abi.io import netif
from hypervisor.abi.io.netif import (
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
    XEN_NETIF_CTRL_HASH_TYPE_IPV4,
    XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW,
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER,
    XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED,
    XEN_NETIF_CTRL_STATUS_SUCCESS,
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING,
    XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING,
    XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE,
    XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS,
    XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE,
    XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM,
    XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS,
    XEN_NETIF_CTRL_TYPE_SET_HASH_KEY,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE,
    XEN_NETIF_CTRLF_GREF_readonly,
)
from hypervisor.abi.io.ring import REQ_PROD

CONTROL = f"{HEADER}, Control requests"
HASHING = f"{HEADER}, Hash algorithms"
GREFS = f"{HEADER}, Static Grants"
SUCCESS, INVALID = XEN_NETIF_CTRL_STATUS_SUCCESS, XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
KEY: Final = bytes(range(1, 41))
READ_ONLY: Final = XEN_NETIF_CTRLF_GREF_readonly


@check("NETIF-BACKEND-110", Level.must, CONTROL)
async def requests_that_there_are_not(scene: Scene) -> None:
    """A control request of a type that the backend does not know is answered NOT_SUPPORTED, with its id and type.

    A frontend that is newer asks, and goes on without.
    """
    control = await _connected(scene)
    for kind in (0, 11, 99, 0xFFFF):
        status, _ = await control.ask(kind, 1, 2, 3, ident=kind ^ 0x1234)
        expect_equal(status, XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, f"the status of request {kind}")


@check("NETIF-BACKEND-111", Level.must, HASHING)
async def hash_types(scene: Scene) -> None:
    """Types of hashing that are offered can be ordered; a type or algorithm that there is not is refused.

    What is ordered and not done lets all frames go to one queue, which nobody notices.
    """
    control = await _hashing(scene)
    status, offered = await control.ask(XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS)
    expect_equal((status, bool(offered), offered & ~15), (SUCCESS, True, 0), "status, and types that are offered,")
    expect_equal((await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, offered))[0], SUCCESS, "the status of those")
    for kind, bad in ((XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 1 << 4), (XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, 77)):
        status, _ = await control.ask(kind, bad)
        expect_equal(status, INVALID, f"the status of request {kind} with {bad}")


@check("NETIF-BACKEND-112", Level.must, f"{HASHING}; XEN_NETIF_CTRL_TYPE_SET_HASH_KEY")
async def keys_that_are_too_long(scene: Scene) -> None:
    """A key that is longer than the backend has room for is refused, and one in a page that is not granted, too.

    The length is 32 bits of the guest's.
    """
    control = await _hashing(scene)
    page = control.page(KEY)
    for size in (4097, 0x8000_0000, 0xFFFF_FFFF):
        status, _ = await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, page, size)
        expect_equal(status, XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW, f"the status of a key of {size} bytes")
    expect_equal((await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, 5000, 40))[0], INVALID, "that of a bad page")
    expect_equal((await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, page, 40))[0], SUCCESS, "that of a good key")


@check("NETIF-BACKEND-113", Level.must, f"{HASHING}; XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING")
async def mappings_that_cannot_be(scene: Scene) -> None:
    """A table that is too large, a part beyond it, and a queue that there is not are refused; the table stays.

    Whoever believes it writes behind an array, or gives a frame to a queue that is none.
    """
    control = await _hashing(scene)
    status, most = await control.ask(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE)
    expect_equal(status, SUCCESS, "the status of GET_HASH_MAPPING_SIZE")
    size, table = XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING
    expect_equal((await control.ask(size, most + 1))[0], INVALID, f"the status of a table of {most + 1}")
    expect_equal((await control.ask(size, 4))[0], SUCCESS, "the status of a table of 4")
    good, bad = control.page(_numbers(0, 0, 0, 0)), control.page(_numbers(0, 0, 77, 0))
    expect_equal((await control.ask(table, bad, 4, 0))[0], INVALID, "the status of a table with queue 77")
    for count, offset in ((4, 1), (1, 4), (1, 0xFFFF_FFFF)):
        status, _ = await control.ask(table, good, count, offset)
        expect(status in (INVALID, 3), f"{count} entries at {offset} of a table of 4 are answered with {status}.")
    expect_equal((await control.ask(table, good, 4, 0))[0], SUCCESS, "the status of a good table")


@check("NETIF-BACKEND-114", Level.must, f"{HASHING}; {HEADER}, XEN_NETIF_EXTRA_TYPE_HASH")
async def the_hash_decides(scene: Scene) -> None:
    """A packet goes to the queue that its Toeplitz hash has in the table, and the hash comes with it.

    The guest finds the packet's connection by it, on the processor that has it in its cache.
    """
    await _needs_control(scene)
    if int(await scene.front.told("multi-queue-max-queues") or 0) < 2:
        raise Skip("It does not offer two queues.")
    front, peer = await both(scene, SCATTER, queues=2, control=True)
    assert front.control is not None
    control = front.control
    if await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ) != (0, 0):
        raise Skip("It does not offer the Toeplitz hash.")
    value = toeplitz(KEY, ADDRESS + ADDRESS2)
    await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, control.page(KEY), len(KEY))
    await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, XEN_NETIF_CTRL_HASH_TYPE_IPV4)
    await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, 4)
    for number in range(2):
        numbers = [1 - number] * 4
        numbers[value % 4] = number
        await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, control.page(_numbers(*numbers)), 4, 0)
        await peer.queue.send(udp(50, blank=False, source=MACS[1]))
        found = await front.queues[number].receive_one()
        extras = [extra for extra in found.extras if extra[0] == netif.XEN_NETIF_EXTRA_TYPE_HASH]
        told = [int.from_bytes(extra[4:], "little") for extra in extras]
        expect_equal(told, [value], "the hashes in extra info")


@check("NETIF-BACKEND-115", Level.must, f"{GREFS}; XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING")
async def pages_that_stay_mapped(scene: Scene) -> None:
    """Pages that are registered may be sent from and received into; what is taken off the list is mapped no more.

    It spares a hypercall for each frame, as long as both ends agree on what is mapped.
    """
    control = await _grefs(scene)
    front, peer = scene.front, scene.peer
    data = frame(200)
    ref = front.grant(data, readonly=True)
    expect_equal((await _add(control, (ref, READ_ONLY)))[0], SUCCESS, "the status of ADD_GREF_MAPPING")
    for _ in range(3):
        ident = front.queue.put(ref, 200)
        front.queue.show_tx()
        await front.queue.taken(ident)
        expect_frames(await peer.queue.receive_data(), [data], "What arrives out of a registered page")
    page = control.grefs((ref, 0))
    found = await control.ask(XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, 0, page, 1)
    expect_equal(found, (SUCCESS, 1), "status and number of DEL_GREF_MAPPING")
    expect(not front.kernel.grants.is_in_use(ref), "A page that was taken off the list is still mapped.")
    ident = front.queue.put(ref, 200)
    front.queue.show_tx()
    await front.queue.taken(ident)
    expect_frames(await peer.queue.receive_data(), [data], "What arrives out of a page that is registered no more")


@check("NETIF-BACKEND-116", Level.must, f"{GREFS}; XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING")
async def all_of_a_list_or_none(scene: Scene) -> None:
    """A list with one bad reference is refused as a whole: none of the others stays mapped.

    The guest does not know which were; it would take them all for its own again.
    """
    control = await _grefs(scene)
    front = scene.front
    good = [front.grant() for _ in range(2)]
    for bad in (5000, 0xFFFF_FFFF):
        for at in range(3):
            refs = [*good[:at], bad, *good[at:]]
            status, _ = await _add(control, *[(ref, 0) for ref in refs])
            expect_equal(status, INVALID, f"the status of a list with a bad reference at {at}")
            kept = [ref for ref in good if front.kernel.grants.is_in_use(ref)]
            expect(not kept, f"{len(kept)} good references of a list that was refused are mapped.")
    readonly = front.grant(readonly=True)
    expect_equal((await _add(control, (readonly, 0)))[0], INVALID, "the status of a read-only page as a writable one")


@check("NETIF-BACKEND-117", Level.must, f"{GREFS}; XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING")
async def off_the_list(scene: Scene) -> None:
    """What is to be taken off the list and is not on it has INVALID_PARAMETER in its entry; the others are unmapped.

    The status of the request is that it was read; the entries say the rest.
    """
    control = await _grefs(scene)
    front = scene.front
    refs = [front.grant() for _ in range(3)]
    await _add(control, (refs[0], 0), (refs[2], 0))
    page = control.grefs(*[(ref, 0) for ref in refs])
    found = await control.ask(XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, 0, page, 3)
    expect_equal(found, (SUCCESS, 2), "status and number")
    expect_equal([control.status_of(page, entry) for entry in range(3)], [0, INVALID, 0], "the entries' statuses")


@check("NETIF-BACKEND-118", Level.must, GREFS)
async def lists_that_cannot_be(scene: Scene) -> None:
    """A list of no entries, of more than a page holds, in no page, or for no queue is refused.

    Each number is 32 bits of the guest's.
    """
    control = await _grefs(scene)
    page = control.grefs((scene.front.grant(), 0))
    for queue, ref, count in ((0, page, 0), (0, page, 513), (0, page, 0x2000_0001), (0, 5000, 1), (77, page, 1)):
        status, _ = await control.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, queue, ref, count)
        expect_equal(status, INVALID, f"the status of {count} entries in page {ref} for queue {queue}")
    status, _ = await control.ask(XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, 77)
    expect_equal(status, INVALID, "the status of GET_GREF_MAPPING_SIZE for queue 77")


@check("NETIF-BACKEND-119", Level.must, f"{GREFS}; {HEADER}, XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE")
async def the_same_page_twice(scene: Scene) -> None:
    """A reference that is on the list already is refused, and one that is twice on it, too.

    It would be mapped twice, and unmapped once: the page never comes back.
    """
    control = await _grefs(scene)
    ref = scene.front.grant()
    expect_equal((await _add(control, (ref, 0), (ref, 0)))[0], INVALID, "the status of a list with a page twice")
    expect(not scene.front.kernel.grants.is_in_use(ref), "A page of a list that was refused is mapped.")
    expect_equal((await _add(control, (ref, 0)))[0], SUCCESS, "the status of a page")
    expect_equal((await _add(control, (ref, 0)))[0], INVALID, "the status of a page that is on the list already")


@check("NETIF-BACKEND-120", Level.must, f"{GREFS}; XSA-371")
async def mapped_until_closed(scene: Scene) -> None:
    """Pages that are still registered when the device closes are unmapped with it.

    The guest has forgotten its list by then.
    """
    control = await _grefs(scene)
    refs = [scene.front.grant() for _ in range(40)]
    expect_equal((await _add(control, *[(ref, 0) for ref in refs]))[0], SUCCESS, "the status of ADD_GREF_MAPPING")
    await carries(scene.front, scene.peer)
    await scene.front.close()


@check("NETIF-BACKEND-121", Level.must, "XSA-39; io/ring.h, RING_REQUEST_PROD_OVERFLOW")
async def a_control_ring_that_overflows(scene: Scene) -> None:
    """A req_prod of the control ring that cannot be keeps nobody busy, and costs at most the device.

    It is one more ring of the guest's, and is looked at less.
    """
    control = await _connected(scene)
    for ahead in (1000, 0x8000_0000, 0xFFFF_FFFF):
        control.ring.shared[REQ_PROD] = ahead
        scene.front.kernel.events.notify(control.port)
        await scene.front.kernel.sleep(5_000_000)
    await lives_on(scene)


@check("NETIF-BACKEND-122", Level.must, f"{HEADER}, Control ring")
async def a_control_ring_that_is_none(scene: Scene) -> None:
    """A control ring that cannot be mapped, or without an event channel, leaves nothing mapped.

    The other two rings have been mapped before it. (Whether the device closes or goes on without it is free.)
    """
    await _needs_control(scene)
    front = scene.front
    for bad in ({"ctrl-ring-ref": 5000}, {"ctrl-ring-ref": "x"}, {"event-channel-ctrl": 4000}):
        await front.try_to_connect(bad, control=True)
        await front.close()
        await front.begin_again()
    await front.connect()


@check("NETIF-BACKEND-123", Level.must, f"XSA-361; {GREFS}")
async def a_bad_grant_among_mapped_pages(scene: Scene) -> None:
    """Among many requests for registered pages, one that names no grant costs its own frame only, at each place.

    Many that are alike are moved at once where both ends have registered their pages; the odd one is to be found.
    """
    control = await _grefs(scene)
    front, peer = scene.front, scene.peer
    await peer.close()
    await peer.begin_again()
    await peer.connect(SCATTER, control=True)
    assert peer.control is not None
    expect_equal((await _add(peer.control, *[(ref, 0) for ref in peer.queue.buffers]))[0], SUCCESS, "status of buffers")
    await carries(peer, front)
    for bad in (0, 1, 9, 19):
        frames = [frame(60, number + bad, to=MACS[1]) for number in range(20)]
        refs = [front.grant(data, readonly=True) for data in frames]
        expect_equal((await _add(control, *[(ref, READ_ONLY) for ref in refs]))[0], SUCCESS, "the status of pages")
        wanted = [front.queue.put(5000 if number == bad else ref, 60) for number, ref in enumerate(refs)]
        front.queue.show_tx()
        found = [(ident, status < 0) for ident, status in await front.queue.answers(20)]
        expect_equal(sorted(found), sorted((ident, number == bad) for number, ident in enumerate(wanted)), "responses")
        expect_frames(await peer.queue.receive_data(19), frames[:bad] + frames[bad + 1 :], "What arrives")
        peer.queue.restock()
        await control.ask(XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, 0, control.grefs(*[(ref, 0) for ref in refs]), 20)
    await peer.queue.silent()


async def _needs_control(scene: Scene) -> None:
    await needs(scene.front, "feature-ctrl-ring")


async def _connected(scene: Scene) -> Control:
    """Return the control ring of the first interface, both being connected. Raises Skip."""
    await _needs_control(scene)
    front, _ = await both(scene, control=True)
    assert front.control is not None
    return front.control


async def _hashing(scene: Scene) -> Control:
    """Return the same, with the Toeplitz hash ordered. Raises Skip."""
    control = await _connected(scene)
    status, _ = await control.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ)
    if status != SUCCESS:
        raise Skip("It does not offer the Toeplitz hash.")
    return control


async def _grefs(scene: Scene) -> Control:
    """Return the same, of a backend that keeps pages mapped. Raises Skip."""
    control = await _connected(scene)
    status, most = await control.ask(XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, 0)
    if status != SUCCESS or most < 64:
        raise Skip("It does not offer to keep 64 pages mapped.")
    return control


async def _add(control: Control, *entries: tuple[int, int]) -> tuple[int, int]:
    return await control.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, 0, control.grefs(*entries), len(entries))


def _numbers(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def toeplitz(key: bytes, data: bytes) -> int:
    """Return the Toeplitz hash: for each bit of `data` that is set, the 32 bits of the key from there on, added up."""
    bits = int.from_bytes(key, "big")
    width, value = len(key) * 8, 0
    for place in range(len(data) * 8):
        if data[place // 8] & 0x80 >> place % 8:
            value ^= bits >> width - 32 - place & 0xFFFF_FFFF
    return value
