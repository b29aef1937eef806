"""A Linux guest is destroyed amid its boot, wherever that is: nothing of it is left, and nobody else notices.

One boot tells how long it takes; the next ones end at moments that are spread over it. PARAVIRT_LINUX_MOMENTS says at
how many (default: 3, as each takes some seconds).
"""

from __future__ import annotations

import os
from pathlib import Path

import trio
from conftest import Build

from backends.xenstored.daemon import XenStored
from hypervisor.grant_table.check import check_grants
from hypervisor.mm.check import check as check_frames
from toolstack.console_log import ConsoleLog
from toolstack.domains import LiveDomain
from toolstack.host import Host
from toolstack.lifecycle import Lifecycle
from toolstack.xl_config import load_config

MIB = 1 << 20
MOMENTS = int(os.environ.get("PARAVIRT_LINUX_MOMENTS", "3"))
AFTER_NS = 200_000_000
"""How long the neighbour goes on when the guest is gone."""
LONGER_NS = 6_000_000_000
"""Longer than the guest takes."""
JOB = """
ip link set eth0 up
ip addr add 10.0.0.2/24 dev eth0
ping -c 1000 -i 0.002 10.0.0.1 >/dev/null &
dd if=/dev/xvda bs=64k 2>/dev/null | md5sum
dd if=/dev/zero of=/dev/xvda bs=64k count=64 conv=fsync 2>/dev/null
echo "step: all read and written"
kill %1
"""
NEIGHBOUR = """
from guest_kernel.guest import Guest


class Neighbour(Guest):
    async def main(self):
        (await self.net.interface("eth0")).configure("10.0.0.1/24")
        disk = await self.disk("xvda")
        rounds = 0
        while self.kernel.monotonic_ns() < UNTIL:
            data = bytes([rounds % 251]) * 65536
            await disk.write(rounds % 8 * 128, data)
            assert await disk.read(rounds % 8 * 128, 128) == data, rounds
            rounds += 1
            await self.sleep(0.002)
        self.print("unharmed:", rounds > 10)
"""


class Destroying(Host):
    """A host whose toolstack destroys the guest `linux` at a moment; `checked` says that it has been."""

    def __init__(self, moment: int | None, consoles: ConsoleLog) -> None:
        super().__init__(pcpus=2, consoles=consoles)
        self.moment = moment
        self.checked = False
        self.ended_at = 0
        """When the toolstack found that the guest had ended, in virtual time."""

    def started(self, lifecycle: Lifecycle, xenstored: XenStored) -> None:
        super().started(lifecycle, xenstored)
        if self.moment is not None:
            lifecycle.kernel.spawn(self._destroy(lifecycle, self.moment), "destroyer")

    def account(self, live: LiveDomain, reason: str) -> None:
        super().account(live, reason)
        if live.name == "linux":
            self.ended_at = self.hv.now()

    async def _destroy(self, lifecycle: Lifecycle, moment: int) -> None:
        kernel = lifecycle.kernel
        await kernel.sleep(moment)
        [live] = [live for live in lifecycle.live.values() if live.name == "linux"]
        await lifecycle.condemn(live)
        # Its last pages are freed when the daemons have unmapped them.
        await kernel.sleep(AFTER_NS // 2)
        assert live.domid not in self.hv.domains
        check_frames(self.hv)
        check_grants(self.hv)
        self.checked = True


class Lab:
    """The two guests."""

    def __init__(self, build: Build, directory: Path) -> None:
        self.directory = directory
        self.disk = directory / "linux.img"
        linux = build(JOB)
        settings = (f'disk = ["{self.disk},raw,xvda,w"]', 'vif = ["bridge=xenbr0"]', "vcpus = 2")
        self.linux = linux.config(directory / "linux.cfg", *settings)
        image = directory / "neighbour.img"
        image.write_bytes(bytes(MIB))
        self.neighbour = directory / "neighbour.cfg"
        self.neighbour.write_text(
            f'name = "neighbour"\nkernel = "neighbour.py"\nmemory = 8\nvif = ["bridge=xenbr0"]\n'
            f'disk = ["{image},raw,xvda,w"]\n'
        )

    def run(self, moment: int | None, until: int) -> tuple[Destroying, str]:
        """Run the host, and return it with what was printed; the neighbour works until `until`."""
        self.disk.write_bytes(bytes(8 * MIB))
        (self.directory / "neighbour.py").write_text(NEIGHBOUR.replace("UNTIL", str(until)))
        lines: list[str] = []
        host = Destroying(moment, ConsoleLog(lines.append))
        result = trio.run(host.run, [load_config(self.linux), load_config(self.neighbour)])
        text = "".join(lines)
        assert "neighbour | unharmed: True\n" in text, text
        assert host.leaks() == []
        ended = {domain.name: domain.reason for domain in result.domains}
        assert ended["linux"] == ("destroyed" if moment is not None else "poweroff"), text
        return host, text


def test_destroyed_at_any_moment(build: Build, tmp_path: Path) -> None:
    lab = Lab(build, tmp_path)
    # The neighbour works all the time, as it will up to each of the moments: so all runs are alike up to there.
    host, text = lab.run(None, until=LONGER_NS)
    assert "step: all read and written" in text
    length = host.ended_at
    assert length < LONGER_NS
    for number in range(MOMENTS):
        # Not at round times: what happens once in so many milliseconds should be hit, too.
        moment = length * (2 * number + 1) // (2 * MOMENTS) + number * 377_003
        host, text = lab.run(moment, until=moment + AFTER_NS)
        assert host.checked
        assert moment <= host.ended_at < length
