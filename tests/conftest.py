"""Every test of the suite ends with a leak check of all the hosts that it made.

Each `Hypervisor` made during a test is remembered (weakly) and, once the test and its fixtures are done:

- recounted: event channels, grants and frames must agree with themselves, as the test left them;
- if dom0 has shut the host down in good order: no other domain may be left, nor anything that dom0 had for one; nor, on
  a host of the toolstack, a node or a connection in xenstore;
- taken apart: all domains are destroyed, and then every frame must be free again, every timer disarmed, every interrupt
  line disconnected.

A test that means to leave other domains on a host that dom0 has shut down says why:

    @pytest.mark.leaves_live_host("dom0 goes first here")

It is still recounted and taken apart. A test that breaks a hypervisor's state by hand, and so cannot be, says
`@pytest.mark.breaks_host("why")`.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from leak_check import find_leaks

from hypervisor.abi.sched import SHUTDOWN_poweroff
from hypervisor.hypervisor import Hypervisor
from toolstack.host import Host

# Tests say themselves where the store is that they mean.
for _variable in ("XENSTORED_PATH", "XENSTORED_RUNDIR"):
    os.environ.pop(_variable, None)

# Where a change is judged, the same examples are tried each time; at a desk new ones are, and those that fail are kept.
# How long something took on a machine that may be busy proves nothing, neither of an example nor of making one.
patience: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("desk", **patience)
settings.register_profile("ci", derandomize=True, **patience)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

made: list[tuple[weakref.ref[Hypervisor], int]] = []
"""The hosts of the present test, with the number of frames that were free at first."""
whole: list[weakref.ref[Host]] = []
"""Those among them that the toolstack runs, with xenstore and all."""
failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaves_live_host(reason): other domains outlive dom0 in this test")
    config.addinivalue_line("markers", "breaks_host(reason): this test corrupts a hypervisor's state")
    make_hypervisor, make_host = Hypervisor.__init__, Host.__init__

    def hypervisor(self: Hypervisor, *args: Any, **options: Any) -> None:
        make_hypervisor(self, *args, **options)
        made.append((weakref.ref(self), self.frames.free_frames))

    def host(self: Host, *args: Any, **options: Any) -> None:
        make_host(self, *args, **options)
        whole.append(weakref.ref(self))

    Hypervisor.__init__ = hypervisor  # type: ignore[method-assign]
    Host.__init__ = host  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names with an address: processes that share the work (pytest-xdist) must find the same tests."""
    for item in items:
        if re.search(r" at 0x[0-9a-f]+>", item.name):
            raise pytest.UsageError(f"{item.nodeid}: give this parameter a name that is the same in each process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if report.failed:
        item.stash[failed] = True
    return report


def pytest_runtest_setup() -> None:
    made.clear()
    whole.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    hosts = [(hv, free) for hv, free in ((reference(), free) for reference, free in made) if hv is not None]
    whole_hosts = [host for host in (reference() for reference in whole) if host is not None]
    made.clear()
    whole.clear()
    if item.stash.get(failed, False) or reason_of(item, "breaks_host"):
        return
    exempt = bool(reason_of(item, "leaves_live_host"))
    found = [] if exempt else [leak for host in whole_hosts if ended_well(host) for leak in host.leaks()]
    found += [leak for hv, free in hosts for leak in find_leaks(hv, free, exempt)]
    if found:
        pytest.fail("this test leaves behind:\n  " + "\n  ".join(found), pytrace=False)


def ended_well(host: Host) -> bool:
    """Whether dom0 has shut a host down, so that even xenstore must be empty again."""
    return host.lifecycle is not None and host.hv.stopped and host.hv.shutdown_reason == SHUTDOWN_poweroff


def reason_of(item: pytest.Item, name: str) -> str:
    marker = item.get_closest_marker(name)
    if marker is None:
        return ""
    if len(marker.args) != 1 or not isinstance(marker.args[0], str) or len(marker.args[0].split()) < 3:
        pytest.fail(f"{name} wants a reason, in words", pytrace=False)
    return marker.args[0]
