"""Our store beside Xen's own daemon, systematically: each operation with each kind of bad payload, and each limit.

The random sessions of `test_store_against_c` meet the usual often and the odd seldom; here it is the other way round.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from c_daemon import DYING, EXISTS, SHUTDOWN, CDaemon
from store_sessions import GUESTS, Domain, Send, Step
from test_store_against_c import DOMAINS, Ours, OursInDom0, Theirs, describe, is_left_over, is_newer, shown

from hypervisor.abi.io import xs_wire as xs

KINDS = [*range(23), 127, 65535, 0xFFFFFFFF]
NODE_NAMES = [
    b"",
    b"/",
    b"/a",
    b"/a/b",
    b"/missing",
    b"/missing/below",
    b"/a/",
    b"//a",
    b"/a//b",
    b"x",
    b"x/",
    b"../a",
    b"/a b",
    b"/A-Z_0@9",
    b"/a\x7f",
    b"/a\xff",
    b"/secret",
    b"/secret/below",
    b"/shown/hidden",
    b"/local/domain/1",
    b"/local/domain/1/x",
    b"/local/domain/2/x",
    b"@",
    b"@releaseDomain",
    b"@introduceDomain",
    b"@releaseDomain/1",
    b"0",
    b"1",
    b"5x",
    b" 1",
    b"+1",
    b"-1",
    b"0x1",
    b"01",
    b"32751",
    b"32752",
    b"65535",
    b"65536",
    b"4294967296",
    b"18446744073709551617",
    b"T",
    b"F",
    b"TT",
    b"t",
]
SECONDS = [b"", b"t", b"0", b"1", b"n1", b"r0", b"n77", b"x1", b"T", b"99999", b"-1"]


def payloads() -> list[bytes]:
    """One string, with its NUL, without, with one too many; two strings, three, four, the last cut off or not."""
    found = [payload for name in NODE_NAMES for payload in (name, name + b"\0", name + b"\0\0")]
    for name in (b"", b"/a", b"/missing", b"x", b"/secret", b"@releaseDomain", b"1", b"T"):
        for second in SECONDS:
            found += [name + b"\0" + second, name + b"\0" + second + b"\0", name + b"\0" + second + b"\0\0"]
        found += [name + b"\0r0\0n1\0", name + b"\0n0\0r1\0r", name + b"\x001\0002\0003\0", name + b"\x001\0002\0003"]
    return list(dict.fromkeys(found))


def introduce(domid: int) -> Send:
    return Send("d0", xs.XS_INTRODUCE, b"%d\x001000\x00%d\0" % (domid, 10 + domid))


def world() -> list[Step]:
    """Two guests with homes, and nodes that a guest may read, may not, or may only know of."""
    steps: list[Step] = [introduce(domid) for domid in GUESTS.values()]
    for domid in GUESTS.values():
        home = b"/local/domain/%d\0" % domid
        steps += [Send("d0", xs.XS_WRITE, home), Send("d0", xs.XS_SET_PERMS, home + b"n%d\0" % domid)]
    for name, rights in ((b"/a", b"b0\0"), (b"/a/b", b"b0\0"), (b"/secret", b"n0\0"), (b"/shown", b"r0\0")):
        steps += [Send("d0", xs.XS_WRITE, name + b"\0value"), Send("d0", xs.XS_SET_PERMS, name + b"\0" + rights)]
    steps += [
        Send("d0", xs.XS_WRITE, b"/shown/hidden\0v"),
        Send("d0", xs.XS_SET_PERMS, b"/shown/hidden\0n0\0"),
        Send("g1", xs.XS_WRITE, b"x\0v"),
        Send("g2", xs.XS_WRITE, b"x\0v"),
    ]
    return steps


def watching() -> list[Step]:
    """Everybody watches everything."""
    return [
        Send(client, xs.XS_WATCH, name + b"\0all\0")
        for client in ("d0", "d1", "g1", "g2")
        for name in (b"/", b"@releaseDomain", b"@introduceDomain", b"x")
    ]


def sweep(kind: int) -> Iterator[Step]:
    """One operation with all payloads: by dom0 and a guest, outside of a transaction, in one, in an unknown one."""
    yield from world()
    yield from watching()
    for client in ("d1", "g1"):
        yield Send(client, xs.XS_TRANSACTION_START, b"\0")
    for payload in payloads():
        for client, slot in (("d1", -1), ("g1", -1), ("g1", -2), ("d1", 0), ("g1", 0)):
            yield Send(client, kind, payload, slot)
        if kind in (xs.XS_INTRODUCE, xs.XS_RELEASE) and payload[:1] == b"1":
            # Or there is no guest any more for what comes.
            yield introduce(1)
            yield Send("d0", xs.XS_WRITE, b"/local/domain/1\0")
            yield Send("d0", xs.XS_SET_PERMS, b"/local/domain/1\0n1\0")


def comparable(step: Step) -> bool:
    """Whether the C daemon's answer depends on nothing but what has been asked."""
    if not isinstance(step, Send):
        return True
    return not (is_left_over(step) or is_newer(step) or (step.kind == xs.XS_CONTROL and b"log" in step.payload))


