"""The bus on the whole simulated host: real kernels, event channels, grants and xenstored."""

from itertools import pairwise
from pathlib import Path

import pytest
import trio

from hypervisor.abi import tracepoints
from hypervisor.trace import read_records
from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.xl_config import load_config

GUEST = """
from guest_kernel.guest import Guest

class Tester(Guest):
    async def main(self):
        {body}
"""

USE_THE_DISK = """disk = await self.disk("xvda")
        await disk.write(3, b"x" * 512)
        assert await disk.read(3, 1) == b"x" * 512
        {then}
"""


def run(folder: Path, *bodies: str) -> tuple[Host, HostResult, list[tuple[int, str, int, int]]]:
    """Run a guest with a disk and a network interface for each body; return also (domain, path, old, new) states."""
    configs = []
    for number, body in enumerate(bodies, 1):
        (folder / f"g{number}.py").write_text(GUEST.format(body=body))
        (folder / f"g{number}.img").write_bytes(bytes(64 * 512))
        config = folder / f"g{number}.cfg"
        config.write_text(
            f'name = "g{number}"\nmemory = 8\nkernel = "g{number}.py"\n'
            f'disk = ["format=raw,vdev=xvda,access=rw,target=g{number}.img"]\nvif = ["bridge=xenbr0"]\n'
            'on_crash = "destroy"\n'
        )
        configs.append(load_config(config))
    trace = folder / "trace"
    host = Host(trace_file=trace)
    result = trio.run(host.run, configs)
    states = [
        (domid, path, old, new)
        for _, domid, _, kind, *fields in read_records(trace)
        if kind == tracepoints.XENBUS_STATE
        for path, old, new in [fields]
    ]
    return host, result, states


def of_device(states: list[tuple[int, str, int, int]], domid: int, path: str) -> list[int]:
    """Return the states that one end went through; each transition begins where the last one ended."""
    steps = [(old, new) for where, name, old, new in states if (where, name) == (domid, path)]
    for (_, reached), (left, _) in pairwise(steps):
        assert reached == left
    return [steps[0][0], *[new for _, new in steps]]


def assert_backends_are_gone(host: Host) -> None:
    bus = host.kernels[0].bus
    assert bus is not None
    assert bus.devices == {}
    assert [watch.path for watch in host.kernels[0].xenbus.watches if "device/" in watch.path] == []


def test_devices_connect_and_close_in_order(tmp_path: Path) -> None:
    host, result, states = run(tmp_path, USE_THE_DISK.format(then=""), USE_THE_DISK.format(then=""))
    assert [domain.failed for domain in result.domains] == [False] * 3
    for domid in (1, 2):
        back, front = f"/local/domain/0/backend/vbd/{domid}/51712", "device/vbd/51712"
        assert of_device(states, 0, back) == [1, 2, 4, 5, 6]
        assert of_device(states, domid, front) == [1, 3, 4, 5, 6]
        mine = [(path, new) for where, path, _, new in states if path == back or (where, path) == (domid, front)]
        assert mine == [
            (back, 2),
            (front, 3),
            (back, 4),
            (front, 4),
            (front, 5),
            (back, 5),
            (front, 6),
            (back, 6),
        ]
    assert_backends_are_gone(host)


@pytest.mark.parametrize("then", ["raise RuntimeError('the guest gives up')", "await self.kernel.power.crash('boom')"])
def test_backends_close_behind_a_crashed_guest(tmp_path: Path, then: str) -> None:
    host, result, states = run(tmp_path, USE_THE_DISK.format(then=then), USE_THE_DISK.format(then=""))
    assert [domain.failed for domain in result.domains if domain.name == "g1"] == [True]
    assert [domain.failed for domain in result.domains if domain.name == "g2"] == [False]
    for kind in ("vbd/1/51712", "vif/1/0", "vbd/2/51712", "vif/2/0"):
        path = f"/local/domain/0/backend/{kind}"
        assert of_device(states, 0, path)[-1] == 6
    assert_backends_are_gone(host)
