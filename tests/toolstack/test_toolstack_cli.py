"""The command `paravirt`, in processes of its own: output, exit codes, repeatable traces, Ctrl-C."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolstack.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = (sys.executable, "-c", "from toolstack.cli import main; main()")
HEADER = " ".join(
    ("domain", "id", "ended", "vCPU time", "hypercalls", "events", "grants", "blocks", "packets", "dropped")
)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory with the first-host example and its disk image."""
    shutil.copytree(ROOT / "examples" / "first-host", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "guest1.img").open("wb") as file:
        file.truncate(1 << 20)
    return tmp_path


def environment(hash_seed: str = "random") -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}


def paravirt(directory: Path, *arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments],
        cwd=directory,
        env=environment(hash_seed),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def squeeze(text: str) -> str:
    return re.sub(r" +", " ", text)


def test_the_main_job(host: Path) -> None:
    done = paravirt(host, "run", "guest1.cfg", "guest2.cfg")
    assert (done.returncode, done.stderr) == (0, "")
    assert "guest1   | xvda: 65536 bytes written, read back and verified\n" in done.stdout
    assert HEADER in squeeze(done.stdout)
    assert re.search(r"guest1 1 poweroff .* 256 / 128\.0 KiB", squeeze(done.stdout))


def test_quiet_shows_the_table_only(host: Path) -> None:
    done = paravirt(host, "run", "--quiet", "guest1.cfg", "guest2.cfg")
    assert done.returncode == 0
    assert "xvda" not in done.stdout
    assert HEADER in squeeze(done.stdout)


def traces(host: Path, *runs: Sequence[str]) -> list[bytes]:
    found = []
    for number, (hash_seed, *options) in enumerate(runs):
        with (host / "guest1.img").open("wb") as file:
            file.truncate(1 << 20)
        name = f"{number}.trace"
        done = paravirt(host, "run", "guest1.cfg", "guest2.cfg", "--trace", name, *options, hash_seed=hash_seed)
        assert done.returncode == 0, done.stderr
        found.append((host / name).read_bytes())
    return found


def test_the_same_run_gives_the_same_trace(host: Path) -> None:
    """In another process, with other hashes of strings, byte for byte; and another seed gives another one."""
    one, two, three, other = traces(host, ("0",), ("1",), ("random",), ("0", "--seed", "7"))
    assert one == two == three
    assert one != other


def test_a_random_schedule_is_repeatable_and_can_be_replayed(host: Path) -> None:
    one, two, three = traces(
        host, ("0", "--schedule", "random:3"), ("1", "--schedule", "random:3"), ("2", "--schedule", "random:4")
    )
    assert one == two
    assert one != three
    done = paravirt(host, "run", "guest1.cfg", "guest2.cfg", "--schedule", "replay:0.trace", "--trace", "again.trace")
    assert done.returncode == 0, done.stderr
    # All but the header, which names the schedule, is the same.
    assert (host / "again.trace").read_bytes()[-10000:] == one[-10000:]