def compare(directory: Path, kind: type[Ours], steps: Iterator[Step]) -> None:
    """Give both the same; whatever any client gets must be the same."""
    with CDaemon(directory, domains=DOMAINS) as daemon, closing(Theirs(daemon)) as theirs:
        ours = kind()
        told: list[str] = []
        for step in steps:
            if not comparable(step):
                continue
            alive = ours.alive()
            expected, got = theirs.play(step, alive), ours.play(step, alive)
            alive = ours.alive()
            expected, got = theirs.settle(step, expected, alive), ours.settle(step, got, alive)
            told.append(describe(step))
            assert shown(got) == shown(expected), "\n".join(told[-10:])
        ours.world.check()


@pytest.mark.parametrize("number", KINDS)
def test_each_operation_with_each_payload(tmp_path: Path, number: int) -> None:
    compare(tmp_path, OursInDom0, sweep(number))


def around(limit: int, width: int = 1) -> range:
    return range(limit - width, limit + width + 1)


def path_lengths() -> Iterator[Step]:
    """Names as long as may be, and one byte more: absolute, in a domain's home, relative."""
    for prefix in (b"/", b"/local/domain/1/", b"/local/domain/77/", b"", b"/a/"):
        for size in (*around(2048, 2), *around(3072, 1), *around(2048 - len(prefix), 2)):
            name = (prefix + b"p" * size)[: size + (len(prefix) if len(prefix) > 3 else 0)]
            for client in ("d0", "g1"):
                for kind in (xs.XS_READ, xs.XS_MKDIR, xs.XS_DIRECTORY, xs.XS_GET_PERMS, xs.XS_RM):
                    yield Send(client, kind, name + b"\0")
                yield Send(client, xs.XS_WRITE, name + b"\0v")
                yield Send(client, xs.XS_SET_PERMS, name + b"\0n1\0")
                yield Send(client, xs.XS_WATCH, name + b"\0t\0")
                yield Send(client, xs.XS_UNWATCH, name + b"\0t\0")
                yield Send(client, xs.XS_DIRECTORY_PART, name + b"\x000\0")
                yield Send(client, xs.XS_RM, name + b"\0")
    for size in around(2048, 2):
        yield Send("d0", xs.XS_WATCH, b"@" + b"p" * (size - 1) + b"\0t\0")


def event_sizes() -> Iterator[Step]:
    """Tokens so long that an event about a node below does not fit any more (XSA-324)."""
    for size in (*around(4096 - len(b"/a/b/c\0\0"), 4), 4090, 4092):
        token = b"k" * min(size, 4096 - len(b"/a\0\0"))
        for client in ("d0", "g1"):
            yield Send(client, xs.XS_WATCH, b"/a\0" + token + b"\0")
        yield Send("d0", xs.XS_WRITE, b"/a/b/c\0v")
        yield Send("d0", xs.XS_WRITE, b"/a/b\0v")
        yield Send("d0", xs.XS_RM, b"/a/b/c\0")
        for client in ("d0", "g1"):
            yield Send(client, xs.XS_UNWATCH, b"/a\0" + token + b"\0")


def node_sizes() -> Iterator[Step]:
    """Values, lists of rights and of children, byte by byte around what a guest's node may hold."""
    yield Send("d0", xs.XS_CONTROL, b"quota\0set\0node-size\x00200\0")
    for size in range(150, 200):
        yield Send("g1", xs.XS_WRITE, b"x\0" + b"v" * size)
        yield Send("g1", xs.XS_WRITE, b"new%d\0" % size + b"v" * size)
        yield Send("g1", xs.XS_WRITE, b"far/new%d\0" % size + b"v" * size)
    for count in range(1, 7):
        yield Send("g1", xs.XS_SET_PERMS, b"x\0" + b"n1\0" * count)
    for number in range(40):
        yield Send("g1", xs.XS_MKDIR, b"dir/%d\0" % number)
    yield Send("d0", xs.XS_CONTROL, b"quota\0set\0node-size\x002048\0")
    for size in range(1980, 2050):
        yield Send("g1", xs.XS_WRITE, b"big\0" + b"v" * size)
    for size in (4090, 4091, 4092):
        yield Send("d0", xs.XS_WRITE, b"big\0" + b"v" * size)


