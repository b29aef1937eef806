"""Processes as subjects: the C example passes, its planted faults are caught, and no process harms the kit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from conformance.suites import SUITES
from toolstack.cli import main

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "examples/conformance/c_backend/backend.c"
FRONTEND = ROOT / "examples/conformance/c_frontend/frontend.c"
FOLDERS = [*os.environ.get("C_INCLUDE_PATH", "").split(":"), "/usr/include", "/usr/local/include"]
FAULTS = {
    1: ("it does not look again before it sleeps", "BLKIF-BACKEND-030"),
    2: ("it reads the number of segments twice", "BLKIF-BACKEND-035"),
    3: ("the ring stays mapped after Closed", "BLKIF-BACKEND-003"),
    4: ("a request that fails keeps its other pages", "BLKIF-BACKEND-024"),
    5: ("it moves the data after the pages are unmapped", "BLKIF-BACKEND-010"),
    6: ("it notifies whatever rsp_event says", "BLKIF-BACKEND-031"),
    7: ("it keeps what it had of a frontend that died", "BLKIF-BACKEND-008"),
}


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None or not any(Path(folder, "xen/io/blkif.h").exists() for folder in FOLDERS if folder):
        message = "the example in C cannot be compiled here: a C compiler and the package libxen-dev are needed"
        if os.environ.get("PARAVIRT_REQUIRE_LIBXEN") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


def build(compiler: str, directory: Path, fault: int = 0, source: Path = SOURCE) -> Path:
    """Compile an example, with all warnings that there are."""
    program = directory / "backend"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-DFAULT={fault}", f"-I{ROOT}/conformance/wire"]
    subprocess.run([compiler, *flags, "-o", str(program), str(source)], check=True)
    return program


def serve(directory: Path, *words: str | Path, suite: str = "blkif-backend") -> tuple[int, str]:
    options = ["check", "serve", "--suite", suite, "--socket", str(directory / "socket")]
    done = CliRunner().invoke(main, [*options, *map(str, words)], catch_exceptions=False)
    assert not (directory / "socket").exists()
    return done.exit_code, done.output


def test_the_example_in_c_passes(compiler: str, tmp_path: Path) -> None:
    code, text = serve(tmp_path, "--", build(compiler, tmp_path))
    count = len(SUITES["blkif-backend"].checks)
    assert (code, text) == (0, f"{count} checks: {count} success\n")


def test_the_frontend_in_c_passes(compiler: str, tmp_path: Path) -> None:
    program = build(compiler, tmp_path, source=FRONTEND)
    code, text = serve(tmp_path, "--", program, suite="blkif-frontend")
    count = len(SUITES["blkif-frontend"].checks)
    assert (code, text) == (0, f"{count} checks: {count} success\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(compiler: str, tmp_path: Path, fault: int) -> None:
    what, meant_for_it = FAULTS[fault]
    code, text = serve(tmp_path, "--only", meant_for_it, "--", build(compiler, tmp_path, fault))
    assert code == 1, f"{what}: {text}"
    assert f"failure  {meant_for_it}" in text
    assert "1 checks: 1 failure" in text


def test_the_makefile_builds_it(compiler: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    shutil.copytree(SOURCE.parent, tmp_path / "c", ignore=shutil.ignore_patterns("backend"))
    wire = ROOT / "conformance/wire"
    subprocess.run(["make", "-s", "-C", tmp_path / "c", f"WIRE={wire}", "FAULT=3"], check=True)
    code, _ = serve(tmp_path, "--only", "BLKIF-BACKEND-003", "--", tmp_path / "c" / "backend")
    assert code == 1


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
    assert code == 2
    assert "suite 'xenstore' judges no processes; these do: blkif-backend, blkif-frontend" in text
    code, text = serve(tmp_path / "missing", "--", "true")
    assert code == 2
    assert "cannot listen on" in text
    assert len(text.splitlines()) == 1