def test_a_trace_as_text(host: Path) -> None:
    traces(host, ("0",))
    done = paravirt(host, "trace", "0.trace")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) > 1000
    for shape in (
        r"0\.\d{9} d1v0 +hypercall event_channel_op EVTCHNOP_send 0x\w+ = 0",
        r"0\.\d{9} d0v0 +hypercall domctl 0x\w+ = 0",
        r"0\.\d{9} d0v0 +gnttab_map .*status=GNTST_okay",
        r"0\.\d{9} d1v0 +domain_shutdown reason=SHUTDOWN_poweroff",
        r"0\.\d{9} d0v0 +xenstore_op .*op=INTRODUCE.*",
        r"0\.\d{9} d1v0 +schedule pcpu=0",
    ):
        assert any(re.fullmatch(shape, line) for line in lines), shape
    assert not [line for line in lines if re.search(r"kind-\d|hypercall-\d|op-\d", line)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument"),
        (["run", "none.cfg"], "paravirt: the configuration file 'none.cfg' does not exist"),
        (
            ["run", "guest1.cfg", "guest1.cfg"],
            "paravirt: guest1.cfg:1: the domain name 'guest1' is already taken by guest1.cfg",
        ),
        (["run", "guest1.cfg", "--pcpus", "0"], "0 is not in the range"),
        (["run", "guest1.cfg", "--time", "slow"], "is not one of"),
        (["run", "guest1.cfg", "--schedule", "random:x"], "paravirt: schedule 'random:x': random wants a whole number"),
        (["run", "guest1.cfg", "--nic", "xenbr0=tap"], "paravirt: --nic 'xenbr0=tap': a network card is plugged into"),
        (["run", "guest1.cfg", "--nic", "xenbr0=pcap:no/where"], "paravirt: --nic xenbr0: capture file no/where"),
        (["run", "guest1.cfg", "--trace", "no/where"], "paravirt: cannot write the trace 'no/where'"),
        (["run", "guest1.cfg", "--memory", "9"], "paravirt: too little memory: the host has 9 MiB"),
        (["run", "guest1.cfg", "--dom0", "dom0.cfg"], "paravirt: dom0.cfg:1: 'kernel' is no setting of dom0"),
        (["trace", "none"], "paravirt: cannot read the trace 'none': No such file or directory"),
        (["trace", "guest1.cfg"], "paravirt: guest1.cfg is not a trace"),
        (["fly"], "No such command"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    host: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (host / "dom0.cfg").write_text('kernel = "x"\n')
    monkeypatch.chdir(host)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in squeeze(done.stderr.replace("\n", " "))
    assert done.stdout == ""


def test_a_failing_guest_is_exit_code_1(host: Path) -> None:
    (host / "guest2.py").write_text((host / "guest2.py").read_text().replace("data.upper()", "nonsense"))
    done = paravirt(host, "run", "guest1.cfg", "guest2.cfg")
    assert done.returncode == 1
    assert "guest2   | NameError: name 'nonsense' is not defined\n" in done.stdout
    assert "paravirt: guest2 crashed: NameError: name 'nonsense' is not defined (at guest2.py:19)\n" in done.stderr
    assert HEADER in squeeze(done.stdout)


def test_dom0_has_a_configuration(host: Path) -> None:
    (host / "dom0.cfg").write_text("memory = 32\nvcpus = 2\nextra = 'some words'\n")
    assert paravirt(host, "run", "guest1.cfg", "guest2.cfg", "--dom0", "dom0.cfg", "--memory", "64").returncode == 0


@pytest.mark.parametrize(("times", "reason"), [(1, "poweroff"), (2, "destroyed")])
@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_ctrl_c(host: Path, times: int, reason: str, clock: str) -> None:
    (host / "busy.py").write_text(
        "from guest_kernel.guest import Guest\nclass Busy(Guest):\n    async def main(self):\n"
        "        self.print('up')\n        while True:\n            await self.sleep(0.001)\n"
    )
    (host / "busy.cfg").write_text("name = 'busy'\nmemory = 4\nkernel = 'busy.py'\n")
    process = subprocess.Popen(
        [*RUN, "run", "busy.cfg", "--time", clock],
        cwd=host,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy     | up\n"
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        # The second is a second one only if the first has been seen.
        assert process.stderr is not None
        assert process.stderr.readline().startswith("paravirt: shutting down")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    ended = re.search(r"busy 1 (\w+)", squeeze(out))
    assert ended is not None
    assert ended[1] in (reason, "poweroff")


def test_version_and_help() -> None:
    for option in ("--version", "--help", "-h"):
        assert CliRunner().invoke(main, [option]).exit_code == 0
    assert "Ctrl-C" in CliRunner().invoke(main, ["run", "--help"]).stdout
