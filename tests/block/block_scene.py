"""A directory with images and guests, and a host to run them on."""

import textwrap
from pathlib import Path
from typing import Any

import trio

from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.report import DomainResult, HostResult
from toolstack.xl_config import DomainConfig, load_config


class Scene:
    """A directory with images and guests, and a host to run them on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []

    def image(self, name: str, size: int = 1 << 20, data: bytes = b"") -> Path:
        path = self.directory / name
        with path.open("wb") as file:
            file.write(data)
            file.truncate(size)
        return path

    def guest(
        self,
        name: str,
        body: str,
        *images: Path,
        access: str = "rw",
        memory: int = 16,
        kind: str = "format=raw",
        vcpus: int = 1,
    ) -> DomainConfig:
        """Write a guest whose `main` is `body`, with xvda, xvdb, ... on images."""
        code = "from guest_kernel.guest import Guest\n\n\nclass Main(Guest):\n    async def main(self):\n"
        (self.directory / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        disks = [f"{kind},vdev=xvd{'abcdefgh'[n]},access={access},target={image}" for n, image in enumerate(images)]
        file = self.directory / f"{name}.cfg"
        file.write_text(
            f'name = "{name}"\nkernel = "{name}.py"\nmemory = {memory}\nvcpus = {vcpus}\ndisk = {disks!r}\n'
        )
        return load_config(file)

    def run(self, *configs: DomainConfig, **options: Any) -> HostResult:
        host = Host(consoles=ConsoleLog(self.lines.append), **options)
        result = trio.run(host.run, configs)
        assert host.leaks() == []
        return result

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def of(self, result: HostResult, name: str) -> DomainResult:
        return next(domain for domain in result.domains if domain.name == name)


RANDOM_TRAFFIC = """
import random
disk = await self.disk("xvda")
model = bytearray(disk.size)
rng = random.Random({seed})
room = disk.sectors // 12

async def worker(first):
    for _ in range(25):
        count = rng.choice([1, 3, 8, 30, 88, 100])
        at = first + rng.randrange(room - count)
        if rng.random() < 0.6:
            data = rng.randbytes(count * 512)
            await disk.write(at, data)
            model[at * 512 : (at + count) * 512] = data
        else:
            assert await disk.read(at, count) == model[at * 512 : (at + count) * 512]

threads = [self.kernel.spawn(worker(n * room)) for n in range(12)]
for thread in threads:
    await thread.join()
assert await disk.read(0, disk.sectors) == model
await disk.flush()
self.print(f"all is well: {{disk.queue.pool.persistent}}")
"""
