"""The checks of suite `xenstore`: what a client of dom0 sees. The model is the C daemon of Xen 4.17."""

from __future__ import annotations

from conformance.kit.check import Failure, Level, check, expect, expect_equal
from conformance.kit.telling import note
from conformance.xenstore.world import SILENCE, HungUp, Store
from guest_kernel.xenbus.wire import HEADER, encode
from hypervisor.abi.io import xs_wire as xs

WIRE = "io/xs_wire.h"
TEXT = "docs/misc/xenstore.txt"


# ---- messages


@check("XENSTORE-001", Level.must, f"{WIRE}, struct xsd_sockmsg")
def replies_carry_the_numbers(store: Store) -> None:
    """A reply carries the type, req_id and tx_id of its request.

    Clients with several requests under way find their replies by these; a kernel that mixes them up hands one driver's
    answer to another.
    """
    client = store.one
    client.send(encode(xs.XS_WRITE, 0xFFFF_FFFF, 0, f"{store.home}/a\0x".encode()))
    reply = client.reply()
    expect_equal((reply.type, reply.req_id, reply.tx_id), (xs.XS_WRITE, 0xFFFF_FFFF, 0), "the reply's header")


@check("XENSTORE-002", Level.must, f"{WIRE}, XS_ERROR")
def errors_are_names(store: Store) -> None:
    """An error is a message of type XS_ERROR whose payload is the errno's name, with a NUL.

    Numbers of errnos differ between systems; the name is what libxenstore looks up.
    """
    store.one.refused(xs.XS_READ, f"{store.home}/nothing\0".encode(), "ENOENT")


@check("XENSTORE-003", Level.must, f"{TEXT}, communications")
def requests_may_come_together(store: Store) -> None:
    """Requests that come in one piece are all answered, in their order.

    Kernels fill the ring before they wait; one message a read is not guaranteed by anybody.
    """
    client = store.one
    client.write(f"{store.home}/a", "1")
    request = f"{store.home}/a\0".encode()
    client.send(b"".join(encode(xs.XS_READ, number, 0, request) for number in range(50, 80)))
    expect_equal([client.reply().req_id for _ in range(30)], list(range(50, 80)), "the order of the replies")


@check("XENSTORE-004", Level.must, f"{TEXT}, communications")
def requests_may_come_in_pieces(store: Store) -> None:
    """A request may be cut anywhere, in its header too.

    pyxs sends header and payload in two writes, and a ring may have room for a few bytes only.
    """
    client = store.one
    message = encode(xs.XS_WRITE, 9, 0, f"{store.home}/a\0value".encode())
    for at in range(0, len(message), 5):
        client.send_alone(message[at : at + 5])
    expect_equal(client.reply().payload, b"OK\0", "the reply to a request in pieces")
    expect_equal(client.read(f"{store.home}/a"), b"value", "the value that was written in pieces")


@check("XENSTORE-005", Level.must, f"{WIRE}, XENSTORE_PAYLOAD_MAX")
def payload_of_the_greatest_size(store: Store) -> None:
    """A payload of 4096 bytes is taken.

    One byte less than the limit is a limit of one's own.
    """
    client = store.one
    path = f"{store.home}/big"
    value = b"v" * (xs.XENSTORE_PAYLOAD_MAX - len(path) - 1)
    client.write(path, value)
    expect(client.read(path) == value, "A value that fills the greatest payload comes back changed.")


@check("XENSTORE-006", Level.must, f"{WIRE}, XENSTORE_PAYLOAD_MAX")
def a_longer_payload_ends_the_connection(store: Store) -> None:
    """A header that announces more than 4096 bytes ends the connection.

    There is no place from which to read on; a store that reserves what the header says gives a client its memory.
    """
    client = store.client()
    client.send(HEADER.pack(xs.XS_WRITE, 1, 0, xs.XENSTORE_PAYLOAD_MAX + 1))
    try:
        message = client.message()
    except HungUp:
        return
    raise Failure(f"The store answers {message.payload!r} to a payload that is too long; it should hang up.")


