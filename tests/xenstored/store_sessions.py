"""Random sessions of several clients of a store: what they send, as data, so that two stores can be given the same."""

import random
from typing import NamedTuple

from hypervisor.abi.io import xs_wire as xs

SOCKETS = ("d0", "d1")
GUESTS = {"g1": 1, "g2": 2}
CLIENTS = (*SOCKETS, *GUESTS)


class Send(NamedTuple):
    """A request. `slot`: the transaction that the client started as its n-th; -1: none; -2: one that is not there."""

    client: str
    kind: int
    payload: bytes
    slot: int = -1


class Domain(NamedTuple):
    """Xen's word about a domain."""

    domid: int
    state: int


class Hangup(NamedTuple):
    """A client on a socket hangs up, and another one comes in its place."""

    client: str


Step = Send | Domain | Hangup

GOOD_PATHS = [
    b"/a",
    b"/a/b",
    b"/a/b/c",
    b"/a/d",
    b"/e",
    b"/e/f/g/h",
    b"/local/domain/1",
    b"/local/domain/1/x",
    b"/local/domain/1/x/y",
    b"/local/domain/2",
    b"/local/domain/2/x",
    b"/local/domain/0/x",
    b"x",
    b"x/y",
    b"z",
    b"/",
    b"/tool",
]
BAD_PATHS = [
    b"",
    b"//",
    b"/a/",
    b"a//b",
    b"/a b",
    b"/a.b",
    b"/a+",
    b"/a:b",
    b"/\xc3\xa9",
    b"@releaseDomain",
    b"@introduceDomain",
    b"@",
    b"@else",
    b"/@a",
    b"/" + b"p" * 2047,
    b"/" + b"p" * 2048,
    b"p" * 2048,
    b"p" * 2049,
    b"/local/domain/1/" + b"p" * 2048,
    b"/local/domain/1/" + b"p" * 2049,
    b"/local/domain/123456/" + b"p" * 2048,
    b"/local/domain/-1/" + b"p" * 2048,
    b"/local/domain//" + b"p" * 10,
]
ENTRIES = [b"n0", b"r0", b"w0", b"b0", b"n1", b"r1", b"w1", b"b1", b"n2", b"r2", b"w2", b"b2", b"r3", b"n77", b"r77"]
ODD_ENTRIES = [b"", b"x1", b"r", b"r-1", b"r0x1", b"r01", b"n1x", b"R1", b"r 1", b"r65536", b"n4294967297"]
TOKENS = [b"t", b"u", b"", b"token with space", b"/a"]
NUMBERS = [b"0", b"1", b"2", b"3", b"77", b"5x", b"abc", b"", b"-1", b"32752", b"65536", b"4294967297"]
SIZES = [0, 1, 3, 3, 5, 100, 1000, 1900, 1950, 1990, 2000, 2010, 2020, 2040, 3000, 4000]
ODD_INTRODUCTIONS = [b"", b"1000\0", b"1000\x000\0", b"1000\0-4\0", b"x\x0012\0", b"1000\x0012\0more\0", b"1000\x0012"]
NODE_KINDS = [
    xs.XS_DIRECTORY,
    xs.XS_READ,
    xs.XS_GET_PERMS,
    xs.XS_MKDIR,
    xs.XS_RM,
    xs.XS_DIRECTORY_PART,
]
CONTROLS = [
    b"help\0",
    b"check\0",
    b"quota\0",
    b"quota-soft\0",
    b"quota\0set\0nodes\x0015\0",
    b"quota\0set\0watches\x003\0",
    b"quota\0set\0transactions\x002\0",
    b"quota\0set\0permissions\x002\0",
    b"quota\0set\0node-size\x00300\0",
    b"quota\0set\0path-max\x0040\0",
    b"quota\0set\0transaction-nodes\x005\0",
    b"quota\0set\0outstanding\x002\0",
    b"quota\0set\0nodes\0",
    b"quota\0set\0nodes\x000\0",
    b"quota\0set\0nothing\x005\0",
    b"quota\x001\0",
    b"quota\x0077\0",
    b"quota\x001\x002\0",
    b"quota-soft\0set\0memory\x00100\0",
    b"quota-soft\0set\0nodes\x00100\0",
    b"log\0off\0",
    b"log\0",
    b"log\0maybe\0",
    b"print\0hello\0",
    b"print\0",
    b"live-update\0",
    b"live-update\0-a\0",
    b"live-update\0-a\0x\0",
    b"live-update\0-c\0x\0",
    b"live-update\0-q\0",
    b"live-update\0-s\0-q\0",
    b"live-update\0-f\0/nowhere\0",
    b"live-update\0-f\0/etc/passwd\0",
    b"memreport\0a\0b\0",
    b"memreport\0",
    b"logfile\0",
    b"nonsense\0",
    b"",
    b"help",
    b"\0",
    b"help\0x\0",
]


