"""Every test of the suite ends with a leak check of all the hosts that it made.

Each `Hypervisor` made during a test is remembered (weakly) and, once the test and its fixtures are done:

- recounted: event channels, grants and frames must agree with themselves, as the test left them;
- if dom0 has shut the host down in good order: no other domain may be left, nor anything that dom0 had for one;
- taken apart: all domains are destroyed, and then every frame must be free again, every timer disarmed, every interrupt
  line disconnected.

A test that means to leave other domains on a host that dom0 has shut down says why:

    @pytest.mark.leaves_live_host("dom0 goes first here")

It is still recounted and taken apart. A test that breaks a hypervisor's state by hand, and so cannot be, says
`@pytest.mark.breaks_host("why")`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from leak_check import find_leaks

from hypervisor.hypervisor import Hypervisor

made: list[tuple[weakref.ref[Hypervisor], int]] = []
"""The hosts of the present test, with the number of frames that were free at first."""
failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "leaves_live_host(reason): other domains outlive dom0 in this test, for a reason"
    )
    config.addinivalue_line("markers", "breaks_host(reason): this test corrupts a hypervisor's state, for a reason")
    original = Hypervisor.__init__

    def remembered(self: Hypervisor, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        made.append((weakref.ref(self), self.frames.free_frames))

    Hypervisor.__init__ = remembered  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if report.failed:
        item.stash[failed] = True
    return report


def pytest_runtest_setup() -> None:
    made.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    hosts = [(hv, free) for hv, free in ((reference(), free) for reference, free in made) if hv is not None]
    made.clear()
    if item.stash.get(failed, False) or reason_of(item, "breaks_host"):
        return
    exempt = bool(reason_of(item, "leaves_live_host"))
    found = [leak for hv, free in hosts for leak in find_leaks(hv, free, exempt)]
    if found:
        pytest.fail("this test leaves behind:\n  " + "\n  ".join(found), pytrace=False)


def reason_of(item: pytest.Item, name: str) -> str:
    marker = item.get_closest_marker(name)
    if marker is None:
        return ""
    if len(marker.args) != 1 or not isinstance(marker.args[0], str) or len(marker.args[0].split()) < 3:
        pytest.fail(f"{name} wants a reason, in words", pytrace=False)
    return marker.args[0]
