"""Vchans between guests of a whole host: streams, ends, deaths, and peers that lie."""

from pathlib import Path
from textwrap import dedent, indent

import pytest
import trio

from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.xl_config import load_config

PROGRAM = """
from guest_kernel.guest import Guest
from guest_kernel.vchan import VchanError, connect, listen
from guest_kernel.vchan.ring import CLI_LIVE, GRANTS, LEFT, RIGHT, SRV_LIVE
from hypervisor.abi.grant_table import GNTST_okay

PATH = "/local/domain/1/data/vchan/test"

def pattern(size, seed):
    return bytes((index * 31 + index // 251 + seed) % 256 for index in range(size))

async def read_all(channel):
    parts = bytearray()
    while data := await channel.read(3000):
        parts += data
    return bytes(parts)

async def refused(coro, match):
    try:
        await coro
    except VchanError as error:
        assert match in str(error), error
    else:
        raise AssertionError("nothing was refused")

def free(kernel):
    return kernel.grants.granted, kernel.mm.free_pages, len(kernel.events.bound())

class Tester(Guest):
    async def main(self):
        kernel = self.kernel
        await kernel.xenbus.connected()
{body}
        assert [watch.path for watch in kernel.xenbus.watches if "vchan" in watch.path] == []
"""


def run(folder: Path, *bodies: str) -> HostResult:
    """Run one guest for each body, as domains 1, 2, …; none may fail but those that crash by intention ("crash")."""
    configs = []
    for number, body in enumerate(bodies, 1):
        (folder / f"g{number}.py").write_text(PROGRAM.format(body=indent(dedent(body), " " * 8)))
        config = folder / f"g{number}.cfg"
        config.write_text(f'name = "g{number}"\nmemory = 8\nkernel = "g{number}.py"\non_crash = "destroy"\n')
        configs.append(load_config(config))
    result = trio.run(Host(consoles=ConsoleLog(print)).run, configs)
    failed = {domain.name: domain.failed for domain in result.domains}
    expected = {f"g{number}": "power.crash" in body for number, body in enumerate(bodies, 1)}
    assert {name: value for name, value in failed.items() if name in expected} == expected
    return result


@pytest.mark.parametrize("sizes", [(1000, 1000), (5000, 1), (2048, 4096), (4096, 100_000)])
def test_streams_both_ways_at_once(tmp_path: Path, sizes: tuple[int, int]) -> None:
    both = """
        data = pattern(60_000, {own})
        writing = kernel.spawn(channel.write(data), "writer")
        assert await channel.read_exactly(60_000) == pattern(60_000, {other})
        await writing.join()
    """
    server = f"channel = await listen(kernel, 2, 'data/vchan/test', read_size={sizes[0]}, write_size={sizes[1]})\n"
    run(
        tmp_path,
        server + dedent(both.format(own=1, other=2)) + "assert await channel.read() == b''\nawait channel.close()\n"
        "assert channel.kept == 0\n",
        "channel = await connect(kernel, 1, PATH)\n"
        + dedent(both.format(own=2, other=1))
        + "await channel.close()\nawait channel.close()\n",
    )


def test_a_writer_waits_for_a_slow_reader_and_then_finds_it_gone(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        channel = await listen(kernel, 2, "data/vchan/test", write_size=4096)
        await channel.write(pattern(4096, 0))
        before = kernel.monotonic_ns()
        await channel.write(b"more")
        assert kernel.monotonic_ns() - before > 400_000_000
        await refused(channel.write(bytes(10_000)), "bytes were not written")
        assert not channel.is_open
        await channel.close()
        await refused(channel.read(), "closed")
        """,
        """
        channel = await connect(kernel, 1, PATH)
        await self.sleep(0.5)
        assert await channel.read_exactly(4100) == pattern(4096, 0) + b"more"
        await self.sleep(0.1)
        await channel.close()
        """,
    )


def test_what_was_written_before_the_end_is_read(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        channel = await listen(kernel, 2, "data/vchan/test")
        await channel.write(b"last words")
        await channel.connected()
        await channel.close()
        assert channel.kept == 0
        """,
        """
        channel = await connect(kernel, 1, PATH)
        await self.sleep(0.2)
        assert await read_all(channel) == b"last words"
        await channel.close()
        """,
    )


