"""A host with one exported disk, in this process, and clients of it in threads or processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.nbd_export import ExportSpec
from toolstack.report import HostResult
from toolstack.xl_config import DomainConfig, load_config

PATIENCE = 60.0 + float(os.environ.get("PARAVIRT_FIO_SECONDS", "0"))
"""Seconds that a client may take."""
WAITS = """
disk = await self.disk("xvda")
self.print("ready")
"""


def need(*tools: str) -> None:
    """Skip the test without these programs."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so it cannot be tried on an export")


class Scene:
    """A directory with an image, a guest that has it as xvda, and the socket of its export."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image = directory / "disk.img"
        self.path = directory / "nbd.sock"
        self.uri = f"nbd+unix:///?socket={self.path}"
        self.lines: list[str] = []
        self.make_image(16 << 20)
        self.host: Host

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def make_image(self, size: int, data: bytes = b"") -> None:
        with self.image.open("wb") as file:
            file.write(data)
            file.truncate(size)

    def guest(self, body: str = WAITS, *, name: str = "guest", access: str = "rw", memory: int = 32) -> DomainConfig:
        code = "from guest_kernel.guest import Guest\n\n\nclass Main(Guest):\n    async def main(self):\n"
        (self.directory / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        disk = f"format=raw,vdev=xvda,access={access},target={self.image}"
        file = self.directory / f"{name}.cfg"
        file.write_text(f'name = "{name}"\nkernel = "{name}.py"\nmemory = {memory}\ndisk = ["{disk}"]\n')
        return load_config(file)

    def serve(
        self, client: Callable[[], object], *configs: DomainConfig, stop: bool = True, **options: Any
    ) -> HostResult:
        """Run a host while `client` runs in a thread; end the host when that is done (`stop`). Checks for leaks."""
        export = ExportSpec("test", "guest", "xvda", path=self.path)
        options.setdefault("exports", [export])
        self.host = host = Host(consoles=ConsoleLog(self.lines.append), **options)
        results: list[HostResult] = []

        async def run() -> None:
            async def live() -> None:
                results.append(await host.run(configs or (self.guest(),)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                with trio.fail_after(PATIENCE):
                    while not self.path.exists() and not results:  # noqa: ASYNC110 - what another task opens
                        await trio.sleep(0.01)
                    await trio.to_thread.run_sync(client, abandon_on_cancel=True)
                if stop:
                    host.interrupt()

        trio.run(run)
        assert host.leaks() == []
        assert not self.path.exists()
        return results[0]


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a program that must do well; return what it prints."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE, check=False, env=env
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def fio(uri: str, *jobs: str, seconds: int = 2) -> str:
    """Run fio jobs against an export."""
    common = ["--ioengine=nbd", f"--uri={uri}", f"--runtime={seconds}", "--time_based", "--thread"]
    return run("fio", *common, "--verify_state_save=0", *jobs)