def limits_that_shrink() -> Iterator[Step]:
    """Nodes that were good when they were made, and would not be any more."""
    name = b"/a/" + b"p" * 60
    for path in (name, b"/local/domain/1/" + b"p" * 60):
        yield Send("d0", xs.XS_WRITE, path + b"\0v")
        yield Send("d0", xs.XS_SET_PERMS, path + b"\0b1\0")
    for limit in (64, 63, 62, 60, 59):
        yield Send("d0", xs.XS_CONTROL, b"quota\0set\0path-max\0%d\0" % limit)
        for client in ("d0", "g1"):
            for path in (name, b"/local/domain/1/" + b"p" * 60, b"p" * 60):
                for kind in (xs.XS_READ, xs.XS_DIRECTORY, xs.XS_GET_PERMS, xs.XS_MKDIR):
                    yield Send(client, kind, path + b"\0")
                yield Send(client, xs.XS_WRITE, path + b"\0v")
                yield Send(client, xs.XS_WATCH, path + b"\0t\0")
                yield Send(client, xs.XS_UNWATCH, path + b"\0t\0")
    for client in ("d0", "g1"):
        yield Send(client, xs.XS_RM, name + b"\0")
    yield Send("d0", xs.XS_RM, b"/a\0")


def counts() -> Iterator[Step]:
    """Nodes, watches, transactions, rights, nodes in a transaction: up to the limit and over it."""
    for name, limit in ((b"nodes", 8), (b"watches", 6), (b"transactions", 3), (b"permissions", 3)):
        yield Send("d0", xs.XS_CONTROL, b"quota\0set\0" + name + b"\0%d\0" % limit)
    yield Send("d0", xs.XS_CONTROL, b"quota\0set\0transaction-nodes\x005\0")
    for number in range(12):
        yield Send("g1", xs.XS_MKDIR, b"n%d\0" % number)
    yield Send("g1", xs.XS_RM, b"n1\0")
    yield Send("g1", xs.XS_MKDIR, b"deep/er/than\0")
    yield Send("g1", xs.XS_MKDIR, b"again\0")
    for number in range(9):
        yield Send("g1", xs.XS_WATCH, b"x\0w%d\0" % number)
    yield Send("g1", xs.XS_UNWATCH, b"x\0w0\0")
    for number in (9, 10):
        yield Send("g1", xs.XS_WATCH, b"x\0w%d\0" % number)
    for number in range(1, 6):
        yield Send("g1", xs.XS_SET_PERMS, b"x\0n1\0" + b"r2\0" * number)
    for _ in range(6):
        yield Send("g1", xs.XS_TRANSACTION_START, b"\0")
    for client in ("g1", "d0"):
        if client == "d0":
            yield Send(client, xs.XS_TRANSACTION_START, b"\0")
        for number in range(9):
            yield Send(client, xs.XS_READ, b"/a/%d\0" % number, 0)
            yield Send(client, xs.XS_WRITE, b"/local/domain/1/x\0%d" % number, 0)
        yield Send(client, xs.XS_TRANSACTION_END, b"T\0", 0)
    for slot in (1, 2, 3):
        yield Send("g1", xs.XS_MKDIR, b"more%d\0" % slot, slot)
        yield Send("g1", xs.XS_TRANSACTION_END, b"T\0", slot)
    yield Send("g1", xs.XS_TRANSACTION_START, b"\0")
    yield Send("g1", xs.XS_RESET_WATCHES, b"\0")
    yield Send("g1", xs.XS_TRANSACTION_START, b"\0")


def directories() -> Iterator[Step]:
    """A list of children around the size of a message, and pieces of it from everywhere."""
    for number in range(512):
        yield Send("d0", xs.XS_MKDIR, b"/big/%07d\0" % number)
    for size in (None, 1, 2):
        if size is not None:
            yield Send("d0", xs.XS_MKDIR, b"/big/" + b"q" * size + b"\0")
        yield Send("d0", xs.XS_DIRECTORY, b"/big\0")
        for offset in (b"0", b"1", b"7", b"8", b"4000", b"4095", b"4096", b"4097", b"4098", b"9999", b"-1", b"8x", b""):
            yield Send("d0", xs.XS_DIRECTORY_PART, b"/big\0" + offset + b"\0")
    yield Send("d0", xs.XS_WRITE, b"/big/0000000\0v")
    yield Send("d0", xs.XS_DIRECTORY_PART, b"/big\x004090\0")
    yield Send("d0", xs.XS_WRITE, b"/big\0v")
    yield Send("d0", xs.XS_DIRECTORY_PART, b"/big\x004090\0")
    yield Send("d0", xs.XS_RM, b"/big\0")