def test_the_same_place_is_used_again_and_nothing_is_left(tmp_path: Path) -> None:
    """XSA-350: connect and part a hundred times."""
    run(
        tmp_path,
        """
        for turn in range(100):
            channel = await listen(kernel, 2, "data/vchan/test", write_size=9000)
            await channel.write(b"%d" % turn)
            assert await channel.read() == b"thanks"
            assert await channel.read() == b""
            await channel.close()
            assert channel.kept == 0
            if turn == 0:
                at_first = free(kernel)
            assert free(kernel) == at_first
        assert not await kernel.xenbus.exists("data/vchan/test")
        """,
        """
        for turn in range(100):
            while True:
                try:
                    channel = await connect(kernel, 1, PATH)
                    break
                except VchanError:  # The former one, about to be removed.
                    await self.sleep(0.001)
            assert await channel.read() == b"%d" % turn
            await channel.write(b"thanks")
            await channel.close()
            if turn == 0:
                at_first = free(kernel)
            assert free(kernel) == at_first
        """,
    )


@pytest.mark.parametrize("dies", ["server", "client"])
def test_the_death_of_the_other_domain_is_the_end(tmp_path: Path, dies: str) -> None:
    crash = "await self.kernel.power.crash('on purpose')"
    stay = "assert await read_all(channel) == b'one'\nawait refused(channel.write(b'x'), 'left')\nawait channel.close()"
    run(
        tmp_path,
        "channel = await listen(kernel, 2, 'data/vchan/test')\nawait channel.write(b'one')\nawait channel.connected()\n"
        "await self.sleep(0.1)\n" + (crash if dies == "server" else stay + "\nassert channel.kept == 0"),
        "channel = await connect(kernel, 1, PATH)\nawait channel.write(b'one')\n"
        "await self.sleep(0.1)\n" + (crash if dies == "client" else stay),
    )


def test_a_client_that_lies_breaks_its_own_channel_only(tmp_path: Path) -> None:
    """XSA-86, XSA-391: garbage indices and a storm of events; the other client's stream goes on."""
    run(
        tmp_path,
        """
        bad = await listen(kernel, 2, "data/vchan/test")
        good = await listen(kernel, 3, "data/vchan/good")
        echo = kernel.spawn(good.read_exactly(20_000), "good")
        await refused(bad.read(), "index")
        await refused(bad.write(b"x" * 5000), "index")
        await bad.close()
        await echo.join()
        await good.close()
        assert (bad.kept, good.kept) == (0, 0)
        """,
        """
        channel = await connect(kernel, 1, PATH)
        for _ in range(1000):
            kernel.events.notify(channel.port)
        words = channel._page.cast("I")
        words[LEFT + 1] = 5000
        words[RIGHT] = 1
        kernel.events.notify(channel.port)
        await self.sleep(0.2)
        await channel.close()
        """,
        """
        channel = await connect(kernel, 1, "/local/domain/1/data/vchan/good")
        for _ in range(20):
            await channel.write(bytes(1000))
            await self.sleep(0.01)
        await channel.close()
        """,
    )


def test_pages_that_a_client_keeps_are_not_used_again(tmp_path: Path) -> None:
    """XSA-396: the client says that it has left, and stays."""
    run(
        tmp_path,
        """
        channel = await listen(kernel, 2, "data/vchan/test")
        assert await channel.read() == b""
        pages = [page for page, _ in channel._granted]
        await channel.close()
        assert channel.kept == 3
        assert all(page.allocated for page in pages)
        """,
        """
        channel = await connect(kernel, 1, PATH)
        channel._page[CLI_LIVE] = 0
        kernel.events.notify(channel.port)
        await self.sleep(3)
        await channel.close()
        """,
    )


