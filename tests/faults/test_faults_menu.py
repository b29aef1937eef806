"""How faults are ordered: every word of the menu parses, and a person's mistake is told in a sentence."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from hypervisor.abi import tracepoints as tp
from hypervisor.abi.io import xenbus
from toolstack.cli import main
from toolstack.errors import UsageError
from toolstack.faults import MENU, parse_fault
from toolstack.faults.menu import LOSSES
from toolstack.faults.moments import Moment, parse_moment, parse_time
from toolstack.faults.spec import KEYS

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "faults.md"
GOOD = {
    "domain": "web",
    "at": "5ms",
    "for": "20ms",
    "probability": "0.25",
    "count": "7",
    "by": "200us",
    "every": "100us",
    "vdev": "xvda",
    "device": "vif",
    "side": "backend",
    "bridge": "xenbr1",
    "sectors": "16",
    "writes": "3",
}


@pytest.mark.parametrize("name", MENU)
def test_every_key_of_every_fault_can_be_said(name: str) -> None:
    entry = MENU[name]
    for key in entry.keys:
        spec = parse_fault(f"{name}:{key}={GOOD[key]}")
        assert getattr(spec, KEYS[key].field) == KEYS[key].parse(GOOD[key])
    whole = parse_fault(":".join([name, *(f"{key}={GOOD[key]}" for key in entry.keys)]))
    assert whole.name == name
    assert entry.hurts <= LOSSES.keys()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("evnt-drop", r"there is no fault 'evnt-drop'; did you mean 'event-drop'\?"),
        ("event-drop:vdev=xvda", r"'vdev=xvda' is not KEY=VALUE with a key of event-drop; it has domain, at, for"),
        ("event-drop:domain", r"'domain' is not KEY=VALUE"),
        ("event-drop:probability=0", r"probability is a number above 0 and up to 1, not '0'"),
        ("event-drop:probability=nan", r"probability is"),
        ("event-drop:count=0", r"count is a number from 1 on"),
        ("event-drop:at=5", r"at is a time \(5ms\)"),
        ("event-drop:at=vbd-happy", r"at is a time"),
        ("event-drop:at=hypercall#0", r"at is a time"),
        ("event-drop:at=state_ring#1", r"at is a time"),
        ("stop-posting:side=middle", r"side is frontend or backend"),
        ("disk-slow:by=fast", r"by is a time"),
    ],
)
def test_a_mistake_is_told(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_fault(text)


@pytest.mark.parametrize(
    ("text", "ns"), [("0", 0), ("7ns", 7), ("20us", 20_000), ("5ms", 5_000_000), ("2s", 2_000_000_000)]
)
def test_times(text: str, ns: int) -> None:
    assert parse_time(text) == ns


def test_moments() -> None:
    assert parse_moment("5ms") == Moment(time=5_000_000)
    counted = parse_moment("hypercall#500")
    assert (counted.kind, counted.number) == (tp.HYPERCALL, 500)
    assert counted.is_this(3, 3, tp.HYPERCALL, ())
    assert not counted.is_this(3, 0, tp.HYPERCALL, ())
    state = parse_moment("vbd-connected")
    assert (state.device, state.state) == ("vbd", xenbus.XenbusStateConnected)
    assert state.is_this(3, 3, tp.XENBUS_STATE, ("device/vbd/51712", 3, 4))
    assert state.is_this(3, 0, tp.XENBUS_STATE, ("/local/domain/0/backend/vbd/3/51712", 2, 4))
    assert not state.is_this(3, 0, tp.XENBUS_STATE, ("/local/domain/0/backend/vbd/4/51712", 2, 4))
    assert not state.is_this(3, 3, tp.XENBUS_STATE, ("device/vif/0", 3, 4))
    assert not state.is_this(3, 3, tp.XENBUS_STATE, ("device/vbd/51712", 1, 3))


def test_the_menu_is_shown() -> None:
    result = CliRunner().invoke(main, ["faults"])
    assert result.exit_code == 0
    assert all(re.search(rf"^{name} ", result.output, re.MULTILINE) for name in MENU)
    for name, entry in MENU.items():
        one = CliRunner().invoke(main, ["faults", name])
        assert one.exit_code == 0
        assert entry.good in one.output
        assert all(f"  {key}=" in one.output for key in entry.keys)
    wrong = CliRunner().invoke(main, ["faults", "disk-sloow"])
    assert wrong.exit_code == 2
    assert "did you mean 'disk-slow'?" in wrong.output


def test_the_page_has_the_menu() -> None:
    page = DOCS.read_text()
    for entry in MENU.values():
        keys = ", ".join(f"`{key}`" for key in entry.keys)
        assert f"| `{entry.name}` | {entry.does} | {entry.good} | {keys} |" in page