@check("XENSTORE-007", Level.must, f"{WIRE}, enum xsd_sockmsg_type")
def unknown_operations(store: Store) -> None:
    """An operation that does not exist is refused with ENOSYS, and the connection goes on.

    Clients try newer operations and fall back; hanging up would end all they do.
    """
    for kind in (xs.XS_TYPE_COUNT, 127, xs.XS_INVALID, xs.XS_WATCH_EVENT, xs.XS_ERROR):
        store.one.refused(kind, b"/\0", "ENOSYS")
    store.one.write(f"{store.home}/a", "still here")


@check("XENSTORE-008", Level.must, f"{WIRE}, struct xsd_sockmsg")
def a_client_that_goes_disturbs_nobody(store: Store) -> None:
    """A client that hangs up in the middle of a request leaves the others alone, and the request is not carried out.

    Programs are killed at any moment. Half a value is worse than none.
    """
    dying = store.client()
    dying.sync()
    dying.send_alone(HEADER.pack(xs.XS_WRITE, 1, 0, 100) + f"{store.home}/half\0va".encode())
    dying.hang_up()
    store.one.write(f"{store.home}/a", "1")
    store.one.refused(xs.XS_READ, f"{store.home}/half\0".encode(), "ENOENT")


# ---- values and names


@check("XENSTORE-010", Level.must, f"{TEXT}, READ")
def values_are_bytes(store: Store) -> None:
    """A value is any bytes, without a NUL added or taken away; it may be empty.

    Keys and binary state live in there. A reply to READ is the value and nothing else.
    """
    for value in (b"", b"\0", b"a\0b\0", bytes(range(256))):
        store.one.write(f"{store.home}/v", value)
        expect_equal(store.one.read(f"{store.home}/v"), value, "the value that was written")


@check("XENSTORE-011", Level.must, f"{TEXT}, WRITE")
def parents_come_with_the_node(store: Store) -> None:
    """WRITE makes the directories that are missing above a node, with empty values.

    The toolstack writes a device's nodes without a MKDIR for each level.
    """
    store.one.write(f"{store.home}/a/b/c", "x")
    expect_equal(store.one.read(f"{store.home}/a"), b"", "the value of a directory that was made on the way")
    expect_equal(store.one.list(f"{store.home}/a"), ["b"], "its children")


@check("XENSTORE-012", Level.must, f"{TEXT}, paths")
def names_that_cannot_be(store: Store) -> None:
    """Names hold letters, digits, - / _ and @; no `//`, and no slash at the end. All else is EINVAL.

    A store that takes more has nodes that other clients can neither name nor remove.
    """
    for bad in ("a b", "a.b", "a:b", "a+b", "é", "a//b", "a/", ""):
        name = f"{store.home}/{bad}" if bad else f"{store.home}/"
        store.one.refused(xs.XS_WRITE, name.encode() + b"\0x", "EINVAL")
    store.one.write(f"{store.home}/Az-0_9@x", "1")


@check("XENSTORE-013", Level.must, f"{TEXT}, DIRECTORY")
def directories(store: Store) -> None:
    """DIRECTORY lists the names of the children, each with its NUL, and nothing for a leaf.

    `xenstore-ls` and every bus driver walk the tree by it.
    """
    for name in ("z", "a", "m"):
        store.one.write(f"{store.home}/d/{name}", "")
    found = store.one.ask(xs.XS_DIRECTORY, f"{store.home}/d")
    expect(found.endswith(b"\0"), "The last name of a directory lacks its NUL.")
    expect_equal(sorted(found[:-1].split(b"\0")), [b"a", b"m", b"z"], "the names in the directory")
    expect_equal(store.one.ask(xs.XS_DIRECTORY, f"{store.home}/d/a"), b"", "the list of a leaf")


@check("XENSTORE-014", Level.may, "C daemon of 4.17")
def directories_are_in_order_of_creation(store: Store) -> None:
    """DIRECTORY lists children in the order in which they were made; one that was removed and made again is last.

    The C daemon does; oxenstored sorts. Clients must not rely on either.
    """
    for name in ("z", "a", "m"):
        store.one.write(f"{store.home}/d/{name}", "")
    store.one.ask(xs.XS_RM, f"{store.home}/d/a")
    store.one.write(f"{store.home}/d/a", "")
    expect_equal(store.one.list(f"{store.home}/d"), ["z", "m", "a"], "the order of the children")


