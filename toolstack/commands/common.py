"""What all commands share: exit codes, how a person's mistake is told, what happens to lost output."""

from __future__ import annotations

import sys
from typing import Any

import click

from toolstack.output import StandardOutput

EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
"""What a shell reports of a program whose reader has gone (128 + SIGPIPE)."""


class OneSentence(click.ClickException):
    """A person's mistake, on one line, with exit code 2."""

    exit_code = EXIT_USAGE

    def show(self, file: Any = None) -> None:
        """Print the sentence."""
        click.echo(f"paravirt: {self.format_message()}", file=file or sys.stderr)


def check_output(output: StandardOutput) -> None:
    """End the program if nobody could read all of what it had to say; quietly, if that is how the reader wants it."""
    if isinstance(output.lost, BrokenPipeError):
        sys.exit(EXIT_PIPE)
    if output.lost is not None:
        click.echo(f"paravirt: cannot write to standard output: {output.lost.strerror}", err=True)
        sys.exit(1)
