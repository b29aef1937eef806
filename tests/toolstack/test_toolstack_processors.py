"""The verbs about processors, on a running host, and what configurations say of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from control_host import Steered, steered

from toolstack.cli import main
from toolstack.control.protocol import ControlError
from toolstack.cpupools import parse_pool
from toolstack.xl_config import DomainConfig

BURN = 'self.print("up")\nwhile True:\n    await self.cpu(ns=1_000_000)'


def three(host: Steered) -> list[DomainConfig]:
    return [
        host.guest("one", BURN, "cpu_weight = 512", 'cpus = "1-2"'),
        host.guest("two", BURN, "vcpus = 2", "cap = 60"),
        host.guest("idle", "await self.kernel.never()"),
    ]


async def shown(host: Steered, *words: str) -> list[str]:
    """What a command prints about the host."""
    arguments = [*words, "--control", str(host.directory / "sock")]

    def invoke() -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    with trio.fail_after(60):
        return (await trio.to_thread.run_sync(invoke)).splitlines()


CODE = "from guest_kernel.guest import Guest\nclass G(Guest):\n    async def main(self): ...\n"


async def test_what_the_configurations_said(tmp_path: Path) -> None:
    async with steered(tmp_path, three, pcpus=3) as host:
        await host.says("two | up")
        assert await shown(host, "sched-credit2") == [
            "Cpupool Pool-0: ratelimit=1000us",
            "Name                                ID Weight  Cap",
            "Domain-0                             0    256    0",
            "one                                  1    512    0",
            "two                                  2    256   60",
            "idle                                 3    256    0",
        ]
        vcpus = await shown(host, "vcpu-list")
        assert vcpus[0].split("  ")[0] == "Name"
        assert vcpus[0].endswith("Affinity (Hard / Soft)")
        assert [line.split()[-3:] for line in vcpus[1:]] == [
            ["all", "/", "all"],
            ["1-2", "/", "all"],
            *[["all", "/", "all"]] * 3,
        ]
        info = await shown(host, "info")
        assert "nr_cpus                : 3" in info
        assert "xen_scheduler          : credit2" in info
        assert "xen_version            : 4.17" in "\n".join(info)


async def test_changing_parameters(tmp_path: Path) -> None:
    async with steered(tmp_path, three, pcpus=3) as host:
        await host.says("two | up")
        await shown(host, "sched-credit2", "-d", "one", "-c", "30")
        await shown(host, "sched-credit2", "-s", "--ratelimit-us", "2000")
        assert (await shown(host, "sched-credit2", "-d", "one"))[1].split() == ["one", "1", "512", "30"]
        assert await shown(host, "sched-credit2", "-s") == ["Cpupool Pool-0: ratelimit=2000us"]
        await shown(host, "vcpu-pin", "two", "1", "0,2", "2")
        assert (await shown(host, "vcpu-list", "two"))[2].split()[-3:] == ["0,2", "/", "2"]
        with pytest.raises(ControlError, match="is not under the scheduler credit2, or the values are out of range"):
            await host.ask("sched-set", sched="credit2", domain="one", cap=101)
        with pytest.raises(ControlError, match="two has 2 vCPUs: there is no number 2"):
            await host.ask("vcpu-pin", domain="two", vcpu=2, hard="0")
        with pytest.raises(ControlError, match="no pCPU of its cpupool is among these"):
            await host.ask("vcpu-pin", domain="two", vcpu=0, hard="7")
        with pytest.raises(ControlError, match="there is no domain 'tow'; did you mean 'two'"):
            await host.ask("vcpu-pin", domain="tow", hard="0")


async def test_pools(tmp_path: Path) -> None:
    async with steered(tmp_path, three, pcpus=3) as host:
        await host.says("two | up")
        with pytest.raises(ControlError, match="no pCPU is free"):
            await host.ask("cpupool-create", name="rt", sched="rtds")
        await shown(host, "cpupool-cpu-remove", "Pool-0", "2")
        await shown(host, "cpupool-create", "rt", "--sched", "rtds")
        await shown(host, "cpupool-migrate", "two", "rt")
        assert await shown(host, "cpupool-list") == [
            "Name               CPUs   Sched     Active   Domain count",
            "Pool-0               2   credit2       y          3",
            "rt                   1      rtds       y          1",
        ]
        assert (await shown(host, "cpupool-list", "-c"))[1:] == ["Pool-0             0,1", "rt                 2"]
        await shown(host, "sched-rtds", "-d", "two", "-v", "1", "-p", "20000", "-b", "5000", "-e", "0")
        rows = [line.split() for line in await shown(host, "sched-rtds", "-d", "two", "-v", "all")]
        assert rows[1:] == [["two", "2", "0", "10000", "4000", "yes"], ["two", "2", "1", "20000", "5000", "no"]]
        with pytest.raises(ControlError, match="pCPU 2 and rt: it is the last one, and there are domains"):
            await host.ask("cpupool-cpu", pool="rt", cpus="2", remove=True)
        with pytest.raises(ControlError, match="pCPU 0 and Pool-0: there is no such pCPU, or it must stay"):
            await host.ask("cpupool-cpu", pool="Pool-0", cpus="0", remove=True)
        with pytest.raises(ControlError, match="there are 1 domains in rt"):
            await host.ask("cpupool-destroy", pool="rt")
        with pytest.raises(ControlError, match="Domain-0 to rt: dom0 cannot move itself"):
            await host.ask("cpupool-migrate", domain="0", pool="rt")
        with pytest.raises(ControlError, match="there is a cpupool 'Pool-0' already"):
            await host.ask("cpupool-rename", pool="rt", name="Pool-0")
        with pytest.raises(ControlError, match="cannot be the name"):
            await host.ask("cpupool-rename", pool="rt", name="a/b")
        await shown(host, "cpupool-rename", "rt", "slow")
        assert (await shown(host, "cpupool-list", "-c"))[1:] == ["Pool-0             0,1", "slow               2"]
        await shown(host, "cpupool-rename", "slow", "rt")
        await shown(host, "cpupool-migrate", "two", "Pool-0")
        await shown(host, "cpupool-destroy", "rt")
        assert len(await shown(host, "cpupool-list")) == 2
        await shown(host, "cpupool-cpu-add", "Pool-0", "all")
        assert (await shown(host, "cpupool-list", "-c", "Pool-0"))[1:] == ["Pool-0             0,1,2"]


@pytest.mark.parametrize("scheduler", ["credit", "credit-sampled", "rtds"])
def test_a_host_under_another_scheduler(tmp_path: Path, scheduler: str) -> None:
    guest = 'name = "g"\nkernel = "g.py"\nmemory = 4\n'
    (tmp_path / "g.cfg").write_text(guest)
    code = "async def main(self):\n        await self.cpu(ns=50_000_000)\n        self.print('done')"
    (tmp_path / "g.py").write_text(f"from guest_kernel.guest import Guest\nclass G(Guest):\n    {code}\n")
    first = CliRunner().invoke(
        main, ["run", str(tmp_path / "g.cfg"), "--scheduler", scheduler, "--trace", str(tmp_path / "t")]
    )
    assert first.exit_code == 0, first.output
    assert "g        | done" in first.output
    again = CliRunner().invoke(
        main, ["run", str(tmp_path / "g.cfg"), "--schedule", f"replay:{tmp_path / 't'}", "--trace", str(tmp_path / "u")]
    )
    assert again.exit_code == 0, again.output
    one, two = ((tmp_path / name).read_bytes() for name in "tu")
    assert len(one) > 1000
    assert one[300:] == two[len(two) - len(one) + 300 :], "what was recorded under any scheduler can be replayed"


def test_a_guest_without_a_window_never_runs(tmp_path: Path) -> None:
    (tmp_path / "g.cfg").write_text('name = "g"\nkernel = "g.py"\nmemory = 4\n')
    (tmp_path / "g.py").write_text(CODE)
    done = CliRunner().invoke(main, ["run", str(tmp_path / "g.cfg"), "--scheduler", "arinc653"])
    assert done.exit_code == 1
    assert "g: its scheduler, arinc653, gives it no processor" in done.output


def test_costs(tmp_path: Path) -> None:
    (tmp_path / "g.cfg").write_text('name = "g"\nkernel = "g.py"\nmemory = 4\n')
    (tmp_path / "g.py").write_text(CODE)
    (tmp_path / "c.toml").write_text("hypercall = 5000\n[hypercalls]\nsched_op = 1_000_000\n")
    for costs in (str(tmp_path / "c.toml"), "off"):
        done = CliRunner().invoke(main, ["run", str(tmp_path / "g.cfg"), "--costs", costs])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["run", str(tmp_path / "g.cfg"), "--costs", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "cannot read the costs" in done.output


def test_weights_want_a_scheduler_that_knows_them(tmp_path: Path) -> None:
    (tmp_path / "g.cfg").write_text('name = "g"\nkernel = "g.py"\nmemory = 4\ncpu_weight = 512\n')
    (tmp_path / "g.py").write_text(
        "from guest_kernel.guest import Guest\nclass G(Guest):\n    async def main(self): ...\n"
    )
    done = CliRunner().invoke(main, ["run", str(tmp_path / "g.cfg"), "--scheduler", "rtds"])
    assert done.exit_code == 2
    assert done.output.endswith("g.cfg:4: the scheduler 'rtds' knows no weights and caps\n")


# -- pools from the beginning -----------------------------------------------------------------------------------------


def in_pools(host: Steered) -> list[DomainConfig]:
    body = "self.print('up')\nawait self.kernel.never()"
    return [
        host.guest("first", body),
        host.guest("named", body, 'pool = "Pool-0"', "cpu_weight = 512"),
        host.guest("timely", body, 'pool = "rt"', "vcpus = 2"),
        host.guest("heavy", body, 'pool = "old"', "cpu_weight = 77", "cap = 40", 'cpus = "3"'),
    ]


async def test_guests_are_born_into_their_pools(tmp_path: Path) -> None:
    pools = [parse_pool("rt=rtds:1-2"), parse_pool("old=credit:3")]
    async with steered(tmp_path, in_pools, pcpus=4, pools=pools) as host:
        for name in ("first", "named", "timely", "heavy"):
            await host.says(f"{name} | up")
        assert [(row["name"], row["sched"], row["cpus"]) for row in await host.ask("cpupool-list")] == [
            ("Pool-0", "credit2", [0]),
            ("rt", "rtds", [1, 2]),
            ("old", "credit", [3]),
        ]
        rows = await host.ask("vcpu-list")
        assert {(row["name"], row["cpu"]) for row in rows} <= {
            ("Domain-0", 0),
            ("first", 0),
            ("named", 0),
            ("timely", 1),
            ("timely", 2),
            ("heavy", 3),
        }
        (pool,) = await host.ask("sched", sched="credit", domain="heavy")
        assert pool["domains"] == [{"name": "heavy", "id": 4, "params": {"weight": 77, "cap": 40}}]
        assert (await host.ask("sched", sched="credit2", domain="named"))[0]["domains"][0]["params"]["weight"] == 512


async def test_a_domain_that_is_reborn_goes_to_its_pool_again(tmp_path: Path) -> None:
    def one(host: Steered) -> list[DomainConfig]:
        body = "self.print('up')\nawait self.kernel.never()"
        return [host.guest("g", body, 'pool = "rt"')]

    async with steered(tmp_path, one, pcpus=2, pools=[parse_pool("rt=rtds:1")]) as host:
        await host.says("g | up")
        await host.ask("reboot", domain="g", wait=True)
        with trio.fail_after(30):
            while not any(row["name"] == "g" and row["id"] > 1 for row in await host.ask("list")):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert [row["domains"] for row in await host.ask("cpupool-list")] == [1, 1]


@pytest.mark.parametrize(
    ("options", "settings", "sentence"),
    [
        (("--cpupool", "rt"), "", "is not of the form NAME=SCHEDULER:CPUS"),
        (("--cpupool", "rt=rdts:1"), "", "there is no scheduler 'rdts'; did you mean 'rtds'?"),
        (("--cpupool", "=rtds:1"), "", "cannot be the name of a cpupool"),
        (("--cpupool", "rt=rtds:x"), "", "'x' is no range of CPUs"),
        (("--cpupool", "rt=rtds:all"), "", "pCPU 0 stays in Pool-0"),
        (("--cpupool", "rt=rtds:0"), "", "pCPU 0 is in Pool-0 already"),
        (("--cpupool", "rt=rtds:2"), "", "there is no pCPU 2, the host has 2"),
        (("--cpupool", "Pool-0=rtds:1"), "", "there is a cpupool of that name already"),
        (("--cpupool", "a=rtds:1", "--cpupool", "b=rtds:1"), "", "pCPU 1 is in a already"),
        (("--cpupool", "rt=rtds:1", "--schedule", "fifo"), "", "a cpupool's scheduler has no say"),
        (("--cpupool", "rt=rtds:1"), 'pool = "tr"', "the host has no cpupool 'tr'"),
        (("--cpupool", "rt=rtds:1"), 'pool = "rt"\ncpu_weight = 1', "the scheduler 'rtds' knows no weights"),
        (("--cpupool", "rt=rtds:1"), 'pool = "rt"\ncpus = "0"', "none of these CPUs is in the cpupool rt"),
        (("--cpupool", "rt=rtds:1"), 'cpus = "1"', "none of these CPUs is in the cpupool Pool-0"),
    ],
)
def test_pools_that_cannot_be_are_one_sentence(
    tmp_path: Path, options: tuple[str, ...], settings: str, sentence: str
) -> None:
    path = Steered(tmp_path).guest("g", "pass", *settings.splitlines()).source
    done = CliRunner().invoke(main, ["run", "--quiet", "--pcpus", "2", *options, path])
    assert done.exit_code == 2, done.output
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1
