"""The verbs of `paravirt`: each is found where the table says, and nothing else is loaded for it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from toolstack import commands
from toolstack.cli import MODULES, main

HERE = Path(next(iter(commands.__path__)))
CONTEXT = click.Context(main)
VERBS = main.list_commands(CONTEXT)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_where_the_table_says(verb: str) -> None:
    command = main.get_command(CONTEXT, verb)
    assert command is not None
    assert command.name == verb
    assert command.get_short_help_str()


def test_every_verb_that_there_is_stands_in_the_table() -> None:
    found = {}
    for name in (path.stem for path in HERE.glob("[a-z]*.py")):
        module = import_module(f"toolstack.commands.{name}")
        there = [value for value in vars(module).values() if isinstance(value, click.Command)]
        nested = {
            id(command) for group in there if isinstance(group, click.Group) for command in group.commands.values()
        }
        mine = [
            command
            for command in (*there, *getattr(module, "COMMANDS", ()))
            if id(command) not in nested and command.callback and command.callback.__module__ == module.__name__
        ]
        if mine:
            found[name] = {command.name for command in mine}
    assert found == {name: set(verbs) for name, verbs in MODULES.items()}


def test_what_asks_a_running_host_does_not_load_one() -> None:
    """`paravirt list` is typed often, and a host's modules take most of a second."""
    code = (
        "import sys\nfrom toolstack.cli import main\n"
        "main(['list', '--help'], standalone_mode=False)\n"
        "heavy = {'hypervisor.hypervisor', 'toolstack.host', 'conformance.suites', 'backends.net'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_such_verb() -> None:
    assert main.get_command(CONTEXT, "migrate-to-the-moon") is None