def conflicts() -> Iterator[Step]:
    """Each look at a node in a transaction, against each change outside."""
    looks = [
        (xs.XS_READ, b"/a/b\0"),
        (xs.XS_READ, b"/a/gone\0"),
        (xs.XS_READ, b"/a/not/there\0"),
        (xs.XS_DIRECTORY, b"/a\0"),
        (xs.XS_GET_PERMS, b"/a\0"),
        (xs.XS_WRITE, b"/a/b\0w"),
        (xs.XS_WRITE, b"/a/made\0w"),
        (xs.XS_MKDIR, b"/a/b\0"),
        (xs.XS_MKDIR, b"/a/dir/dir\0"),
        (xs.XS_RM, b"/a/b\0"),
        (xs.XS_RM, b"/a/gone\0"),
        (xs.XS_SET_PERMS, b"/a/b\0b0\0"),
        (xs.XS_GET_DOMAIN_PATH, b"1\0"),
    ]
    changes = [
        (xs.XS_WRITE, b"/a/b\0v"),
        (xs.XS_WRITE, b"/a/sibling\0v"),
        (xs.XS_WRITE, b"/a\0v"),
        (xs.XS_SET_PERMS, b"/a\0b0\0"),
        (xs.XS_RM, b"/a/b\0"),
        (xs.XS_RM, b"/a/sibling\0"),
        (xs.XS_RM, b"/a\0"),
        (xs.XS_MKDIR, b"/a\0"),
        (xs.XS_MKDIR, b"/a/not\0"),
        (xs.XS_READ, b"/a/b\0"),
    ]
    slot = 0
    for client in ("d1", "g1"):
        slot = 0
        for look in looks:
            for change in changes:
                for path in (b"/a", b"/a/b"):
                    yield Send("d0", xs.XS_WRITE, path + b"\0v")
                    yield Send("d0", xs.XS_SET_PERMS, path + b"\0b0\0")
                yield Send(client, xs.XS_TRANSACTION_START, b"\0")
                yield Send(client, *look, slot)
                yield Send("d0", *change)
                yield Send(client, *look, slot)
                yield Send(client, xs.XS_TRANSACTION_END, b"T\0", slot)
                slot += 1


def ends_of_domains() -> Iterator[Step]:
    """Each way for a domain to go, with nodes of its own everywhere and watches with and without rights."""
    for way in range(6):
        for name in (b"/a/of1", b"/a/of1/below", b"/local/domain/2/of1"):
            yield Send("d0", xs.XS_WRITE, name + b"\0v")
            yield Send("d0", xs.XS_SET_PERMS, name + b"\0n1\0r2\0")
        rights = b"n0\0r2\0" if way % 2 else b"n0\0"
        yield Send("d0", xs.XS_SET_PERMS, b"@releaseDomain\0" + rights)
        yield Send("d0", xs.XS_SET_PERMS, b"@introduceDomain\0" + rights)
        ends: list[list[Step]] = [
            [Send("d0", xs.XS_RELEASE, b"1\0")],
            [Domain(1, EXISTS | SHUTDOWN), Domain(1, EXISTS | SHUTDOWN), Domain(1, EXISTS | DYING), Domain(1, EXISTS)],
            [Domain(1, EXISTS | SHUTDOWN), Send("d0", xs.XS_RESUME, b"1\0"), Domain(1, EXISTS | SHUTDOWN)],
            [Domain(1, 0), Send("d0", xs.XS_INTRODUCE, b"1\x001000\x0011\0"), Domain(1, EXISTS)],
            [Send("d0", xs.XS_RELEASE, b"1\0"), Send("d0", xs.XS_RELEASE, b"1\0"), Domain(1, 0), Domain(1, EXISTS)],
            [introduce(1), introduce(1), Send("g1", xs.XS_TRANSACTION_START, b"\0"), Domain(1, 0), Domain(1, EXISTS)],
        ]
        yield from ends[way]
        for kind in (xs.XS_IS_DOMAIN_INTRODUCED, xs.XS_GET_DOMAIN_PATH, xs.XS_RESUME, xs.XS_RELEASE):
            yield Send("d0", kind, b"1\0")
        yield Send("d0", xs.XS_DIRECTORY, b"/a\0")
        yield Send("d0", xs.XS_DIRECTORY, b"/local/domain\0")
        yield from world()


