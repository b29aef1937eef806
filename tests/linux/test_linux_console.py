"""A guest's console at a real terminal: it is live, takes keys, and Ctrl-] leaves it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

from conftest import ROOT, Build
from terminal import SECONDS, Terminal

from toolstack.control.client import Control

PROMPT = "/ # "


def test_a_shell_at_a_terminal(build: Build, tmp_path: Path) -> None:
    linux = build(None)
    control = tmp_path / "control"
    config = linux.config(tmp_path / "linux.cfg", 'vif = ["bridge=xenbr0"]')
    person, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 120))
    command = [sys.executable, "-c", "from toolstack.cli import main; main()", "run", "--console", "linux"]
    process = subprocess.Popen(
        [*command, "--control", str(control), str(config)],
        # As wide as the terminal, whatever a program before has left in the environment.
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "LINES": "25"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    terminal = Terminal(person)
    try:
        terminal.expect("poweroff -f\n")
        terminal.expect(PROMPT)
        # Each key comes back before the line has ended, and the guest's own line discipline mends it.
        terminal.type("echo typed")
        terminal.expect("echo typed")
        terminal.type("o\x7f-$((6*7))\r")
        terminal.expect("typed-42\n")
        terminal.expect(PROMPT)
        # Ctrl-C is the guest's, and ends what runs there, not the host.
        terminal.type("sleep 100000\r")
        terminal.expect("sleep 100000\n")
        terminal.type("\x03")
        terminal.expect(PROMPT)
        terminal.type("echo status-$?; ip link set lo up; ping -c 2 127.0.0.1 | grep received\r")
        shown = terminal.expect("2 packets received")
        assert "status-130\n" in shown
        terminal.expect(PROMPT)
        terminal.type("while true; do echo tick; sleep 1; done\r")
        terminal.expect("\ntick\n")
        terminal.type("\x1d")
        # From here on the consoles of all guests are shown, with their names.
        terminal.expect(r"\nlinux +\| tick\n")
        with Control(control) as host:
            host.ask("shutdown", domain="linux")
        terminal.expect(r"linux +\| .*reboot: ")
        terminal.expect(r"linux +1 +poweroff")
        assert process.wait(timeout=SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        terminal.close()