def test_servers_that_lie_are_refused(tmp_path: Path) -> None:
    """XSA-362: a bad reference at each position, orders that cannot be, nodes that are no numbers, a port of nobody."""
    run(
        tmp_path,
        """
        channel = await listen(kernel, 2, "data/vchan/test", read_size=16384, write_size=16384)
        page, words = channel._page, channel._page.cast("I")
        lies = kernel.xenbus
        good = {key: await lies.read(f"data/vchan/test/{key}") for key in ("ring-ref", "event-channel")}
        await lies.write("data/vchan/step", "")
        await lies.set_perms("data/vchan/step", ["n1", "b2"])
        steps = [("word", GRANTS // 4 + number, 999_999) for number in range(8)]
        steps += [("word", 4, left | right << 16) for left, right in [(9, 12), (10, 10), (11, 11), (21, 12), (20, 10)]]
        steps += [("node", "ring-ref", text) for text in ("-1", "x", "99999", "4294967296")]
        steps += [("node", "event-channel", text) for text in ("", "77", "0", "1e3")]
        for kind, where, lie in steps:
            if kind == "word":
                true, words[where] = words[where], lie
            else:
                await lies.write(f"data/vchan/test/{where}", lie)
            await lies.write("data/vchan/step", "try")
            await lies.wait_until("data/vchan/step", lambda value: value == "done")
            if kind == "word":
                words[where] = true
            else:
                await lies.write(f"data/vchan/test/{where}", good[where])
            assert not any(kernel.grants.is_in_use(ref) for _, ref in channel._granted)
        await lies.write("data/vchan/step", "end")
        assert await channel.read() == b"now it works"
        await channel.close()
        assert channel.kept == 0
        """,
        """
        store, step = kernel.xenbus, "/local/domain/1/data/vchan/step"
        at_first = None
        while await store.wait_until(step, lambda value: value in ("try", "end")) == "try":
            await refused(connect(kernel, 1, PATH), "server")
            at_first = at_first or free(kernel)
            assert free(kernel) == at_first
            await store.write(step, "done")
        channel = await connect(kernel, 1, PATH)
        await channel.write(b"now it works")
        await channel.close()
        """,
    )


STEPS_NS = (0, 20_000, *range(40_000, 110_000, 6_000), 200_000)


@pytest.mark.parametrize("after", STEPS_NS)
def test_a_client_that_dies_at_each_step(tmp_path: Path, after: int) -> None:
    """Before it has come the server goes on waiting, for somebody else; after that it hears of the death."""
    run(
        tmp_path,
        """
        channel = await listen(kernel, 2, "data/vchan/test", read_size=8192)
        try:
            await kernel.wait_for(read_all(channel), 2_000_000_000)
            came = True
        except TimeoutError:
            came = channel._page[CLI_LIVE] != 2
            assert not came
        await channel.close()
        assert channel.kept == 0
        assert kernel.grants.granted == 0
        self.print("came", came)
        """,
        f"""
        async def die():
            await kernel.sleep({after})
            await self.kernel.power.crash("on purpose")
        kernel.spawn(die())
        channel = await connect(kernel, 1, PATH)
        while True:
            await channel.write(bytes(1000))
        """,
    )


@pytest.mark.parametrize("after", STEPS_NS)
def test_a_server_that_dies_at_each_step(tmp_path: Path, after: int) -> None:
    run(
        tmp_path,
        f"""
        async def die():
            await kernel.sleep({after})
            await self.kernel.power.crash("on purpose")
        kernel.spawn(die())
        channel = await listen(kernel, 2, "data/vchan/test", read_size=8192)
        while True:
            await channel.read()
        """,
        """
        try:
            channel = await kernel.wait_for(connect(kernel, 1, PATH), 2_000_000_000)
        except (VchanError, TimeoutError) as error:
            self.print("never connected", error)
        else:
            try:
                while True:
                    await channel.write(bytes(1000))
            except VchanError as error:
                assert "left" in str(error)
            await channel.close()
        """,
    )
