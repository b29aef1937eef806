"""Processes as subjects: the C example passes, its planted faults are caught, and no process harms the kit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from conformance.suites import SUITES
from toolstack.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/conformance"
SOURCES = {
    "blkif-backend": EXAMPLES / "c_backend/backend.c",
    "blkif-frontend": EXAMPLES / "c_frontend/frontend.c",
    "netif-backend": EXAMPLES / "c_netback/backend.c",
    "netif-frontend": EXAMPLES / "c_netfront/frontend.c",
}
PASSED = {"blkif-backend": 32, "blkif-frontend": 21, "netif-backend": 66, "netif-frontend": 50}
"""How many checks an example succeeds in, at least; others are about what it does not offer: queues, large packets."""
FOLDERS = [*os.environ.get("C_INCLUDE_PATH", "").split(":"), "/usr/include", "/usr/local/include"]
FAULTS = {
    ("blkif-backend", 1): ("it does not look again before it sleeps", "BLKIF-BACKEND-030"),
    ("blkif-backend", 2): ("it reads the number of segments twice", "BLKIF-BACKEND-035"),
    ("blkif-backend", 3): ("the ring stays mapped after Closed", "BLKIF-BACKEND-003"),
    ("blkif-backend", 4): ("a request that fails keeps its other pages", "BLKIF-BACKEND-024"),
    ("blkif-backend", 5): ("it moves the data after the pages are unmapped", "BLKIF-BACKEND-010"),
    ("blkif-backend", 6): ("it notifies whatever rsp_event says", "BLKIF-BACKEND-031"),
    ("blkif-backend", 7): ("it keeps what it had of a frontend that died", "BLKIF-BACKEND-008"),
    ("netif-backend", 1): ("it does not ask to be told of the next frame", "NETIF-BACKEND-080"),
    ("netif-backend", 2): ("it reads a slot twice", "NETIF-BACKEND-049"),
    ("netif-backend", 3): ("the rings stay mapped after Closed", "NETIF-BACKEND-005"),
    ("netif-backend", 4): ("it does not look whether its copies succeed", "NETIF-BACKEND-044"),
    ("netif-backend", 5): ("every buffer is answered with the same id", "NETIF-BACKEND-060"),
    ("netif-backend", 6): ("it notifies whatever rsp_event says", "NETIF-BACKEND-083"),
    ("netif-backend", 7): ("it keeps what it had of a frontend that died", "NETIF-BACKEND-016"),
    ("netif-frontend", 1): ("it does not ask to be told of the next frame", "NETIF-FRONTEND-061"),
    ("netif-frontend", 2): ("a page is used again before it has been answered", "NETIF-FRONTEND-030"),
    ("netif-frontend", 3): ("it believes the length of what comes", "NETIF-FRONTEND-075"),
}
"""(Suite, number of the fault) → what it is, and the check that is meant for it."""


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None or not any(Path(folder, "xen/io/blkif.h").exists() for folder in FOLDERS if folder):
        message = "the example in C cannot be compiled here: a C compiler and the package libxen-dev are needed"
        if os.environ.get("PARAVIRT_REQUIRE_LIBXEN") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


def build(compiler: str, directory: Path, suite: str, fault: int = 0) -> Path:
    """Compile an example, with all warnings that there are."""
    program = directory / "driver"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-DFAULT={fault}"]
    folders = [f"-I{ROOT}/conformance/wire", f"-I{EXAMPLES}"]
    subprocess.run([compiler, *flags, *folders, "-o", str(program), str(SOURCES[suite])], check=True)
    return program


def serve(
    directory: Path, *words: str | Path, suite: str = "blkif-backend", type: str | None = None
) -> tuple[int, str]:
    options = ["check", "serve", "--suite", suite, "--socket", str(directory / "socket")]
    options += ["--class", type] if type else []
    done = CliRunner().invoke(main, [*options, *map(str, words)], catch_exceptions=False)
    assert not (directory / "socket").exists()
    return done.exit_code, done.output


@pytest.mark.parametrize("suite", SOURCES)
def test_the_example_in_c_passes(compiler: str, tmp_path: Path, suite: str) -> None:
    code, text = serve(tmp_path, "--", build(compiler, tmp_path, suite), suite=suite)
    told = re.fullmatch(r"(\d+) checks: (\d+) success(?:, (\d+) skip)?", text.splitlines()[-1])
    assert told is not None, text
    count, passed, skipped = (int(number or 0) for number in told.groups())
    assert (code, count, count - passed - skipped) == (0, len(SUITES[suite].checks), 0)
    assert passed >= PASSED[suite]


ON_THE_BUS = {
    "blkif-backend": ("xenbus-backend", "vbd"),
    "blkif-frontend": ("xenbus-frontend", "vbd"),
    "netif-backend": ("xenbus-backend", "vif"),
    "netif-frontend": ("xenbus-frontend", "vif"),
}
"""Suite of an example → the suite of the bus for it, and its class of devices."""
BUS_FAULTS = {3: "XENBUS-BACKEND-020", 7: "XENBUS-BACKEND-022"}
"""What stays mapped is found by how the backend behaves on the bus, too."""


@pytest.mark.parametrize("example", ON_THE_BUS)
def test_the_examples_in_c_behave_on_the_bus(compiler: str, tmp_path: Path, example: str) -> None:
    suite, type = ON_THE_BUS[example]
    code, text = serve(tmp_path, "--", build(compiler, tmp_path, example), suite=suite, type=type)
    count = len(SUITES[suite].checks)
    # (A process does not hear of the end of its domain: XENBUS-FRONTEND-029.)
    told = f"{count - 1} success, 1 skip" if suite == "xenbus-frontend" else f"{count} success"
    assert (code, text.splitlines()[-1]) == (0, f"{count} checks: {told}")


@pytest.mark.parametrize("example", ["blkif-backend", "netif-backend"])
@pytest.mark.parametrize("fault", BUS_FAULTS)
def test_a_planted_fault_is_caught_on_the_bus(compiler: str, tmp_path: Path, example: str, fault: int) -> None:
    suite, type = ON_THE_BUS[example]
    words = ("--only", BUS_FAULTS[fault], "--", build(compiler, tmp_path, example, fault))
    code, text = serve(tmp_path, *words, suite=suite, type=type)
    assert code == 1
    assert f"failure  {BUS_FAULTS[fault]}" in text


@pytest.mark.parametrize(("suite", "fault"), FAULTS)
def test_a_planted_fault_is_caught(compiler: str, tmp_path: Path, suite: str, fault: int) -> None:
    what, meant_for_it = FAULTS[suite, fault]
    program = build(compiler, tmp_path, suite, fault)
    code, text = serve(tmp_path, "--only", meant_for_it, "--", program, suite=suite)
    assert code == 1, f"{what}: {text}"
    assert f"failure  {meant_for_it}" in text
    assert "1 checks: 1 failure" in text


@pytest.mark.parametrize("suite", SOURCES)
def test_the_makefile_builds_it(compiler: str, tmp_path: Path, suite: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    source = SOURCES[suite]
    shutil.copytree(source.parent, tmp_path / "c", ignore=shutil.ignore_patterns(source.stem))
    for header in EXAMPLES.glob("*.h"):
        shutil.copy(header, tmp_path)
    wire = ROOT / "conformance/wire"
    subprocess.run(["make", "-s", "-C", tmp_path / "c", f"WIRE={wire}"], check=True)
    check = SUITES[suite].checks[0].id
    code, text = serve(tmp_path, "--only", check, "--", tmp_path / "c" / source.stem, suite=suite)
    assert (code, text) == (0, "1 checks: 1 success\n")


SCRIPT = """
import os, signal, socket, struct, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["PARAVIRT_SOCKET"])
def ask(kind, payload=b"", serial=1):
    s.sendall(struct.pack("<IIIi", kind, serial, len(payload), 0) + payload)
