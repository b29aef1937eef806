"""Guests of random machine code; `python tests/fuzz/instructions.py` runs thousands of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from machine_code import require_assembler

COMMAND = Path(__file__).resolve().parents[1] / "fuzz" / "instructions.py"
ROUNDS = 8


@pytest.mark.parametrize("seed", ["a", "b"])
def test_random_instructions(seed: str) -> None:
    """Nothing escapes, all accounts hold, nothing is left behind, and this is not because guests end at once."""
    require_assembler()
    command = [sys.executable, str(COMMAND), "--rounds", str(ROUNDS), "--seed", seed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    snippets = re.match(r"(\d+) snippets", done.stdout)
    assert snippets is not None
    assert int(snippets[1]) > ROUNDS * 15
