"""A whole host tells by the tape what it tells without it: devices, several vCPUs and pCPUs, machine code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

import toolstack.host as host_module
from hypervisor.hypervisor import Hypervisor
from hypervisor.trace import read_records
from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.xl_config import load_config

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
SMP = """
from guest_kernel.guest import Guest

class Smp(Guest):
    async def main(self):
        async def work(number):
            for _ in range(20):
                await self.cpu(ns=50_000 + number)
                await self.sleep(0.00001 * number)
        threads = [self.kernel.spawn(work(number), f"work {number}") for number in range(6)]
        for thread in threads:
            await thread.join()
"""


class Bench:
    """Runs the same configurations with a tape and without."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.taped: list[bool] = []

    def records(self, configs: list[str], *, plain: bool, **options: Any) -> list[list[Any]]:
        for image in self.directory.glob("*.img"):
            image.write_bytes(bytes(1 << 20))

        def make(*args: Any, **more: Any) -> Hypervisor:
            hv = Hypervisor(*args, **more | ({"tape": None} if plain else {}))
            self.taped.append(hv.tape is not None)
            return hv

        with self.monkeypatch.context() as patch:
            patch.setattr(host_module, "Hypervisor", make)
            trace, lines = self.directory / "host.trace", []
            host = Host(consoles=ConsoleLog(lines.append), trace_file=trace, **options)
            result = trio.run(host.run, [load_config(self.directory / name) for name in configs])
            assert result.exit_code == 0, lines
        return list(read_records(trace))

    def compare(self, *configs: str, **options: Any) -> list[list[Any]]:
        plain, taped = (self.records(list(configs), plain=plain, **options) for plain in (True, False))
        assert self.taped == [False, True]
        for number, (a, b) in enumerate(zip(plain, taped, strict=False)):
            assert a == b, f"record {number}"
        assert len(plain) == len(taped)
        return taped


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.mark.parametrize("pcpus", [1, 3])
def test_disk_and_network(bench: Bench, pcpus: int) -> None:
    shutil.copytree(EXAMPLES / "first-host", bench.directory, dirs_exist_ok=True)
    (bench.directory / "guest1.img").touch()
    assert len(bench.compare("guest1.cfg", "guest2.cfg", pcpus=pcpus)) > 1000


@pytest.mark.parametrize("pcpus", [1, 2])
@pytest.mark.parametrize("scheduler", ["credit2", "credit", "rtds"])
def test_several_vcpus_whose_threads_compute(bench: Bench, pcpus: int, scheduler: str) -> None:
    (bench.directory / "smp.py").write_text(SMP)
    (bench.directory / "smp.cfg").write_text('name = "smp"\nkernel = "smp.py"\nmemory = 16\nvcpus = 3\n')
    records = bench.compare("smp.cfg", pcpus=pcpus, scheduler=scheduler, trace_threads=True)
    assert {record[2] for record in records if record[1] == 1} == {0, 1, 2}


def test_a_stream_between_guests(bench: Bench) -> None:
    shutil.copytree(EXAMPLES / "vchan", bench.directory, dirs_exist_ok=True)
    bench.compare("server.cfg", "client.cfg")


def test_another_seed_of_the_schedule(bench: Bench) -> None:
    shutil.copytree(EXAMPLES / "vchan", bench.directory, dirs_exist_ok=True)
    bench.compare("server.cfg", "client.cfg", schedule="random:5", pcpus=2)