@check("XENSTORE-015", Level.must, f"{TEXT}, DIRECTORY_PART")
def large_directories_come_in_parts(store: Store) -> None:
    """A directory of more than 4096 bytes is E2BIG, and comes in parts by DIRECTORY_PART.

    Each part begins with the directory's generation, so that a client sees that it has changed in between.
    """
    names = [f"child-{number:04}" for number in range(420)]
    for name in names:
        store.one.write(f"{store.home}/d/{name}", "")
    store.one.refused(xs.XS_DIRECTORY, f"{store.home}/d\0".encode(), "E2BIG")
    listed = b""
    for _ in range(10):
        part = store.one.ask(xs.XS_DIRECTORY_PART, f"{store.home}/d", str(len(listed)))
        _, _, piece = part.partition(b"\0")
        if piece.endswith(b"\0\0") or piece == b"\0":
            listed += piece[:-1]
            break
        listed += piece
    expect_equal(listed[:-1].decode().split("\0"), names, "the directory in parts")


@check("XENSTORE-016", Level.must, f"{TEXT}, MKDIR")
def mkdir(store: Store) -> None:
    """MKDIR of a node that is there succeeds and leaves its value.

    It is how a client makes sure that a directory exists.
    """
    store.one.write(f"{store.home}/a", "kept")
    expect_equal(store.one.ask(xs.XS_MKDIR, f"{store.home}/a"), b"OK\0", "the reply to MKDIR")
    expect_equal(store.one.read(f"{store.home}/a"), b"kept", "the value after MKDIR")


@check("XENSTORE-017", Level.must, f"{TEXT}, RM")
def rm_takes_all_below(store: Store) -> None:
    """RM takes the node and all below it; RM of what is not there succeeds if its directory is.

    Closing a device removes its directory; two who do so at once must both succeed.
    """
    store.one.write(f"{store.home}/a/b/c", "")
    store.one.ask(xs.XS_RM, f"{store.home}/a")
    store.one.refused(xs.XS_READ, f"{store.home}/a/b/c\0".encode(), "ENOENT")
    store.one.ask(xs.XS_RM, f"{store.home}/a")
    store.one.refused(xs.XS_RM, f"{store.home}/a/b/c\0".encode(), "ENOENT")


@check("XENSTORE-018", Level.must, f"{TEXT}, RM")
def the_root_stays(store: Store) -> None:
    """The root cannot be removed: EINVAL.

    It would take everything of everybody.
    """
    store.one.refused(xs.XS_RM, b"/\0", "EINVAL")
    expect(store.one.list("/"), "The root has no children any more.")


@check("XENSTORE-019", Level.should, "C daemon of 4.17")
def missing_nuls(store: Store) -> None:
    """A string without its NUL is refused: ENOENT for READ, DIRECTORY, GET_PERMS; ENOMEM for MKDIR, RM; else EINVAL.

    A store that reads on finds another client's bytes there.
    """
    store.one.write(f"{store.home}/a", "1")
    path = f"{store.home}/a".encode()
    for kind, error in (
        (xs.XS_READ, "ENOENT"),
        (xs.XS_DIRECTORY, "ENOENT"),
        (xs.XS_GET_PERMS, "ENOENT"),
        (xs.XS_MKDIR, "ENOMEM"),
        (xs.XS_RM, "ENOMEM"),
        (xs.XS_WRITE, "EINVAL"),
        (xs.XS_WATCH, "EINVAL"),
    ):
        store.one.refused(kind, path, error)


@check("XENSTORE-020", Level.must, f"{TEXT}, paths")
def relative_paths(store: Store) -> None:
    """A name without a slash before it is relative to /local/domain/0 for dom0.

    Drivers name their nodes relative to their domain.
    """
    client = store.one
    client.write("conformance-relative", "1")
    try:
        expect_equal(client.read("/local/domain/0/conformance-relative"), b"1", "the node by its absolute name")
    finally:
        client.ask(xs.XS_RM, "conformance-relative")


# ---- permissions


@check("XENSTORE-030", Level.must, f"{TEXT}, GET_PERMS")
def permissions(store: Store) -> None:
    """SET_PERMS and GET_PERMS have one letter and domain id for each entry, each with a NUL; the first is the owner.

    Backends read a frontend's nodes by an entry of their own.
    """
    store.one.write(f"{store.home}/a", "")
    store.one.ask(xs.XS_SET_PERMS, f"{store.home}/a", "n0", "r1", "w2", "b3")
    found = store.one.ask(xs.XS_GET_PERMS, f"{store.home}/a")
    expect_equal(found, b"n0\0r1\0w2\0b3\0", "the permissions that were set")


