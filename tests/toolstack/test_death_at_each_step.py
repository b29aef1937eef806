"""A guest, or the domain of its backend, dies at each step of connecting and of I/O, on a whole host."""

from pathlib import Path

import pytest
import trio

from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.xl_config import load_config

DYING = """
from guest_kernel.guest import Guest

class Dying(Guest):
    async def main(self):
        self.kernel.spawn(self.work(), "work")
        await self.kernel.sleep({after})
        await self.kernel.power.crash("on purpose")

    async def work(self):
        {work}
"""
USE = """disk = await self.disk("xvda")
        for number in range(100_000):
            await disk.write(number % 8, bytes([number % 251]) * 4096)
"""
LIVING = """
from guest_kernel.guest import Guest

class Living(Guest):
    async def main(self):
        disk = await self.kernel.wait_for(self.disk("xvda"), 2_000_000_000)
        for number in range(200):
            await self.kernel.wait_for(disk.write(number % 32, bytes([number]) * 512), 2_000_000_000)
            assert await disk.read(number % 32, 1) == bytes([number]) * 512
        self.print("all is well")
"""
BEREFT = """
from guest_kernel.guest import Guest
from guest_kernel.block import BlockError

class Bereft(Guest):
    async def main(self):
        try:
            disk = await self.kernel.wait_for(self.disk("xvda"), 1_000_000_000)
            while True:
                await self.kernel.wait_for(disk.write(0, bytes(4096)), 1_000_000_000)
        except (BlockError, TimeoutError) as error:
            self.print("the disk is gone:", error)
"""
STEPS_NS = (0, *range(20_000, 400_000, 20_000), 1_000_000)


def run(folder: Path, programs: dict[str, str], extra: dict[str, str]) -> tuple[list[str], str]:
    """Run guests; return the names of those that failed, and what was printed."""
    configs = []
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
        (folder / f"{name}.img").write_bytes(bytes(64 * 512))
        (folder / f"{name}.cfg").write_text(
            f'name = "{name}"\nmemory = 8\nkernel = "{name}.py"\non_crash = "destroy"\n{extra[name]}\n'
        )
        configs.append(load_config(folder / f"{name}.cfg"))
    printed: list[str] = []
    result = trio.run(Host(consoles=ConsoleLog(printed.append)).run, configs)
    print(*printed)
    return [domain.name for domain in result.domains if domain.failed], "".join(printed)


@pytest.mark.parametrize("after", STEPS_NS)
def test_a_guest_dies(tmp_path: Path, after: int) -> None:
    disk = 'disk = ["{}.img,raw,xvda,rw"]\nvif = ["bridge=xenbr0"]'
    failed, printed = run(
        tmp_path,
        {"dying": DYING.format(after=after, work=USE), "living": LIVING},
        {name: disk.format(name) for name in ("dying", "living")},
    )
    assert failed == ["dying"]
    assert "all is well" in printed


@pytest.mark.parametrize("after", STEPS_NS)
def test_a_driver_domain_dies(tmp_path: Path, after: int) -> None:
    """The guest that it served gets an error, or waits for another backend; that of dom0 notices nothing."""
    failed, printed = run(
        tmp_path,
        {"storage": DYING.format(after=after + 10_000, work="pass"), "bereft": BEREFT, "living": LIVING},
        {
            "storage": "driver_domain = 1",
            "bereft": 'disk = ["format=raw,vdev=xvda,access=rw,backend=storage,target=bereft.img"]',
            "living": 'disk = ["living.img,raw,xvda,rw"]',
        },
    )
    assert "storage" in failed
    assert "living" not in failed
    assert "all is well" in printed
    assert "the disk is gone" in printed or "bereft" in failed
