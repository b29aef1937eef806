"""How long a notification takes from one domain to a handler in another, in units of a trio task hop.

Both are measured in this process, in processor time: two guests on one pCPU whose event handlers notify each other, and
two trio tasks that hand a value to each other over memory channels without buffers. They take turns; of each the best
measurement counts, for a busy machine only ever adds to one. Prints both and the ratio.

usage: python benchmarks/events.py [--hops N] [--repeats N] [--rounds N]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import trio

from toolstack.host import Host
from toolstack.xl_config import parse_config

GOAL = 0.25
HERE = Path(__file__).parent


def notifications(hops: int, repeats: int) -> list[float]:
    """Return seconds per hop between two domains, for each repeat."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results"
        configs = [
            parse_config(
                f'name = "{name}"\nmemory = 4\nkernel = "event_guest.py:{kind}"\n'
                f'extra = "{hops} {repeats} {results}"\n',
                f"{name}.cfg",
                HERE,
            )
            for name, kind in (("ping", "Ping"), ("pong", "Pong"))
        ]
        trio.run(run_until_written, configs, results)
        return [float(value) for value in json.loads(results.read_text())]


async def run_until_written(configs, results: Path) -> None:
    host = Host(hang_limit=600)
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            # The file is written by a guest, which knows no trio.
            while not await trio.Path(results).exists():  # noqa: ASYNC110
                await trio.sleep(0.01)
            host.interrupt()

        nursery.start_soon(stop)
        await host.run(configs)


def trio_hops(hops: int, repeats: int) -> list[float]:
    """Return seconds per hop between two trio tasks, for each repeat."""
    times: list[float] = []

    async def main() -> None:
        there_send, there_receive = trio.open_memory_channel(0)
        back_send, back_receive = trio.open_memory_channel(0)

        async def echo() -> None:
            async for value in there_receive:
                await back_send.send(value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            for _ in range(repeats):
                start = time.process_time()
                for number in range(hops // 2):
                    await there_send.send(number)
                    await back_receive.receive()
                times.append((time.process_time() - start) / hops)
            there_send.close()

    trio.run(main)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hops", type=int, default=8_000, help="hops in one measurement")
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each in a round")
    parser.add_argument("--rounds", type=int, default=4, help="turns that each side takes")
    arguments = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(arguments.rounds):
        ours += notifications(arguments.hops, arguments.repeats)
        theirs += trio_hops(arguments.hops, arguments.repeats)
    ratio = min(ours) / min(theirs)
    print(f"event notify to handler in another domain  {min(ours) * 1e6:8.3f} us")
    print(f"trio task hop                              {min(theirs) * 1e6:8.3f} us")
    print(f"ratio {ratio:.3f} (goal: at most {GOAL})")


if __name__ == "__main__":
    main()