def ends_a_domain(step: Step) -> bool:
    """Whether a domain may be gone, or begin anew, after it."""
    if isinstance(step, Send):
        return step.kind in (xs.XS_INTRODUCE, xs.XS_RELEASE)
    return isinstance(step, Domain)


class Sessions:
    """Makes one session. The same seed makes the same one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        #: Quotas are only made small in some sessions: nothing much happens any more then.
        self.controls = self.random.random() < 0.3
        #: Guests act for each other; then no domain goes (the C daemon keeps a target alive by accident).
        self.targets = self.random.random() < 0.15
        #: A directory is larger than a message.
        self.large = self.random.random() < 0.1
        self.started = dict.fromkeys(CLIENTS, 0)

    def path(self) -> bytes:
        pick = self.random
        return pick.choice(BAD_PATHS) if pick.random() < 0.08 else pick.choice(GOOD_PATHS)

    def steps(self, count: int) -> list[Step]:
        steps: list[Step] = [
            Send("d0", xs.XS_INTRODUCE, b"%d\x001000\0%d\0" % (domid, 10 + domid)) for domid in GUESTS.values()
        ]
        for domid in GUESTS.values():
            home = b"/local/domain/%d\0" % domid
            steps += [Send("d0", xs.XS_WRITE, home), Send("d0", xs.XS_SET_PERMS, home + b"n%d\0" % domid)]
        if self.random.random() < 0.7:
            steps += [
                Send("d0", xs.XS_WRITE, b"/a\0"),
                Send("d0", xs.XS_SET_PERMS, b"/a\0b0\0" if self.random.random() < 0.5 else b"/a\0n0\0b1\0r2\0"),
            ]
        if self.large:
            steps += [Send("d0", xs.XS_MKDIR, b"/a/" + b"n" * 60 + b"%d\0" % number) for number in range(80)]
            count += 80
        while len(steps) < count:
            step = self.step()
            if not (self.targets and ends_a_domain(step)):
                steps.append(step)
        return steps

    def step(self) -> Step:
        pick = self.random
        chance = pick.random()
        if chance < 0.01:
            return Domain(pick.choice([1, 2, 3, 4]), pick.choice([0, 3, 5, 7, 3, 1]))
        if chance < 0.015:
            return Hangup(pick.choice(SOCKETS))
        client = pick.choice(CLIENTS)
        kind, payload = self.request(client)
        if pick.random() < 0.04:
            payload = self.mutated(payload)
        slot = -1
        if self.started[client] and pick.random() < 0.55:
            slot = pick.randrange(max(0, self.started[client] - 3), self.started[client])
        elif pick.random() < 0.02:
            slot = -2
        if kind == xs.XS_TRANSACTION_START and slot == -1:
            self.started[client] += 1
        return Send(client, kind, payload, slot)

    def request(self, client: str) -> tuple[int, bytes]:
        pick = self.random
        makers = [
            (30, self.write),
            (24, self.node),
            (8, self.set_perms),
            (12, self.watch),
            (4, self.unwatch),
            (8, self.start),
            (10, self.end),
            (3 if client in SOCKETS else 1, self.domain),
            (2 if self.controls else 0.3, self.control),
            (0.5, self.other),
        ]
        return pick.choices([maker for _, maker in makers], [weight for weight, _ in makers])[0]()

    def write(self) -> tuple[int, bytes]:
        size = self.random.choice(SIZES)
        path = self.path()
        return xs.XS_WRITE, path + b"\0" + (b"v" * size)[: 4096 - len(path) - 1]

    def node(self) -> tuple[int, bytes]:
        kind = self.random.choice(NODE_KINDS)
        extra = b""
        if kind == xs.XS_DIRECTORY_PART:
            number = (
                b"%d" % self.random.randrange(6000) if self.large else self.random.choice([b"0", b"3", b"x", b"-1"])
            )
            extra = number + b"\0"
        if self.large and kind in (xs.XS_DIRECTORY, xs.XS_DIRECTORY_PART) and self.random.random() < 0.5:
            return kind, b"/a\0" + extra
        return kind, self.path() + b"\0" + extra

    def set_perms(self) -> tuple[int, bytes]:
        pick = self.random
        entries = [
            pick.choice(ODD_ENTRIES) if pick.random() < 0.03 else pick.choice(ENTRIES)
            for _ in range(pick.choice([0, 1, 1, 1, 2, 2, 3, 4, 5, 6]))
        ]
        path = pick.choice([b"@releaseDomain", b"@introduceDomain"]) if pick.random() < 0.1 else self.path()
        if path == b"/" and entries[:1] != [b"n0"]:
            # When the owner of the root goes, the C daemon removes the whole store. Ours does not.
            path = b"/a"
        return xs.XS_SET_PERMS, path + b"\0" + b"".join([entry + b"\0" for entry in entries])

    def watch(self) -> tuple[int, bytes]:
        pick = self.random
        path = pick.choice([b"@releaseDomain", b"@introduceDomain"]) if pick.random() < 0.15 else self.path()
        return xs.XS_WATCH, path + b"\0" + pick.choice(TOKENS) + b"\0"

    def unwatch(self) -> tuple[int, bytes]:
        return xs.XS_UNWATCH, self.path() + b"\0" + self.random.choice(TOKENS) + b"\0"

    def start(self) -> tuple[int, bytes]:
        return xs.XS_TRANSACTION_START, b"\0"

    def end(self) -> tuple[int, bytes]:
        return xs.XS_TRANSACTION_END, self.random.choice([b"T\0", b"T\0", b"T\0", b"F\0", b"X\0", b"\0"])

    def domain(self) -> tuple[int, bytes]:
        pick = self.random
        number = pick.choice([b"1", b"2", b"3", b"4"]) if pick.random() < 0.7 else pick.choice(NUMBERS)
        kind = pick.choice(
            [
                xs.XS_INTRODUCE,
                xs.XS_INTRODUCE,
                xs.XS_RELEASE,
                xs.XS_RESUME,
                xs.XS_IS_DOMAIN_INTRODUCED,
                xs.XS_GET_DOMAIN_PATH,
            ]
        )
        extra = b""
        if kind == xs.XS_INTRODUCE:
            extra = b"1000\x0012\0" if pick.random() < 0.8 else pick.choice(ODD_INTRODUCTIONS)
        elif self.targets and pick.random() < 0.5:
            return xs.XS_SET_TARGET, number + b"\0" + pick.choice(NUMBERS[:6]) + b"\0"
        return kind, number + b"\0" + extra

    def control(self) -> tuple[int, bytes]:
        return xs.XS_CONTROL, self.random.choice(CONTROLS)

    def other(self) -> tuple[int, bytes]:
        pick = self.random
        kind = pick.choice([xs.XS_RESET_WATCHES, 15, 16, 19, 20, 27, 28, 127, 65535, 0xFFFFFFFF])
        return kind, pick.choice([b"", b"\0", b"/a\0", b"0\0"])

    def mutated(self, payload: bytes) -> bytes:
        pick = self.random
        return pick.choice(
            [
                payload[:-1],
                payload + b"\0",
                b"",
                payload[: len(payload) // 2],
                payload.replace(b"\0", b""),
                b"\0" + payload,
                payload + b"x",
                bytes(pick.randrange(256) for _ in range(pick.randrange(12))),
            ]
        )[:4096]
