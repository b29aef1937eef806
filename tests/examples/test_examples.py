"""Every example runs as its page says, from a copy of the repository's examples, and ends well.

An example is a folder in examples/. Its README.md has the command in a fenced block (typed at the root of the
repository); a folder without one is run with all of its configurations, `paravirt run examples/NAME/*.cfg`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from readme_commands import commands, fenced  # noqa: E402

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*/") if any(path.glob("*.cfg")))
SECONDS = 300
NEEDS = {"linux": ("PARAVIRT_LINUX_BUILD", "it downloads Debian's packages")}
"""Examples that run only where an environment variable says so, and why."""


def command_of(example: Path) -> str:
    page = example / "README.md"
    if page.exists():
        return commands(page)[0]
    return f"paravirt run examples/{example.name}/*.cfg"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the examples in it, and the `paravirt` of this checkout on the path."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    program = tmp_path / "bin" / "paravirt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from toolstack.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    return tmp_path


def test_there_are_examples() -> None:
    assert EXAMPLES
    assert NEEDS.keys() <= {example.name for example in EXAMPLES}


def run(here: Path, command: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join((str(here / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        ["sh", "-e", "-c", command],
        cwd=here,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example(example: Path, here: Path) -> None:
    variable, why = NEEDS.get(example.name, ("PATH", ""))
    if variable not in os.environ:
        pytest.skip(f"{why} ({variable} is not set)")
    done = run(here, command_of(example))
    assert done.returncode == 0, f"{command_of(example)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_readme_shows_what_its_main_job_prints(here: Path) -> None:
    """The same figures each time, on each machine; only what stands for more (...) is not compared."""
    *_, main_job = commands(ROOT / "README.md")[0].replace(".venv/bin/", "").split(" && ", 2)
    shown = next(text for text in fenced(ROOT / "README.md", "") if "xvda: 16 MiB" in text)
    done = run(here, main_job)
    assert done.returncode == 0
    printed = set(map(comparable, done.stdout.splitlines()))
    missing = [line for line in shown.splitlines() if line not in ("", "...") and comparable(line) not in printed]
    assert not missing, f"the page shows {missing}; printed is\n{done.stdout}"


def comparable(line: str) -> str:
    """Return a line without what is another in each directory: the image's path goes through dom0's xenstore."""
    line = line.rstrip()
    return re.sub(r"\d", "0", line) if line.startswith(" Domain-0") else line
