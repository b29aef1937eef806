"""`paravirt trace`: a recorded trace in words, or in the formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from hypervisor.trace import TraceError, read_trace
from toolstack.commands.common import OneSentence, check_output
from toolstack.output import StandardOutput
from toolstack.trace_formats.json_lines import format_json
from toolstack.trace_formats.perfetto import format_perfetto
from toolstack.trace_formats.text import format_trace
from toolstack.trace_formats.viewer import format_html
from toolstack.trace_formats.xentrace import format_xentrace

Records = Iterable[Sequence[Any]]


Form = Callable[[dict[str, Any], Records], Iterator[bytes]]
"""Makes a file of a trace's header and records."""


def _lines(form: Callable[[Records], Iterator[str]]) -> Form:
    return lambda _, records: (line.encode("utf-8", "backslashreplace") + b"\n" for line in form(records))


def _pieces(form: Callable[[Records], Iterator[bytes]]) -> Form:
    return lambda _, records: form(records)


FORMATS: dict[str, Form] = {
    "text": _lines(format_trace),
    "json": _lines(format_json),
    "perfetto": _pieces(format_perfetto),
    "xentrace": _pieces(format_xentrace),
    "html": format_html,
}
"""What `--format` takes, and what makes it."""


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), default="text", show_default=True,
    help="text: one line an event. json: one object a line. perfetto: for ui.perfetto.dev. "
         "xentrace: Xen's own, for `xenalyze --cpu-hz 1G`. html: a page to step through, best of a trace with "
         "`run --trace-state`.",
)  # fmt: skip
@click.option("-o", "--output", metavar="OUT", type=click.Path(path_type=Path), help="Write to a file.")
def trace(file: Path, form: str, output: Path | None) -> None:
    """Print a trace that `run --trace` recorded, or turn it into another format."""
    try:
        if output is not None and output.exists() and output.samefile(file):
            raise OneSentence(f"{str(output)!r} is the trace itself")
        header, records = read_trace(file)
        with closing(records):
            pieces = FORMATS[form](header, records)
            if output is None:
                _print(pieces)
            else:
                _save(pieces, output)
    except TraceError as error:
        raise OneSentence(str(error)) from None
    except OSError as error:
        raise OneSentence(f"cannot read the trace {str(file)!r}: {error.strerror}") from None


def _print(pieces: Iterator[bytes]) -> None:
    output = StandardOutput()
    for piece in pieces:
        output.write_bytes(piece)
        check_output(output)


def _save(pieces: Iterator[bytes], path: Path) -> None:
    cannot = f"cannot write {str(path)!r}"
    with _attempt(cannot):
        file = path.open("wb")
    try:
        for piece in pieces:
            with _attempt(cannot):
                file.write(piece)
    finally:
        with _attempt(cannot):
            file.close()


@contextmanager
def _attempt(cannot: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OneSentence(f"{cannot}: {error.strerror}") from None