@check("XENSTORE-031", Level.must, f"{TEXT}, SET_PERMS")
def bad_permissions(store: Store) -> None:
    """An entry that is no letter of n, r, w, b and a number is EINVAL, and changes nothing.

    A list that was taken in part opens a node to strangers.
    """
    store.one.write(f"{store.home}/a", "")
    before = store.one.ask(xs.XS_GET_PERMS, f"{store.home}/a")
    for bad in ("x0", "r", "0", "rr0", "r0x"):
        store.one.refused(xs.XS_SET_PERMS, f"{store.home}/a\0n0\0{bad}\0".encode(), "EINVAL")
    expect_equal(store.one.ask(xs.XS_GET_PERMS, f"{store.home}/a"), before, "the permissions after bad ones")


@check("XENSTORE-032", Level.must, f"{TEXT}, permissions")
def new_nodes_inherit(store: Store) -> None:
    """A new node has the permissions of its directory.

    A guest's directory is the guest's; what dom0 writes there must be readable for the guest.
    """
    store.one.write(f"{store.home}/d", "")
    store.one.ask(xs.XS_SET_PERMS, f"{store.home}/d", "n0", "r7")
    store.one.write(f"{store.home}/d/new/leaf", "")
    for path in ("d/new", "d/new/leaf"):
        found = store.one.ask(xs.XS_GET_PERMS, f"{store.home}/{path}")
        expect_equal(found, b"n0\0r7\0", f"the permissions of the new node {path}")


# ---- watches


@check("XENSTORE-040", Level.must, f"{TEXT}, WATCH")
def first_event(store: Store) -> None:
    """A new watch has one event at once, whether the node is there or not, after the reply.

    Who watches and then reads cannot miss anything; drivers do their first look by that event.
    """
    client = store.one
    client.order.clear()
    client.ask(xs.XS_WATCH, f"{store.home}/nothing", "tok")
    client.expect_events((f"{store.home}/nothing", "tok"))
    expect_equal(client.order[:2], ["reply", "event"], "the order of reply and first event")


@check("XENSTORE-041", Level.must, f"{TEXT}, WATCH")
def events_of_what_is_below(store: Store) -> None:
    """A watch has an event for each change of its node and of all below it, with the changed path.

    A bus driver has one watch for all devices.
    """
    client = store.one
    client.watch(f"{store.home}/d", "tok")
    client.write(f"{store.home}/d", "1")
    client.write(f"{store.home}/d/x/y", "2")
    client.write(f"{store.home}/dd", "3")
    client.expect_events((f"{store.home}/d", "tok"), (f"{store.home}/d/x/y", "tok"))


@check("XENSTORE-042", Level.must, f"{TEXT}, WATCH")
def the_same_value_fires(store: Store) -> None:
    """Writing the value that is there already is a change.

    Clients use it as a signal: the balloon's target, sysrq, a state that is said again.
    """
    client = store.one
    client.write(f"{store.home}/a", "1")
    client.watch(f"{store.home}/a", "tok")
    client.write(f"{store.home}/a", "1")
    client.expect_events((f"{store.home}/a", "tok"))


@check("XENSTORE-043", Level.must, f"{TEXT}, WATCH")
def one_event_for_a_new_path(store: Store) -> None:
    """A node that is made with the directories above it is one event, not one for each level.

    Otherwise each device that appears has its driver look four times.
    """
    client = store.one
    client.watch(store.home, "tok")
    client.write(f"{store.home}/a/b/c", "")
    client.expect_events((f"{store.home}/a/b/c", "tok"))


@check("XENSTORE-044", Level.must, f"{TEXT}, RM")
def events_of_a_removal(store: Store) -> None:
    """RM of a directory: one event for those who watch above, and one for each watch on a node that went with it.

    A driver that watches its peer's state must hear that the whole device is gone.
    """
    client = store.one
    client.write(f"{store.home}/d/x", "")
    client.watch(store.home, "above")
    client.watch(f"{store.home}/d/x", "inside")
    client.ask(xs.XS_RM, f"{store.home}/d")
    client.sync()
    found = sorted(client.events)
    client.events.clear()
    expect_equal(found, [(f"{store.home}/d", "above"), (f"{store.home}/d/x", "inside")], "the events of the removal")


