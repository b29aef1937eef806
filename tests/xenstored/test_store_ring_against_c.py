"""Our daemon's rings beside those of Xen's own: whatever a guest puts into its page, both leave the same behind."""

import itertools
import random
import struct
import time
from collections.abc import Iterator

import pytest
from c_daemon import FIRST_PORT, CDaemon, SocketClient
from fake_dom0 import FakeDom0

from backends.xenstored.daemon import XenStored
from guest_kernel.xenbus.ring import ERROR, REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD
from guest_kernel.xenbus.wire import encode
from hypervisor.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from hypervisor.abi.io import xs_wire as xs

PORT = 7
WORDS = slice(REQ_CONS, ERROR + 1)
DISTANCES = [0, 1, 15, 16, 22, 1023, 1024, 1025, 2**31, 2**32 - 1024, 2**32 - 1]
STARTS = [0, 1, 1000, 2**32 - 5]
PATH = encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"5\0")
OVERSIZE = struct.pack("<4I", xs.XS_READ, 2, 0, 4097)


class Both:
    """A page for each daemon's guest, given the same bytes."""

    def __init__(self, daemon: CDaemon, dom0: SocketClient, domid: int) -> None:
        self.daemon = daemon
        self.client = dom0
        self.domid = domid
        self.theirs = memoryview(daemon.map_ring(domid))
        dom0.send(xs.XS_INTRODUCE, b"%d\x001\x005\0" % domid, req=9)
        assert dom0.wait_for(9)
        self.dom0 = FakeDom0()
        self.ours_daemon = XenStored(self.dom0, self.dom0.info)  # type: ignore[arg-type]
        self.ours_daemon.start()
        self.dom0.run()
        self.fake = self.dom0.guest(domid)
        self.ours = self.fake.page(GNTTAB_RESERVED_XENSTORE)
        self.dom0.do(self.dom0.xenbus.introduce(domid, 1000, PORT))

    def put(self, at: int, data: bytes) -> None:
        """Bytes of the request queue, from a position that wraps."""
        for page in (self.theirs, self.ours):
            for offset, byte in enumerate(data):
                page[(at + offset) % 1024] = byte

    def set(self, **indices: int) -> None:
        positions = {"req_cons": REQ_CONS, "req_prod": REQ_PROD, "rsp_cons": RSP_CONS, "rsp_prod": RSP_PROD}
        for page in (self.theirs, self.ours):
            words = page.cast("I")
            for name, value in indices.items():
                words[positions[name]] = value & 0xFFFFFFFF

    def kick(self) -> tuple[list[int], list[int]]:
        """Have both look, until nothing changes any more; return their indices and errors."""
        before = None
        for _ in range(50):
            self.daemon.kick(FIRST_PORT + self.domid)
            self.client.barrier()
            now = list(self.theirs.cast("I")[WORDS])
            if now == before:
                break
            before = now
            time.sleep(0.001)
        self.fake.notify(PORT)
        self.dom0.run()
        return list(self.ours.cast("I")[WORDS]), list(self.theirs.cast("I")[WORDS])

    def replies(self) -> tuple[bytes, bytes]:
        return bytes(self.ours[1024:2048]), bytes(self.theirs[1024:2048])


@pytest.fixture(scope="module")
def c_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CDaemon, SocketClient, Iterator[int]]]:
    with CDaemon(tmp_path_factory.mktemp("c"), domains=600) as daemon:
        dom0 = daemon.connect()
        yield daemon, dom0, iter(range(1, 600))
        dom0.close()


@pytest.fixture
def both(c_daemon: tuple[CDaemon, SocketClient, Iterator[int]]) -> Both:
    daemon, dom0, numbers = c_daemon
    return Both(daemon, dom0, next(numbers))


