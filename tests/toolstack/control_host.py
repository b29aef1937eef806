"""A host that runs while a test steers it over its control socket, as another process would."""

import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from toolstack.console_log import ConsoleLog
from toolstack.control.client import Control
from toolstack.control.endpoint import ControlEndpoint
from toolstack.host import Host
from toolstack.outside import Outside
from toolstack.report import HostResult
from toolstack.xl_config import DomainConfig, load_config


class Steered:
    """The host and its directory; `ask` is one question on a connection of its own."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.outside = Outside(ptys=options.pop("ptys", False))
        self.endpoint = ControlEndpoint(directory / "sock", self.outside)
        self.host = Host(outside=self.outside, consoles=ConsoleLog(self.lines.append), **options)
        self.result: HostResult | None = None

    def guest(self, name: str, body: str, *settings: str, head: str = "") -> DomainConfig:
        code = f"{head}\nfrom guest_kernel.guest import Guest\n\nclass Main(Guest):\n    async def main(self):\n"
        (self.directory / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        lines = (f'name = "{name}"', "memory = 4", f'kernel = "{name}.py"', *settings)
        (self.directory / f"{name}.cfg").write_text("\n".join(lines))
        return load_config(self.directory / f"{name}.cfg")

    def image(self, name: str, size: int = 1 << 20) -> Path:
        path = self.directory / name
        path.write_bytes(bytes(size))
        return path

    async def ask(self, verb: str, **args: Any) -> Any:
        def ask() -> Any:
            with Control(self.endpoint.path) as control:
                return control.ask(verb, **args)

        with trio.fail_after(30):
            return await trio.to_thread.run_sync(ask)

    async def says(self, text: str) -> None:
        """Wait until some domain prints a line that contains a text."""
        with trio.fail_after(30):
            while not any(text in line for line in self.lines):  # noqa: ASYNC110
                await trio.sleep(0.001)

    def store(self, path: str) -> str | None:
        node = self.host.xenstored.server.store.tree.get(path.encode())
        return None if node is None else node.value.decode()

    def names(self, path: str) -> list[str]:
        node = self.host.xenstored.server.store.tree.get(path.encode())
        return [] if node is None else sorted(name.decode() for name in node.names)


@asynccontextmanager
async def steered(
    directory: Path, configure: Callable[[Steered], list[DomainConfig]], *, end: bool = True, **options: Any
) -> AsyncIterator[Steered]:
    """Run a host with what `configure` returns; at the end of the block its guests are asked to shut down."""
    host = Steered(directory, **options)
    configs = configure(host)
    host.endpoint.open()

    async def run() -> None:
        host.result = await host.host.run(configs)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for config in configs:
                await started(host, config.name)
            yield host
            if end:
                host.host.interrupt()
    finally:
        host.endpoint.close()
    assert host.host.leaks() == []


async def started(host: Steered, name: str) -> None:
    """Wait until a guest runs."""

    def runs() -> bool:
        lifecycle = host.host.lifecycle
        return lifecycle is not None and any(live.name == name for live in lifecycle.live.values())

    with trio.fail_after(30):
        while not runs():  # noqa: ASYNC110
            await trio.sleep(0.001)


Body = Callable[[Steered], Awaitable[None]]
