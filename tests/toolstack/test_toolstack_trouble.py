"""Output that nobody takes, traces that do not fit, and guests that raise what nobody expects."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import trio

from guest_kernel.image import PythonKernelImage
from hypervisor.abi.pv_layout import LayoutError, compute
from toolstack.builder import python_kernel
from toolstack.console_log import MAX_LINE, ConsoleLog
from toolstack.errors import ConfigError, UsageError
from toolstack.host import Host
from toolstack.xl_config import load_config
from toolstack.xl_syntax import parse

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = f"{sys.executable} -c 'from toolstack.cli import main; main()'"


@pytest.fixture
def guests(tmp_path: Path) -> Path:
    """A directory with `good.cfg`, `long.cfg`, and `bad.cfg` of a guest file `bad.py` that is still to be written."""
    for name in ("good", "long", "bad"):
        (tmp_path / f"{name}.cfg").write_text(f"name = '{name}'\nmemory = 4\nkernel = '{name}.py'\n")
    write_guest(tmp_path, "good", "async def main(self):\n    self.print('fine')\n")
    # Its trace as text is many times what a pipe holds: whoever writes that notices that nobody reads.
    write_guest(tmp_path, "long", "async def main(self):\n    for _ in range(20000):\n        self.print('fine')\n")
    return tmp_path


def write_guest(directory: Path, name: str, body: str, head: str = "") -> None:
    code = f"{head}\nfrom guest_kernel.guest import Guest\n\nclass Main(Guest):\n"
    (directory / f"{name}.py").write_text(code + textwrap.indent(body, "    "))


def shell(directory: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Execute a line of bash in which `paravirt` is the program."""
    return subprocess.run(
        ["bash", "-c", f'paravirt() {{ {PROGRAM} "$@"; }}; set -o pipefail; {command}'],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("paravirt run long.cfg --trace t > /dev/null; paravirt trace t | head -1", 141, ""),
        ("paravirt trace t > /dev/full", 1, "paravirt: cannot write to standard output: No space left on device\n"),
        ("paravirt run good.cfg | true", 141, None),
        ("paravirt run good.cfg > /dev/full", 1, None),
        ("paravirt run good.cfg >&-", 0, ""),
        ("paravirt run good.cfg --quiet > /dev/full", 1, None),
        ("paravirt run good.cfg --trace /dev/full", 2, None),
    ],
)
def test_output_that_nobody_takes(guests: Path, command: str, code: int, sentence: str | None) -> None:
    done = shell(guests, f"paravirt run good.cfg --trace t > /dev/null; {command}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert sentence in (None, done.stderr)


@pytest.mark.parametrize("full", ["--trace /dev/full", "--nic xenbr0=pcap:/dev/full"])
def test_a_file_that_could_not_be_finished_leaves_the_rest_of_the_run(guests: Path, full: str) -> None:
    done = shell(guests, f"paravirt run good.cfg {full}")
    assert done.returncode == 2
    assert "good     | fine\n" in done.stdout
    assert re.search(r"^ good +1 +poweroff", done.stdout, re.MULTILINE), "no closing table"
    assert len(done.stderr.splitlines()) == 1
    assert "/dev/full" in done.stderr


def test_more_memory_than_a_guest_can_have(guests: Path) -> None:
    (guests / "good.cfg").write_text("name = 'good'\nmemory = 1048576\nkernel = 'good.py'\n")
    done = shell(guests, "paravirt run good.cfg")
    assert (done.returncode, done.stdout) == (2, "")
    said = re.fullmatch(
        r"paravirt: good.cfg:2: too much memory: the list of its pages must lie in what a guest maps at first, and "
        r"there this kernel has room for that of (\d+) MiB\n",
        done.stderr,
    )
    assert said, done.stderr
    kernel = python_kernel(PythonKernelImage(name="good", main=lambda kernel: None, drivers=[]))
    for memory, fits in ((int(said[1]), True), (int(said[1]) + 1, False)):
        with nullcontext() if fits else pytest.raises(LayoutError):
            compute(kernel.virt_base, kernel.start, kernel.end, memory * 256)


@pytest.mark.parametrize("body", ["while True:\n    pass", "import time\ntime.sleep(60)"])
def test_a_guest_file_that_does_not_come_to_an_end(guests: Path, body: str) -> None:
    write_guest(guests, "bad", "async def main(self):\n    pass\n", head=body)
    host = Host(hang_limit=0.3)
    with pytest.raises(UsageError) as caught:
        trio.run(host.run, [load_config(guests / "bad.cfg")])
    line = len(body.splitlines())
    assert str(caught.value) in [
        f"{guests / 'bad.cfg'}:3: {guests / 'bad.py'}:{number}: the guest file cannot be loaded: it has not come to an "
        "end after 0.3 s of wall-clock time"
        for number in (line - 1, line)
    ]


@pytest.mark.parametrize("call", ["asyncio.sleep(1)", "asyncio.sleep(0)", "asyncio.gather(asyncio.sleep(1))"])
def test_asyncio_in_a_guest(guests: Path, call: str) -> None:
    write_guest(guests, "bad", f"async def main(self):\n    await {call}\n", head="import asyncio")
    done = shell(guests, "paravirt run --quiet bad.cfg")
    assert done.returncode == 1
    sentence = "bad.py:6: awaits asyncio; a guest awaits only its own kernel's awaitables"
    assert done.stderr == f"paravirt: bad crashed: {sentence}\n"


def test_a_guest_in_a_call_that_nothing_interrupts(guests: Path) -> None:
    """Not even signal handlers run then: what ends it is outside of the interpreter."""
    write_guest(guests, "bad", "async def main(self):\n    sum(range(10**12))\n")
    program = textwrap.dedent("""
        import trio
        from pathlib import Path
        from toolstack.host import Host
        from toolstack.stuck import LastWords
        from toolstack.xl_config import load_config

        with LastWords(seconds=2) as last_words:
            host = Host(hang_limit=0.2, heartbeat=last_words.beat)
            trio.run(host.run, [load_config(Path("bad.cfg"))])
    """)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=guests,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == (
        "paravirt: a call at bad.py:6 in main has not come back for 2 s and nothing can interrupt it: "
        "the host is ended, without shutting its domains down\n"
    )


def test_a_program_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Ctrl-Z for longer than a program may be silent: its first sign of life comes in time."""
    program = textwrap.dedent("""
        import time
        from toolstack.stuck import LastWords

        with LastWords(seconds=1) as last_words:
            for _ in range(60):
                last_words.beat()
                time.sleep(0.1)
        print("done")
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "done\n", "")