@check("XENSTORE-045", Level.must, f"{TEXT}, WATCH")
def no_event_for_nothing(store: Store) -> None:
    """MKDIR of what is there and RM of what is not are no changes.

    An event without a change has drivers chase what is not there, for ever if they answer it with another.
    """
    client = store.one
    client.write(f"{store.home}/a", "")
    client.watch(store.home, "tok")
    client.ask(xs.XS_MKDIR, f"{store.home}/a")
    client.ask(xs.XS_RM, f"{store.home}/nothing")
    client.expect_events()


@check("XENSTORE-046", Level.must, f"{TEXT}, WATCH")
def one_watch_twice(store: Store) -> None:
    """The same path and token twice is EEXIST, however the path is spelled; another token is another watch.

    Events could not be told apart, and UNWATCH would not know which.
    """
    client = store.one
    client.watch("conformance-rel", "tok")
    client.refused(xs.XS_WATCH, b"conformance-rel\0tok\0", "EEXIST")
    client.refused(xs.XS_WATCH, b"/local/domain/0/conformance-rel\0tok\0", "EEXIST")
    client.watch("conformance-rel", "other")


@check("XENSTORE-047", Level.must, f"{TEXT}, WATCH")
def relative_watches(store: Store) -> None:
    """Events of a watch on a relative path have relative paths.

    The client compares them with what it asked for.
    """
    client = store.one
    client.watch("conformance-rel", "tok")
    try:
        client.write("/local/domain/0/conformance-rel/x", "")
        client.expect_events(("conformance-rel/x", "tok"))
    finally:
        client.ask(xs.XS_RM, "conformance-rel")


@check("XENSTORE-048", Level.must, f"{TEXT}, UNWATCH")
def unwatch(store: Store) -> None:
    """After UNWATCH nothing comes any more; UNWATCH of what is not watched is ENOENT.

    A driver that is unloaded has no code left for events.
    """
    client = store.one
    client.watch(store.home, "tok")
    client.ask(xs.XS_UNWATCH, store.home, "tok")
    client.write(f"{store.home}/a", "")
    client.expect_events()
    client.refused(xs.XS_UNWATCH, f"{store.home}\0tok\0".encode(), "ENOENT")


@check("XENSTORE-049", Level.must, f"{TEXT}, WATCH")
def watches_are_the_connections(store: Store) -> None:
    """A watch belongs to its connection: others hear nothing of it, and it goes with it.

    A watch that stays behind costs each later write a look, and a domain its quota.
    """
    other = store.client()
    other.watch(store.home, "tok")
    store.one.write(f"{store.home}/a", "")
    other.expect_events((f"{store.home}/a", "tok"))
    store.one.expect_events()
    store.one.refused(xs.XS_UNWATCH, f"{store.home}\0tok\0".encode(), "ENOENT")


@check("XENSTORE-050", Level.should, "C daemon of 4.17")
def events_come_before_the_reply(store: Store) -> None:
    """The events that a request causes for its own client come before its reply.

    The C daemon does; oxenstored sends them after it. Who waits for the reply and then looks relies on it.
    """
    client = store.one
    client.watch(store.home, "tok")
    client.order.clear()
    client.write(f"{store.home}/a", "")
    expect_equal(client.order, ["event", "reply"], "the order of event and reply")


@check("XENSTORE-051", Level.must, f"{TEXT}, SET_PERMS")
def permissions_are_a_change(store: Store) -> None:
    """SET_PERMS fires the watches on the node and above, and not those below.

    Whoever waits for access hears that it has been given.
    """
    client = store.one
    client.write(f"{store.home}/d/x", "")
    client.watch(f"{store.home}/d", "node")
    client.watch(f"{store.home}/d/x", "below")
    client.ask(xs.XS_SET_PERMS, f"{store.home}/d", "n0", "r1")
    client.expect_events((f"{store.home}/d", "node"))


