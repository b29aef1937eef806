"""What is told of a guest's life: words for whatever it does, and nothing of times and addresses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bare_guest import DATA_PAGES, HOLES, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.guest_abi.calls import Landmarks, describe
from conformance.guest_abi.life import ABOUT, SCENARIOS, live
from conformance.guest_abi.lines import fold
from conformance.guest_abi.messages import Messages
from conformance.guest_abi.subject import parse
from conformance.kit.telling import telling
from conformance.suites import SUITES
from hypervisor.abi import event_channel, sched, xen
from hypervisor.abi.io import xs_wire
from hypervisor.machine.memory import Memory
from tests.mutants.kernels import build, require_compiler

ADDRESS = re.compile("0x[0-9a-f]{5,}")
PAGE = xs_wire.xenstore_domain_interface


def test_every_scenario_has_words() -> None:
    assert set(ABOUT) == set(SCENARIOS)


def test_what_goes_round_and_round_is_told_once() -> None:
    assert fold(["a", "b", "a", "b", "c"]) == ["a", "b", "a", "b", "c"]
    assert fold(["x", *"ababab", "a", "c"]) == ["x", "a", "b", "... these 2 lines again and again", "a", "c"]
    assert fold(["a"] * 9) == ["a", "... again and again"]
    assert fold(["a", "a", "b"]) == ["a", "a", "b"]
    assert fold([]) == []


@given(st.lists(st.sampled_from("abc"), max_size=60))
def test_nothing_is_lost_that_is_not_said(lines: list[str]) -> None:
    """What is told anew leads to the same words, and says nothing that has not happened in this order."""
    told = fold(lines)
    rest = iter(lines)
    assert all(line in rest for line in told if not line.startswith("..."))
    if not any(line.startswith("...") for line in told):
        assert told == lines


@given(st.integers(0, 6), st.integers(3, 9))
def test_how_often_does_not_matter(before: int, times: int) -> None:
    head = [f"line {number}" for number in range(before)]
    assert fold([*head, *["a", "b"] * times, "end"]) == fold([*head, *["a", "b"] * 3, "end"])


# ---- the messages of a store's ring


class Ring:
    """A page with a ring of requests, and who reads along."""

    def __init__(self, at: int = 0) -> None:
        self.memory = Memory(16)
        self.memory.i[(3 << 10) + (PAGE.offset("req_prod") >> 2)] = at
        self.messages = Messages(self.memory, 3, is_requests=True)

    def write(self, data: bytes) -> None:
        index = (3 << 10) + (PAGE.offset("req_prod") >> 2)
        produced = self.memory.i[index]
        for at, byte in enumerate(data, produced):
            self.memory.b[(3 << 12) + (at & 1023)] = byte
        self.memory.i[index] = produced + len(data) & 0xFFFF_FFFF


def message(kind: int, payload: bytes) -> bytes:
    return xs_wire.xsd_sockmsg.pack(type=kind, req_id=0, tx_id=0, len=len(payload)) + payload


@given(st.lists(st.binary(max_size=200), max_size=8), st.integers(0, 0xFFFF_FFFF), st.integers(1, 300))
def test_messages_are_put_together(payloads: list[bytes], at: int, step: int) -> None:
    ring = Ring(at)
    stream = b"".join(message(xs_wire.XS_READ, payload) for payload in payloads)
    found = []
    for start in range(0, len(stream), step):
        ring.write(stream[start : start + step])
        found += ring.messages.new()
    assert len(found) == len(payloads)
    assert all(line.startswith("XS_READ ") for line in found)


def test_words_of_messages() -> None:
    ring = Ring()
    ring.write(message(xs_wire.XS_WATCH, b"control/shutdown\0t\0"))
    ring.write(message(xs_wire.XS_WRITE, b"a\0"))
    ring.write(message(77, b"x" * 50))
    assert ring.messages.new() == [
        "XS_WATCH 'control/shutdown' 't'",
        "XS_WRITE 'a' ''",
        f"type 77 {'x' * 40!r}... (50 bytes)",
    ]
    assert ring.messages.new() == []


def test_a_message_that_is_too_long_is_the_last() -> None:
    ring = Ring()
    ring.write(xs_wire.xsd_sockmsg.pack(type=xs_wire.XS_READ, req_id=0, tx_id=0, len=5000))
    assert ring.messages.new() == ["XS_READ of 5000 bytes, and 4096 are allowed"]
    ring.write(message(xs_wire.XS_READ, b"a\0"))
    assert ring.messages.new() == []


def test_an_index_that_cannot_be_is_the_last() -> None:
    ring = Ring()
    ring.memory.i[(3 << 10) + (PAGE.offset("req_prod") >> 2)] = 5000
    assert ring.messages.new() == ["5000 bytes at once, and there is room for 1024"]
    assert ring.messages.new() == []


# ---- hypercalls


@pytest.fixture
def guest() -> Any:
    """A guest with pages, and no program."""
    world = World()
    world.guest()
    return world.guest()


def words(guest: Any, number: int, *arguments: int, result: int = 0) -> str:
    marks = Landmarks(guest.hv, guest.domid)
    marks.frames[guest.domain.shared_info_mfn] = "shared_info"
    return describe(marks, guest.vcpus[0], number, *arguments, *[0] * (5 - len(arguments)), result)


PLACES = st.one_of(
    st.integers(0, 70),
    st.integers(0, 0xFFFF_FFFF_FFFF_FFFF),
    st.integers(0x1000, 0x1000 + (DATA_PAGES << 12)),
    st.integers(HOLES - 8, HOLES + 8),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 70),
    st.tuples(PLACES, PLACES, PLACES, PLACES, PLACES),
    st.integers(-200, 1 << 40),
    st.binary(max_size=64),
)
def test_there_are_words_for_any_call(
    guest: Any, number: int, arguments: tuple[int, ...], result: int, memory: bytes
) -> None:
    guest.poke(guest.args, memory)
    for given_ in (arguments, (arguments[0], guest.args, *arguments[2:])):
        text = words(guest, number, *given_, result=result)
        assert 0 < len(text) < 200
        assert "\n" not in text


def test_words_of_calls(guest: Any) -> None:
    table = guest.args
    own, shared = guest.pages[0], guest.domain.shared_info_mfn
    update = xen.HYPERVISOR_update_va_mapping
    assert words(guest, update, 0, shared << 12 | 7) == "update_va_mapping to shared_info, writable = 0"
    assert words(guest, update, 0, own << 12 | 5) == "update_va_mapping to a page of its own, read-only = 0"
    assert words(guest, update, 0, guest.l1 << 12 | 7, result=-16) == (
        "update_va_mapping to a page table of its own (level 1), writable = -EBUSY"
    )
    assert words(guest, update, 0, 0) == "update_va_mapping to nothing = 0"
    other = guest.world.guests[0].pages[0]
    assert words(guest, update, 0, other << 12 | 7, result=-22).endswith("to a page of domain 0, writable = -EINVAL")
    guest.poke(table, xen.trap_info.pack(vector=14, address=5) + xen.trap_info.pack(vector=3, address=9) + bytes(16))
    assert words(guest, xen.HYPERVISOR_set_trap_table, table) == "set_trap_table with handlers for 14, 3 = 0"
    assert words(guest, xen.HYPERVISOR_set_trap_table, 0) == "set_trap_table without handlers = 0"
    guest.poke(table, sched.sched_shutdown.pack(reason=3))
    shutdown = (xen.HYPERVISOR_sched_op, sched.SCHEDOP_shutdown)
    assert words(guest, *shutdown, table) == "sched_op SCHEDOP_shutdown SHUTDOWN_crash = 0"
    assert words(guest, *shutdown, HOLES, result=-14) == "sched_op SCHEDOP_shutdown what is nowhere = -EFAULT"
    later = guest.hv.now() + 20_000_000
    assert words(guest, xen.HYPERVISOR_set_timer_op, later) == "set_timer_op in 20 ms = 0"
    assert words(guest, xen.HYPERVISOR_set_timer_op, 0) == "set_timer_op off = 0"


def test_words_of_ports(guest: Any) -> None:
    rc, bind = guest.call(
        xen.HYPERVISOR_event_channel_op, event_channel.EVTCHNOP_bind_virq, layout=event_channel.evtchn_bind_virq,
        virq=xen.VIRQ_DEBUG, vcpu=0,
    )  # fmt: skip
    assert rc == 0
    bound = words(guest, xen.HYPERVISOR_event_channel_op, event_channel.EVTCHNOP_bind_virq, guest.args)
    assert bound == f"event_channel_op EVTCHNOP_bind_virq VIRQ_DEBUG = port {bind.port} (VIRQ_DEBUG)"
    close = (xen.HYPERVISOR_event_channel_op, event_channel.EVTCHNOP_close)
    guest.call(*close, layout=event_channel.evtchn_close, port=bind.port)
    assert words(guest, *close, guest.args) == f"event_channel_op EVTCHNOP_close port {bind.port} (closed) = 0"
    guest.poke(guest.args, b"\xff" * 4)
    assert words(guest, *close, guest.args, result=-22) == (
        "event_channel_op EVTCHNOP_close port 4294967295 (closed) = -EINVAL"
    )


# ---- lives


def told(subject: str, scenario: str) -> list[str]:
    teller = live(parse(subject), scenario, is_told=True).teller
    assert teller is not None
    return teller.lines


def test_a_life_in_c(tmp_path: Path) -> None:
    require_compiler()
    kernel = f"elf:{build(tmp_path)}"
    lines = told(kernel, "peace")
    assert lines == told(kernel, "peace")
    assert not any(ADDRESS.search(line) for line in lines)
    parts = [
        "guest    update_va_mapping to shared_info, writable = 0",
        "guest    set_trap_table with handlers for 13, 14 = 0",
        "guest    callback_op CALLBACKOP_register CALLBACKTYPE_event = 0",
        "guest    event_channel_op EVTCHNOP_bind_virq VIRQ_TIMER = port 3 (VIRQ_TIMER)",
        "guest    prints 'abi kernel: up\\n'",
        "guest    xenstore ring: XS_WATCH 'control/shutdown' 't'",
        "Xen      enters the event callback: ports 1 (xenstore), 2 (console) are pending",
        "guest    has cleared ports 1 (xenstore), 2 (console)",
        "guest    iret",
        "dom0     xenstore ring: XS_WATCH_EVENT 'control/shutdown' 't'",
        "(It rests: no event waits, domain 0 may use its pages.)",
        "dom0     writes control/shutdown: 'poweroff'",
        "dom0     xenstore ring: XS_READ 'poweroff'",
        "guest    sched_op SCHEDOP_shutdown SHUTDOWN_poweroff = 0",
        "Xen      ends the guest: SHUTDOWN_poweroff",
    ]
    rest = iter(lines)
    assert [part for part in parts if part not in rest] == []
    assert list(rest) == []


def test_a_life_in_python(tmp_path: Path) -> None:
    """A kernel that does much more than the one in C, and other things."""
    (tmp_path / "still.py").write_text(
        "from guest_kernel.guest import Guest\n"
        "class Still(Guest):\n"
        "    async def main(self):\n"
        "        self.print('here')\n"
        "        await self.kernel.never()\n"
    )
    (tmp_path / "still.cfg").write_text('name = "still"\nmemory = 16\nkernel = "still.py"\n')
    lines = told(f"cfg:{tmp_path / 'still.cfg'}", "peace")
    assert not any(ADDRESS.search(line) for line in lines)
    assert any("EVTCHNOP_init_control" in line for line in lines)
    assert any("here" in line for line in lines)
    assert lines[-1] == "Xen      ends the guest: SHUTDOWN_poweroff"


@pytest.mark.breaks_host("the kernel is broken")
def test_a_guest_that_dies_at_once_is_told_of(tmp_path: Path) -> None:
    require_compiler()
    assert told(f"elf:{build(tmp_path, 10)}", "peace") == [
        "Xen      finds no handler for exception 14 (#PF)",
        "Xen      ends the guest: SHUTDOWN_crash",
    ]


def test_a_life_is_told_once_in_each_check(tmp_path: Path) -> None:
    require_compiler()
    world = SUITES["guest-abi"].world(f"elf:{build(tmp_path)}")
    with telling() as recorder:
        for _ in range(2):
            recorder.lines.clear()
            with world() as guest:
                guest.life()
                guest.at_rest()
                guest.life("reboot")
            heads = [line for line in recorder.lines if line.startswith("(A life")]
            assert heads == [f"(A life of the kernel: {ABOUT[name]}.)" for name in ("peace", "reboot")]


def test_nobody_pays_who_does_not_want_to_know(tmp_path: Path) -> None:
    require_compiler()
    with SUITES["guest-abi"].world(f"elf:{build(tmp_path)}")() as guest:
        assert guest.life().teller is None