"""
HOSTILE = {
    "hangs up": ("s.close()", "The process ends with exit code 0 before the check is over."),
    "exits": ("sys.exit(7)", "The process ends with exit code 7 before the check is over."),
    "is killed": ("os.kill(os.getpid(), signal.SIGSEGV)", "The process is killed by SIGSEGV before the check is over."),
    "is silent": ("time.sleep(60)", "The process does nothing for 0.5 seconds, and does not wait either."),
    "stops amid a message": (
        "s.sendall(b'1234567'); time.sleep(60)",
        "The process does nothing for 0.5 seconds, and does not wait either.",
    ),
    "sends a message that is too long": (
        "s.sendall(struct.pack('<IIIi', 1, 1, 0xFFFFFFFF, 0)); time.sleep(60)",
        "The process sends a message of 4294967295 bytes; there are none above 262144.",
    ),
    "sends garbage": (
        "s.sendall(bytes(range(1, 256)) * 300); time.sleep(60)",
        "The process sends a message of 202050057 bytes",
    ),
    "asks for ever": (
        "\nwhile True: ask(14); s.recv(65536)",
        "The process keeps the check busy for more than 2 seconds.",
    ),
    "takes no answers": (
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)\nfor _ in range(100000): ask(14)",
        "",
    ),
    "waits for ever": (
        "ask(1, b'\\xff' * 8); time.sleep(60)",
        "the backend of vbd 51712 did not take the device",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_process_that_does_not_behave_fails(name: str, tmp_path: Path) -> None:
    """Never a hang, never a traceback: an outcome, and a sentence."""
    act, sentence = HOSTILE[name]
    script = tmp_path / "subject.py"
    script.write_text(SCRIPT + act)
    words = ("--only", "BLKIF-BACKEND-001", "--silence", "0.5", "--limit", "2", "--", sys.executable, script)
    code, text = serve(tmp_path, *words)
    assert code == 1, text
    assert sentence in text
    assert "1 checks: 1 failure" in text
    assert "Traceback" not in text


def test_a_process_that_ends_before_it_connects(tmp_path: Path) -> None:
    code, text = serve(tmp_path, "--only", "BLKIF-BACKEND-001", "--", sys.executable, "-c", "raise SystemExit(3)")
    assert code == 1
    assert "The process ends with exit code 3 before it has connected." in text


def test_mistakes(tmp_path: Path) -> None:
    code, text = serve(tmp_path, "--", "/no/such/program")
    assert (code, text) == (2, "paravirt: there is no command '/no/such/program'\n")
    code, text = serve(tmp_path, suite="xenstore")
    assert (code, text) == (
        2,
        "paravirt: suite 'xenstore' judges no processes, for a store has a socket of its own, and is judged as "
        "unix:PATH; these do: blkif-backend, blkif-frontend, netif-backend, netif-frontend, xenbus-frontend, "
        "xenbus-backend\n",
    )
    code, text = serve(tmp_path, "--", "true", type="vif")
    assert code == 2
    assert "suite 'blkif-backend' is about one class of devices" in text
    code, text = serve(tmp_path, "--", "true", suite="xenbus-backend", type="vfb")
    assert code == 2
    assert "there is no class 'vfb' of devices here" in text
    code, text = serve(tmp_path / "missing", "--", "true")
    assert code == 2
    assert "cannot listen on" in text
    assert len(text.splitlines()) == 1