RIGHTS = [
    b"n0",
    b"b0",
    b"n1",
    b"n2",
    b"r0 w1",
    b"w0 r1",
    b"n1 b2",
    b"b1 n2",
    b"n0 n1 b1",
    b"n0 b1 n1",
    b"r2 w1 n2 b1",
    b"n3 b1",
]


def inheritance() -> Iterator[Step]:
    """Nodes made below each kind of directory by everybody, their rights, who hears of it, and who may do what then."""
    for number, rights in enumerate(RIGHTS):
        top = b"/a/t%d" % number
        yield Send("d0", xs.XS_MKDIR, top + b"\0")
        yield Send("d0", xs.XS_SET_PERMS, top + b"\0" + rights.replace(b" ", b"\0") + b"\0")
        for client in ("d0", "g1", "g2"):
            name = top + b"/" + client.encode()
            yield Send(client, xs.XS_WRITE, name + b"/deep/er\0v")
            yield Send(client, xs.XS_MKDIR, name + b"dir/deep\0")
            yield Send(client, xs.XS_TRANSACTION_START, b"\0")
            for path in (top, name, name + b"/deep", name + b"/deep/er", name + b"dir", name + b"/missing/below"):
                for other in ("d0", "g1", "g2"):
                    for kind in (xs.XS_GET_PERMS, xs.XS_READ, xs.XS_DIRECTORY):
                        yield Send(other, kind, path + b"\0")
            for other in ("g1", "g2"):
                yield Send(other, xs.XS_SET_PERMS, name + b"\0n1\0r2\0")
                yield Send(other, xs.XS_WRITE, name + b"/deep\0w")
                yield Send(other, xs.XS_WRITE, name + b"/other\0w")
                yield Send(other, xs.XS_RM, name + b"/deep\0")
                yield Send(other, xs.XS_RM, name + b"/missing\0")
            yield Send("d0", xs.XS_GET_PERMS, name + b"\0")
            yield Send("d0", xs.XS_SET_PERMS, name + b"\0n0\0")
            yield Send("d0", xs.XS_RM, name + b"dir\0")
        yield Send("d0", xs.XS_RM, top + b"\0")


def targets() -> Iterator[Step]:
    """A guest that acts for another one."""
    yield Send("d0", xs.XS_WRITE, b"/of2\0v")
    yield Send("d0", xs.XS_SET_PERMS, b"/of2\0n2\0")
    for rights in RIGHTS:
        yield Send("d0", xs.XS_SET_PERMS, b"/of2\0" + rights.replace(b" ", b"\0") + b"\0")
        for target in (b"0", b"2", b"1", b"77"):
            yield Send("d0", xs.XS_SET_TARGET, b"1\0" + target + b"\0")
            yield Send("g1", xs.XS_SET_TARGET, b"1\0" + target + b"\0")
            for client in ("g1", "g2"):
                for kind in (xs.XS_READ, xs.XS_GET_PERMS, xs.XS_DIRECTORY):
                    yield Send(client, kind, b"/of2\0")
                yield Send(client, xs.XS_WRITE, b"/of2/new/below\0v")
                yield Send("d0", xs.XS_GET_PERMS, b"/of2/new\0")
                yield Send(client, xs.XS_SET_PERMS, b"/of2/new\0n1\0")
                yield Send(client, xs.XS_SET_PERMS, b"/of2/new\0n2\0")
                yield Send(client, xs.XS_RM, b"/of2/new\0")


SPECIALS = {
    "lengths of paths": path_lengths,
    "sizes of events": event_sizes,
    "sizes of nodes": node_sizes,
    "limits that shrink": limits_that_shrink,
    "counts": counts,
    "inheritance": inheritance,
    "targets": targets,
    "directories": directories,
    "conflicts": conflicts,
    "ends of domains": ends_of_domains,
}


@pytest.mark.parametrize("what", SPECIALS)
@pytest.mark.parametrize("kind", [Ours, OursInDom0])
def test_each_limit(tmp_path: Path, kind: type[Ours], what: str) -> None:
    def steps() -> Iterator[Step]:
        yield from world()
        if what != "directories":
            yield from watching()
        yield from SPECIALS[what]()

    compare(tmp_path, kind, steps())
