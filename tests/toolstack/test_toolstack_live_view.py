"""`run --top` and `--progress` on a terminal: renewed in place below the consoles, and gone or left at the end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from control_host import Steered

BODY = """
import time
for n in range(8):
    self.print("step", n)
    await self.sleep(0.5)
    time.sleep(0.1)
"""
CLEAR_LINE = "\x1b[2K"


def on_a_terminal(*words: str) -> str:
    """Return all that a command writes to a terminal."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-c", "from toolstack.cli import main; main()", *words]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"}
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
    os.close(inner)
    shown = bytearray()
    try:
        while data := os.read(outer, 65536):
            shown += data
    except OSError:
        pass  # the other end is closed: EIO
    os.close(outer)
    assert process.wait(60) == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize("options", [("--top", "0.2"), ("--progress",), ("--top", "0.2", "--progress")])
def test_it_is_renewed_in_place(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = Steered(tmp_path).guest("g", BODY).source
    shown = on_a_terminal("run", *options, path)
    assert CLEAR_LINE in shown
    assert shown.count("step ") >= 8, "the consoles go on above"
    assert ("xentop - " in shown) == ("--top" in options)
    assert ("times as fast as real time" in shown) == ("--progress" in options)
    closing = shown[shown.rindex("of virtual time, in") :]
    assert "Domain-0" in closing
    assert "xentop" not in closing
    assert shown.rindex("\x1b[?25h") > shown.index("\x1b[?25l"), "the cursor is back"