@check("XENSTORE-052", Level.must, f"{TEXT}, @introduceDomain, @releaseDomain")
def special_watches(store: Store) -> None:
    """Names that begin with @ can be watched, and are no nodes.

    xenconsoled and every backend in dom0 hear of domains by them.
    """
    for name in ("@introduceDomain", "@releaseDomain"):
        store.one.watch(name, "tok")
        store.one.refused(xs.XS_READ, f"{name}\0".encode(), "EINVAL")


@check("XENSTORE-053", Level.must, f"{TEXT}, RESET_WATCHES")
def reset_watches(store: Store) -> None:
    """RESET_WATCHES takes all watches of the connection.

    A kernel that was started anew (kexec, crash kernel) gets no events for the one before it.
    """
    client = store.one
    client.watch(store.home, "a")
    client.watch(f"{store.home}/x", "b")
    client.ask(xs.XS_RESET_WATCHES, "")
    client.write(f"{store.home}/x", "")
    client.expect_events()


# ---- transactions


@check("XENSTORE-060", Level.must, f"{TEXT}, TRANSACTION_START")
def transactions_are_unseen_until_they_end(store: Store) -> None:
    """What a transaction writes is seen inside it at once, and outside only when it has been committed.

    A device's nodes must appear together: a backend that sees half of them fails.
    """
    client, other = store.one, store.client()
    tx = client.start()
    client.write(f"{store.home}/a", "1", tx=tx)
    expect_equal(client.read(f"{store.home}/a", tx=tx), b"1", "the value inside the transaction")
    other.refused(xs.XS_READ, f"{store.home}/a\0".encode(), "ENOENT")
    client.commit(tx)
    expect_equal(other.read(f"{store.home}/a"), b"1", "the value after the commit")


@check("XENSTORE-061", Level.must, f"{TEXT}, TRANSACTION_END")
def an_abort_leaves_nothing(store: Store) -> None:
    """TRANSACTION_END with F leaves nothing of the transaction, and no event.

    An abort is how an error in the middle is undone.
    """
    client = store.one
    client.watch(store.home, "tok")
    tx = client.start()
    client.write(f"{store.home}/a", "1", tx=tx)
    client.ask(xs.XS_TRANSACTION_END, "F", tx=tx)
    client.refused(xs.XS_READ, f"{store.home}/a\0".encode(), "ENOENT")
    client.expect_events()


@check("XENSTORE-062", Level.must, f"{TEXT}, TRANSACTION_END")
def conflicts(store: Store) -> None:
    """A transaction that has read what somebody else changed since cannot be committed: EAGAIN, and nothing is done.

    Reading a number and writing the next is safe only so: two toolstacks would hand out the same device number.
    """
    client, other = store.one, store.client()
    client.write(f"{store.home}/n", "1")
    tx = client.start()
    client.read(f"{store.home}/n", tx=tx)
    other.write(f"{store.home}/n", "2")
    client.write(f"{store.home}/n", "2", tx=tx)
    client.refused(xs.XS_TRANSACTION_END, b"T\0", "EAGAIN", tx=tx)
    expect_equal(client.read(f"{store.home}/n"), b"2", "the value after the conflict")


@check("XENSTORE-063", Level.must, f"{TEXT}, TRANSACTION_START")
def others_may_go_on(store: Store) -> None:
    """A change of what a transaction has not looked at does not disturb it.

    Otherwise one busy guest keeps the toolstack from ever committing (XSA-206).
    """
    client, other = store.one, store.client()
    client.write(f"{store.home}/mine/x", "1")
    client.write(f"{store.home}/theirs/x", "1")
    tx = client.start()
    client.read(f"{store.home}/mine/x", tx=tx)
    client.write(f"{store.home}/mine/x", "2", tx=tx)
    other.write(f"{store.home}/theirs/x", "2")
    client.commit(tx)
    expect_equal(client.read(f"{store.home}/theirs/x"), b"2", "what the other had written")


@check("XENSTORE-064", Level.must, f"{TEXT}, TRANSACTION_START")
def reads_in_a_transaction_repeat(store: Store) -> None:
    """What a transaction has read once it reads again, whatever others have written meanwhile.

    Else it builds on two states of the store that never were together.
    """
    client, other = store.one, store.client()
    client.write(f"{store.home}/a", "1")
    tx = client.start()
    client.read(f"{store.home}/a", tx=tx)
    other.write(f"{store.home}/a", "2")
    expect_equal(client.read(f"{store.home}/a", tx=tx), b"1", "the value when it is read again")
    client.ask(xs.XS_TRANSACTION_END, "F", tx=tx)