@pytest.mark.parametrize("start", STARTS)
def test_all_distances_of_request_indices(c_daemon: tuple[CDaemon, SocketClient, Iterator[int]], start: int) -> None:
    daemon, dom0, numbers = c_daemon
    for distance in DISTANCES:
        both = Both(daemon, dom0, next(numbers))
        both.put(start, PATH * 50)
        both.set(req_cons=start, req_prod=start + distance)
        ours, theirs = both.kick()
        assert ours == theirs, (start, distance)
        assert both.replies()[0] == both.replies()[1]


@pytest.mark.parametrize("start", STARTS)
def test_all_distances_of_reply_indices(c_daemon: tuple[CDaemon, SocketClient, Iterator[int]], start: int) -> None:
    daemon, dom0, numbers = c_daemon
    for distance in DISTANCES:
        both = Both(daemon, dom0, next(numbers))
        both.put(0, PATH)
        both.set(req_prod=len(PATH), rsp_cons=start, rsp_prod=start + distance)
        ours, theirs = both.kick()
        assert ours == theirs, (start, distance)
        assert both.replies()[0] == both.replies()[1]


def test_an_oversize_header_leaves_what_is_behind_it(both: Both) -> None:
    data = PATH + OVERSIZE + PATH
    both.put(0, data)
    both.set(req_prod=len(data))
    ours, theirs = both.kick()
    assert ours == theirs
    assert ours[REQ_CONS - REQ_CONS] == len(PATH + OVERSIZE)
    assert ours[ERROR - REQ_CONS] == xs.XENSTORE_ERROR_PROTO


def test_nothing_moves_after_an_error(both: Both) -> None:
    both.put(0, OVERSIZE)
    both.set(req_prod=16)
    assert both.kick()[0] == both.kick()[1]
    both.put(16, PATH)
    both.set(req_prod=16 + len(PATH))
    ours, theirs = both.kick()
    assert ours == theirs
    assert ours[0] == 16


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 20])
def test_torn_requests(both: Both, cut: int) -> None:
    both.put(0, PATH)
    both.set(req_prod=cut)
    assert both.kick()[0] == both.kick()[1]
    both.set(req_prod=len(PATH))
    ours, theirs = both.kick()
    assert ours == theirs
    assert both.replies()[0] == both.replies()[1]


def test_a_full_ring_of_requests_and_nobody_who_reads(both: Both) -> None:
    both.put(0, (PATH * 60)[:1024])
    both.set(req_prod=1024)
    ours, theirs = both.kick()
    # Replies: as much as fits; requests: the C daemon leaves those in the ring that it has not looked at.
    assert ours[RSP_PROD - REQ_CONS] == theirs[RSP_PROD - REQ_CONS]
    both.set(rsp_cons=ours[RSP_PROD - REQ_CONS])
    ours, theirs = both.kick()
    assert ours[RSP_PROD - REQ_CONS] == theirs[RSP_PROD - REQ_CONS]
    assert both.replies()[0] == both.replies()[1]


@pytest.mark.parametrize("seed", range(8))
def test_random_pages(c_daemon: tuple[CDaemon, SocketClient, Iterator[int]], seed: int) -> None:
    """Random indices near each other, and random bytes with good requests among them."""
    daemon, dom0, numbers = c_daemon
    pick = random.Random(seed)
    for _ in itertools.repeat(None, 6):
        both = Both(daemon, dom0, next(numbers))
        start = pick.choice(STARTS)
        data = b"".join(
            pick.choice([PATH, OVERSIZE, encode(xs.XS_READ, 3, 0, b"/tool\0"), b"\0" * 16]) for _ in range(4)
        )
        both.put(start, data)
        both.set(req_cons=start, req_prod=start + pick.choice([0, 5, len(data), len(data), 1030]))
        # Not across the end of the queue: there the C daemon takes two turns for a reply, and loses the second part
        # of it if a bad header comes next.
        room = pick.choice([0, 100])
        both.set(rsp_cons=room, rsp_prod=room + pick.choice([0, 0, 0, 100, 1024, 1025]))
        ours, theirs = both.kick()
        assert ours == theirs
        assert both.replies()[0] == both.replies()[1]