def test_last_words_of_a_run_that_ends_in_order(guests: Path) -> None:
    done = shell(guests, "paravirt run --quiet good.cfg")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_encoding_without_the_characters_of_a_guest(guests: Path) -> None:
    write_guest(guests, "bad", "async def main(self):\n    self.print('caf\\u00e9')\n")
    done = shell(guests, "paravirt run bad.cfg", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "bad      | caf\\xe9\n" in done.stdout


@pytest.mark.parametrize("keep", [20, 3001, -1])
def test_a_trace_that_has_lost_its_end(guests: Path, keep: int) -> None:
    shell(guests, "paravirt run good.cfg --trace t")
    whole = (guests / "t").read_bytes()
    (guests / "t").write_bytes(whole[:keep])
    for command in ("paravirt trace t", "paravirt run good.cfg --schedule replay:t"):
        done = shell(guests, command)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "it ends " in done.stderr


@pytest.mark.parametrize("what", ["KeyboardInterrupt", "GeneratorExit", "BaseException('odd')", "SystemExit(0)"])
@pytest.mark.parametrize(
    "shape",
    [
        "async def main(self):\n    raise {}\n",
        "def __init__(self, kernel):\n    raise {}\nasync def main(self):\n    self.print('never')\n",
    ],
)
def test_whatever_a_guest_raises_is_its_own_end_only(guests: Path, what: str, shape: str) -> None:
    write_guest(guests, "bad", shape.format(what))
    done = shell(guests, "paravirt run bad.cfg good.cfg")
    assert done.returncode == 1
    assert "good     | fine\n" in done.stdout
    assert done.stderr.startswith("paravirt: bad crashed: ")
    assert what.partition("(")[0] in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "shape", ["def main(self):\n    pass\n", "def main(self):\n    yield\n", "async def main(self):\n    yield\n"]
)
def test_a_main_that_is_no_coroutine(guests: Path, shape: str) -> None:
    write_guest(guests, "bad", shape)
    done = shell(guests, "paravirt run bad.cfg")
    assert done.returncode == 1
    assert done.stderr.startswith("paravirt: bad crashed: the main of Main is no coroutine: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("raise SystemExit(3)", "bad.py:1: the guest file cannot be loaded: SystemExit: 3"),
        ("x = " + "-" * 100_000 + "1", "bad.py: the guest file is nested too deeply"),
    ],
)
def test_a_guest_file_that_does_not_load(guests: Path, text: str, sentence: str) -> None:
    (guests / "bad.py").write_text(text)
    done = shell(guests, "paravirt run bad.cfg")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_while_a_guest_file_loads(guests: Path) -> None:
    (guests / "bad.py").write_text("print('loading', flush=True)\nwhile True:\n    pass\n")
    process = subprocess.Popen(
        [sys.executable, "-c", "from toolstack.cli import main; main()", "run", "bad.cfg"],
        cwd=guests,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "")


def test_a_number_of_a_thousand_digits() -> None:
    with pytest.raises(ConfigError, match="x:1: this number has 5000 digits"):
        parse("memory = " + "9" * 5000, "x")


def test_a_line_without_end_is_folded_evenly() -> None:
    lines: list[str] = []
    log = ConsoleLog(lines.append)
    log.feed("a", b"x" * (3 * MAX_LINE))
    log.feed("a", b"y\n")
    assert lines == [f"a | {'x' * MAX_LINE}\\\n"] * 2 + [f"a | {'x' * MAX_LINE}\\\n", "a | y\n"]


def test_text_cannot_be_turned_around() -> None:
    lines: list[str] = []
    ConsoleLog(lines.append).feed("a", "x\u202ey\u2066z\n".encode())
    assert lines == ["a | x\\u202ey\\u2066z\n"]


def test_a_capture_that_does_not_fit_is_one_sentence(guests: Path) -> None:
    """The network goes on; whoever wants the capture is told that it is not complete."""
    write_guest(
        guests,
        "good",
        """async def main(self):
    eth0 = await self.net.interface("eth0")
    eth0.configure("10.0.0.1/24")
    socket = self.net.udp_socket()
    for _ in range(20):
        await socket.sendto(bytes(1400), ("10.0.0.255", 9))
    self.print("sent")
""",
    )
    with (guests / "good.cfg").open("a") as config:
        config.write("vif = ['']\n")
    done = shell(guests, "paravirt run good.cfg --nic xenbr0=pcap:/dev/full")
    assert done.returncode == 2
    assert "sent" in done.stdout
    assert done.stderr == "paravirt: capture file /dev/full: No space left on device; it is not complete\n"
