"""The ring classes beside Xen's own macros: same operations, same bytes in the page, same answers."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi.io.ring import BackRing, FrontRing, ring_size

PLACES = [*os.environ.get("C_INCLUDE_PATH", "").split(":"), "/usr/include", "/usr/local/include"]
PAGE = 4096
ENTRY = 112


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not any(Path(place, "xen/io/ring.h").exists() for place in PLACES if place):
        message = "Xen's ring.h cannot be compiled here: a C compiler and the package libxen-dev are needed"
        if os.environ.get("PARAVIRT_REQUIRE_LIBXEN") == "1":
            pytest.fail(message)
        pytest.skip(message)
    library = tmp_path_factory.mktemp("ring") / "ring_probe.so"
    source = Path(__file__).with_name("ring_probe.c")
    subprocess.run([compiler, "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    probe = ctypes.CDLL(str(library))
    for name in ("front_free", "front_unconsumed", "back_unconsumed", "front_final", "back_final"):
        getattr(probe, name).restype = ctypes.c_uint
    return probe


@pytest.mark.parametrize("entry", [8, 12, 16, 108, 112])
@pytest.mark.parametrize("pages", [1, 2, 4, 16])
def test_size_and_slots(probe: ctypes.CDLL, entry: int, pages: int) -> None:
    page = (ctypes.c_uint8 * (pages * PAGE))()
    assert getattr(probe, f"e{entry}_nr_ents")(page, pages * PAGE) == ring_size(entry, pages * PAGE)
    assert getattr(probe, f"e{entry}_const_size")(PAGE) == ring_size(entry, PAGE)
    ring = FrontRing(memoryview(bytearray(pages * PAGE)), entry)
    for index in (0, 1, ring.size - 1, ring.size, 2**31 + 3, 2**32 - 1):
        assert getattr(probe, f"e{entry}_slot")(page, pages * PAGE, ctypes.c_uint(index)) == ring.offset(index)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["front_put", "front_take", "back_put", "back_take"]), st.integers(0, 40)),
        st.tuples(
            st.sampled_from(
                ["front_push_check", "back_push_check", "front_final", "back_final", "front_push", "back_push"]
            ),
            st.just(0),
        ),
        st.tuples(
            st.sampled_from(["poke0", "poke1", "poke2", "poke3"]), st.integers(0, 2**32 - 1) | st.integers(-40, 40)
        ),
    ),
    min_size=1,
    max_size=60,
)


class Pair:
    """The Python pair and the C pair, each over its own page, driven by the same steps."""

    def __init__(self, probe: ctypes.CDLL, start: int) -> None:
        self.probe = probe
        self.page = bytearray(PAGE)
        self.c_page = (ctypes.c_uint8 * PAGE)()
        probe.ring_init(self.c_page, PAGE)
        FrontRing.initialise(memoryview(self.page), ENTRY)
        assert bytes(self.c_page) == bytes(self.page)
        self.front = FrontRing(memoryview(self.page), ENTRY, start)
        self.back = BackRing(memoryview(self.page), ENTRY, start)
        probe.front_attach(self.c_page, ctypes.c_uint(start), PAGE)
        probe.back_attach(self.c_page, ctypes.c_uint(start), PAGE)
        for position in range(4):
            self.poke(position, start + position % 2)

    def poke(self, position: int, value: int) -> None:
        raw = (value & 0xFFFFFFFF).to_bytes(4, "little")
        self.page[position * 4 : position * 4 + 4] = raw
        for i in range(4):
            self.c_page[position * 4 + i] = raw[i]

    def step(self, name: str, n: int) -> None:
        front, back, probe = self.front, self.back, self.probe
        if name.startswith("poke"):
            position = int(name[4])
            self.poke(position, n if n > 40 else front.shared[position] + n)
        elif name == "front_put":
            front.req_prod_pvt = (front.req_prod_pvt + n) & 0xFFFFFFFF
            probe.front_put(n)
        elif name == "front_take":
            front.rsp_cons = (front.rsp_cons + n) & 0xFFFFFFFF
            probe.front_take(n)
        elif name == "back_put":
            back.rsp_prod_pvt = (back.rsp_prod_pvt + n) & 0xFFFFFFFF
            probe.back_put(n)
        elif name == "back_take":
            back.req_cons = (back.req_cons + n) & 0xFFFFFFFF
            probe.back_take(n)
        else:
            ours = {
                "front_push_check": front.push_requests_and_check_notify,
                "back_push_check": back.push_responses_and_check_notify,
                "front_final": front.final_check_for_responses,
                "back_final": back.final_check_for_requests,
                "front_push": front.push_requests,
                "back_push": back.push_responses,
            }[name]()
            theirs = getattr(probe, name)()
            if ours is not None:
                assert int(ours) == theirs, name

    def check(self) -> None:
        front, back, probe = self.front, self.back, self.probe
        out = (ctypes.c_uint * 2)()
        probe.front_get(out)
        assert (front.req_prod_pvt, front.rsp_cons) == tuple(out)
        probe.back_get(out)
        assert (back.rsp_prod_pvt, back.req_cons) == tuple(out)
        assert bytes(self.c_page) == bytes(self.page)
        assert front.free_requests() == probe.front_free()
        assert front.full() == bool(probe.front_full())
        assert front.unconsumed_responses() == probe.front_unconsumed()
        assert back.unconsumed_requests() == probe.back_unconsumed()
        for position in range(4):
            value = front.shared[position]
            index = ctypes.c_uint(value)
            assert back.request_cons_overflow(value) == bool(probe.back_cons_overflow(index))
            assert back.request_overflow(value) == bool(probe.back_prod_overflow(index))
            assert front.response_overflow(value) == bool(probe.front_prod_overflow(index))


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from([0, 1, 2**31 - 5, 2**32 - 20, 2**32 - 1]), steps=STEPS)
def test_same_as_the_macros(probe: ctypes.CDLL, start: int, steps: list[tuple[str, int]]) -> None:
    pair = Pair(probe, start)
    for name, n in steps:
        pair.step(name, n)
        pair.check()
