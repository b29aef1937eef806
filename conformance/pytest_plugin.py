"""The pytest plugin: simulated hosts as a fixture (docs/pytest.md). It is loaded wherever paravirt is installed.

Nothing of the simulator is imported before a test asks for a host.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conformance.xen_host import XenHost

MAX_SEED = (1 << 32) - 1
SHOWN_LINES = 40
"""So much of the consoles is shown with a failure."""
HOSTILE = "hostile(*names): guests (these, or all but dom0) are expected to misbehave: that they crash is no failure"

_BASE = pytest.StashKey[int | None]()
"""The seed of all tests, if one was given or drawn."""
_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("paravirt", "simulated Xen hosts")
    group.addoption(
        "--paravirt-seed",
        metavar="N",
        help="Seed of the hosts in all tests: a number, or `random` for a new one (default: each test has its own).",
    )
    group.addoption(
        "--paravirt-trace", action="store_true", help="Record a trace of each host in the test's temporary directory."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the seed, and make the marker known."""
    config.addinivalue_line("markers", HOSTILE)
    text = config.getoption("--paravirt-seed")
    config.stash[_BASE] = None
    if text == "random":
        config.stash[_BASE] = random.SystemRandom().randrange(MAX_SEED + 1)
    elif text is not None:
        if not text.isascii() or not text.isdigit() or int(text) > MAX_SEED:
            raise pytest.UsageError(f"--paravirt-seed is a number from 0 to {MAX_SEED}, or random, not {text!r}")
        config.stash[_BASE] = int(text)


@pytest.fixture
def paravirt_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of this test: that of `--paravirt-seed`, or one that follows from the test's name."""
    base = request.config.stash[_BASE]
    return zlib.crc32(request.node.nodeid.encode()) if base is None else base


@pytest.fixture
def xen_host(request: pytest.FixtureRequest, paravirt_seed: int, tmp_path: Path) -> Iterator[XenHost]:
    """Give a `conformance.xen_host.XenHost`. When the test has passed, its hosts must have lost nothing."""
    from conformance.xen_host import XenHost
    from toolstack.xl_config import DOM0_NAME

    marker = request.node.get_closest_marker("hostile")

    def tolerates(name: str) -> bool:
        return marker is not None and (name in marker.args or (not marker.args and name != DOM0_NAME))

    host = XenHost(tmp_path, paravirt_seed, tolerates=tolerates, traces=request.config.getoption("--paravirt-trace"))
    yield host
    left = [] if request.node.stash.get(_FAILED, False) else host.leaks()
    if left:
        pytest.fail("the guests of this test leave behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell with a failure how to see it again."""
    report = yield
    used = getattr(item, "funcargs", None) or {}
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    if report.failed and "paravirt_seed" in used:
        seed, host = used["paravirt_seed"], used.get("xen_host")
        report.sections.append(("paravirt", f"seed {seed}; again: pytest '{item.nodeid}' --paravirt-seed {seed}"))
        if host is not None and host.traces:
            report.sections.append(("paravirt traces", "\n".join(map(str, host.traces))))
        if host is not None and host.lines:
            report.sections.append(("paravirt consoles", "\n".join(host.lines[-SHOWN_LINES:])))
    return report
