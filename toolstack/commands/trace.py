"""`paravirt trace`: a recorded trace in words."""

from __future__ import annotations

from pathlib import Path

import click

from hypervisor.trace import TraceError, read_trace
from toolstack.commands.common import OneSentence, check_output
from toolstack.output import StandardOutput
from toolstack.trace_text import format_trace


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
def trace(file: Path) -> None:
    """Print a trace that `run --trace` recorded: one line an event."""
    output = StandardOutput()
    try:
        _, records = read_trace(file)
        for line in format_trace(records):
            output.write(line + "\n")
            check_output(output)
    except TraceError as error:
        raise OneSentence(str(error)) from None
    except OSError as error:
        raise OneSentence(f"cannot read the trace {str(file)!r}: {error.strerror}") from None