@check("XENSTORE-065", Level.must, f"{TEXT}, TRANSACTION_START")
def numbers_belong_to_the_connection(store: Store) -> None:
    """A transaction of another connection does not exist: ENOENT.

    Numbers are small and repeat: a client could end its neighbour's.
    """
    tx = store.one.start()
    store.one.write(f"{store.home}/a", "1", tx=tx)
    other = store.client()
    other.refused(xs.XS_READ, f"{store.home}/a\0".encode(), "ENOENT", tx=tx)
    other.refused(xs.XS_WRITE, f"{store.home}/a\0x".encode(), "ENOENT", tx=tx)
    other.refused(xs.XS_TRANSACTION_END, b"T\0", "ENOENT", tx=tx)


@check("XENSTORE-066", Level.must, f"{TEXT}, TRANSACTION_END")
def a_bad_end_is_no_end(store: Store) -> None:
    """TRANSACTION_END with another letter than T and F is EINVAL; the transaction stays open.

    The client can still say what it means.
    """
    tx = store.one.start()
    store.one.write(f"{store.home}/a", "1", tx=tx)
    store.one.refused(xs.XS_TRANSACTION_END, b"X\0", "EINVAL", tx=tx)
    store.one.commit(tx)
    expect_equal(store.one.read(f"{store.home}/a"), b"1", "the value after the commit")


@check("XENSTORE-067", Level.must, f"{TEXT}, TRANSACTION_START")
def no_transaction_in_a_transaction(store: Store) -> None:
    """TRANSACTION_START inside a transaction is EBUSY.

    Transactions do not nest; a client that believes they do would commit the outer one twice.
    """
    tx = store.one.start()
    store.one.refused(xs.XS_TRANSACTION_START, b"\0", "EBUSY", tx=tx)
    store.one.ask(xs.XS_TRANSACTION_END, "F", tx=tx)


@check("XENSTORE-068", Level.must, f"{TEXT}, TRANSACTION_END")
def events_come_with_the_commit(store: Store) -> None:
    """The events of a transaction come when it is committed, not before.

    Whoever hears of a change reads, and must find it.
    """
    client, other = store.one, store.client()
    other.watch(store.home, "tok")
    tx = client.start()
    client.write(f"{store.home}/a", "1", tx=tx)
    other.expect_events()
    client.commit(tx)
    other.expect_events((f"{store.home}/a", "tok"))


@check("XENSTORE-069", Level.must, f"{TEXT}, TRANSACTION_START")
def transactions_go_with_their_connection(store: Store) -> None:
    """A transaction whose client goes is aborted.

    What it had written is nobody's wish any more.
    """
    other = store.client()
    tx = other.start()
    other.write(f"{store.home}/a", "1", tx=tx)
    other.hang_up()
    store.one.sync()
    store.one.refused(xs.XS_READ, f"{store.home}/a\0".encode(), "ENOENT")


@check("XENSTORE-070", Level.must, f"{TEXT}, TRANSACTION_END")
def a_refused_request_is_no_abort(store: Store) -> None:
    """A request that fails inside a transaction leaves it as it was.

    Asking whether a node is there is an error by design.
    """
    tx = store.one.start()
    store.one.write(f"{store.home}/a", "1", tx=tx)
    store.one.refused(xs.XS_READ, f"{store.home}/nothing\0".encode(), "ENOENT", tx=tx)
    store.one.commit(tx)
    expect_equal(store.one.read(f"{store.home}/a"), b"1", "the value after the commit")


@check("XENSTORE-071", Level.must, f"{TEXT}, TRANSACTION_START")
def what_was_missing_counts(store: Store) -> None:
    """A transaction that found a node missing conflicts with whoever makes it.

    "Take the first free number" is right only so.
    """
    client, other = store.one, store.client()
    client.write(f"{store.home}/x", "")
    tx = client.start()
    client.refused(xs.XS_READ, f"{store.home}/free\0".encode(), "ENOENT", tx=tx)
    other.write(f"{store.home}/free", "taken")
    client.write(f"{store.home}/free", "mine", tx=tx)
    client.refused(xs.XS_TRANSACTION_END, b"T\0", "EAGAIN", tx=tx)


# ---- domains


@check("XENSTORE-080", Level.must, f"{TEXT}, GET_DOMAIN_PATH")
def domain_paths(store: Store) -> None:
    """GET_DOMAIN_PATH returns /local/domain/N with a NUL, also for a domain that does not exist.

    Frontends find their backend's directory by it.
    """
    for domid in ("0", "7", "32751"):
        found = store.one.ask(xs.XS_GET_DOMAIN_PATH, domid)
        expect_equal(found, f"/local/domain/{domid}\0".encode(), f"the path of domain {domid}")


@check("XENSTORE-081", Level.must, f"{TEXT}, IS_DOMAIN_INTRODUCED")
def introduced_or_not(store: Store) -> None:
    """IS_DOMAIN_INTRODUCED answers T or F with a NUL.

    The toolstack asks before it introduces, and before it lets go.
    """
    expect_equal(store.one.ask(xs.XS_IS_DOMAIN_INTRODUCED, "0"), b"T\0", "the answer for dom0")
    expect_equal(
        store.one.ask(xs.XS_IS_DOMAIN_INTRODUCED, "31999"), b"F\0", "the answer for a domain that is not there"
    )


# ---- those who do not behave


@check("XENSTORE-090", Level.must, "XSA-326")
def a_client_that_never_reads(store: Store) -> None:
    """A client that sends and never reads does not keep others from being served.

    XSA-326: what waits for it is memory of the store's.
    """
    deaf = store.client()
    note(f"client {deaf.number} asks 40000 times for the names in the root, and reads no reply")
    deaf.socket.settimeout(SILENCE)
    request = encode(xs.XS_DIRECTORY, 1, 0, b"/\0") * 200
    try:
        for _ in range(200):
            deaf.socket.sendall(request)
    except (TimeoutError, ConnectionError):
        pass  # The store has stopped listening to it, and its socket is full; or has hung up on it. It may do both.
    store.one.write(f"{store.home}/a", "1")
    expect_equal(store.one.read(f"{store.home}/a"), b"1", "what another client reads meanwhile")


@check("XENSTORE-091", Level.must, "XSA-324")
def an_event_that_does_not_fit(store: Store) -> None:
    """An event whose path and token would be longer than 4096 bytes is not sent, and harms nobody.

    XSA-324: the C daemon ended.
    """
    client = store.one
    deep = f"{store.home}/" + "n" * 1000
    client.ask(xs.XS_WATCH, store.home, "t" * 3900)
    try:
        client.write(deep, "")
        client.sync()
    except HungUp:
        raise Failure("The store hangs up because of an event that is too long.") from None
    expect(all(len(path) + len(token) + 2 <= 4096 for path, token in client.events), "An event is too long.")
    store.client().write(f"{store.home}/a", "1")


@check("XENSTORE-092", Level.must, "XSA-115")
def nothing_is_left_of_a_removed_node(store: Store) -> None:
    """A node that is made again has nothing of the one before: value, children, permissions.

    XSA-115 and XSA-322: rights that outlive what they were given for.
    """
    client = store.one
    client.write(f"{store.home}/d/secret", "1")
    client.ask(xs.XS_SET_PERMS, f"{store.home}/d", "b0", "b9")
    client.ask(xs.XS_RM, f"{store.home}/d")
    client.write(f"{store.home}/d", "")
    expect_equal(client.list(f"{store.home}/d"), [], "the children of the new node")
    expect_equal(client.ask(xs.XS_GET_PERMS, f"{store.home}/d")[:2], b"n0", "the permissions of the new node")


@check("XENSTORE-093", Level.must, "XSA-330")
def many_clients(store: Store) -> None:
    """A hundred clients at once are served.

    Each program that looks at the store is one.
    """
    clients = [store.client() for _ in range(100)]
    for number, client in enumerate(clients):
        client.send(encode(xs.XS_WRITE, number, 0, f"{store.home}/c{number}\0x".encode()))
    for number, client in enumerate(clients):
        expect_equal(client.reply().req_id, number, "the number of a client's reply")
